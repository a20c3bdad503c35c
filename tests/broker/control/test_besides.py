"""What a machine costs besides its time is under its hold, in the costs of its batches, in exports, and on the invoice."""

from __future__ import annotations

import csv
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

from sqlalchemy import select
from sqlmodel import col

from broker.control.accrue import Accruer
from broker.control.plan import Planner
from broker.costs import batch_costs
from broker.finance.exports import Wanted, export
from broker.finance.reconciliation import ask, import_invoice
from broker.tables import Worker
from jobs.clock import db_now
from jobs.tables import LeaseRow, Part, Shard
from ledger.holds import hold
from ledger.reconcile.bill import Bill, BillLine
from markets.tables import RentalRow
from tests.broker.control.test_settled_costs import end, expenses

DOLLAR = 10**9
# $2 of a deposit of $2.50 stay there; a byte costs $0.01 in and $0.09 out: little data tells.
TERMS = {"lost_nano": 2 * DOLLAR, "load_nano": DOLLAR // 2, "moved_nano": DOLLAR, "ingress_nano_gb": 10**16,
         "egress_nano_gb": 9 * 10**16}  # fmt: skip
MOVED = DOLLAR // 2 + 30 * DOLLAR // 100 + 200 * 9 * DOLLAR // 100  # the model, 30 bytes of input, a part of 200 bytes


async def machine(town: Any, **terms: int) -> tuple[Any, str, str]:
    of = town.offer()
    await town.list_offers(of)
    batch = await town.batch()
    rental = await town.rental(of, purpose=(batch,), ran_s=100)
    async with town.database.transaction() as session:
        row = await session.get_one(RentalRow, rental)
        row.purpose = {**row.purpose, "besides": {**TERMS, **terms}}
    return of, batch, rental


async def work(town: Any, batch: str, rental: str) -> None:
    """One lease of the whole input (30 bytes), one part of 200 bytes."""
    async with town.database.transaction() as session:
        now_us = await db_now(session)
        shard = (await session.scalars(select(Shard).where(col(Shard.batch_id) == batch))).one()
        session.add(LeaseRow(shard_id=shard.id, epoch=1, batch_id=batch, placement_id=rental, nonce="n", granted_us=now_us,
                             ended_us=now_us, end_reason="done"))  # fmt: skip
        session.add(
            Part(shard_id=shard.id, epoch=1, seq=1, batch_id=batch, placement_id=rental, key="k", size=200, sha256="0",
                 lines=[[0, 1]], usage=b"[]", counters={"busy_ms": 100_000}, outcome="committed", counted=True,
                 committed_us=now_us, completed=10)
        )  # fmt: skip


def rows_of(folder: Path) -> list[dict[str, str]]:
    [file] = folder.rglob("cost_and_usage.csv")
    with file.open(newline="") as text:
        return list(csv.DictReader(text))


async def test_a_deposit_that_stays_and_data_that_moved_are_costs_of_the_batch_drawn_from_the_hold(town: Any) -> None:
    of, batch, rental = await machine(town)
    await work(town, batch, rental)
    await end(town, of, rental)
    booked = await expenses(town, rental)
    assert (booked["Forfeited:Town"], booked["Egress:Town"]) == (2 * DOLLAR, MOVED)
    whole = DOLLAR // 10 + 2 * DOLLAR + MOVED  # 100 s at $0.001
    async with town.database.transaction() as session:
        assert (await batch_costs(session, [batch]))[batch].nano == whole
        opened = await hold(session, rental)
    assert opened is not None
    assert (opened.resolved, opened.drawn_nano) == ("void", whole)


async def test_finance_sees_it_in_focus_and_the_providers_invoice_with_it_is_matched_exactly(
    town: Any, tmp_path: Path
) -> None:
    of, batch, rental = await machine(town)
    await work(town, batch, rental)
    await end(town, of, rental)
    row = await town.row(RentalRow, rental)
    month = datetime.fromtimestamp(row.ended_us / 1_000_000, tz=UTC).strftime("%Y-%m")
    whole = Decimal(DOLLAR // 10 + 2 * DOLLAR + MOVED).scaleb(-9)
    lines = [BillLine(number=2, names=(rental,), amount=Decimal("0.1"), kind="usage", hours=Decimal(100) / 3600),
             BillLine(number=3, names=(rental,), amount=whole - Decimal("0.1"), kind="usage")]  # fmt: skip
    asked_of = Bill("town", "INV-1", month, "USD", "generic", tuple(lines))
    async with town.database.transaction() as session:
        asked = await ask(session, asked_of, b"INV-1", now_us=await db_now(session), most_days=7)
        imported = await import_invoice(session, asked, asked.matched(), now_us=await db_now(session), by="fin")
    assert [(each.code, each.nano) for each in imported.result.variances] == [("exact", 0)]
    assert imported.result.not_billed == () and imported.exceptions == ()
    wanted = Wanted(format="focus-1.4", mode="passthrough", period=month, project=None, now_us=row.ended_us + 1)
    await export(town.database, wanted, tmp_path)
    found = rows_of(tmp_path)
    assert sum(Decimal(each["BilledCost"]) for each in found) == whole
    assert {each["ChargeCategory"] for each in found} == {"Usage", "Adjustment"}


async def test_a_machine_whose_worker_never_got_ready_pays_for_no_model_and_one_that_never_started_for_nothing(
    town: Any,
) -> None:
    of, _, rental = await machine(town)
    async with town.database.transaction() as session:
        (await session.get_one(Worker, rental)).ready_us = None
    await end(town, of, rental)
    booked = await expenses(town, rental)
    assert booked["Forfeited:Town"] == 2 * DOLLAR
    assert "Egress:Town" not in booked


async def test_what_is_set_aside_for_a_deposit_is_not_used_up_by_hours(town: Any) -> None:
    """The hold had enough for the hours only because nobody kept the deposit's part of it free."""
    _, _, rental = await machine(town, lost_nano=10**12)
    async with town.database.transaction() as session:
        before = await hold(session, rental)
    await Accruer(town.services).step()
    async with town.database.transaction() as session:
        after = await hold(session, rental)
    assert before is not None and after is not None
    assert after.nano > before.nano, "extended, for $1000 of the $1000 wait for the deposit"


async def test_the_plan_keeps_the_terms_that_it_counted_with_the_machine(town: Any) -> None:
    listed = replace(town.offer("keeps"), deposit=Decimal("2.50"), refundable_fraction=Decimal("0.2"),
                     egress_per_gb=Decimal("0.09"))  # fmt: skip
    await town.list_offers(listed)
    await town.batch()
    await Planner(town.services).step()
    [row] = await town.intents()
    kept = row.purpose["besides"]
    assert (kept["lost_nano"], kept["ingress_nano_gb"], kept["egress_nano_gb"]) == (2 * DOLLAR, 0, 90_000_000)
    assert row.purpose["hold_nano"] > kept["lost_nano"] + kept["moved_nano"]
