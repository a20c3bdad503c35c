"""Rates of exchange: dated, kept for good, and read from the ECB's own file."""

from __future__ import annotations

from datetime import date
from decimal import Decimal

import pytest

from broker.database import Database
from ledger import rates
from ledger.errors import MalformedRate, NoRate, RateReused
from ledger.rate_file import day_us, read_rates
from ledger.rates import DatedRate

ECB_HISTORY = "Date,USD,JPY,CYP,\n2026-11-27,1.1000,165.00,N/A,\n2026-11-26,1.0900,164.00,N/A,\n"


def euro(day: int, rate: str, source: str = "ECB") -> DatedRate:
    return DatedRate("EUR", "USD", day_us(date(2026, 11, day)), source, Decimal(rate))


async def test_a_rate_counts_from_its_day_on_and_never_before(books: Database) -> None:
    async with books.transaction() as session:
        assert await rates.record(session, [euro(20, "1.08"), euro(24, "1.10")]) == 2
        at = {day: await rates.rate_at(session, "EUR", at_us=day_us(date(2026, 11, day))) for day in (20, 23, 24, 28)}
        assert [str(at[day].rate) for day in (20, 23, 24, 28)] == ["1.08", "1.08", "1.10", "1.10"]
        with pytest.raises(NoRate, match="no rate of EUR to USD"):
            await rates.rate_at(session, "EUR", at_us=day_us(date(2026, 11, 19)))
        assert set(await rates.newest(session, at_us=day_us(date(2026, 11, 28)))) == {"EUR"}


async def test_what_a_source_said_is_never_changed(books: Database) -> None:
    async with books.transaction() as session:
        await rates.record(session, [euro(20, "1.08")])
        assert await rates.record(session, [euro(20, "1.080")]) == 0
        with pytest.raises(RateReused, match=r"said 1\.08 for EUR"):
            await rates.record(session, [euro(21, "1.09"), euro(20, "1.07")])
        assert len(await rates.known(session)) == 1, "all of them or none"
        assert await rates.record(session, [euro(20, "1.07", "ECB, corrected")]) == 1


@pytest.mark.parametrize("name", ["A", "Z"])
async def test_a_correction_of_the_same_day_counts_whatever_its_source_is_called(books: Database, name: str) -> None:
    """`ECB, corrected` came after `ECB` in the alphabet, and so the rate that was wrong counted on."""
    for said in (euro(20, "1.80", "ECB"), euro(20, "1.08", f"{name}: corrected")):
        async with books.transaction() as session:
            await rates.record(session, [said])
            await rates.record(session, [euro(20, "1.80", "ECB")])  # the same file, imported again
            assert await rates.rate_at(session, "EUR", at_us=day_us(date(2026, 11, 21))) == said
            assert (await rates.newest(session, at_us=day_us(date(2026, 11, 21))))["EUR"] == said
            assert (await rates.known(session))[0] == said


@pytest.mark.parametrize(
    "bad",
    [
        DatedRate("eur", "USD", 0, "ECB", Decimal(1)),  # a unit is written in capitals everywhere
        DatedRate("USD", "USD", 0, "ECB", Decimal(1)),
        DatedRate("EUR", "USD", 0, " ", Decimal(1)),
        DatedRate("EUR", "USD", 0, "ECB", Decimal(0)),  # unknown, not free
        DatedRate("EUR", "USD", 0, "ECB", Decimal("NaN")),
        DatedRate("EUR", "USD", 0, "ECB", Decimal("Infinity")),
    ],
)
async def test_a_rate_that_is_none_is_refused(books: Database, bad: DatedRate) -> None:
    async with books.transaction() as session:
        with pytest.raises(MalformedRate):
            await rates.record(session, [bad])


def test_the_banks_file_is_read_as_dollars_for_one_of_each_currency() -> None:
    found, bad = read_rates(ECB_HISTORY)
    assert not bad
    assert [(each.unit, str(each.rate)) for each in found] == [
        ("EUR", "1.1000"),
        ("JPY", "0.006666666667"),
        ("EUR", "1.0900"),
        ("JPY", "0.006646341463"),
    ], "N/A is no rate"
    assert {each.source for each in found} == {"ECB"}


def test_each_bad_line_of_a_file_is_named() -> None:
    found, bad = read_rates(
        "unit,rate,dated\nEUR,1.1,2026-11-27\nAKT,zero,2026-11-27\nAKT,1,27.11.2026\n", source="own"
    )
    assert (len(found), [each.line for each in bad]) == (1, [3, 4])
    assert read_rates("a,b\n1,2\n")[1][0].line == 1
    assert read_rates("")[1], "an empty file is no success"
    assert "no source" in read_rates("unit,rate,dated\nEUR,1.1,2026-11-27\n")[1][0].message
