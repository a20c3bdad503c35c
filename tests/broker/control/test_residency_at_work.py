"""Residency while a worker works: what allowed a place when it was rented may end."""

from __future__ import annotations

from typing import Any

import pytest
from aiohttp.test_utils import make_mocked_request

from broker import worker_sessions
from broker.api.registry import Call
from broker.api.worker import _work, heartbeat
from broker.tables import Worker
from broker.worker_pool import candidates
from jobs import leases
from jobs.clock import db_now
from markets.tables import RentalRow

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
        allowed, forbidden = await candidates(session, town.services, row, await db_now(session))
    assert (allowed, [each.id for each in forbidden]) == ([], [batch])


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
