"""Input files for the validator: good lines to spoil, and the validator behind small limits."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

from jobs.lines import validate
from jobs.types import Limits, Validation

LIMITS = Limits(max_lines=20, max_file_bytes=20_000, max_line_bytes=1_000, max_custom_id_chars=32, max_depth=8)


PROMPTS: dict[str, dict[str, Any]] = {
    "/v1/completions": {"prompt": "hi"},
    "/v1/embeddings": {"input": "hi"},
    "/v1/responses": {"input": "hi"},
}


def line(
    n: int = 0, *, drop: str | None = None, body: dict[str, Any] | None = None, url: Any = None, **changes: Any
) -> bytes:
    """A good line, with members of its body and its own members changed; `drop` one, or `body.` and one of its body's."""
    chat = {"messages": [{"role": "user", "content": "hi"}]}
    prompt = PROMPTS.get(url, chat) if isinstance(url, str) else chat
    request = {
        "custom_id": f"id-{n}",
        "method": "POST",
        "url": "/v1/chat/completions" if url is None else url,
        "body": {"model": "tiny"} | prompt | (body or {}),
    } | changes
    if drop:
        where = request["body"] if drop.startswith("body.") else request
        del where[drop.removeprefix("body.")]
    return json.dumps(request).encode()


def raw(inside: bytes) -> bytes:
    """A good line with `inside` put into its body as it stands."""
    return line()[:-2] + b", " + inside + b"}}"


async def pieces(content: bytes, size: int) -> AsyncIterator[bytes]:
    for at in range(0, len(content), size):
        yield content[at : at + size]


async def check(content: bytes, *, limits: Limits = LIMITS, size: int = 11, **changes: Any) -> Validation:
    wishes: dict[str, Any] = {"shard_lines": 4, "shard_bytes": 2_000, "default_output_tokens": 100} | changes
    return await validate(pieces(content, size), limits=limits, **wishes)
