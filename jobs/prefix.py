"""The prompt prefix that lines share: what an engine's prefix cache can keep warm between them. Pure.

A long system message is the prefix. Where there is none, it is the first `LOOKED_AT` characters of the prompt; shorter
prompts have none, because there is nothing worth keeping. Prefixes are compared as text and hashed once a shard.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import msgspec

LOOKED_AT = 1_024  # characters, about 256 tokens: sixteen blocks of vLLM's cache
WORTH_KEEPING = 512  # a system message of fewer characters is looked at together with what follows
TOKEN_IDS = 256


def prefix_of(body: Mapping[str, Any], url: str) -> str | None:
    """The text that identifies the shared beginning of a request's prompt, or None.

    >>> prefix_of({"messages": [{"role": "system", "content": "x" * 600}, {"role": "user", "content": "hi"}]},
    ...           "/v1/chat/completions") == "x" * 600
    True
    >>> prefix_of({"prompt": "a" * 2000}, "/v1/completions") == "a" * 1024
    True
    >>> prefix_of({"prompt": "short"}, "/v1/completions") is None
    True
    """
    match url:
        case "/v1/chat/completions":
            return of_messages(body["messages"])
        case "/v1/completions":
            return of_prompt(body["prompt"])
        case "/v1/responses":
            instructions = body.get("instructions")
            first = [] if not isinstance(instructions, str) else [{"role": "system", "content": instructions}]
            given = body["input"]
            return of_messages([*first, *(given if isinstance(given, list) else [{"role": "user", "content": given}])])
    return None  # embeddings: no engine caches them


def of_messages(messages: list[Any]) -> str | None:
    """The prefix of a conversation; entries that are not messages with text end it."""
    texts = []
    for message in messages:
        text = _text(message.get("content")) if isinstance(message, dict) else None
        if text is None:
            break
        texts.append(text)
    return of_texts(messages[0].get("role"), texts) if texts else None


def of_texts(role: object, texts: list[str]) -> str | None:
    """The prefix of a conversation that begins with these texts, the first of them said by `role`."""
    first = texts[0]
    if len(first) >= WORTH_KEEPING and role in ("system", "developer"):
        return first
    if len(first) < LOOKED_AT:
        first = "\n".join(texts)
    return first[:LOOKED_AT] if len(first) >= LOOKED_AT else None


def of_prompt(prompt: object) -> str | None:
    """The prefix of a plain prompt: a text, or a list of token ids."""
    if isinstance(prompt, str):
        return prompt[:LOOKED_AT] if len(prompt) >= LOOKED_AT else None
    if (
        isinstance(prompt, list)
        and len(prompt) >= TOKEN_IDS
        and all(type(token) is int for token in prompt[:TOKEN_IDS])
    ):
        return repr(prompt[:TOKEN_IDS])
    return None


def _text(content: object) -> str | None:
    """A message's text; of a list of parts, their texts up to the first that is none."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        return None
    texts = []
    for part in content:
        text = part.get("text") if isinstance(part, dict) else None
        if not isinstance(text, str):
            break
        texts.append(text)
    return "\n".join(texts) if texts else None


def fingerprint(prefix: str) -> str:
    """32 hexadecimal digits, equal for equal prefixes, across files and processes."""
    return hashlib.blake2b(prefix.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


class Runs(msgspec.Struct):
    """How many lines of a shard begin with which prefix. Lines come in order; runs of one prefix cost one comparison."""

    current: str | None = None
    run: int = 0
    counted: dict[str | None, int] = {}

    def add(self, prefix: str | None, lines: int = 1) -> None:
        if prefix != self.current and self.run:
            self.counted[self.current] = self.counted.get(self.current, 0) + self.run
            self.run = 0
        self.current = prefix
        self.run += lines

    def changes_with(self, prefix: str | None) -> bool:
        return self.run > 0 and prefix != self.current

    def majority(self) -> str | None:
        """The fingerprint of the prefix that more than half of the lines share."""
        counts = dict(self.counted)
        counts[self.current] = counts.get(self.current, 0) + self.run
        most = max(counts, key=lambda prefix: counts[prefix])
        return fingerprint(most) if most is not None and 2 * counts[most] > sum(counts.values()) else None
