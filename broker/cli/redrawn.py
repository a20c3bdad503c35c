"""The view of a batch on a terminal: drawn over itself, with notes above it. Imports rich."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import IO, Any

from rich.console import Group
from rich.live import Live
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from broker.cli import report
from broker.cli.terminal import console

Document = dict[str, Any]


class RedrawnView:
    def __init__(self, live: Live) -> None:
        self._live = live

    def show(self, batch: Document, placements: Sequence[Document]) -> None:
        self._live.update(panel(batch, placements, time.time()), refresh=True)

    def note(self, text: str) -> None:
        self._live.console.print(Text(text))


@contextmanager
def redrawn(stream: IO[str]) -> Iterator[RedrawnView]:
    """The view on this terminal, until the end of the block."""
    with Live(console=console(stream), auto_refresh=False) as live:
        yield RedrawnView(live)


def panel(batch: Document, placements: Sequence[Document], now: float) -> Group:
    """The redrawn view: a bar, the figures, one row a placement, and why it waits."""
    ours = batch["x_broker"]
    total = ours["counts"]["total"]
    tokens = ours["tokens"]
    head = Table.grid(padding=(0, 2))
    head.add_row(
        Text(report.state(batch), style="bold"),
        ProgressBar(total=max(1, total), completed=report.done(batch), width=40),
        report.counts(batch),
    )
    figures = (
        f"{tokens.get('input', 0):,} tokens in, {tokens.get('output', 0):,} out   {report.money(batch)}   "
        f"{report.eta(batch, now) if batch['status'] not in report.ENDED else ''}"
    )
    rows = Table(*report.PLACEMENT_COLUMNS, box=None, header_style="dim", pad_edge=False)
    for row in report.placement_rows(placements):
        rows.add_row(*(escape(cell) for cell in row))
    reasons = report.why_waiting(batch, now) if batch["status"] not in report.ENDED else ()
    return Group(head, Text(figures), *([rows] if placements else []), *(Text(reason) for reason in reasons))
