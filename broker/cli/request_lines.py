"""From what a person has (prompts, one a line) to what a batch is (OpenAI's JSONL). A batch file passes as it is."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from broker.cli.exits import USAGE, Failure

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
MAX_LINE_BYTES = 16 * 1024 * 1024


@dataclass(frozen=True)
class Input:
    """A batch file on disk, and the endpoint that its lines name (None when they are left to the broker to judge)."""

    file: Path
    endpoint: str | None


@contextmanager
def batch_input(
    file: Path, *, model: str | None, endpoint: str | None, max_tokens: int | None, lenient: bool = False
) -> Iterator[Input]:
    """`file` as a batch input. Without `model` it is taken for one already; with it each line is sent to that model:
    lines of a batch file keep their custom_id, other lines (JSON with `prompt`, or plain text) are numbered.

    `lenient`: bad lines are the broker's to refuse, also the first. Raises Failure (usage) when the file cannot be read
    or a line cannot be made into a request.
    """
    if not file.is_file():
        raise Failure(f"{file}: no such file", USAGE)
    with file.open("rb") as source:
        first = _object(source.readline(MAX_LINE_BYTES))
    found = endpoint or (first or {}).get("url")
    if model is None:
        if not lenient and (first is None or "custom_id" not in first):
            raise Failure(
                f"{file}: line 1 is no batch request (JSON with custom_id, method, url, body); "
                f"give --model to send each line as a prompt",
                USAGE,
            )
        yield Input(file, found if isinstance(found, str) else None)
        return
    chosen = found if isinstance(found, str) else CHAT
    with tempfile.TemporaryDirectory(prefix="broker-submit-") as folder:
        made = Path(folder) / "requests.jsonl"
        with file.open("rb") as source, made.open("w", encoding="utf-8") as out:
            for request in _requests(source, file, model, chosen, max_tokens):
                out.write(json.dumps(request, ensure_ascii=False) + "\n")
        yield Input(made, chosen)


def _requests(
    source: IO[bytes], file: Path, model: str, endpoint: str, max_tokens: int | None
) -> Iterator[dict[str, Any]]:
    for number, raw in enumerate(source, 1):
        if not raw.strip():
            continue
        try:
            text = raw.decode().strip()
        except UnicodeDecodeError as wrong:
            raise Failure(f"{file}: line {number} is not UTF-8: {wrong}", USAGE) from wrong
        given = _object(raw)
        if given is not None and not isinstance(given.get("prompt"), str) and not isinstance(given.get("body"), dict):
            raise Failure(f"{file}: line {number} has neither `prompt` (text) nor `body` (a request)", USAGE)
        yield _request(
            given, text=text, custom_id=f"line-{number}", model=model, endpoint=endpoint, max_tokens=max_tokens
        )


def _request(
    given: dict[str, Any] | None, *, text: str, custom_id: str, model: str, endpoint: str, max_tokens: int | None
) -> dict[str, Any]:
    if given and "prompt" not in given:
        return {**given, "body": {**given["body"], "model": model}}
    prompt = given["prompt"] if given else text
    body: dict[str, Any] = {"model": model}
    if endpoint == COMPLETIONS:
        body["prompt"] = prompt
    else:
        body["messages"] = [{"role": "user", "content": prompt}]
    if max_tokens is not None:
        body["max_tokens"] = max_tokens
    chosen = given.get("custom_id") if given else None
    return {"custom_id": chosen or custom_id, "method": "POST", "url": endpoint, "body": body}


def _object(raw: bytes) -> dict[str, Any] | None:
    """The line as a JSON object, or None: then it is text."""
    try:
        value = json.loads(raw)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None
