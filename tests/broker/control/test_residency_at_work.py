"""Residency while a worker works: what allowed a place when it was rented may end."""

from __future__ import annotations

from typing import Any

import pytest
from aiohttp.test_utils import make_mocked_request
from sqlalchemy import select
from sqlmodel import col

from broker import worker_pool, worker_sessions
from broker.api.batches import store_policy
from broker.api.registry import Call
from broker.api.worker import _work, heartbeat
from broker.compliance.tables import DecisionRow
from broker.tables import Worker
from broker.worker_pool import candidates
from jobs import leases
from jobs.clock import db_now
from jobs.tables import Batch
from markets import price_book
from markets.tables import RentalRow
from solver.residency import compile_countries

DAY_US = 86_400 * 1_000_000


@pytest.fixture
async def at_work(town: Any) -> tuple[str, str]:
    """A batch for Germany and a machine there that the plan gave it."""
    of = town.offer()
    await town.list_offers(of)
    batch = await town.batch()
    rental = await town.rental(of, purpose=(batch,))
    await town.assign(batch, of)
    return batch, rental


async def call(town: Any, rental: str) -> Call:
    async with town.database.transaction() as session:
        number, now_us = (await session.get_one(Worker, rental)).session, await db_now(session)
    token = worker_sessions.issue(town.services.secret, worker_sessions.fresh(rental, number, now_us, 600))
    request = make_mocked_request("POST", "/", headers={"Authorization": f"Bearer {token}"})
    return Call(town.services, request, "request", None, "", rental)


async def lease(town: Any, batch: str, rental: str) -> dict[str, Any]:
    async with town.database.transaction() as session:
        granted = await leases.lease(session, placement_id=rental, batch_ids=[batch], ttl_s=10**6)
    assert granted is not None
    return {
        "shard_id": granted.shard_id,
        "epoch": granted.epoch,
        "nonce": granted.nonce,
        "in_flight": [],
        "suspects": {},
    }


async def beat(town: Any, rental: str, held: dict[str, Any]) -> list[str]:
    body: dict[str, Any] = {"state": "ready", "leases": [held], "metrics": {}, "notice_in_s": None, "error": None}
    lost: list[str] = (await heartbeat(await call(town, rental), body))["lost"]
    return lost


async def test_a_lease_goes_on_while_its_place_is_allowed(town: Any, at_work: tuple[str, str]) -> None:
    batch, rental = at_work
    assert await beat(town, rental, await lease(town, batch, rental)) == []


async def test_a_lease_ends_when_its_market_says_that_the_offer_lies_elsewhere(
    town: Any, at_work: tuple[str, str]
) -> None:
    """Only new leases were asked about: up to a thousand lines went on where the policy denies."""
    batch, rental = at_work
    held = await lease(town, batch, rental)
    await town.list_offers(town.offer(country="US"))
    assert await beat(town, rental, held) == [held["shard_id"]]
    async with town.database.transaction() as session:
        row = await session.get_one(RentalRow, rental)
        found = await candidates(session, town.services, row, await db_now(session))
        allowed = [each async for each in found]
    assert (allowed, [each.id for each, _ in found.forbidden]) == ([], [batch])


async def test_a_lease_ends_with_its_evidence(town: Any, at_work: tuple[str, str]) -> None:
    batch, rental = at_work
    held = await lease(town, batch, rental)
    town.database.clock_offset_us = 2 * DAY_US
    assert await beat(town, rental, held) == [held["shard_id"]]


async def test_a_machine_whose_evidence_has_expired_is_ended_not_kept_idle(town: Any, at_work: tuple[str, str]) -> None:
    """The plan kept it by fresh facts, the lease was refused by the old ones: it cost money for ever and did nothing."""
    _, rental = at_work
    town.database.clock_offset_us = DAY_US - 3600 * 1_000_000
    assert (await _work(await call(town, rental)))["lease"] is not None
    async with town.database.transaction() as session:
        await leases.release(session, placement_id=rental)
    town.database.clock_offset_us = DAY_US + 1_000_000
    assert await _work(await call(town, rental)) == {"lease": None, "stop": True}
    assert "residency" in (await town.row(Worker, rental)).drain_reason


@pytest.fixture
async def ten_more(town: Any, at_work: tuple[str, str]) -> list[str]:
    """The plan put ten batches more on the machine."""
    batches = [await town.batch() for _ in range(10)]
    for each in batches:
        await town.assign(each, town.offer())
    return batches


async def for_the_us_only(town: Any, batch: str) -> None:
    async with town.database.transaction() as session:
        policy = await store_policy(session, compile_countries(["US"]), await db_now(session))
        (await session.get_one(Batch, batch)).policy_hash = policy


async def test_a_lease_judges_no_batch_after_its_own(
    town: Any, at_work: tuple[str, str], ten_more: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each lease judged every batch of the machine: with fifty agents and ten batches that took three seconds."""
    first, rental = at_work
    asked: list[str] = []
    real = worker_pool.judge

    async def counted(session: Any, services: Any, of: Any, batch: Batch, now_us: int) -> Any:
        asked.append(batch.id)
        return await real(session, services, of, batch, now_us)

    monkeypatch.setattr(worker_pool, "judge", counted)
    granted = (await _work(await call(town, rental)))["lease"]
    assert granted["batch_id"] == first
    assert asked == [first, first], "once to be chosen, and once more before it goes out"


async def test_what_is_forbidden_is_passed_over_and_a_machine_with_nothing_else_is_ended(
    town: Any, at_work: tuple[str, str], ten_more: list[str]
) -> None:
    first, rental = at_work
    for each in (first, *ten_more[:-1]):
        await for_the_us_only(town, each)
    granted = (await _work(await call(town, rental)))["lease"]
    assert granted["batch_id"] == ten_more[-1], "the only one that Germany is allowed for"
    assert await _work(await call(town, rental)) == {"lease": None, "stop": False}, "it has that to do"
    async with town.database.transaction() as session:
        await leases.release(session, placement_id=rental)
    await for_the_us_only(town, ten_more[-1])
    assert await _work(await call(town, rental)) == {"lease": None, "stop": True}
    assert "11 of its batches" in (await town.row(Worker, rental)).drain_reason
    assert sorted(await denials(town, rental)) == sorted((each, "lease") for each in (first, *ten_more))


async def denials(town: Any, rental: str) -> list[tuple[str, str]]:
    """Of the sealed refusals of a machine, batch and point."""
    async with town.database.transaction() as session:
        rows = await session.scalars(
            select(DecisionRow).where(col(DecisionRow.rental) == rental, col(DecisionRow.outcome) == "deny")
        )
        return [(each.batch, each.point) for each in rows]


async def test_a_machine_that_is_ended_for_its_place_has_the_refusal_sealed_once(
    town: Any, at_work: tuple[str, str]
) -> None:
    """It was ended with a line in the log: an auditor found nothing in the stream about why."""
    batch, rental = at_work
    await town.list_offers(town.offer(country="US"))
    for _ in range(3):
        assert await _work(await call(town, rental)) == {"lease": None, "stop": True}
    assert await denials(town, rental) == [(batch, "lease")]


async def test_a_listing_that_moves_between_choice_and_release_gives_nothing_out(
    town: Any, at_work: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What judgements of one transaction have read is read anew before a lease goes out."""
    batch, rental = at_work
    real = leases.lease

    async def meanwhile(session: Any, **asked: Any) -> Any:
        granted = await real(session, **asked)
        await price_book.store_offers(session, "town", [town.offer(country="US")], now_us=await db_now(session))
        return granted

    monkeypatch.setattr(leases, "lease", meanwhile)
    assert await _work(await call(town, rental)) == {"lease": None, "stop": True}
    assert await lease(town, batch, rental), "its shard is free again"
