"""The database itself refuses what the code would never ask for."""

from __future__ import annotations

import pytest
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from broker.database import Database
from ledger import seal_triggers
from ledger.book import post
from ledger.event import Dims, Event, Line
from ledger.triggers import create_statements, drop_statements
from tests.support.databases import DIALECT

NOW = 1_795_305_600_000_000
COLUMNS = "id, seq, key, kind, occurred_at_us, recorded_at_us, period, actor, payload, sha256, sealed"
# What one of the two databases has and the other has not.
REPLACING = (
    "REPLACE INTO ledger_posting SELECT id, 0, 'Expenses:Idle:Sandbox', 'USD', 1 FROM ledger_entry",
    f"REPLACE INTO ledger_entry ({COLUMNS}) VALUES ('x', 1, 'k1', 'correction', 1, 1, 'p', 'a', 'b', 'c', FALSE)",
)
TRUNCATING = ("TRUNCATE ledger_entry CASCADE", "TRUNCATE ledger_posting", "TRUNCATE ledger_head")


async def entry_in_the_books(session: AsyncSession) -> None:
    event = Event(
        key="k1",
        kind="usage.accrue",
        occurred_at_us=NOW,
        actor="broker",
        dims=Dims(),
        lines=(
            Line(account="Expenses:Compute:Spot:Sandbox", nano=5),
            Line(account="Liabilities:Accrued:Sandbox", nano=-5),
        ),
    )
    await post(session, event, recorded_at_us=NOW)


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE ledger_entry SET actor = 'someone'",
        "UPDATE ledger_entry SET sealed = FALSE",
        "UPDATE ledger_entry SET sealed = TRUE",
        "DELETE FROM ledger_entry",
        "UPDATE ledger_posting SET nano = 6 WHERE line = 0",
        "DELETE FROM ledger_posting",
        "INSERT INTO ledger_posting SELECT id, 2, 'Expenses:Idle:Sandbox', 'USD', 1 FROM ledger_entry",
        "INSERT INTO ledger_posting VALUES ('entry_of_nobody', 0, 'Expenses:Idle:Sandbox', 'USD', 1)",
        *(REPLACING if DIALECT == "sqlite" else TRUNCATING),
        f"INSERT INTO ledger_entry ({COLUMNS}) VALUES ('x', 2, 'k2', 'correction', 1, 1, 'p', 'a', 'b', 'c', TRUE)",
        f"INSERT INTO ledger_entry ({COLUMNS}) VALUES ('x', 3, 'k2', 'correction', 1, 1, 'p', 'a', 'b', 'c', FALSE)",
        f"INSERT INTO ledger_entry ({COLUMNS}) VALUES ('x', 2, 'k1', 'correction', 1, 1, 'p', 'a', 'b', 'c', FALSE)",
        "UPDATE ledger_head SET seq = seq + 2",
        "UPDATE ledger_head SET seq = seq - 1",
        "DELETE FROM ledger_head",
    ],
)
async def test_what_is_booked_cannot_be_changed(books: Database, statement: str) -> None:
    async with books.transaction() as session:
        await entry_in_the_books(session)
        if DIALECT == "postgresql":
            await session.execute(text("SET CONSTRAINTS ALL IMMEDIATE"))  # no table with work to do can be truncated
        with pytest.raises(IntegrityError):
            await session.execute(text(statement))


@pytest.mark.parametrize(
    ("postings", "refusal"),
    [
        ([("USD", 5), ("USD", -5)], None),
        ([("USD", 5), ("USD", -4)], "differ in a unit"),
        ([("USD", 5), ("EUR", -5)], "differ in a unit"),
        ([("USD", 5), ("USD", -5), ("EUR", 1)], "differ in a unit"),
        ([("USD", 5)], "ledger:"),
        ([], "at least two"),
        ([("USD", 0.5), ("USD", -0.5)], "integer of nano-units"),
        ([("USD", 0), ("USD", 0)], "integer of nano-units"),
        # a bigint of PostgreSQL refuses a word before any trigger sees it
        *([([("USD", "five"), ("USD", -5)], "integer of nano-units")] if DIALECT == "sqlite" else []),
    ],
)
async def test_only_a_balanced_entry_of_integers_can_be_sealed(
    books: Database, postings: list[tuple[str, object]], refusal: str | None
) -> None:
    async def seal(session: AsyncSession) -> None:
        await session.execute(
            text(
                f"INSERT INTO ledger_entry ({COLUMNS}) VALUES ('e', 1, 'k', 'correction', 1, 1, 'p', 'a', 'b', 'c', FALSE)"
            )
        )
        for line, (unit, nano) in enumerate(postings):
            await session.execute(
                text("INSERT INTO ledger_posting VALUES ('e', :line, 'Expenses:Idle:X', :unit, :nano)"),
                {"line": line, "unit": unit, "nano": nano},
            )
        await session.execute(text("UPDATE ledger_entry SET sealed = TRUE"))

    async with books.transaction() as session:
        if refusal is None:
            await seal(session)
        else:
            with pytest.raises(IntegrityError, match=refusal):
                await seal(session)


async def test_sealing_cannot_change_the_entry_on_the_way(books: Database) -> None:
    async with books.transaction() as session:
        await session.execute(
            text(
                f"INSERT INTO ledger_entry ({COLUMNS}) VALUES ('e', 1, 'k', 'correction', 1, 1, 'p', 'a', 'b', 'c', FALSE)"
            )
        )
        for line, nano in enumerate((5, -5)):
            await session.execute(
                text(f"INSERT INTO ledger_posting VALUES ('e', {line}, 'Expenses:Idle:X', 'USD', {nano})")
            )
        with pytest.raises(IntegrityError, match="append-only"):
            await session.execute(text("UPDATE ledger_entry SET sealed = TRUE, period = '1999-01'"))


@pytest.mark.parametrize("second", ["hold.void", "hold.expire"])
async def test_a_hold_is_resolved_at_most_once_whatever_the_code_does(books: Database, second: str) -> None:
    columns, values = COLUMNS.replace("sealed", "hold, sealed"), "1, 1, 'p', 'a', 'b', 'c', 'hold_1', FALSE)"
    async with books.transaction() as session:
        await session.execute(
            text(f"INSERT INTO ledger_entry ({columns}) VALUES ('e1', 1, 'k1', 'hold.void', {values}")
        )
        with pytest.raises(IntegrityError, match=r"(?i)unique"):
            await session.execute(
                text(f"INSERT INTO ledger_entry ({columns}) VALUES ('e2', 2, 'k2', '{second}', {values}")
            )


async def test_a_migrated_database_has_all_the_triggers(database: Database, books: Database) -> None:
    """Alembic does not find triggers by itself: the migration must run ours."""
    async with database.transaction() as migrated, books.transaction() as fresh:
        expected = await triggers(fresh)
        assert len(expected) == (21 if DIALECT == "sqlite" else 30)
        assert await triggers(migrated) == expected
        await entry_in_the_books(migrated)


async def test_dropping_takes_all_triggers_away_and_another_dialect_is_refused(books: Database) -> None:
    async with books.transaction() as session:
        for statement in [*seal_triggers.drop_statements(DIALECT), *drop_statements(DIALECT)]:
            await session.execute(text(statement))
        assert await triggers(session) == []
    with pytest.raises(ValueError, match="mysql"):
        create_statements("mysql")


async def triggers(session: AsyncSession) -> list[str]:
    """The definitions of the triggers that are there, with PostgreSQL also of their functions."""
    statements = {
        "sqlite": ("SELECT sql FROM sqlite_master WHERE type = 'trigger' AND name LIKE 'ledger%' ORDER BY name",),
        "postgresql": (
            "SELECT pg_get_triggerdef(oid) FROM pg_trigger WHERE tgname LIKE 'ledger%' AND NOT tgisinternal ORDER BY tgname",
            "SELECT pg_get_functiondef(oid) FROM pg_proc WHERE proname LIKE 'ledger%' ORDER BY proname",
        ),
    }
    return [str(found) for statement in statements[DIALECT] for found in await session.scalars(text(statement))]
