"""Successive shards of one prompt prefix go to the worker that keeps it warm, and nobody idles for it."""

from __future__ import annotations

import json
from typing import Any

from jobs import batches


async def prefixed(room: Any, *prefixes: str) -> str:
    """A batch of two-line shards, each shard with one system prompt."""
    rows = []
    for shard, name in enumerate(prefixes):
        for n in (2 * shard, 2 * shard + 1):
            messages = [{"role": "system", "content": name * 600}, {"role": "user", "content": f"question {n}"}]
            body = {"model": "tiny", "messages": messages, "max_tokens": 8}
            rows.append({"custom_id": f"id-{n}", "method": "POST", "url": "/v1/chat/completions", "body": body})
    file = await room.upload(b"".join(json.dumps(row).encode() + b"\n" for row in rows))
    batch = await room.create(file)
    validation = await room.validated(file, shard_lines=2)
    async with room.database.transaction() as session:
        await batches.begin(session, batch.id, validation)
    return str(batch.id)


async def taken(room: Any, batch_id: str, placement: str) -> int:
    """Which shard the placement gets next."""
    return int((await room.lease(batch_id, placement)).first_idx) // 2


async def test_a_worker_goes_on_with_the_prefix_that_it_keeps_warm(room: Any) -> None:
    batch_id = await prefixed(room, "a", "b", "a", "b", "a")
    assert [await taken(room, batch_id, "one") for _ in range(3)] == [0, 2, 4]


async def test_a_second_worker_begins_a_prefix_of_its_own(room: Any) -> None:
    batch_id = await prefixed(room, "a", "a", "b", "b")
    assert [await taken(room, batch_id, who) for who in ("one", "two", "two", "one")] == [0, 2, 3, 1]


async def test_nobody_idles_beside_work_of_another_ones_prefix(room: Any) -> None:
    batch_id = await prefixed(room, "a", "a", "a")
    assert [await taken(room, batch_id, who) for who in ("one", "two", "three")] == [0, 1, 2]


async def test_a_prefix_whose_worker_is_gone_is_anybodys(room: Any) -> None:
    batch_id = await prefixed(room, "a", "a", "b")
    await room.lease(batch_id, "one")
    await room.abandon("one")
    assert await taken(room, batch_id, "two") == 0


async def test_shards_without_a_prefix_come_in_their_order(room: Any) -> None:
    batch_id = await room.batch(8, shard_lines=2)
    assert [await taken(room, batch_id, who) for who in ("one", "two", "one", "two")] == [0, 1, 2, 3]


async def test_a_prefix_is_warm_across_batches(room: Any) -> None:
    await room.answer_all(await prefixed(room, "b"))
    later = await prefixed(room, "a", "b")
    assert await taken(room, later, "one") == 1
