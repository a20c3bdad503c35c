"""Watching a batch until it ends: a view that redraws itself on a terminal, an occasional plain line elsewhere."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from typing import IO, Any

from rich.console import Group
from rich.live import Live
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from broker.cli import report
from broker.cli.client import Client
from broker.cli.output import console, line, moment

Document = dict[str, Any]
# Called with every look at the batch; what it returns is shown. The demo uses it to choose the moment of its kill.
Look = Callable[[Document, Sequence[Document]], str | None]

ENDED = frozenset({"completed", "failed", "expired", "cancelled"})
LOOK_S = 0.5
PLAIN_LINE_S = 5.0


async def watch(client: Client, batch_id: str, stream: IO[str]) -> Document:
    """Follow a batch to its end. Ctrl-C stops the watching, never the batch: it says how to come back."""
    try:
        return await follow(client, batch_id, stream)
    except asyncio.CancelledError:
        line(f"the batch goes on; come back with: broker status {batch_id} -w", sys.stderr)
        raise


async def follow(client: Client, batch_id: str, stream: IO[str] | None, look: Look | None = None) -> Document:
    """Show the batch on `stream` (None: silently) until it has ended; the batch as it ended is returned."""
    with ExitStack() as stack:
        view = _view(stack, stream)
        while True:
            batch = await client.get(f"/v1/batches/{batch_id}")
            placements = (await client.get(f"/v1/batches/{batch_id}/placements"))["data"]
            view.show(batch, placements)
            note = look(batch, placements) if look else None
            if note:
                view.note(note)
            if batch["status"] in ENDED:
                return batch
            await asyncio.sleep(LOOK_S)


def _view(stack: ExitStack, stream: IO[str] | None) -> RedrawnView | PlainView | NoView:
    if stream is None:
        return NoView()
    if not stream.isatty():
        return PlainView(stream)
    return RedrawnView(stack.enter_context(Live(console=console(stream), auto_refresh=False)))


class NoView:
    """For a caller who only wants to wait."""

    def show(self, batch: Document, placements: Sequence[Document]) -> None:
        return None

    def note(self, text: str) -> None:
        return None


class RedrawnView:
    """The view of a terminal: drawn over itself, with notes above it."""

    def __init__(self, live: Live) -> None:
        self._live = live

    def show(self, batch: Document, placements: Sequence[Document]) -> None:
        self._live.update(panel(batch, placements, time.time()), refresh=True)

    def note(self, text: str) -> None:
        self._live.console.print(Text(text))


class PlainView:
    """One line whenever the state changes, and at least every few seconds while lines are being done."""

    def __init__(self, stream: IO[str], clock: Callable[[], float] = time.monotonic) -> None:
        self._stream = stream
        self._clock = clock
        self._state: tuple[object, ...] = ()
        self._progress = ""
        self._printed_at = float("-inf")

    def show(self, batch: Document, placements: Sequence[Document]) -> None:
        ours = batch["x_broker"]
        pause = ours["waiting"] or {}
        causes = (ours["waiting_on"], pause.get("on"), *pause.get("reasons", ()))
        state = (report.state(batch), causes, tuple(report.where(p) for p in placements))
        progress = report.counts(batch)
        due = progress != self._progress and self._clock() - self._printed_at >= PLAIN_LINE_S
        if state == self._state and not due:
            return
        self._state, self._progress, self._printed_at = state, progress, self._clock()
        self.note(sentence(batch, placements, time.time()))

    def note(self, text: str) -> None:
        line(text, self._stream)


def sentence(batch: Document, placements: Sequence[Document], now: float) -> str:
    """The whole state in one line: lines, tokens, money against the quote, ETA, where it runs, why it waits."""
    ours = batch["x_broker"]
    tokens = ours["tokens"]
    parts = [
        report.state(batch),
        report.counts(batch),
        f"{tokens.get('input', 0) + tokens.get('output', 0):,} tokens",
        report.money(batch),
    ]
    if batch["status"] not in ENDED:
        parts.append(report.eta(batch, now))
        parts.extend(report.where(placement) for placement in placements if placement["state"] != "ended")
        parts.extend(_pause(batch))
    return " | ".join(parts)


def _pause(batch: Document) -> Iterator[str]:
    ours = batch["x_broker"]
    if ours["waiting"]:
        since = moment(ours["waiting"]["since"])
        yield f"waiting on {ours['waiting']['on']} since {since}: {'; '.join(ours['waiting']['reasons'])}"
    elif ours["waiting_on"]:
        yield f"waiting on {ours['waiting_on']}: {'; '.join(ours['waiting_reasons'])}"


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
        f"{report.eta(batch, now) if batch['status'] not in ENDED else ''}"
    )
    rows = Table(*report.PLACEMENT_COLUMNS, box=None, header_style="dim", pad_edge=False)
    for row in report.placement_rows(placements):
        rows.add_row(*(escape(cell) for cell in row))
    reasons = report.why_waiting(batch, now) if batch["status"] not in ENDED else ()
    return Group(head, Text(figures), *([rows] if placements else []), *(Text(reason) for reason in reasons))
