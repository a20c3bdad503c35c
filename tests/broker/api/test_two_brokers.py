"""Two brokers on one database that both validate, finish and clean up: one dies midway, the other goes on, nothing is doubled."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest

from broker.claims import Claims
from broker.control.collect import Collector
from broker.control.finalise import Finaliser
from broker.control.validate import Validator
from broker.database import Database
from broker.services import Services
from jobs.clock import db_now
from markets import price_book
from tests.support.house import House, request
from tests.support.line_worker import LineWorker
from tests.support.wire_agent import offer

LEASE_S = 30.0


class Dying(Claims):
    """Of a broker that dies at its first exception: it gives nothing back."""

    async def _release(self, database: Database, token: str) -> None:
        return


@pytest.fixture
async def house(server: Any) -> AsyncIterator[House]:
    services = replace(server.services, claims=Claims("other:2", LEASE_S))
    async with services.database.transaction() as session:
        await price_book.store_offers(session, "sandbox", [offer()], now_us=await db_now(session))
    yield House(server, services, LineWorker(services))


@pytest.fixture
def doomed(house: House) -> Services:
    """The broker that dies at `house.crash_at`."""
    return replace(house.services, claims=Dying("one:1", LEASE_S))


async def uploaded(house: House) -> str:
    """A batch that nobody has looked at yet."""
    content = b"".join(json.dumps(request(n, f"text {n}")).encode() + b"\n" for n in range(2))
    file_id = await house.server.upload(content)
    body = {"input_file_id": file_id, "endpoint": "/v1/chat/completions", "completion_window": "24h"}
    return str((await house.server.call("POST", "/v1/batches", json=body)).json["id"])


def lease_runs_out(house: House) -> None:
    house.services.database.clock_offset_us += round(LEASE_S * 1_000_000) + 1


async def test_a_batch_whose_validator_dies_begins_at_the_other_broker_once_its_claim_has_run_out(
    house: House, doomed: Services
) -> None:
    batch_id = await uploaded(house)
    with house.crash_at("begin.before_txn"):
        await Validator(doomed).step()
    await Validator(house.services).step()
    assert (await house.batch(batch_id))["status"] == "validating", "the lease of the dead one still runs"
    lease_runs_out(house)
    await Validator(house.services).step()
    assert (await house.batch(batch_id))["status"] == "in_progress"
    await Validator(doomed).step()
    assert sorted(await house.run(batch_id)) == [0, 1], "each line was cut into one shard, and computed once"
    assert set(await house.results(batch_id)) == {"line-0", "line-1"}


async def test_a_batch_whose_finaliser_dies_is_ended_once_by_the_other(house: House, doomed: Services) -> None:
    batch_id = await uploaded(house)
    await Validator(house.services).step()
    await house.worker.work(batch_id)
    with house.crash_at("finalise.before_txn"):
        await Finaliser(doomed).step()
    await Finaliser(house.services).step()
    assert (await house.batch(batch_id))["status"] == "finalizing", "the lease of the dead one still runs"
    lease_runs_out(house)
    await asyncio.gather(Finaliser(house.services).step(), Finaliser(house.services).step())
    assert (await house.batch(batch_id))["status"] == "completed"
    assert set(await house.results(batch_id)) == {"line-0", "line-1"}
    told = await house.server.call("GET", f"/v1/batches/{batch_id}/events", headers={"Accept": "application/json"})
    assert [each["type"] for each in told.json["data"]].count("batch.completed") == 1


async def test_a_broker_that_was_paused_begins_nothing_that_another_has_begun(house: House, doomed: Services) -> None:
    """It goes on where it was when its lease ran out, with what it had read then."""
    batch_id = await uploaded(house)

    class Pause:
        def reached(self, point: str) -> None:
            if point == "begin.before_txn":
                lease_runs_out(house)
                self.other = asyncio.ensure_future(Validator(house.services).step())

        def __getattr__(self, name: str) -> Any:
            return getattr(house.services.failpoints, name)

    pause: Any = Pause()
    await Validator(replace(doomed, failpoints=pause)).step()
    await pause.other
    lease_runs_out(house)
    await Validator(house.services).step()
    assert (await house.batch(batch_id))["status"] == "in_progress"
    assert sorted(await house.run(batch_id)) == [0, 1]


async def test_two_brokers_that_collect_at_once_remove_an_expired_file_once(house: House, doomed: Services) -> None:
    limits = {"limits": {"file_lifetime_s": 86_400}}
    assert (await house.server.call("PATCH", "/v1/admin/projects/default", json=limits)).status == 200
    file_id = await house.server.upload(b"{}\n")
    house.services.database.clock_offset_us += 3 * 86_400 * 1_000_000
    await asyncio.gather(Collector(house.services).step(), Collector(doomed).step())
    assert (await house.server.call("GET", f"/v1/files/{file_id}/content")).status in (404, 410)
