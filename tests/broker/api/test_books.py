"""The ledger over HTTP: whole, paged, filtered, and readable without us."""

from __future__ import annotations

import csv
import io
from decimal import Decimal
from typing import Any

import pytest

from ledger.accrual import Meter, accrue
from ledger.budgets import grant
from ledger.holds import open_hold
from tests.support.ledger_csv import read_csv

START = 1_795_305_600_000_000
HOUR = 3_600_000_000


@pytest.fixture
async def booked(server: Any) -> Any:
    """Two projects; each has a hold, `mine` also a budget and an hour of a dollar accrued."""
    async with server.services.database.transaction() as session:
        await grant(session, grant_id="g1", project="mine", nano=10_000_000_000, occurred_at_us=START, actor="test")
        for project, rental in (("mine", "rental_1"), ("theirs", "rental_2")):
            await open_hold(
                session,
                hold_id=rental,
                nano=2_000_000_000,
                project=project,
                batch="batch_1" if project == "mine" else None,
                rental=rental,
                offer_key="sandbox/eu/-/a/cpu/0/spot",
                occurred_at_us=START,
                actor="test",
            )
        meter = Meter(
            rental="rental_1",
            offer_key="sandbox/eu/-/a/cpu/0/spot",
            market="sandbox",
            pricing="spot",
            project="mine",
            batch="batch_1",
            price_nano_hour=1_000_000_000,
            started_us=START,
            granularity_s=1,
            minimum_s=0,
        )
        for until in (START + HOUR // 2, START + HOUR):
            await accrue(session, meter, until_us=until, final=False, actor="test", recorded_at_us=until)
    return server


async def test_entries_are_shown_in_order_with_what_they_sum_to(booked: Any) -> None:
    answer = (await booked.call("GET", "/v1/ledger/entries")).json
    assert [entry["seq"] for entry in answer["entries"]] == [1, 2, 3, 4, 5]
    assert answer["accrued_usd"] == "1"
    assert (answer["balanced"], answer["findings"], answer["has_more"]) == (True, [], False)
    assert sum(Decimal(amount) for amount in answer["balances"].values()) == 0
    assert Decimal(answer["held_usd"]) == Decimal("1") + Decimal("2"), "an accrual uses up what was held for it"
    for entry in answer["entries"]:
        assert sum(Decimal(posting["amount"]) for posting in entry["postings"]) == 0
    assert answer["entries"][0]["occurred_at"] == "2026-11-22T00:00:00.000000Z"


@pytest.mark.parametrize(
    ("query", "wanted"),
    [
        ("project=mine", [1, 2, 4, 5]),
        ("project=theirs", [3]),
        ("rental=rental_2", [3]),
        ("batch=batch_1", [2, 4, 5]),
        ("kind=usage.accrue", [4, 5]),
        ("kind=nothing", []),
        ("after=3", [4, 5]),
        ("limit=2", [1, 2]),
        ("limit=2&after=2&project=mine", [4, 5]),
    ],
)
async def test_filters_and_pages(booked: Any, query: str, wanted: list[int]) -> None:
    answer = (await booked.call("GET", f"/v1/ledger/entries?{query}")).json
    assert [entry["seq"] for entry in answer["entries"]] == wanted
    assert answer["has_more"] == (query == "limit=2")


async def test_a_projects_finance_sees_that_project_only(booked: Any) -> None:
    key = await booked.key("finance", project="theirs")
    shown = (await booked.call("GET", "/v1/ledger/entries", key=key)).json
    assert [entry["seq"] for entry in shown["entries"]] == [3]
    exported = await booked.call("GET", "/v1/ledger/export.csv", key=key)
    assert {row["project"] for row in csv.DictReader(io.StringIO(exported.raw.decode()))} == {"theirs"}
    by_header = await booked.call("GET", "/v1/ledger/entries", headers={"openai-project": "theirs"})
    assert [entry["seq"] for entry in by_header.json["entries"]] == [3]


async def test_the_export_is_the_whole_books_and_reads_back(booked: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("broker.api.books.PAGE_ENTRIES", 2)
    answer = await booked.call("GET", "/v1/ledger/export.csv")
    assert answer.headers["Content-Type"].startswith("text/csv")
    read = list(read_csv(answer.raw.decode()))
    assert [each.seq for each in read] == [1, 2, 3, 4, 5]
    spent = sum(line.nano for each in read for line in each.event.lines if line.account.startswith("Expenses:"))
    assert spent == 1_000_000_000
    one = await booked.call("GET", "/v1/ledger/export.csv?rental=rental_2")
    assert [each.seq for each in read_csv(one.raw.decode())] == [3]


async def test_money_is_never_in_exponents(booked: Any) -> None:
    answer = await booked.call("GET", "/v1/ledger/entries")
    amounts = [posting["amount"] for entry in answer.json["entries"] for posting in entry["postings"]]
    assert all("e" not in amount.lower() for amount in [*amounts, *answer.json["balances"].values()])
