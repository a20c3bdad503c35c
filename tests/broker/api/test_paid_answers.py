"""What an endpoint was paid for and nobody wants any more: booked all the same, as waste."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest
from sqlalchemy import update
from sqlmodel import col

from broker.control.settle import Settler
from jobs import leases
from jobs.clock import db_now
from jobs.tables import Batch
from ledger.commitments import HOUR_US
from markets.tables import RentalRow
from tests.support.endpoint_wire import book, buying, endpoint
from tests.support.wire_agent import Rent, confirm, part_bytes

ANSWER = Decimal("0.057")  # 7 tokens in and 5 out, at $1000 and $10000 a million


async def balances(server: Any) -> dict[str, Decimal]:
    books = (await server.call("GET", "/v1/ledger/entries?limit=1")).json
    assert books["balanced"], books["findings"]
    return {account: Decimal(amount) for account, amount in books["balances"].items() if Decimal(amount)}


@pytest.mark.parametrize("refusal", ["rejected_terminal", "rejected_revoked"])
async def test_answers_that_came_too_late_are_booked_and_wasted(server: Any, rent: Rent, refusal: str) -> None:
    """The endpoint charges for them; the meter read 0 (cancelled, expired, revoked), and only the invoice showed them."""
    agent, batch = await buying(server, rent)
    lease = (await agent.lease())["lease"]
    assert (await agent.work(lease, range(0, 1))).json["outcome"] == "committed"
    lines, content = range(0, 3), part_bytes(range(0, 3))  # line 0 is told again, and was paid for once
    target = (await agent.part(lease, content, 1)).json
    await agent.put(target, content)
    async with server.services.database.transaction() as session:
        if refusal == "rejected_terminal":
            await session.execute(update(Batch).where(col(Batch.id) == batch).values(expires_us=await db_now(session)))
        else:
            await leases.revoke(session, placement_id=agent.rental)
    assert (await agent.commit(lease, target, content, lines, 1)).json["outcome"] == refusal
    again = (await agent.commit(lease, target, content, lines, 1)).json
    assert (again["outcome"], again["outcome_before"]) == ("replayed", refusal)
    for _ in range(2):
        await book(server)
    assert (await balances(server))["Expenses:Compute:Tokens:Near"] == 3 * ANSWER
    await confirm(server, agent, endpoint(), ended=True)
    await Settler(server.services).step()
    found = await balances(server)
    assert (found["Expenses:Compute:Tokens:Near"], found["Expenses:Retried:Near"]) == (ANSWER, 2 * ANSWER)
    assert found["Liabilities:Accrued:Near"] == -3 * ANSWER


async def test_who_was_never_leased_the_lines_books_nothing(server: Any, rent: Rent) -> None:
    agent, batch = await buying(server, rent)
    lease = (await agent.lease())["lease"]
    async with server.services.database.transaction() as session:
        await session.execute(update(Batch).where(col(Batch.id) == batch).values(expires_us=await db_now(session)))
    for forged in ({"nonce": "another"}, {"epoch": 7}):
        answer = await agent.deliver({**lease, **forged}, part_bytes(range(0, 2)), range(0, 2), 1)
        assert answer.status != 200 or answer.json["outcome"] == "rejected_terminal", answer.raw
    await book(server)
    assert "Expenses:Compute:Tokens:Near" not in await balances(server)


async def test_an_idle_executor_is_no_waste_and_an_idle_machine_is(server: Any, rent: Rent) -> None:
    """An hour at the endpoint's limits has a price in plans; one in which nothing is asked has none."""
    executor, _ = await buying(server, rent)
    machine = await rent()
    async with server.services.database.transaction() as session:
        for each in (executor, machine):
            row = await session.get_one(RentalRow, each.rental)
            row.started_us = (row.started_us or 0) - HOUR_US
    found = (await server.call("GET", f"/v1/ledger/anomalies?day={datetime.now(UTC):%Y-%m-%d}")).json["data"]
    assert [each["scope"] for each in found if each["rule"] == "idle"] == [f"rental:{machine.rental}"]
