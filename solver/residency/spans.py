"""Days of a document as microseconds, and what is wrong with them."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

from solver.residency.marks import Finding, Marked, Where


def day_us(day: str | None) -> int | None:
    """Microseconds UTC at which a day (`2026-11-27`) begins; None for none, and for a day that there is not.

    >>> day_us("1970-01-02")
    86400000000
    """
    if day is None:
        return None
    try:
        return round(datetime.fromisoformat(day).replace(tzinfo=UTC).timestamp()) * 1_000_000
    except ValueError:
        return None


def reversed_dates(marked: Marked, where: Where) -> Iterator[Finding]:
    """What is wrong with `from` and `until` of what stands at `where`."""
    stated: Any = marked.value
    for step in where:
        stated = stated[step]
    days = {name: stated[name] for name in ("from", "until") if stated.get(name) is not None}
    for name, day in days.items():
        if day_us(day) is None:
            yield marked.finding("no_such_day", f"{day} is no day", (*where, name), "write it as 2026-11-27")
    begins, ends = day_us(days.get("from")), day_us(days.get("until"))
    if begins is not None and ends is not None and begins >= ends:
        message = f"it ends ({days['until']}) before it begins ({days['from']})"
        yield marked.finding("dates_reversed", message, (*where, "until"), f"set `until` after {days['from']}")
