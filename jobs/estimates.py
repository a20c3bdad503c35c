"""How many tokens a request reads and may write, before any tokenizer has seen it. Pure."""

from __future__ import annotations

from typing import Any

PROMPT_FIELD = {
    "/v1/chat/completions": "messages",
    "/v1/completions": "prompt",
    "/v1/embeddings": "input",
    "/v1/responses": "input",
}
OUTPUT_LIMITS = ("max_completion_tokens", "max_tokens", "max_output_tokens")
CHARS_PER_TOKEN = 4
TOKENS_PER_MESSAGE = 4  # role and separators of a chat template


def input_tokens(prompt: object, url: str) -> int:
    """Characters / 4 of all text in the prompt, plus a few tokens for each message.

    >>> input_tokens([{"role": "user", "content": "x" * 36}], "/v1/chat/completions")
    14
    """
    chars, tokens = _size(prompt)
    messages = len(prompt) if url == "/v1/chat/completions" and isinstance(prompt, list) else 0
    return of_chat(chars, messages) + tokens or 1


def of_chat(chars: int, messages: int) -> int:
    """Tokens of so many messages with so many characters of text."""
    return -(-chars // CHARS_PER_TOKEN) + TOKENS_PER_MESSAGE * messages


def _size(value: object) -> tuple[int, int]:
    """(characters of all strings, numbers: a completion's prompt may be a list of token ids)."""
    if isinstance(value, str):
        return len(value), 0
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return 0, 1
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    sizes = [_size(entry) for entry in inner]
    return sum(chars for chars, _ in sizes), sum(numbers for _, numbers in sizes)


def output_tokens(body: dict[str, Any], url: str, default: int) -> int:
    """The most that may be written: the stated limit or the default, for each answer to each prompt.

    >>> output_tokens({"prompt": ["a", "b"], "max_tokens": 10, "n": 3}, "/v1/completions", 100)
    60
    """
    if url == "/v1/embeddings":
        return 0
    limit = default
    for name in OUTPUT_LIMITS:
        if body.get(name) is not None:
            limit = body[name]
            break
    answers = int(body.get("best_of") or body.get("n") or 1)
    return limit * answers * (_prompts(body["prompt"]) if url == "/v1/completions" else 1)


def _prompts(prompt: object) -> int:
    return len(prompt) if isinstance(prompt, list) and not isinstance(prompt[0], int) else 1
