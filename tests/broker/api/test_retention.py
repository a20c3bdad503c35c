"""How long things are kept, by project; and a project's data erased."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
from sqlalchemy import select

from broker.control.collect import Collector
from broker.control.garbage import GarbageCollector
from broker.tables import UsedProof
from jobs.clock import db_now
from jobs.errors import StoreFailed
from jobs.tables import File
from markets import price_book
from tests.support.house import House
from tests.support.line_worker import LineWorker
from tests.support.object_stores import keys_of
from tests.support.wire_agent import offer

DAY_S = 86_400
PATH = "/v1/admin/projects/default"


@pytest.fixture
async def house(server: Any) -> AsyncIterator[House]:
    async with server.services.database.transaction() as session:
        await price_book.store_offers(session, "sandbox", [offer()], now_us=await db_now(session))
    yield House(server, server.services, LineWorker(server.services))


async def keep(house: House, **limits: int) -> None:
    answer = await house.server.call("PATCH", PATH, json={"limits": limits})
    assert answer.status == 200, answer.raw


async def later(house: House, days: float) -> None:
    """So many days pass, and the loops that collect run."""
    house.services.database.clock_offset_us += int(days * DAY_S) * 1_000_000
    await Collector(house.services).step()
    await GarbageCollector(house.services).step()


async def test_one_file_that_the_store_will_not_delete_keeps_nothing_else_from_being_collected(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It ended every step there: later files stayed, and the table of used proofs grew for ever."""
    kept, gone = [await house.server.upload(b"{}") for _ in range(2)]
    services = house.services
    async with services.database.transaction() as session:
        rows = [await session.get_one(File, file) for file in (kept, gone)]
        for n, row in enumerate(rows):
            row.expires_us = n + 1  # the locked one is the first of the list
        session.add(UsedProof(proof="old", until_us=1))
    locked, delete = rows[0].object_key, type(services.store).delete

    async def refused(store: Any, key: str) -> None:
        if key == locked:
            raise StoreFailed("the object is under a legal hold")
        await delete(store, key)

    monkeypatch.setattr(type(services.store), "delete", refused)
    with pytest.raises(StoreFailed, match="legal hold"):  # the loop shows it
        await Collector(services).step()
    async with services.database.transaction() as session:
        assert (await session.get_one(File, kept)).deleted_us is None
        assert (await session.get_one(File, gone)).deleted_us is not None
        assert (await session.scalars(select(UsedProof))).all() == []


async def test_a_projects_results_and_all_that_serves_them_go_when_its_time_is_over(house: House) -> None:
    await keep(house, results_lifetime_s=7 * DAY_S)
    batch_id = await house.submit("one", "two")
    await house.run(batch_id)
    batch = await house.batch(batch_id)
    file = (await house.server.call("GET", f"/v1/files/{batch['output_file_id']}")).json
    assert file["expires_at"] - batch["completed_at"] == pytest.approx(7 * DAY_S, abs=2)
    await later(house, 6)
    assert any(f"{batch_id}/results/" in key for key in await keys_of(house.services.store))
    assert any(f"{batch_id}/parts/" in key for key in await keys_of(house.services.store))
    await later(house, 1.1)
    assert [key for key in await keys_of(house.services.store) if batch_id in key] == []
    assert (await house.server.call("GET", f"/v1/files/{batch['output_file_id']}/content")).status == 404
    assert (await house.batch(batch_id))["request_counts"]["completed"] == 2, "what it did is still told"


async def test_what_a_request_says_of_its_results_goes_before_the_project(house: House) -> None:
    await keep(house, results_lifetime_s=7 * DAY_S)
    house.also = {"output_expires_after": {"anchor": "created_at", "seconds": 3600}}
    batch = await house.batch(await self_run(house))
    file = (await house.server.call("GET", f"/v1/files/{batch['output_file_id']}")).json
    assert file["expires_at"] - file["created_at"] == 3600


async def self_run(house: House) -> str:
    batch_id = await house.submit("one")
    await house.run(batch_id)
    return batch_id


async def test_a_projects_inputs_are_kept_as_long_as_it_says(house: House) -> None:
    await keep(house, file_lifetime_s=2 * DAY_S)
    file_id = await house.server.upload(b"{}\n")
    file = (await house.server.call("GET", f"/v1/files/{file_id}")).json
    assert file["expires_at"] - file["created_at"] == 2 * DAY_S
    await keep(house, file_lifetime_s=0)
    kept = (await house.server.call("GET", f"/v1/files/{await house.server.upload(b'{}')}")).json
    assert kept["expires_at"] is None


async def test_an_erased_project_has_no_data_and_another_keeps_its_own(house: House) -> None:
    other = await house.server.key("submitter", "viewer", project="other")
    kept = await house.server.upload(b"{}\n", key=other)
    house.also = {"metadata": {"customer": "Jane Doe"}}
    batch_id = await self_run(house)
    erased = await house.server.call("DELETE", f"{PATH}/data")
    assert erased.status == 200, erased.raw
    assert erased.json["objects"] >= 3, "input, part and output"
    assert await keys_of(house.services.store) == {f"other/files/{kept}"}
    batch = await house.batch(batch_id)
    assert (batch["status"], batch["metadata"], batch["request_counts"]["completed"]) == ("completed", None, 1)
    assert (await house.server.call("GET", "/v1/files")).json["data"] == []
    assert (await house.server.call("GET", f"/v1/files/{batch['output_file_id']}/content")).status == 404
    assert (await house.server.call("GET", f"/v1/files/{kept}/content", key=other)).status == 200
    again = await house.server.call("DELETE", f"{PATH}/data")
    assert (again.status, again.json["objects"]) == (200, 0)


async def test_a_project_with_a_batch_at_work_is_not_erased(house: House) -> None:
    batch_id = await house.submit("one")
    refused = await house.server.call("DELETE", f"{PATH}/data")
    assert refused.status == 422
    assert batch_id in refused.json["error"]["message"]
    assert await house.run(batch_id) == [0], "nothing was touched"
