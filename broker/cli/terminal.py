"""What people on a terminal see instead of TSV and silence. Imports rich, for which a pipe should not wait."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import IO

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.table import Table


def console(stream: IO[str]) -> Console:
    """A console that knows what it writes to: no colour and no control characters without a terminal."""
    live = stream.isatty()
    return Console(file=stream, force_terminal=live, no_color=None if live else True, highlight=False)


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]], stream: IO[str]) -> None:
    """Rows under their columns, aligned; cells are text, not markup."""
    view = Table(*columns, box=None, header_style="bold", pad_edge=False)
    for row in rows:
        view.add_row(*(escape(cell) for cell in row))
    console(stream).print(view)


@contextmanager
def bar(what: str, total: int | None, stream: IO[str]) -> Iterator[Callable[[int], None]]:
    """A bar while bytes go by, removed at the end; told how many are done, of `total` if known."""
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=console(stream), transient=True) as shown:
        task = shown.add_task(what, total=total)
        yield lambda done: shown.update(task, completed=done)
