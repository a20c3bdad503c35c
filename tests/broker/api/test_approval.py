"""A batch that may cost more than its project lets one person decide: it waits, costs nothing, and a second person decides."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import func, select

from broker.control.finalise import Finaliser
from broker.control.plan import Planner
from broker.control.validate import Validator
from broker.tables import Assignment
from jobs.clock import db_now
from jobs.tables import Shard
from markets import price_book
from markets.tables import RentalRow
from tests.support.wire_agent import offer

LIFE = "/v1/batches/{}/{}"


@pytest.fixture
async def town(server: Any) -> Any:
    """One offer of a market to rent at, and a project in which more than nothing needs approval."""
    async with server.services.database.transaction() as session:
        await price_book.store_offers(session, "sandbox", [offer()], now_us=await db_now(session))
    await threshold(server, "0")
    return server


async def threshold(server: Any, usd: str | None) -> None:
    answer = await server.call("PATCH", "/v1/admin/projects/default", json={"approve_above_usd": usd})
    assert answer.status == 200, answer.raw


async def proposed(server: Any, **fields: Any) -> dict[str, Any]:
    """A batch of `ada`, looked at by the loops."""
    ada = await server.key("submitter", principal="ada")
    batch = await server.new_batch(key=ada, **fields)
    return await looked_at(server, batch["id"])


async def looked_at(server: Any, batch_id: str) -> dict[str, Any]:
    for _ in range(2):
        await Validator(server.services).step()
        await Planner(server.services).step()
    return dict((await server.call("GET", f"/v1/batches/{batch_id}")).json)


async def rows(server: Any, table: Any) -> int:
    async with server.services.database.transaction() as session:
        return int(await session.scalar(select(func.count()).select_from(table)) or 0)


async def test_nothing_is_planned_rented_or_leased_before_a_second_person_approves(town: Any) -> None:
    batch = await proposed(town)
    assert (batch["status"], batch["x_broker"]["approval"][:9]) == ("validating", "approval_")
    assert [await rows(town, table) for table in (Shard, Assignment, RentalRow)] == [0, 0, 0]
    assert batch["x_broker"]["waiting"]["on"] == "approval"
    told = (await town.call("GET", LIFE.format(batch["id"], "explain"))).json
    assert (told["waiting_on"], told["reasons"]) == ("approval", batch["x_broker"]["waiting"]["reasons"])
    assert [each["profile"] for each in told["variants"]] == ["tiny"]
    ben = await town.key("finance", principal="ben")
    for _ in range(2):
        approved = await town.call("POST", LIFE.format(batch["id"], "approve"), key=ben)
        assert approved.status == 200, approved.raw
    assert (await looked_at(town, batch["id"]))["status"] == "in_progress"
    assert [await rows(town, table) for table in (Shard, Assignment, RentalRow)] == [1, 1, 1]
    late = await town.call("POST", LIFE.format(batch["id"], "reject"), key=ben, json={})
    assert (late.status, late.code) == (422, "not_awaiting_approval")
    assert "approved by ben" in late.json["error"]["message"]


async def test_whoever_submitted_it_cannot_approve_it_with_any_key(town: Any) -> None:
    batch = await proposed(town)
    other_key = await town.key("operator", "finance", principal="ada")
    for what, body in (("approve", {}), ("reject", {"json": {}})):
        refused = await town.call("POST", LIFE.format(batch["id"], what), key=other_key, **body)
        assert (refused.status, refused.code) == (403, "own_proposal")
        assert "another principal" in refused.json["error"]["message"]
    assert (await looked_at(town, batch["id"]))["status"] == "validating"


async def test_a_rejected_batch_fails_and_says_who_and_why(town: Any) -> None:
    batch = await proposed(town)
    ben = await town.key("operator", principal="ben")
    for _ in range(2):
        body = {"reason": "use the small model"}
        failed = await town.call("POST", LIFE.format(batch["id"], "reject"), key=ben, json=body)
        assert (failed.status, failed.json["status"]) == (200, "failed")
    (error,) = failed.json["errors"]["data"]
    assert (error["code"], error["message"]) == ("approval_rejected", "ben rejected it: use the small model")
    late = await town.call("POST", LIFE.format(batch["id"], "approve"), key=ben)
    assert (late.status, late.code) == (422, "not_awaiting_approval")


async def test_the_deadline_goes_on_while_it_waits(town: Any) -> None:
    batch = await proposed(town, completion_window="1h")
    town.services.database.clock_offset_us = 3601 * 1_000_000
    await Finaliser(town.services).step()
    assert (await looked_at(town, batch["id"]))["status"] == "expired"
    ben = await town.key("finance", principal="ben")
    assert (await town.call("POST", LIFE.format(batch["id"], "approve"), key=ben)).status == 422


async def test_a_quote_below_the_threshold_needs_nobody(town: Any) -> None:
    await threshold(town, "5")
    batch = await proposed(town, x_broker={"max_usd": "900"})
    assert (batch["status"], batch["x_broker"]["approval"]) == ("in_progress", None)


async def test_a_new_limit_is_proposed_anew_and_never_slips_past_the_second_person(town: Any) -> None:
    await threshold(town, "5")
    waits = {"max_usd": "4", "on_infeasible": "queue", "residency": ["IS"]}  # no quote: no offer there
    begun = await proposed(town, x_broker=waits)
    assert begun["status"] == "in_progress"
    raised = await town.call("PATCH", f"/v1/batches/{begun['id']}", json={"x_broker": {"max_usd": "6"}})
    assert (raised.status, raised.code) == (403, "approval_required")
    assert (await town.call("PATCH", f"/v1/batches/{begun['id']}", json={"x_broker": {"max_usd": "3"}})).status == 200
    asks = await proposed(town, x_broker={**waits, "max_usd": "6"})
    await town.call("PATCH", f"/v1/batches/{asks['id']}", json={"x_broker": {"max_usd": "7"}})
    anew = await looked_at(town, asks["id"])
    assert anew["x_broker"]["approval"] not in (None, asks["x_broker"]["approval"])
    await town.call("PATCH", f"/v1/batches/{asks['id']}", json={"x_broker": {"max_usd": "1"}})
    assert (await looked_at(town, asks["id"]))["status"] == "in_progress"
