"""Files of rates, as people get them: the European Central Bank's euro reference rates, and a plain list. Pure.

The ECB's CSV (`eurofxref.csv` of a day, `eurofxref-hist.csv` of all) has a column a currency and a row a day: what one euro
bought. Its daily file writes the date in words and ends each line with a comma. The plain list has the columns
`unit,rate,dated` and may have `quote` and `source`.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime
from decimal import Decimal, InvalidOperation, localcontext

from ledger.rates import USD, DatedRate

ECB = "ECB"
_PLACES = Decimal("1e-12")
_DAYS = ("%Y-%m-%d", "%d %B %Y")


@dataclass(frozen=True, slots=True)
class BadLine:
    """What is wrong with a line (1 is the header), and how to mend it."""

    line: int
    message: str


def read_rates(text: str, *, source: str | None = None) -> tuple[list[DatedRate], list[BadLine]]:
    """The rates to US dollars of a file, and all that is wrong with it. `source` stands for a list's missing column.

    A currency that the ECB does not quote on a day (`N/A`, empty) has no rate of that day; a day without USD has none at all,
    for the euro's own is what all others are counted by.

    >>> rates, bad = read_rates("Date, USD, GBP, \\n27 November 2026, 1.10, 0.88, \\n")
    >>> [(each.unit, str(each.rate), each.source) for each in rates], bad
    ([('EUR', '1.10', 'ECB'), ('GBP', '1.250000000000', 'ECB')], [])
    """
    rows = list(csv.reader(text.lstrip("\ufeff").splitlines()))
    header = [cell.strip() for cell in rows[0]] if rows else []
    if header[:1] == ["Date"] and USD in header:
        found = _of_ecb(header, rows[1:], source or ECB)
    elif {"unit", "rate", "dated"} <= set(header):
        found = _of_list(header, rows[1:], source)
    else:
        return [], [
            BadLine(
                1, "neither the ECB's columns (Date, USD, …) nor a list's (unit, rate, dated) stand in the first line"
            )
        ]
    rates, bad = [], []
    for each in found:
        if isinstance(each, BadLine):
            bad.append(each)
        else:
            rates.append(each)
    if not rates and not bad:
        bad.append(BadLine(1, "the file has no rates"))
    return rates, bad


def day_us(day: date) -> int:
    """The start of a day, UTC."""
    return int(datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp()) * 1_000_000


def _of_ecb(header: list[str], rows: list[list[str]], source: str) -> Iterator[DatedRate | BadLine]:
    for number, row in enumerate(rows, start=2):
        cells = {name: cell.strip() for name, cell in zip(header, row, strict=False) if name}
        if not any(cells.values()):
            continue
        day = _day(cells.get("Date", ""))
        dollars = _number(cells.get(USD, ""))
        if day is None or dollars is None:
            yield BadLine(number, f"date {cells.get('Date')!r} or USD {cells.get(USD)!r} cannot be read")
            continue
        yield DatedRate("EUR", USD, day_us(day), source, dollars)
        for code, cell in cells.items():
            if code in ("Date", USD) or cell in ("", "N/A"):
                continue
            bought = _number(cell)
            if bought is None:
                yield BadLine(number, f"{code} {cell!r} is no positive number")
            else:
                with localcontext(prec=50):
                    yield DatedRate(code, USD, day_us(day), source, (dollars / bought).quantize(_PLACES))


def _of_list(header: list[str], rows: list[list[str]], source: str | None) -> Iterator[DatedRate | BadLine]:
    for number, row in enumerate(rows, start=2):
        cells = {name: cell.strip() for name, cell in zip(header, row, strict=False)}
        if not any(cells.values()):
            continue
        day, rate = _day(cells.get("dated", "")), _number(cells.get("rate", ""))
        unit, by = cells.get("unit", ""), cells.get("source") or source  # a line may be shorter than the header
        if day is None:
            yield BadLine(number, f"dated {cells.get('dated')!r} is no date; write YYYY-MM-DD")
        elif rate is None:
            yield BadLine(number, f"rate {cells.get('rate')!r} is no positive number")
        elif not unit:
            yield BadLine(number, "has no unit; write the code of a currency or coin, such as EUR")
        elif not by:
            yield BadLine(number, "has no source; add the column, or say it for all (--source)")
        else:
            yield DatedRate(unit.upper(), (cells.get("quote") or USD).upper(), day_us(day), by, rate)


def _day(text: str) -> date | None:
    for form in _DAYS:
        try:
            return datetime.strptime(text, form).replace(tzinfo=UTC).date()
        except ValueError:
            continue
    return None


def _number(text: str) -> Decimal | None:
    try:
        found = Decimal(text)
    except InvalidOperation:
        return None
    return found if found.is_finite() and found > 0 else None
