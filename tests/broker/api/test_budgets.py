"""Budgets through the API: granted once, counted against what is held, seen by whom they concern."""

from __future__ import annotations

from typing import Any

from jobs.clock import db_now
from ledger.holds import open_hold


async def granted(server: Any, usd: str, *, idempotency: str | None = None, project: str = "default") -> Any:
    headers = {"Idempotency-Key": idempotency} if idempotency else {}
    return await server.call("POST", f"/v1/budgets/{project}/grants", json={"usd": usd}, headers=headers)


async def test_a_grant_is_a_limit_and_a_second_one_adds_to_it(server: Any) -> None:
    before = (await server.call("GET", "/v1/budgets")).json["data"]
    assert before == [
        {"project": "default", "remaining_usd": None, "held_usd": "0", "stale_usd": "0", "expired_usd": "0"}
    ]
    assert (await granted(server, "1.50")).json["remaining_usd"] == "1.5"
    assert (await granted(server, "0.000000001")).json["remaining_usd"] == "1.500000001"


async def test_what_is_held_can_not_be_committed_again(server: Any) -> None:
    await granted(server, "2")
    async with server.services.database.transaction() as session:
        now_us = await db_now(session)
        await open_hold(
            session, hold_id="h", nano=500_000_000, project="default", batch=None, rental="r", offer_key="o",
            occurred_at_us=now_us, actor="test",
        )  # fmt: skip
    found = (await server.call("GET", "/v1/budgets")).json["data"][0]
    assert (found["remaining_usd"], found["held_usd"]) == ("1.5", "0.5")


async def test_a_repeated_grant_is_one_grant(server: Any) -> None:
    await granted(server, "5", idempotency="the same")
    assert (await granted(server, "5", idempotency="the same")).json["remaining_usd"] == "5"
    other = await granted(server, "6", idempotency="the same")
    assert (other.status, other.code) == (422, "idempotency_mismatch")
    assert other.headers["x-should-retry"] == "false"


async def test_only_known_projects_get_money_and_only_more_of_it(server: Any) -> None:
    assert (await granted(server, "5", project="nobody")).code == "project_not_found"
    assert (await granted(server, "0")).code == "invalid_value"
    assert (await granted(server, "-1")).code == "invalid_value"


async def test_a_submitter_sees_its_own_budget_and_grants_nothing(server: Any) -> None:
    mine = await server.key("submitter", project="mine")
    found = await server.call("GET", "/v1/budgets", key=mine)
    assert [each["project"] for each in found.json["data"]] == ["mine"]
    refused = await server.call("POST", "/v1/budgets/mine/grants", key=mine, json={"usd": "9"})
    assert refused.status == 403


async def test_finance_of_one_project_grants_nothing_to_another(server: Any) -> None:
    await server.key("submitter", project="theirs")
    ours = await server.key("finance", project="ours")
    refused = await server.call("POST", "/v1/budgets/theirs/grants", key=ours, json={"usd": "9"})
    assert (refused.status, refused.code) == (404, "project_not_found")
