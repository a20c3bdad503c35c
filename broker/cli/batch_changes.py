"""What one does to a batch that exists: `cancel`, `pause`, `resume`, `change`, `approve`, `reject`."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import IO, Annotated, Any, NoReturn

import typer

from broker.cli import exits, report
from broker.cli.batches import BatchId
from broker.cli.client import Client
from broker.cli.exits import USAGE, Failure
from broker.cli.options import Target
from broker.cli.output import document, line, moment, usd
from broker.cli.wishes import decimal_usd, unix_seconds

Document = dict[str, Any]
NONE = "none"


def cancel(batch_id: BatchId, target: Target) -> None:
    """Stop a batch. What it has so far is published and stays readable with `results --partial`."""
    _tell(target, batch_id, "cancel", {})


def pause(batch_id: BatchId, target: Target) -> None:
    """Start no further line of a batch; what is in flight is finished and kept. Its deadline goes on."""
    _tell(target, batch_id, "pause", {})


def resume(batch_id: BatchId, target: Target) -> None:
    """Go on with a paused batch where it stopped."""
    _tell(target, batch_id, "resume", {})


def approve(batch_id: BatchId, target: Target) -> None:
    """Let a batch go on that waits for a second person. Whoever submitted it cannot."""
    _tell(target, batch_id, "approve", {})


def reject(
    batch_id: BatchId, target: Target, reason: Annotated[str, typer.Option(help="What the submitter is told.")] = ""
) -> None:
    """End a batch that waits for a second person: it fails, and says who rejected it and why."""
    _tell(target, batch_id, "reject", {"reason": reason})


def change(
    batch_id: BatchId,
    target: Target,
    *,
    max_usd: Annotated[
        str | None, typer.Option(help="The most that all of it may cost, in USD; `none`: no limit.")
    ] = None,
    priority: Annotated[int | None, typer.Option(min=-100, max=100, help="Higher goes first when not all can.")] = None,
    deadline: Annotated[
        str | None,
        typer.Option(help="ISO 8601 with an offset, or unix seconds; `none`: when its completion window ends."),
    ] = None,
) -> None:
    """Change the limit, the priority or the deadline of a batch that has not ended.

    With a higher limit a batch goes on that was stopped at its old one.
    """
    wanted: Document = {}
    if max_usd is not None:
        wanted["max_usd"] = None if max_usd == NONE else decimal_usd("--max-usd", max_usd)
    if priority is not None:
        wanted["priority"] = priority
    if deadline is not None:
        wanted["deadline"] = None if deadline == NONE else unix_seconds(deadline)
    if not wanted:
        raise Failure("nothing to change was named; give --max-usd, --priority or --deadline", USAGE)

    async def work(client: Client) -> int:
        batch = await client.patch(f"/v1/batches/{batch_id}", {"x_broker": wanted})
        show(batch, sys.stdout, json=target.json)
        return exits.OK

    target.run(work)


def _tell(target: Target, batch_id: str, verb: str, body: Mapping[str, Any]) -> NoReturn:
    """POST what shall become of the batch, and show what it is now. Each of these verbs may be said twice."""

    async def work(client: Client) -> int:
        batch = await client.post(f"/v1/batches/{batch_id}/{verb}", body, again=True)
        show(batch, sys.stdout, json=target.json)
        return exits.OK

    target.run(work)


def show(batch: Document, stream: IO[str], *, json: bool) -> None:
    """A batch that was just changed: its state, and the terms that can be changed."""
    if json:
        document(batch)
        return
    ours = batch["x_broker"]
    limit = usd(ours["max_usd"]) if ours["max_usd"] else "none"
    line(f"{batch['id']}: {report.state(batch)}, {report.counts(batch)}", stream)
    line(f"limit {limit}, priority {ours['priority']}, expires {moment(batch['expires_at'])}", stream)
