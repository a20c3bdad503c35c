"""Looking at batches: `list`, `status`, `explain`."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, get_args

import typer

from broker.cli import exits, live, report
from broker.cli.client import Client
from broker.cli.completion import batch_ids
from broker.cli.options import Target
from broker.cli.output import document, moment, table, usd
from broker.cli.wishes import pairs

Document = dict[str, Any]
BatchId = Annotated[str, typer.Argument(help="The batch's id.", metavar="BATCH", autocompletion=batch_ids)]
# What a batch in progress may be called beside OpenAI's statuses.
PHASES = ("paused", "queued", "provisioning", "loading_model", "running")
PAGE = 100


def show_list(
    target: Target,
    *,
    status: Annotated[list[str] | None, typer.Option(help="Only of this status; may be given several times.")] = None,
    tag: Annotated[list[str] | None, typer.Option("--tag", help="Only with this KEY=VALUE.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="At most so many, newest first.")] = 20,
) -> None:
    """The newest batches. `paused` is a status here, too."""
    tags = pairs("--tag", tag)
    _check(status or ())

    def is_wanted(batch: Document) -> bool:
        return not status or bool({batch["status"], report.state(batch)} & set(status))

    async def work(client: Client) -> int:
        # the broker's list does not tell apart what we call batches in progress
        asked = [] if set(status or ()) & set(PHASES) else list(status or ())
        query = {"status": asked, "tag": [f"{key}={value}" for key, value in tags.items()]}
        batches = await _newest(client, limit, query, is_wanted)
        if target.json:
            document({"object": "list", "data": batches})
            return exits.OK
        rows = [
            (
                batch["id"],
                report.state(batch) if batch["x_broker"]["paused"] else batch["status"],
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


def _check(statuses: Sequence[str]) -> None:
    """Raises Failure (usage) for a status that no batch can have: an empty list would say that there is no such batch."""
    if not statuses:
        return
    from jobs.types import BatchStatus  # noqa: PLC0415 - with msgspec, for those who ask

    known = (*get_args(BatchStatus), *PHASES)
    if unknown := set(statuses) - set(known):
        raise exits.Failure(f"--status {unknown.pop()!r}: want one of {', '.join(known)}", exits.USAGE)


async def _newest(
    client: Client, limit: int, query: Mapping[str, list[str]], is_wanted: Callable[[Document], bool]
) -> list[Document]:
    """The broker's list is read until enough are found."""
    found: list[Document] = []
    page: Document = {"last_id": None, "has_more": True}
    while page["has_more"] and len(found) < limit:
        page = await client.get(
            "/v1/batches", {**query, "limit": min(PAGE, limit) if query["status"] else PAGE, "after": page["last_id"]}
        )
        found += filter(is_wanted, page["data"])
    return found[:limit]


def status(
    batch_id: BatchId,
    target: Target,
    *,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Follow it until it has ended.")] = False,
) -> None:
    """Where a batch stands. The exit code tells how it ended; 0 while it is under way.

    With -w it is followed to its end; Ctrl-C (exit 130) stops the watching, never the batch.
    """

    async def work(client: Client) -> int:
        if watch:
            await live.watch(client, batch_id, sys.stderr if target.json else sys.stdout)
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
