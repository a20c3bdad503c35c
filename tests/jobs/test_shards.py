"""Shards are cut where the shared prompt prefix changes, but a file that interleaves prefixes is not torn to pieces."""

from __future__ import annotations

from typing import Any

import pytest

from jobs.prefix import LOOKED_AT, WORTH_KEEPING, fingerprint, prefix_of
from jobs.types import Limits, ShardSpec
from tests.support.input_files import check, line

CHAT = "/v1/chat/completions"
SYSTEM = "s" * WORTH_KEEPING


def chat(*messages: tuple[str, Any]) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": content} for role, content in messages]}


PREFIXES = [
    (chat(("system", SYSTEM), ("user", "hi")), CHAT, SYSTEM),
    (chat(("developer", SYSTEM), ("user", "hi")), CHAT, SYSTEM),
    (chat(("system", "short"), ("user", "u" * 2_000)), CHAT, f"short\n{'u' * (LOOKED_AT - 6)}"),
    (chat(("user", "u" * 2_000)), CHAT, "u" * LOOKED_AT),
    (chat(("system", "short"), ("user", "hi")), CHAT, None),  # nothing worth keeping
    (chat(("user", [{"type": "text", "text": "t" * 2_000}])), CHAT, "t" * LOOKED_AT),
    (chat(("user", [{"type": "image_url", "image_url": {"url": "data:,"}}])), CHAT, None),
    (chat(("user", None)), CHAT, None),
    ({"messages": [{}]}, CHAT, None),
    ({"prompt": "p" * LOOKED_AT}, "/v1/completions", "p" * LOOKED_AT),
    ({"prompt": ["p" * LOOKED_AT]}, "/v1/completions", None),  # several prompts share nothing
    ({"prompt": list(range(300))}, "/v1/completions", repr(list(range(256)))),
    ({"instructions": SYSTEM, "input": "hi"}, "/v1/responses", SYSTEM),
    ({"input": "i" * 2_000}, "/v1/responses", "i" * LOOKED_AT),
    ({"input": [{"role": "system", "content": SYSTEM}]}, "/v1/responses", SYSTEM),
    ({"input": "i" * 2_000}, "/v1/embeddings", None),
]


@pytest.mark.parametrize(("body", "url", "prefix"), PREFIXES)
def test_the_prefix_of_a_request(body: dict[str, Any], url: str, prefix: str | None) -> None:
    assert prefix_of(body, url) == prefix


async def shards(pattern: str, shard_lines: int = 16) -> list[ShardSpec]:
    """One line a letter; equal letters share a system message. A dot has none."""
    content = b"\n".join(
        line(n, body=chat(*([] if letter == "." else [("system", letter * 600)]), ("user", "hi")))
        for n, letter in enumerate(pattern)
    )
    verdict = await check(content, limits=Limits(), shard_lines=shard_lines, shard_bytes=1_000_000, size=5_000)
    assert verdict.findings == ()
    return list(verdict.shards)


CUTS = [
    ("a" * 20, [16, 4]),  # one prefix: as if there were none
    ("." * 20, [16, 4]),
    ("a" * 10 + "b" * 10, [10, 10]),  # cut where it changes
    ("aaab" * 8, [4, 4, 4, 4, 4, 4, 4, 4]),  # four lines are long enough to cut after …
    ("ab" * 16, [4] * 8),  # … and no fewer: interleaved prefixes make no shard of one line
    ("aab" + "c" * 13, [16]),  # a change before four lines is no reason
    ("a" * 5 + "." * 5, [5, 5]),  # lines without a prefix are a group, too
]


@pytest.mark.parametrize(("pattern", "sizes"), CUTS)
async def test_shards_are_cut_where_the_prefix_changes(pattern: str, sizes: list[int]) -> None:
    assert [shard.lines for shard in await shards(pattern)] == sizes


async def test_a_shard_names_the_prefix_that_most_of_its_lines_share() -> None:
    grouped = await shards("a" * 10 + "b" * 10 + "." * 6)
    assert [shard.prefix for shard in grouped] == [fingerprint("a" * 600), fingerprint("b" * 600), None]
    assert [shard.prefix for shard in await shards("baaa")] == [fingerprint("a" * 600)]
    assert [shard.prefix for shard in await shards("abab")] == [None]  # half is not most
