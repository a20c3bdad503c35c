"""Where a batch ever was: every place, with the evidence and the times; and every decision is a record that is made again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select, text

from broker.compliance.networks import Networks
from broker.compliance.tables import DecisionRow
from broker.tables import Assignment
from jobs.clock import db_now
from jobs.tables import Shard
from markets import price_book
from tests.support.compliance import document, in_force, repin
from tests.support.house import House
from tests.support.line_worker import LineWorker
from tests.support.lock_watch import watch_locks
from tests.support.wire_agent import Agent, Rent, offer, running_batch, worker_row

SECOND_US = 1_000_000


@pytest.fixture
async def house(server: Any) -> House:
    services = replace(server.services, models={"tiny": replace(server.services.models["tiny"], revision="r1")})
    async with services.database.transaction() as session:
        await price_book.store_offers(session, "sandbox", [offer()], now_us=await db_now(session))
    return House(server, services, LineWorker(services))


async def market_says(server: Any, country: str, operator: str | None = None) -> None:
    told = replace(offer(country), operator=operator)
    async with server.services.database.transaction() as session:
        await price_book.store_offers(session, told.market, [told], now_us=await db_now(session))


async def at_work(server: Any, rent: Rent, **wishes: Any) -> tuple[str, Agent, dict[str, Any]]:
    """A batch, its machine and the lease that the machine holds."""
    batch = await running_batch(server, offer(), **wishes)
    agent = await rent()
    assert (await agent.hello()).status == 200
    await agent.heartbeat()
    lease = (await agent.lease())["lease"]
    return (
        batch,
        agent,
        {name: lease[name] for name in ("shard_id", "epoch", "nonce")} | {"in_flight": [], "suspects": {}},
    )


async def where(server: Any, batch: str) -> dict[str, Any]:
    found = await server.call("GET", f"/v1/audit/where/{batch}")
    assert found.status == 200, found.raw
    return dict(found.json)


async def replayed(server: Any) -> dict[str, Any]:
    return dict((await server.call("GET", "/v1/audit/replay")).json)


async def points(server: Any, batch: str) -> list[tuple[str, str, str]]:
    async with server.services.database.transaction() as session:
        rows = await session.scalars(select(DecisionRow).order_by(text("seq")))
        return [(each.point, each.kind, each.outcome) for each in rows if each.batch == batch]


async def test_a_machine_whose_listing_moved_midway_is_told_with_both_countries_and_their_times(
    server: Any, rent: Rent
) -> None:
    """Only the newest place was kept: the country where it had computed for hours was gone from the audit."""
    await in_force(server, document("DE, FR"))
    await market_says(server, "DE", "First Compute")
    batch, agent, held = await at_work(server, rent)
    server.services.database.clock_offset_us = 10 * SECOND_US
    await market_says(server, "FR", "Second Compute")
    assert (await agent.heartbeat(leases=[held])).json["lost"] == []
    found = await where(server, batch)
    [machine] = found["machines"]
    places = {(each["country"], each["operator"]): each for each in machine["places"]}
    assert set(places) == {("DE", None), ("DE", "First Compute"), ("FR", "Second Compute")}
    assert places["FR", "Second Compute"]["first_us"] >= places["DE", "First Compute"]["last_us"] + 9 * SECOND_US
    assert all(each["evidence"] for each in places.values())
    assert {"DE", "FR"} <= set(found["countries"])
    assert {"First Compute", "Second Compute"} <= set(found["operators"])
    before = len(await points(server, batch))
    await agent.heartbeat(leases=[held])
    assert len(await points(server, batch)) == before  # nothing moved: nothing new is sealed
    assert (await replayed(server))["mismatches"] == []


async def test_a_machine_whose_address_moves_to_another_country_midway_is_ended_and_both_are_told(
    server: Any, rent: Rent, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls_from = "DE"

    async def observed(*_: Any) -> str:
        return calls_from

    monkeypatch.setattr("broker.api.worker.observed_country", observed)
    batch, agent, held = await at_work(server, rent)
    calls_from = "RU"
    refused = await agent.heartbeat(leases=[held])
    assert (refused.status, refused.code) == (403, "residency_forbidden")
    assert (await agent.heartbeat(leases=[held])).status == 401  # its session is over
    [machine] = (await where(server, batch))["machines"]
    assert [(each["country"], each["agrees"]) for each in machine["addresses"]] == [("DE", True), ("RU", False)]
    assert (await replayed(server))["mismatches"] == []


async def test_a_machine_that_asks_for_work_from_another_country_gets_none(
    server: Any, rent: Rent, monkeypatch: pytest.MonkeyPatch
) -> None:
    await running_batch(server, offer())
    agent = await rent()
    await agent.hello()
    await agent.heartbeat()

    async def observed(*_: Any) -> str:
        return "RU"

    monkeypatch.setattr("broker.api.worker.observed_country", observed)
    assert await agent.lease() == {"lease": None, "stop": True}


async def test_a_machine_that_asks_for_more_work_from_elsewhere_loses_what_it_holds_in_the_order_of_locks(
    server: Any, rent: Rent, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its worker was locked first, then the head of the decisions, then its shards: a ring with whoever commits."""
    calls_from = "DE"

    async def observed(*_: Any) -> str:
        return calls_from

    monkeypatch.setattr("broker.api.worker.observed_country", observed)
    _, agent, held = await at_work(server, rent)
    calls_from = "RU"
    with watch_locks(server.services.database.engine):
        assert await agent.lease() == {"lease": None, "stop": True}
    async with server.services.database.transaction() as session:
        assert (await session.get_one(Shard, held["shard_id"])).state == "pending"
    assert (await worker_row(server, agent)).state == "failed"
    assert (await agent.heartbeat()).status == 401


async def test_submission_pinning_anew_and_deletion_are_sealed_and_made_again(server: Any, rent: Rent) -> None:
    await in_force(server, document("DE"))
    batch, _, _ = await at_work(server, rent)
    assert ("submit", "pin", "allow") in await points(server, batch)
    await in_force(server, document("FR", 2))
    assert await repin(server) == []  # the approval has pinned it anew
    assert ("policy", "pin", "allow") in await points(server, batch)
    shown = (await server.call("GET", f"/v1/batches/{batch}")).json
    await server.call("POST", f"/v1/batches/{batch}/cancel", json={})
    async with server.services.database.transaction() as session:
        await session.execute(text("UPDATE jobs_batch SET status = 'cancelled'"))
    gone = await server.call("DELETE", f"/v1/files/{shown['input_file_id']}")
    assert gone.status == 200, gone.raw
    assert ("deletion", "deletion", "allow") in await points(server, batch)
    [deleted] = (await where(server, batch))["deleted"]
    assert (deleted["what"], deleted["objects"]) == ("input", None), "it is sealed before the object is removed"
    told = await replayed(server)
    assert told["replayed"] >= 5 and told["mismatches"] == []


async def test_a_pin_does_not_come_out_again_when_a_proposal_behind_it_was_changed(server: Any) -> None:
    await in_force(server, document("DE"))
    await server.new_batch(lines=1)
    async with server.services.database.transaction() as session:
        dialect = session.get_bind().dialect.name
        where_ = " ON broker_proposal" if dialect == "postgresql" else ""
        await session.execute(text(f"DROP TRIGGER broker_proposal_update{where_}"))
        await session.execute(text("UPDATE broker_proposal SET body = replace(CAST(body AS TEXT), 'DE', 'FR')"
                                   if dialect == "sqlite" else
                                   "UPDATE broker_proposal SET body = replace(body::text, 'DE', 'FR')::json"))  # fmt: skip
    [wrong] = (await replayed(server))["mismatches"]
    assert "proposal" in wrong["wrong"]


async def test_erasing_a_project_leaves_a_record_for_each_of_its_batches(server: Any) -> None:
    batch = (await server.new_batch(lines=1))["id"]
    async with server.services.database.transaction() as session:
        await session.execute(text("UPDATE jobs_batch SET status = 'cancelled'"))
    erased = await server.call("DELETE", "/v1/admin/projects/default/data")
    assert erased.status == 200, erased.raw
    [gone] = (await where(server, batch))["deleted"]
    assert (gone["what"], gone["why"]) == ("everything", "project_erased")
    keys = (await where(server, batch))["keys"]
    assert [each["state"] for each in keys] == ["destroyed", "destroyed"]
    assert gone["keys_destroyed"] == [each["owner"] for each in keys], "the record says nothing of the keys"


async def test_a_table_of_networks_is_read_again_when_it_has_changed(tmp_path: Path) -> None:
    import os  # noqa: PLC0415

    table, known = tmp_path / "networks.csv", Networks()
    table.write_text("8.8.8.0/24,US\n")
    assert await known.country_of(table, "8.8.8.8") == "US"
    table.write_text("8.8.8.0/24,CA\n")
    os.utime(table, ns=(1, 1))
    assert await known.country_of(table, "8.8.8.8") == "CA"
    assert await known.country_of(tmp_path / "none.csv", "8.8.8.8") is None


async def test_answers_of_a_batch_that_an_earlier_policy_let_run_elsewhere_are_not_reused_under_the_later_one(
    house: House,
) -> None:
    """They were remembered under the policy at the end: computed in the US, reused by a batch that may be in the EU only."""
    await in_force(house.server, document("DE, US"))
    first = await house.submit("same", reuse=True)
    await in_force(house.server, document("DE", 2))
    await repin(house.server)
    assert await house.run(first) == [0]
    again = await house.submit("same", reuse=True)
    assert await house.run(again) == [0]
    third = await house.submit("same", reuse=True)
    assert await house.run(third) == []  # what the batch under the later policy computed is reused


async def test_an_input_whose_permission_was_given_out_is_not_readable_once_the_place_is_refused(
    server: Any, rent: Rent
) -> None:
    """A permission lived for 15 minutes, whatever its market told or a policy said in between."""
    await in_force(server, document("DE, FR"))
    await running_batch(server, offer())
    agent = await rent()
    await agent.hello()
    await agent.heartbeat()
    lease = (await agent.lease())["lease"]
    assert (await server.call("GET", lease["input_get"], key=None)).status == 200
    await market_says(server, "US")
    assert (await server.call("GET", lease["input_get"], key=None)).status == 404
    await market_says(server, "DE")
    assert (await server.call("GET", lease["input_get"], key=None)).status == 200
    await in_force(server, document("FR", 2))
    assert (await server.call("GET", lease["input_get"], key=None)).status == 404
    assert (await replayed(server))["mismatches"] == []


async def test_answers_that_were_reused_are_told_with_the_machines_that_computed_them(house: House, rent: Rent) -> None:
    """Nothing was sealed of a copied answer: a batch of reused answers had been nowhere."""
    first = await house.submit("same", "other", reuse=True)
    async with house.services.database.transaction() as session:
        session.add(Assignment(batch=first, offer_key=str(offer().key), plan="p", rank=0, cost_nano=0, end_us=1))
    agent = await rent()
    assert (await agent.hello()).status == 200
    await agent.heartbeat()
    await agent.work((await agent.lease())["lease"], range(2))
    await house.step()
    second = await house.submit("same", "new", reuse=True)
    assert await house.run(second) == [1]
    third = await house.submit("same", "other", "same", reuse=True)
    assert await house.run(third) == []
    found = await where(house.server, third)
    assert found["machines"] == []
    [source] = found["reused"]
    assert (source["batch"], source["lines"]) == (first, 3)
    assert [each["rental"] for each in source["machines"]] == [agent.rental]
    assert "DE" in found["countries"]
    assert ("reuse", "reuse", "allow") in await points(house.server, third)
    assert (await where(house.server, first))["reused"] == []
    fourth = await house.submit("new", reuse=True)
    assert await house.run(fourth) == []
    reused = {each["batch"]: each["lines"] for each in (await where(house.server, fourth))["reused"]}
    assert reused == {second: 1, first: None}, "how much of the first's came along by the second nobody counted"
    assert (await replayed(house.server))["mismatches"] == []
