"""Money that is set aside for nothing comes back; money that is set aside for a machine that runs stays."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from broker.control.budget import BudgetKeeper
from broker.hold_expiry import Behind, expired
from jobs.clock import db_now
from ledger.budgets import grant
from ledger.holds import open_hold
from ledger.positions import Hold
from markets.tables import RentalRow
from tests.support.wire_agent import Rent

DAY_US = 86_400_000_000
DOLLAR = 10**9


async def set_aside(server: Any, name: str, *, rental: str | None, days_ago: int) -> None:
    async with server.services.database.transaction() as session:
        now_us = await db_now(session)
        await open_hold(
            session, hold_id=name, nano=DOLLAR, project="default", batch=None, rental=rental, offer_key=None,
            occurred_at_us=now_us - days_ago * DAY_US, actor="test",
        )  # fmt: skip


async def budget(server: Any) -> tuple[str, str, str, str]:
    [found] = (await server.call("GET", "/v1/budgets")).json["data"]
    return tuple(found[f"{name}_usd"] for name in ("remaining", "held", "stale", "expired"))  # type: ignore[return-value]


async def test_a_hold_that_nothing_is_behind_any_more_expires_once_and_gives_its_money_back(
    server: Any, rent: Rent
) -> None:
    running, settled = await rent(), await rent()
    async with server.services.database.transaction() as session:
        now_us = await db_now(session)
        await grant(session, grant_id="g", project="default", nano=10 * DOLLAR, occurred_at_us=now_us, actor="test")
        row = await session.get_one(RentalRow, settled.rental)
        row.state, row.settled, row.ended_us = "ended", True, now_us - 2 * DAY_US
    for name, rental, days in (
        (running.rental, running.rental, 9),  # a machine that runs is never without a hold
        (settled.rental, settled.rental, 3),  # settled, and its hold was left open
        ("erased", "rental_that_nobody_knows", 2),
        ("young", None, 0),
    ):
        await set_aside(server, name, rental=rental, days_ago=days)
    assert await budget(server) == ("6", "4", "3", "0")
    review = (await server.call("GET", "/v1/reports/weekly")).json
    [stale] = [each for each in review["sections"] if each["title"] == "Stale holds"]
    assert [(row[0], row[4]) for row in stale["rows"]] == [
        (running.rental, "what is running"),
        (settled.rental, "what is ended and settled: it expires"),
        ("erased", "nothing that is known: it expires"),
    ]
    for _ in range(2):
        await BudgetKeeper(server.services).step()
    assert await budget(server) == ("8", "2", "1", "2")
    books = (await server.call("GET", "/v1/ledger/entries?limit=100")).json
    assert books["balanced"], books["findings"]
    assert sorted(each["key"] for each in books["entries"] if each["kind"] == "hold.expire") == [
        "hold.expire:erased", f"hold.expire:{settled.rental}",
    ]  # fmt: skip


@given(
    st.lists(st.tuples(st.integers(0, 10**6), st.sampled_from(["running", "over", "unknown"]), st.integers(0, 10**6))),
    st.integers(0, 10**6),
    st.integers(0, 2 * 10**6),
)
def test_no_hold_of_what_is_not_over_expires_and_none_before_its_time(
    seen: list[tuple[int, str, int]], after: int, now: int
) -> None:
    empty = Hold("", "p", None, None, None, 5, 0, 5, 1, 0, None)
    holds = [replace(empty, id=str(at), opened_at_us=opened) for at, (opened, _, _) in enumerate(seen)]
    behind = {
        str(at): Behind(what, over if what == "over" else None)
        for at, (_, what, over) in enumerate(seen)
        if what != "unknown"
    }
    gone = {int(each.id) for each in expired(holds, behind, after, now)}
    for at, (opened, what, over) in enumerate(seen):
        since = {"running": None, "over": over, "unknown": opened}[what]
        assert (at in gone) == (since is not None and since + after <= now)
