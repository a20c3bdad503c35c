"""`events`: what happened to a batch, and what happens while one listens."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterable
from typing import Annotated, Any

import typer

from broker.cli import exits
from broker.cli.batches import BatchId
from broker.cli.client import RETRY_WAITS_S, BrokerUnreachable, Client
from broker.cli.options import Target
from broker.cli.output import line, moment, table

Document = dict[str, Any]
PAGE = 100
COLUMNS = ("number", "at", "event", "lines", "what")
# Said of every event: how far the batch was then. What else an event says is its own.
STANDING = ("number", "total", "completed", "failed")


def events(
    batch_id: BatchId,
    target: Target,
    *,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the batch has ended.")] = False,
) -> None:
    """Everything that happened to a batch, in order; with -f also what happens next. --json: JSON Lines, one an event.

    With -f the exit code tells how the batch ended.
    """

    async def work(client: Client) -> int:
        if not follow:
            _show([each async for each in _past(client, batch_id)], as_json=target.json, headed=True)
            return exits.OK
        is_first = True
        async for each in listen(client, batch_id):
            _show([each], as_json=target.json, headed=is_first)
            is_first = False
        return exits.of_batch(await client.get(f"/v1/batches/{batch_id}"))

    target.run(work)


async def _past(client: Client, batch_id: str) -> AsyncIterator[Document]:
    after: str | None = None
    while True:
        page = await client.get(f"/v1/batches/{batch_id}/events", {"stream": "false", "limit": PAGE, "after": after})
        for each in page["data"]:
            yield each
        after = page["last_id"] or after
        if not page["has_more"]:
            return


async def listen(client: Client, batch_id: str) -> AsyncIterator[Document]:
    """Every event of a batch once, in order, until it has ended. A stream that breaks, or that a broker which ends closes,
    is taken up after the last event. Raises BrokerUnreachable when several attempts in a row bring nothing."""
    seen: str | None = None
    waits = iter(RETRY_WAITS_S)
    while True:
        try:
            async for each in _stream(client, batch_id, seen):
                if each is None:
                    return
                seen, waits = each["id"], iter(RETRY_WAITS_S)
                yield each
        except BrokerUnreachable:
            wait_s = next(waits, None)
            if wait_s is None:
                raise
            await asyncio.sleep(wait_s)


async def _stream(client: Client, batch_id: str, seen: str | None) -> AsyncIterator[Document | None]:
    """One stream, from its beginning or after the event that was `seen`; None: the broker says that none will follow."""
    headers = {"Accept": "text/event-stream"} | ({"Last-Event-ID": seen} if seen else {})
    async with client.opened(f"/v1/batches/{batch_id}/events", {"stream": "true"}, headers) as answer:
        if answer.status == 204:
            yield None
            return
        written: list[str] = []
        async for raw in answer.content:
            text = raw.decode().rstrip("\r\n")
            if text.startswith("data:"):
                written.append(text.removeprefix("data:").removeprefix(" "))
            elif not text and written:
                yield json.loads("\n".join(written))
                written = []


def _show(found: Iterable[Document], *, as_json: bool, headed: bool) -> None:
    if as_json:
        for each in found:
            line(json.dumps(each, ensure_ascii=False))
        return
    rows = [_row(each) for each in found]
    if headed:
        table(COLUMNS, rows)
        return
    for row in rows:
        line("\t".join(row))


def _row(each: Document) -> tuple[str, ...]:
    facts: Document = each["x_broker"]
    own = "; ".join(f"{name} {_value(value)}" for name, value in facts.items() if name not in STANDING)
    done = f"{facts.get('completed', 0) + facts.get('failed', 0)}/{facts.get('total', 0)}"
    return str(facts["number"]), moment(each["created_at"]), each["type"], done, own or "-"


def _value(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)
