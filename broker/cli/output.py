"""What the commands write: one JSON document, tables (aligned on a terminal, TSV in a pipe), and plain lines.

Colour and control characters are decided by isatty() alone: rich takes FORCE_COLOR for a terminal, and cuts tables at
80 columns in a pipe.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from decimal import Decimal
from typing import IO, Any

# What could steer a terminal, and the separators of TSV. Model ids, offer keys and messages come from others.
UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f]")


def is_terminal(stream: IO[str] | None = None) -> bool:
    return (stream or sys.stdout).isatty()


def document(value: Any) -> None:
    """The one JSON document of a command's --json."""
    sys.stdout.write(json.dumps(value, ensure_ascii=False, indent=2 if is_terminal() else None) + "\n")
    sys.stdout.flush()


def line(text: str = "", stream: IO[str] | None = None) -> None:
    """One plain line, out at once: in a pipe it would else stay in the buffer for minutes."""
    target = stream or sys.stdout
    target.write(_clean(text) + "\n")
    target.flush()


def table(columns: Sequence[str], rows: Sequence[Sequence[str]], stream: IO[str] | None = None) -> None:
    """Rows under their columns: a table on a terminal, TSV with a header line in a pipe."""
    target = stream or sys.stdout
    if not target.isatty():
        for row in (columns, *rows):
            target.write("\t".join(_clean(cell) for cell in row) + "\n")
        target.flush()
        return
    from broker.cli import terminal  # noqa: PLC0415 - only people on a terminal wait for rich

    terminal.print_table(columns, [[_clean(cell) for cell in row] for row in rows], target)


@contextmanager
def progress(what: str, total: int | None, is_quiet: bool = False) -> Iterator[Callable[[int], None]]:
    """A bar on standard error while bytes go by, if that is a terminal; told how many are done, of `total` if known."""
    if is_quiet or not sys.stderr.isatty():
        yield lambda done: None
        return
    from broker.cli import terminal  # noqa: PLC0415 - as above

    with terminal.bar(_clean(what), total, sys.stderr) as done:
        yield done


def _clean(text: str) -> str:
    return UNPRINTABLE.sub(" ", text) if UNPRINTABLE.search(text) else text


def usd(amount: str | None) -> str:
    """An exact decimal amount as people read it: cents where they say enough, up to nano-dollars where they do not.

    >>> usd("0.000123400"), usd("12.500000000"), usd(None)
    ('$0.0001234', '$12.50', '-')
    """
    if amount is None:
        return "-"
    value = Decimal(amount).normalize()
    places = max(2, -int(value.as_tuple().exponent))
    return f"${value:.{places}f}" if value >= 0 else f"-${-value:.{places}f}"


def rate(amount: str | None) -> str:
    """A price per million tokens: an estimate, or a quotient, of which four digits say enough. JSON has them all.

    >>> rate("0.083111702"), rate("12"), rate("1234.5678"), rate(None)
    ('$0.08311', '$12.00', '$1234.57', '-')
    """
    if amount is None:
        return "-"
    value = Decimal(amount)
    places = max(2, 3 - value.adjusted()) if value else 2
    return usd(str(round(value, places)))


def moment(seconds: int | None) -> str:
    """Unix seconds as UTC time. The machine's own zone would make two people's reports differ."""
    return "-" if seconds is None else datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%SZ")


def span(seconds: float | None) -> str:
    """
    >>> span(59), span(3600), span(90061), span(8_640_000), span(None)
    ('59 s', '1 h 00 min', '25 h 01 min', '100 d 0 h', '-')
    """
    if seconds is None:
        return "-"
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes >= 72 * 60:
        return f"{minutes // 1440} d {minutes % 1440 // 60} h"
    return f"{minutes} min {rest:02} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02} min"
