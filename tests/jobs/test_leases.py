"""Leases: who may work on what, until when, and who is suspected when a worker dies."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest

from jobs import batches, leases, suspects
from jobs.clock import db_now
from jobs.errors import LeaseLost, LeaseUnknown
from jobs.transitions import locked
from tests.support.databases import until_it_waits


async def test_a_shard_has_one_holder_at_a_time(room: Any) -> None:
    batch_id = await room.batch(6)
    first, second = await room.lease(batch_id, "one"), await room.lease(batch_id, "two")
    assert first.shard_id != second.shard_id
    assert await room.try_lease(batch_id, "three") is None


async def test_a_placement_may_hold_several_leases(room: Any) -> None:
    batch_id = await room.batch(6)
    first, second = await room.lease(batch_id), await room.lease(batch_id)
    assert await room.renew(first)
    assert await room.renew(second)


async def test_batches_are_served_in_the_order_given(room: Any) -> None:
    low, high = await room.batch(3), await room.batch(3)
    async with room.database.transaction() as session:
        lease = await leases.lease(session, placement_id="one", batch_ids=[high, low], ttl_s=60)
    assert lease is not None
    assert lease.batch_id == high


async def test_an_expired_lease_can_be_taken_over_under_a_new_epoch_and_nonce(room: Any) -> None:
    batch_id = await room.batch(3)
    first = await room.lease(batch_id, "one")
    room.clock(59)
    assert await room.try_lease(batch_id, "two") is None
    room.clock(2)
    second = await room.lease(batch_id, "two")
    assert (second.shard_id, second.epoch) == (first.shard_id, first.epoch + 1)
    assert second.nonce != first.nonce
    assert not await room.renew(first, "one")


async def test_taking_over_a_lease_does_not_wait_for_who_holds_the_batch_and_wants_the_shard(room: Any) -> None:
    """An expiry that closes the batch, or a late commit: both hold the batch first, and then want the shard."""
    batch_id = await room.batch(3)
    await room.lease(batch_id, "one")
    room.clock(61)
    async with room.database.transaction() as session:
        await locked(session, batch_id)
        taking = asyncio.create_task(room.try_lease(batch_id, "two"))
        await until_it_waits(room.database, taking)
        await leases.close(session, batch_id, await db_now(session))
    assert await taking is not None


async def test_renewing_moves_the_expiry(room: Any) -> None:
    batch_id = await room.batch(3)
    lease = await room.lease(batch_id)
    for _ in range(3):
        room.clock(50)
        assert await room.renew(lease)
    assert await room.try_lease(batch_id, "two") is None


async def test_an_expired_lease_that_nobody_took_is_renewed(room: Any) -> None:
    """A broker that was down for ten minutes must not throw away everyone's work."""
    batch_id = await room.batch(3)
    lease = await room.lease(batch_id)
    room.clock(600)
    assert await room.renew(lease)
    assert await room.try_lease(batch_id, "two") is None


@pytest.mark.parametrize("changes", [{"nonce": "0" * 32}, {"epoch": 2}, {"shard_id": "shard_x"}])
async def test_only_the_holder_s_proof_renews(room: Any, changes: dict[str, Any]) -> None:
    lease = await room.lease(await room.batch(3))
    assert not await room.renew(msgspec.structs.replace(lease, **changes))
    assert not await room.renew(lease, "two")


async def test_what_is_given_back_is_free_at_once_and_nobody_is_blamed(room: Any) -> None:
    batch_id = await room.batch(6)
    first, other = await room.lease(batch_id), await room.lease(batch_id)
    await room.renew(first, in_flight=[0])
    async with room.database.transaction() as session:
        assert await leases.release(session, placement_id="one", shard_id=first.shard_id) == 1
    again = await room.lease(batch_id, "two")
    assert (again.shard_id, again.suspects) == (first.shard_id, {})
    assert await room.renew(other), "the other lease goes on"


async def test_goodbye_gives_everything_back(room: Any) -> None:
    batch_id = await room.batch(6)
    await room.lease(batch_id)
    await room.lease(batch_id)
    async with room.database.transaction() as session:
        assert await leases.release(session, placement_id="one") == 2


async def test_a_lease_says_what_is_already_done(room: Any) -> None:
    batch_id = await room.batch(3)
    await room.commit(await room.lease(batch_id), [1])
    await room.abandon("one")
    assert (await room.lease(batch_id, "two")).done == ((1, 2),)


async def test_a_revoked_placement_gets_no_work(room: Any) -> None:
    batch_id = await room.batch(3)
    lease = await room.lease(batch_id)
    assert await room.revoke("one") == 1
    assert await room.revoke("one") == 0
    with pytest.raises(LeaseLost, match="revoked"):
        await room.try_lease(batch_id)
    assert not await room.renew(lease)
    assert (await room.lease(batch_id, "two")).shard_id == lease.shard_id


async def test_a_batch_that_is_past_its_deadline_or_cancelled_is_not_leased(room: Any) -> None:
    late, cancelled = await room.batch(3, completion_window="10m"), await room.batch(3)
    await room.cancel(cancelled)
    room.clock(601)
    assert await room.try_lease(late) is None
    assert await room.try_lease(cancelled) is None
    assert await room.try_lease("batch_unknown") is None


# --- suspects --------------------------------------------------------------------------------------------------------


async def test_lines_in_flight_when_a_worker_dies_are_suspects_for_the_next(room: Any) -> None:
    batch_id = await room.batch(3)
    await room.renew(await room.lease(batch_id), in_flight=[0, 1])
    room.clock(61)
    second = await room.lease(batch_id, "two")
    assert second.suspects == {0: 1, 1: 1}
    await room.renew(second, "two", in_flight=[1])
    assert await room.abandon("two") == 1
    assert (await room.lease(batch_id, "three")).suspects == {0: 1, 1: 2}


async def test_a_machine_taken_by_the_market_blames_no_line(room: Any) -> None:
    batch_id = await room.batch(3)
    await room.renew(await room.lease(batch_id), in_flight=[0])
    await room.abandon("one", blame=False)
    assert (await room.lease(batch_id, "two")).suspects == {}


async def test_engine_crashes_that_a_worker_tells_of_outlive_it(room: Any) -> None:
    batch_id = await room.batch(3)
    lease = await room.lease(batch_id)
    await room.renew(lease, suspects_told={2: 2})
    await room.renew(lease, suspects_told={2: 1, 99: 5})
    await room.abandon("one")
    assert (await room.lease(batch_id, "two")).suspects == {2: 2}, "never lowered; lines of other shards are ignored"


async def test_a_poison_line_reaches_the_attempts_at_which_it_is_given_up(room: Any) -> None:
    batch_id = await room.batch(3)
    for attempt in range(3):
        lease = await room.lease(batch_id, f"worker-{attempt}")
        assert lease.suspects == ({1: attempt} if attempt else {})
        await room.renew(lease, f"worker-{attempt}", in_flight=[1])
        room.clock(61)
    last = await room.lease(batch_id, "last")
    assert last.suspects == {1: 3}
    answer = await room.commit(last, [0, 1, 2], "last", failed=[1])
    assert (answer.outcome, answer.shard_done) == ("committed", True)


async def test_an_answered_line_is_suspect_no_more(room: Any) -> None:
    batch_id = await room.batch(3)
    lease = await room.lease(batch_id)
    await room.renew(lease, in_flight=[0, 1], suspects_told={0: 1})
    await room.commit(lease, [0])
    await room.abandon("one")
    assert (await room.lease(batch_id, "two")).suspects == {1: 1}


@pytest.mark.parametrize(
    ("stored", "told", "after"),
    [({}, {1: 1}, {1: 1}), ({1: 2}, {1: 1}, {1: 2}), ({1: 1}, {2: 1}, {1: 1, 2: 1})],
)
def test_what_is_known_of_a_line_never_shrinks(stored: dict[int, int], told: dict[int, int], after: Any) -> None:
    assert suspects.merged(stored, told) == after


# --- what a lease entitles to ----------------------------------------------------------------------------------------


async def claim(room: Any, lease: Any, placement: str = "one", **changes: Any) -> Any:
    facts = {"shard_id": lease.shard_id, "epoch": lease.epoch, "nonce": lease.nonce} | changes
    async with room.database.transaction() as session:
        [found] = await leases.claims(session, [leases.Held(placement_id=placement, **facts)])
        return found


async def test_a_lease_entitles_to_parts_of_its_shard_even_when_it_is_past(room: Any) -> None:
    batch_id = await room.batch(3)
    lease = await room.lease(batch_id)
    held = leases.Claim(project=lease.project, batch_id=batch_id, shard_id=lease.shard_id, epoch=lease.epoch)
    assert await claim(room, lease) == held
    await room.abandon("one")
    assert await claim(room, lease) == held, "what is finished may still be uploaded and committed"


@pytest.mark.parametrize("changes", [{"nonce": "x"}, {"epoch": 9}, {"shard_id": "shard_x"}, {"placement": "two"}])
async def test_nobody_else_is_entitled(room: Any, changes: dict[str, Any]) -> None:
    lease = await room.lease(await room.batch(3))
    assert isinstance(await claim(room, lease, **changes), LeaseUnknown)


async def test_a_revoked_placement_is_entitled_to_nothing(room: Any) -> None:
    lease = await room.lease(await room.batch(3))
    await room.revoke("one")
    assert isinstance(await claim(room, lease), LeaseLost)


async def test_of_leases_asked_for_together_each_has_its_own_word(room: Any) -> None:
    batch_id = await room.batch(6, shard_lines=3)
    first, second = await room.lease(batch_id), await room.lease(batch_id, "two")
    await room.revoke("two")
    asked = [
        leases.Held(placement_id=placement, shard_id=lease.shard_id, epoch=lease.epoch, nonce=lease.nonce)
        for placement, lease in (("two", second), ("one", first), ("two", first))
    ]
    async with room.database.transaction() as session:
        found = await leases.claims(session, asked)
    assert [type(each) for each in found] == [LeaseLost, leases.Claim, LeaseUnknown]


# --- draining a cancelled batch --------------------------------------------------------------------------------------


async def test_cancelling_stops_new_work_and_waits_for_what_is_in_flight(room: Any) -> None:
    batch_id = await room.batch(6)
    lease = await room.lease(batch_id)
    await room.cancel(batch_id)
    assert await room.try_lease(batch_id, "two") is None
    for _ in range(3):
        room.clock(50)
        assert not await room.renew(lease, in_flight=[0]), "nothing new is to be started"
        assert await room.advance() == []
    assert (await room.commit(lease, [0])).outcome == "committed"
    room.clock(61)
    assert await room.advance() == [batch_id]


async def test_a_cancelled_batch_does_not_wait_longer_than_its_grace(room: Any) -> None:
    batch_id = await room.batch(6)
    lease = await room.lease(batch_id)
    await room.cancel(batch_id)
    room.clock(50)
    assert not await room.renew(lease, in_flight=[0])
    assert await room.advance(cancel_grace_s=51) == []
    room.clock(2)
    assert await room.advance(cancel_grace_s=51) == [batch_id]


async def test_progress_and_what_remains_follow_the_commits(room: Any) -> None:
    batch_id = await room.batch(6)
    lease = await room.lease(batch_id)
    await room.commit(lease, [0])
    async with room.database.transaction() as session:
        left = await batches.remaining(session, batch_id)
        (progress,) = (await batches.progress(session, [batch_id])).values()
        none = (await batches.progress(session, ["batch_new"]))["batch_new"]
    assert (left.lines, left.output_tokens) == (5, 5 * 8)
    assert (progress.lines_done, progress.shards, progress.shards_done, progress.leases) == (1, 2, 0, 1)
    assert (none.shards, none.lines_done) == (0, 0)
    await room.commit(lease, [1, 2])
    async with room.database.transaction() as session:
        assert (await batches.progress(session, [batch_id]))[batch_id].shards_done == 1
        assert (await batches.remaining(session, batch_id)).lines == 3
