"""Everybody at the books at once: planners' holds, meters, ends, voids, breakers and finance's import, on a real database.

On PostgreSQL (`make test-postgres`) they really run side by side. Whatever the order was: zero in each unit, each hold resolved
once, never below zero, every cache what its entries add up to.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from broker.budget_tables import BudgetRow
from broker.budgets import use_of
from broker.control.accrue import Accruer
from broker.control.budget import BudgetKeeper
from broker.control.settle import Settler
from broker.finance.reconciliation import InvoiceRefused, ask, import_invoice
from broker.finance.tables import InvoiceRow
from jobs.clock import db_now
from ledger import audit, holds, positions
from ledger.book import entries
from ledger.budgets import grant
from ledger.errors import HoldResolved
from ledger.positions import RESOLUTIONS
from ledger.reconcile.bill import Bill, BillLine
from ledger.tables import Posting
from tests.broker.control.test_budget_tree import budget, hold, tree
from tests.broker.control.test_settled_costs import end

DOLLAR = 10**9
MACHINES, PLANNERS, ASKS, LIMIT = 4, 4, 4, 7


@dataclass
class Crowd:
    """Who works at the books, and what they met: `least` is the least that the grant or the limit had left at any look."""

    town: Any
    of: Any
    limit: str
    machines: list[str]
    met: Counter[str] = field(default_factory=Counter)
    least: int = DOLLAR

    async def plans(self, number: int) -> None:
        for turn in range(ASKS):
            name = f"hold-{number}-{turn}"
            got = await hold(self.town, name, DOLLAR)
            self.met["held" if got else "no room"] += 1
            if got and turn % 2:  # two give the same hold back
                await asyncio.gather(self.voids(name), self.voids(name))

    async def voids(self, name: str) -> None:
        try:
            async with self.town.database.transaction() as session:
                await holds.void_hold(session, hold_id=name, occurred_at_us=await db_now(session), actor="planner")
        except HoldResolved:
            self.met["resolved before"] += 1

    async def meters(self) -> None:
        for _ in range(4):
            await Accruer(self.town.services).step()

    async def ends(self) -> None:
        for rental in self.machines[:2]:
            await asyncio.gather(end(self.town, self.of, rental), Settler(self.town.services).step())

    async def breaks(self) -> None:
        for _ in range(4):
            await BudgetKeeper(self.town.services).step()

    async def looks(self) -> None:
        for _ in range(10):
            async with self.town.database.transaction() as session:
                self.least = min(self.least, *await self.left(session))
            await asyncio.sleep(0)

    async def left(self, session: AsyncSession) -> tuple[int, int]:
        """Of the grant and of the limit."""
        own = await positions.remaining(session, "default")
        use = await use_of(session, await session.get_one(BudgetRow, self.limit), await db_now(session))
        assert own is not None
        return own, use.limit_nano - use.committed_nano

    async def imports(self, number: str) -> None:
        """As the route does it: asked and posted in two transactions; when another came in between it is asked again."""
        for _ in range(5):
            try:
                async with self.town.database.transaction() as session:
                    asked = await ask(
                        session, bill(number, self.machines), number.encode(), now_us=await db_now(session), most_days=7
                    )
                async with self.town.database.transaction() as session:
                    now_us = await db_now(session)
                    await import_invoice(session, asked, asked.matched(), now_us=now_us, by="fin")
            except InvoiceRefused as refused:
                if "imported before" in str(refused):
                    self.met["imported before"] += 1
                    return
            else:
                return


def bill(number: str, machines: list[str]) -> Bill:
    """Each invoice has a line for two of the machines, and one for what nobody knows."""
    mine = machines[:2] if number == "INV-1" else machines[2:]
    lines = [
        BillLine(number=at, names=(name,), amount=Decimal("0.05"), kind="usage")
        for at, name in enumerate([*mine, f"i-{number}"], start=2)
    ]
    return Bill("town", number, datetime.now(UTC).strftime("%Y-%m"), "USD", "focus", tuple(lines))


async def test_planners_meters_ends_voids_breakers_and_imports_at_once_leave_the_books_right(town: Any) -> None:
    crowd = await gathered(town)
    await asyncio.gather(
        *(crowd.plans(number) for number in range(PLANNERS)), crowd.meters(), crowd.meters(), crowd.ends(),
        crowd.breaks(), crowd.breaks(), crowd.looks(),
        crowd.imports("INV-1"), crowd.imports("INV-1"), crowd.imports("INV-2"),
    )  # fmt: skip
    await Settler(town.services).step()
    assert crowd.met["held"] >= LIMIT
    assert crowd.met["imported before"] == 1, "one of the two that imported the same file"
    assert crowd.least >= 0
    async with town.database.transaction() as session:
        assert [each for each in await audit.check(session) if each.severity == "error"] == []
        sums = select(col(Posting.unit), func.sum(col(Posting.nano))).group_by(col(Posting.unit))
        assert {int(nano) for _, nano in (await session.execute(sums)).all()} == {0}
        ended = [each.event.hold for kind in RESOLUTIONS for each in await entries(session, kind=kind)]
        assert len(set(ended)) == len(ended), "a hold was resolved twice"
        assert {*crowd.machines[:2]} <= {*ended}
        assert len((await session.scalars(select(InvoiceRow))).all()) == 2
        assert min(await crowd.left(session)) >= 0


async def gathered(town: Any) -> Crowd:
    """A project that was granted $9 beside what its machines hold, below a team that may commit $7."""
    await tree(town)
    of = town.offer()
    await town.list_offers(of)
    async with town.database.transaction() as session:
        await grant(session, grant_id="g", project="default", nano=(MACHINES * 1000 + 9) * DOLLAR,
                    occurred_at_us=await db_now(session), actor="fin")  # fmt: skip
    limit = await budget(town, "team:ml", LIMIT)
    batch = await town.batch()
    machines = [await town.rental(of, purpose=(batch,), ran_s=40 + number) for number in range(MACHINES)]
    return Crowd(town, of, limit, machines)
