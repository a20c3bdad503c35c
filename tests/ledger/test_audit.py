"""The audit finds what was done to the books behind the code's back."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from broker.database import Database
from ledger import audit, holds
from ledger.accrual import Meter, accrue
from ledger.book import post
from ledger.event import Dims, Event, Line
from ledger.triggers import drop_statements
from tests.support.databases import DIALECT

NOW = 1_795_305_600_000_000
METER = Meter(
    rental="rental_1",
    offer_key="sandbox/eu/-/a/cpu/0/spot",
    market="sandbox",
    pricing="spot",
    project="demo",
    batch="batch_1",
    price_nano_hour=3_600_000,
    started_us=NOW,
)

SECOND = "entry_id IN (SELECT id FROM ledger_entry WHERE seq = 2)"

# What each database lets somebody do who owns it, with what the audit says of it.
Tampering = list[tuple[str, set[str]]]
IN_SQLITE: Tampering = [
    ("UPDATE ledger_entry SET payload = CAST(replace(payload, '10000', '10001') AS BLOB) WHERE seq = 2",
     {"payload_changed", "columns_changed", "postings_changed", "hold_state_differs", "meter_differs",
      "use_differs", "seal_differs"}),
    # a column of SQLite takes anything
    (f"UPDATE ledger_posting SET nano = nano + 0.5 WHERE line = 0 AND {SECOND}",
     {"postings_changed", "amount_not_integer", "books_unbalanced"}),
    (f"UPDATE ledger_posting SET nano = 'five' WHERE line = 0 AND {SECOND}",
     {"postings_changed", "amount_not_integer", "books_unbalanced"}),
    ("PRAGMA foreign_keys=OFF; DELETE FROM ledger_entry WHERE seq = 3",
     {"seq_gap", "stray_postings", "hold_state_differs", "use_differs", "seal_differs"}),
]  # fmt: skip
IN_POSTGRESQL: Tampering = [
    ("UPDATE ledger_entry SET payload = convert_to(replace(convert_from(payload, 'UTF8'), '10000', '10001'), 'UTF8')"
     " WHERE seq = 2",
     {"payload_changed", "columns_changed", "postings_changed", "hold_state_differs", "meter_differs",
      "use_differs", "seal_differs"}),
    # it also switches foreign keys off
    ("SET LOCAL session_replication_role = replica; DELETE FROM ledger_entry WHERE seq = 3",
     {"seq_gap", "stray_postings", "hold_state_differs", "use_differs", "seal_differs"}),
]  # fmt: skip


async def keep_books(session: AsyncSession, *, hold_nano: int = 50_000, resolve: bool = True) -> None:
    """Four entries: a hold, two accruals, the hold's end."""
    await holds.open_hold(
        session,
        hold_id="h1",
        nano=hold_nano,
        project="demo",
        batch="batch_1",
        rental="rental_1",
        offer_key=METER.offer_key,
        occurred_at_us=NOW,
        actor="broker",
    )
    for seconds, final in ((10, False), (20, True)):
        until = NOW + seconds * 1_000_000
        await accrue(session, METER, until_us=until, final=final, actor="broker", recorded_at_us=until)
    if resolve:
        await holds.void_hold(session, hold_id="h1", occurred_at_us=NOW, actor="broker")


async def codes(session: AsyncSession, **arguments: Any) -> set[str]:
    session.expire_all()
    return {finding.code for finding in await audit.check(session, **arguments)}


async def test_honest_books_have_no_findings(books: Database) -> None:
    async with books.transaction() as session:
        assert await audit.check(session) == []
        await keep_books(session)
        assert await audit.check(session, ended_rentals={"rental_1"}) == []


@pytest.mark.parametrize(
    ("tampering", "expected"),
    [
        # both lines, so that the entry still balances
        (f"UPDATE ledger_posting SET nano = nano * 2 WHERE {SECOND}", {"postings_changed"}),
        (
            "UPDATE ledger_posting SET account = 'Expenses:Idle:Sandbox' WHERE account LIKE 'Expenses%'",
            {"postings_changed"},
        ),
        (
            f"UPDATE ledger_posting SET nano = nano + 1 WHERE line = 0 AND {SECOND}",
            {"postings_changed", "entry_unbalanced", "books_unbalanced"},
        ),
        ("UPDATE ledger_entry SET project = 'other' WHERE seq = 2", {"columns_changed"}),
        ("UPDATE ledger_entry SET period = '2026-10' WHERE seq = 2", {"columns_changed"}),
        ("UPDATE ledger_entry SET recorded_at_us = recorded_at_us + 1000 WHERE seq = 2", {"columns_changed", "seal_differs"}),
        ("UPDATE ledger_entry SET sha256 = 'x' WHERE seq = 2", {"payload_changed"}),
        ("UPDATE ledger_entry SET payload = '{}' WHERE seq = 2",
         {"payload_changed", "payload_unreadable", "hold_state_differs", "meter_differs", "use_differs", "seal_differs"}),
        ("UPDATE ledger_hold SET remaining_nano = 60000", {"hold_state_differs"}),
        ("UPDATE ledger_hold SET resolved = NULL", {"hold_state_differs"}),
        ("DELETE FROM ledger_hold", {"hold_state_differs"}),
        ("UPDATE ledger_entry SET sealed = FALSE WHERE seq = 2", {"not_sealed"}),
        ("UPDATE ledger_entry SET seq = 9 WHERE seq = 4", {"seq_gap", "head_differs", "seal_differs", "seal_head_differs"}),
        # the newest entry is gone, with its postings
        (
            "DELETE FROM ledger_posting WHERE entry_id IN (SELECT id FROM ledger_entry WHERE seq = 4); "
            "DELETE FROM ledger_entry WHERE seq = 4",
            {"head_differs", "hold_left_open", "hold_state_differs", "use_differs", "seal_differs", "seal_head_differs"},
        ),
        ("DELETE FROM ledger_posting WHERE line = 1 AND entry_id IN (SELECT id FROM ledger_entry WHERE seq = 1)",
         {"postings_changed", "entry_unbalanced", "too_few_postings", "books_unbalanced"}),
        ("DROP INDEX ux_ledger_entry_hold_resolved; UPDATE ledger_entry SET kind = 'hold.expire' WHERE seq = 3",
         {"hold_resolved_twice", "columns_changed"}),
        *(IN_POSTGRESQL if DIALECT == "postgresql" else IN_SQLITE),
    ],
)  # fmt: skip
async def test_tampering_is_found_and_named(books: Database, tampering: str, expected: set[str]) -> None:
    async with books.transaction() as session:
        await keep_books(session)
    statements = [*drop_statements(DIALECT), *tampering.split("; ")]
    async with books.engine.connect() as connection:
        # outside a transaction: the foreign_keys pragma is ignored within one
        raw = await connection.get_raw_connection()
        driver = raw.driver_connection
        assert driver is not None
        for statement in statements:
            await driver.execute(statement)
        await driver.commit()
    async with books.transaction() as session:
        assert await codes(session, ended_rentals={"rental_1"}) == expected


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seq=st.integers(1, 4), position=st.integers(0), bit=st.integers(0, 7))
async def test_any_flipped_bit_in_the_stored_bytes_is_found(scratch: Any, seq: int, position: int, bit: int) -> None:
    async with scratch() as session:
        await keep_books(session)
        if DIALECT == "postgresql":
            # what was put off to the commit is looked at now; a trigger that still has work cannot be dropped
            await session.execute(text("SET CONSTRAINTS ALL IMMEDIATE"))
        for statement in drop_statements(DIALECT):
            await session.execute(text(statement))
        chosen = text("SELECT payload FROM ledger_entry WHERE seq = :seq")
        payload = bytearray((await session.execute(chosen, {"seq": seq})).scalar_one())
        payload[position % len(payload)] ^= 1 << bit
        change = text("UPDATE ledger_entry SET payload = :payload WHERE seq = :seq")
        await session.execute(change, {"payload": bytes(payload), "seq": seq})
        assert "payload_changed" in await codes(session)


async def test_an_open_hold_of_an_ended_rental_is_found(books: Database) -> None:
    async with books.transaction() as session:
        await keep_books(session, resolve=False)
        assert await codes(session, ended_rentals={"rental_2"}) == set()
        (finding,) = await audit.check(session, ended_rentals={"rental_1"})
        assert (finding.code, finding.subject, finding.severity) == ("hold_left_open", "h1", "error")


async def test_an_accrual_without_a_hold_opened_before_it_is_found(books: Database) -> None:
    async with books.transaction() as session:
        await accrue(session, METER, until_us=NOW + 5_000_000, final=False, actor="broker", recorded_at_us=NOW)
        await keep_books(session)
        findings = await audit.check(session)
        assert [finding.code for finding in findings] == ["accrual_without_hold"]
        assert "rental_1" in findings[0].message


async def test_spending_more_than_was_set_aside_is_a_warning_also_after_the_hold_is_resolved(books: Database) -> None:
    """LiteLLM PR #40002: the reservation was priced too low, 0.60 spent under a cap of 0.45."""
    async with books.transaction() as session:
        await keep_books(session, hold_nano=19_999)
        (finding,) = await audit.check(session)
        assert (finding.code, finding.severity, finding.subject) == ("hold_overdrawn", "warning", "h1")


async def test_a_forged_meter_total_is_found(books: Database) -> None:
    """A meter reads the total in its newest key; whoever posts one by hand must not move the rental's cost unseen."""
    forged = Event(
        key="accrue:rental_1:3:20-30:99000",
        kind="usage.accrue",
        occurred_at_us=NOW,
        actor="someone",
        dims=Dims(project="demo", rental="rental_1"),
        lines=(
            Line(account="Expenses:Compute:Spot:Sandbox", nano=10_000),
            Line(account="Liabilities:Accrued:Sandbox", nano=-10_000),
        ),
    )
    async with books.transaction() as session:
        await keep_books(session)
        await post(session, forged, recorded_at_us=NOW)
        (finding,) = await audit.check(session)
        assert finding.code == "meter_differs"
        assert "99000" in finding.message and "30000" in finding.message
