"""Posting: once, balanced, known accounts, all or nothing."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from sqlalchemy import event as sqlalchemy_event
from sqlalchemy import select, text
from sqlmodel import col

from broker.database import Database
from ledger import audit
from ledger.book import Balance, balances, entries, find, post
from ledger.errors import KeyReused, LedgerError, MalformedEvent, Unbalanced, UnknownAccount
from ledger.event import Dims, Event, Exists, Line, Posted, encode
from ledger.tables import Entry, Posting
from ledger.triggers import drop_statements
from tests.support.databases import DIALECT

NOW = 1_795_305_600_000_000
EXPENSE, OWED = "Expenses:Compute:Spot:Sandbox", "Liabilities:Accrued:Sandbox"


def usage(key: str = "usage-1", nano: int = 5, **changes: Any) -> Event:
    event = Event(
        key=key,
        kind="usage.accrue",
        occurred_at_us=NOW,
        actor="broker",
        dims=Dims(project="demo", batch="batch_1", rental="rental_1"),
        lines=(Line(account=EXPENSE, nano=nano), Line(account=OWED, nano=-nano)),
    )
    return msgspec.structs.replace(event, **changes)


async def test_an_event_posted_twice_is_in_the_books_once(books: Database) -> None:
    """LiteLLM #15740 wrote spend rows twice; #6633 lost rows to a provider's empty id: the key is our own."""
    async with books.transaction() as session:
        first = await post(session, usage(), recorded_at_us=NOW)
    async with books.transaction() as session:
        again = await post(session, usage(), recorded_at_us=NOW + 7_000_000)
    assert isinstance(first, Posted)
    assert again == Exists(entry_id=first.entry_id, seq=first.seq)
    async with books.transaction() as session:
        assert [entry.seq for entry in await entries(session)] == [1]


async def test_a_key_with_other_content_is_refused_and_the_message_says_what_differs(books: Database) -> None:
    async with books.transaction() as session:
        await post(session, usage(nano=5), recorded_at_us=NOW)
        with pytest.raises(KeyReused, match="with other lines"):
            await post(session, usage(nano=6), recorded_at_us=NOW)
        assert await balances(session) == [
            Balance(account=EXPENSE, unit="USD", nano=5),
            Balance(account=OWED, unit="USD", nano=-5),
        ]


MEMO = (Line(account="Memo:Spent:Demo", nano=2), Line(account="Memo:Budget:Demo", nano=-2))


@pytest.mark.parametrize(
    ("lines", "error"),
    [
        ((Line(account=EXPENSE, nano=5), Line(account=OWED, nano=-4)), Unbalanced),
        ((Line(account=EXPENSE, nano=5),), Unbalanced),
        ((), Unbalanced),
        # equal over all units, not in each
        ((Line(account=EXPENSE, nano=5), Line(account=OWED, nano=-5, unit="EUR")), Unbalanced),
        # equal only when real money and memo accounts are mixed
        ((Line(account=EXPENSE, nano=5), Line(account="Memo:Budget:Demo", nano=-5)), Unbalanced),
        ((Line(account=EXPENSE, nano=5), Line(account="Assets:Pocket", nano=-5)), UnknownAccount),
        ((Line(account=EXPENSE, nano=0), Line(account=OWED, nano=0)), MalformedEvent),
        ((Line(account=EXPENSE, nano=5.0), Line(account=OWED, nano=-5.0)), MalformedEvent),  # type: ignore[arg-type]
        ((Line(account=EXPENSE, nano=True), Line(account=OWED, nano=-1)), MalformedEvent),
        ((Line(account=EXPENSE, nano=2**63), Line(account=OWED, nano=-(2**63))), MalformedEvent),
        ((Line(account=EXPENSE, nano=5, unit="usd"), Line(account=OWED, nano=-5, unit="usd")), MalformedEvent),
        # the budget of another project
        ((Line(account="Memo:Spent:Demo", nano=2), Line(account="Memo:Budget:Other", nano=-2)), MalformedEvent),
    ],
)
async def test_lines_that_create_or_destroy_money_are_refused(
    books: Database, lines: tuple[Line, ...], error: type[LedgerError]
) -> None:
    async with books.transaction() as session:
        with pytest.raises(error):
            await post(session, usage(lines=lines), recorded_at_us=NOW)
        assert await entries(session) == []


@pytest.mark.parametrize(
    "changes",
    [
        {"key": ""},
        {"key": "a\nb"},
        {"key": "k" * 513},
        {"actor": ""},
        {"kind": "usage.guess"},
        {"occurred_at_us": -1},
        {"occurred_at_us": 1.5},
        {"occurred_at_us": 10**18},
        {"dims": Dims(project="demo", rental="")},
        {"dims": Dims(project="demo", batch="\x00")},
        {"dims": Dims(project="demo", attempt=1.5)},  # type: ignore[arg-type]
        {"kind": "correction"},  # corrects nothing
        {"kind": "correction", "corrects": "never-posted"},
        {"kind": "hold.open"},  # names no hold
        {"kind": "budget.grant", "dims": Dims()},  # names no project
    ],
)
async def test_fields_that_cannot_be_booked_are_refused(books: Database, changes: dict[str, Any]) -> None:
    async with books.transaction() as session:
        with pytest.raises(MalformedEvent):
            await post(session, usage(**changes), recorded_at_us=NOW)
        assert await entries(session) == []


async def test_the_stored_bytes_are_the_canonical_event_and_the_columns_repeat_them(books: Database) -> None:
    async with books.transaction() as session:
        await post(session, usage(), recorded_at_us=NOW + 1)
        row = (await session.execute(select(Entry))).scalar_one()
        assert row.payload == encode(usage())
        assert (row.period, row.project, row.batch, row.rental, row.sealed) == (
            "2026-11",
            "demo",
            "batch_1",
            "rental_1",
            True,
        )
        found = await find(session, "usage-1")
        assert found is not None and found.event == usage() and found.recorded_at_us == NOW + 1


async def test_entries_are_selected_by_their_dimensions_and_paged_by_number(books: Database) -> None:
    async with books.transaction() as session:
        for number in range(1, 6):
            dims = Dims(project="odd" if number % 2 else "even", batch=f"batch_{number}")
            await post(session, usage(key=f"usage-{number}", dims=dims), recorded_at_us=NOW)
        assert [entry.seq for entry in await entries(session, project="odd")] == [1, 3, 5]
        assert [entry.seq for entry in await entries(session, project="odd", after_seq=1, limit=1)] == [3]
        assert [entry.seq for entry in await entries(session, batch="batch_4")] == [4]
        assert await entries(session, kind="refund.received") == []
        assert await balances(session, project="even") == [
            Balance(account=EXPENSE, unit="USD", nano=10),
            Balance(account=OWED, unit="USD", nano=-10),
        ]


async def test_replaying_the_events_gives_the_same_ledger_byte_for_byte(new_books: Any) -> None:
    async def rows(database: Database) -> list[dict[str, Any]]:
        async with database.transaction() as session:
            kept = (await session.execute(select(Entry).order_by(col(Entry.seq)))).scalars().all()
            lines = (
                await session.execute(select(Posting).order_by(col(Posting.entry_id), col(Posting.line)))
            ).scalars()
            return [row.model_dump() for row in kept] + [line.model_dump() for line in lines]

    async with new_books() as original, new_books() as replayed:
        async with original.transaction() as session:
            for number in range(4):
                await post(session, usage(key=f"usage-{number}"), recorded_at_us=NOW + number)
            kept = await entries(session)
        async with replayed.transaction() as session:
            for entry in kept:
                await post(session, entry.event, recorded_at_us=entry.recorded_at_us)
        assert await rows(original) == await rows(replayed)


class Crash(BaseException):
    """Not an Exception: nothing may catch it, like a kill."""


async def test_a_crash_between_any_two_statements_leaves_a_whole_entry_or_none(books: Database) -> None:
    statements, die_at = 0, 0

    @sqlalchemy_event.listens_for(books.engine.sync_engine, "before_cursor_execute")
    def count(*_: Any) -> None:
        nonlocal statements
        statements += 1
        if statements == die_at:
            raise Crash

    async with books.transaction() as session:
        await post(session, usage("whole", kind="invoice.variance"), recorded_at_us=NOW)
    needed = statements
    assert needed >= 5
    for statement in range(1, needed + 1):
        statements, die_at = 0, statement
        with pytest.raises(Crash):
            async with books.transaction() as session:
                await post(session, usage("torn", kind="invoice.variance"), recorded_at_us=NOW)
        die_at = 0
        async with books.transaction() as session:
            assert [entry.event.key for entry in await entries(session)] == ["whole"]
            assert await audit.check(session) == []
    async with books.transaction() as session:
        assert await post(session, usage("torn", kind="invoice.variance"), recorded_at_us=NOW) == Posted(
            entry_id=(await entries(session, after_seq=1))[0].entry_id, seq=2
        )


async def test_books_without_a_head_say_that_migrations_are_missing(books: Database) -> None:
    async with books.transaction() as session:
        for statement in drop_statements(DIALECT):
            await session.execute(text(statement))
        await session.execute(text("DELETE FROM ledger_head"))
        with pytest.raises(LedgerError, match="run the migrations"):
            await post(session, usage(), recorded_at_us=NOW)
