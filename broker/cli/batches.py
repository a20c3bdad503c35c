"""Looking at batches: `list`, `status`, `explain`."""

from __future__ import annotations

import sys
import time
from typing import Annotated, Any

import typer

from broker.cli import exits, live, report
from broker.cli.client import Client
from broker.cli.completion import batch_ids
from broker.cli.options import Target
from broker.cli.output import document, moment, table, usd

Document = dict[str, Any]
BatchId = Annotated[str, typer.Argument(help="The batch's id.", metavar="BATCH", autocompletion=batch_ids)]
PAGE = 100


def show_list(
    target: Target, limit: Annotated[int, typer.Option(min=1, help="At most so many, newest first.")] = 20
) -> None:
    """The newest batches."""

    async def work(client: Client) -> int:
        batches = await _newest(client, limit)
        if target.json:
            document({"object": "list", "data": batches})
            return exits.OK
        rows = [
            (
                batch["id"],
                batch["status"],
                report.counts(batch),
                batch["model"] or "-",
                usd(batch["x_broker"]["cost_usd"]),
                moment(batch["created_at"]),
                (batch["metadata"] or {}).get("name", "-"),
            )
            for batch in batches
        ]
        table(("batch", "status", "progress", "model", "cost", "created", "name"), rows)
        return exits.OK

    target.run(work)


async def _newest(client: Client, limit: int) -> list[Document]:
    found: list[Document] = []
    after: str | None = None
    while len(found) < limit:
        page = await client.get("/v1/batches", {"limit": min(PAGE, limit - len(found)), "after": after})
        found += page["data"]
        after = page["last_id"]
        if not page["has_more"]:
            break
    return found


def status(
    batch_id: BatchId,
    target: Target,
    *,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Follow it until it has ended.")] = False,
) -> None:
    """Where a batch stands. The exit code tells how it ended; 0 while it is under way."""

    async def work(client: Client) -> int:
        if watch:
            await live.follow(client, batch_id, sys.stderr if target.json else sys.stdout)
        batch = await client.get(f"/v1/batches/{batch_id}")
        placements = (await client.get(f"/v1/batches/{batch_id}/placements"))["data"]
        if target.json:
            document({"batch": batch, "placements": placements})
        else:
            report.print_batch(batch, placements, sys.stdout, time.time())
        return exits.of_batch(batch)

    target.run(work)


def explain(batch_id: BatchId, target: Target) -> None:
    """What the plan chose for a batch, what it rejected and by which rule, and what it waits for."""

    async def work(client: Client) -> int:
        plan = await client.get(f"/v1/batches/{batch_id}/explain")
        if target.json:
            document(plan)
        else:
            report.print_explanation(plan, sys.stdout)
        return exits.OK

    target.run(work)
