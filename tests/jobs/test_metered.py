"""What a placement's answers took: each line once for each lease that asked for it, in the output or not."""

from __future__ import annotations

from typing import Any

from jobs.metered import Metered, TokensUsed, metered


def tokens(lines: int) -> TokensUsed:
    return TokensUsed(prompt=10 * lines, cached=lines, completion=5 * lines)


async def of(room: Any, batch_id: str, placement: str = "one") -> Metered:
    async with room.database.transaction() as session:
        return (await metered(session, [placement])).get(placement, {}).get(batch_id, Metered())


async def test_a_replayed_commit_adds_nothing(room: Any) -> None:
    batch_id = await room.batch(6)
    asked = await room.part(await room.lease(batch_id), [0, 1])
    assert (await room.send(asked)).outcome == "committed"
    once = await of(room, batch_id)
    assert (await room.send(asked)).outcome == "replayed"
    assert once == await of(room, batch_id) == Metered(counted=tokens(2))


async def test_lines_of_a_refused_part_that_are_committed_anew_were_bought_once(room: Any) -> None:
    batch_id = await room.batch(6)
    lease = await room.lease(batch_id)
    await room.send(await room.part(lease, [0, 1], seq=0))
    refused = await room.part(lease, [1, 2], seq=1)
    assert (await room.send(refused)).outcome == "rejected_overlap"
    assert (await of(room, batch_id)).whole == tokens(3)
    await room.send(await room.part(lease, [2], seq=2))
    assert await of(room, batch_id) == Metered(counted=tokens(3))


async def test_an_answer_that_came_after_anothers_was_paid_for(room: Any) -> None:
    batch_id = await room.batch(3)
    first = await room.lease(batch_id, ttl_s=1)
    room.clock(2)
    await room.abandon("nobody")
    second = await room.lease(batch_id, "two")
    await room.commit(second, [0, 1], placement="two")
    late = await room.part(first, [0, 1, 2])
    assert (await room.send(late)).outcome == "rejected_overlap"
    assert await of(room, batch_id) == Metered(wasted=tokens(3))
    assert await of(room, batch_id, "two") == Metered(counted=tokens(2))
