"""Watching a batch until it ends: a view that redraws itself on a terminal, an occasional plain line elsewhere."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from typing import IO, Any, Protocol

from broker.cli import report
from broker.cli.client import Client
from broker.cli.output import line, moment
from broker.cli.report import ENDED

Document = dict[str, Any]
# Called with every look at the batch; what it returns is shown. The demo uses it to choose the moment of its kill.
Look = Callable[[Document, Sequence[Document]], str | None]

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


class View(Protocol):
    """What is shown of a batch at each look at it, and said in between."""

    def show(self, batch: Document, placements: Sequence[Document]) -> None: ...

    def note(self, text: str) -> None: ...


def _view(stack: ExitStack, stream: IO[str] | None) -> View:
    if stream is None:
        return NoView()
    if not stream.isatty():
        return PlainView(stream)
    from broker.cli.redrawn import redrawn  # noqa: PLC0415 - only people on a terminal wait for rich

    return stack.enter_context(redrawn(stream))


class NoView:
    """For a caller who only wants to wait."""

    def show(self, batch: Document, placements: Sequence[Document]) -> None:
        return None

    def note(self, text: str) -> None:
        return None


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
