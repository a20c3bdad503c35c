"""`retry`: what a batch left undone, as a new batch."""

from __future__ import annotations

import sys
import uuid
from typing import Annotated, Any, Literal

import typer

from broker.cli import exits
from broker.cli.batches import BatchId
from broker.cli.client import Client
from broker.cli.options import Target
from broker.cli.output import document, line
from broker.cli.submit import watch
from broker.cli.wishes import WishOptions


def retry(
    batch_id: BatchId,
    wishes: WishOptions,
    target: Target,
    *,
    which: Annotated[
        Literal["all", "failed", "undone"],
        typer.Option(help="failed: lines with an error; undone: lines that expired or were cancelled."),
    ] = "all",
    invalid: Annotated[bool, typer.Option("--invalid", help="Also the lines that were left out as invalid.")] = False,
    wait: Annotated[bool, typer.Option("--wait/--detach", help="Watch it to the end, or return at once.")] = True,
) -> None:
    """Do again what a batch that has ended did not answer, as a new batch, and watch that to its end.

    Everything is as it was (window, limit, residency, …) but for the options that are given here. The exit code tells
    how the new batch ended. Nobody is asked: the limit of the first batch holds for this one, too.
    """
    asked = wishes.asked()
    body: dict[str, Any] = {"which": which, "invalid": invalid, "x_broker": asked.broker or None}
    if asked.window is not None:
        body["completion_window"] = asked.window
    stream = sys.stderr if target.json else sys.stdout

    async def work(client: Client) -> int:
        made = await client.post(f"/v1/batches/{batch_id}/retry", body, idempotency_key=str(uuid.uuid4()))
        again = made["x_retry"]
        line(f"batch {made['id']} does {_told(again)} again", stream)
        batch = await watch(client, made["id"], stream) if wait else made
        if target.json:
            document({"batch": batch, "retried": again})
        elif not wait:
            line(f"watch it with: broker status {made['id']} -w", stream)
        return exits.of_batch(batch)

    target.run(work)


def _told(again: dict[str, int]) -> str:
    """`3 failed and 2 undone lines (1 invalid left out)`."""
    kinds = [f"{again[kind]} {kind}" for kind in ("failed", "undone", "invalid") if again[kind]]
    left_out = f" ({again['invalid_left_out']} invalid left out)" if again["invalid_left_out"] else ""
    return f"{' and '.join(kinds)} lines{left_out}"
