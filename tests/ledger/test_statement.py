"""The statement: a page of entries, the sums of everything selected."""

from __future__ import annotations

import dataclasses

from broker.database import Database
from ledger.accrual import Meter, accrue
from ledger.statement import Total, statement, totals

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
SHARED = dataclasses.replace(METER, rental="rental_2", batch=None, market="local", pricing="on_demand")


async def accrued_books(books: Database) -> None:
    async with books.transaction() as session:
        for meter, seconds in ((METER, 10), (SHARED, 5), (METER, 30)):
            await accrue(
                session, meter, until_us=NOW + seconds * 1_000_000, final=False, actor="broker", recorded_at_us=NOW
            )


async def test_totals_cover_the_selection_and_pages_only_cut_the_entries(books: Database) -> None:
    await accrued_books(books)
    async with books.transaction() as session:
        page = await statement(session, limit=2)
        assert [entry.seq for entry in page.entries] == [1, 2]
        assert page.next_after_seq == 2
        assert page.totals["project"] == (Total(name="demo", unit="USD", nano=35_000),)
        last = await statement(session, after_seq=2, limit=2)
        assert [entry.seq for entry in last.entries] == [3]
        assert last.next_after_seq is None
        assert last.totals == page.totals
        assert sum(balance.nano for balance in page.accounts) == 0


async def test_totals_per_batch_name_what_belongs_to_none_and_per_rental_sum_to_the_same(books: Database) -> None:
    await accrued_books(books)
    async with books.transaction() as session:
        by_batch = {total.name: total.nano for total in await totals(session, by="batch")}
        by_rental = {total.name: total.nano for total in await totals(session, by="rental")}
        assert by_batch == {"batch_1": 30_000, None: 5_000}
        assert by_rental == {"rental_1": 30_000, "rental_2": 5_000}
        assert {total.name: total.nano for total in await totals(session, by="period")} == {"2026-11": 35_000}


async def test_a_statement_of_one_rental_holds_nothing_of_others(books: Database) -> None:
    await accrued_books(books)
    async with books.transaction() as session:
        only = await statement(session, rental="rental_2")
        assert [entry.event.dims.rental for entry in only.entries] == ["rental_2"]
        assert {balance.account: balance.nano for balance in only.accounts} == {
            "Expenses:Compute:Local:Local": 5_000,
            "Liabilities:Accrued:Local": -5_000,
            "Memo:Budget:Demo": -5_000,
            "Memo:Spent:Demo": 5_000,
        }
