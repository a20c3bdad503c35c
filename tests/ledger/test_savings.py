"""What reuse saved is in the books, once, and changes nothing that is real."""

from __future__ import annotations

from typing import Any

from sqlalchemy.ext.asyncio import AsyncSession

from broker.database import Database
from ledger import audit, book, budgets, positions, savings
from ledger.event import Exists, Posted

NOW = 1_795_305_600_000_000


async def save(session: AsyncSession, key: str = "saving:1", nano: int = 700) -> Any:
    return await savings.save(
        session, key=key, nano=nano, project="demo", batch="batch_1", occurred_at_us=NOW, actor="broker"
    )


async def test_a_saving_is_booked_once_however_often_it_is_told(books: Database) -> None:
    async with books.transaction() as session:
        assert isinstance(await save(session), Posted)
        assert isinstance(await save(session), Exists)
        found = {each.account: each.nano for each in await book.balances(session, batch="batch_1")}
    assert found == {"Memo:Saved:Demo": 700, "Memo:Contra": -700}


async def test_a_saving_is_no_expense_and_no_budget(books: Database) -> None:
    async with books.transaction() as session:
        await budgets.grant(session, grant_id="g", project="demo", nano=1000, occurred_at_us=NOW, actor="ada")
        await save(session)
        assert await positions.remaining(session, "demo") == 1000
        assert not [each for each in await book.balances(session) if each.account.startswith("Expenses:")]
        assert await audit.check(session) == []


async def test_a_saving_that_did_not_last_is_corrected_once_and_the_books_balance(books: Database) -> None:
    async with books.transaction() as session:
        await save(session)
        for _ in range(2):
            await savings.take_back(session, key="saving:1", occurred_at_us=NOW + 1, actor="broker")
        [saved] = [each.nano for each in await book.balances(session) if each.account == "Memo:Saved:Demo"]
        assert (saved, await audit.check(session)) == (0, [])


async def test_there_is_nothing_to_take_back_of_what_was_never_saved(books: Database) -> None:
    async with books.transaction() as session:
        assert await savings.take_back(session, key="saving:1", occurred_at_us=NOW, actor="broker") is None
