"""`results`: the answers of a batch, and the lines that have none."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from broker.cli import exits, report
from broker.cli.batches import BatchId
from broker.cli.client import Client
from broker.cli.download import save
from broker.cli.exits import USAGE, Failure
from broker.cli.options import Target
from broker.cli.output import document, line
from broker.cli.wishes import Order

Document = dict[str, Any]


def results(
    batch_id: BatchId,
    target: Target,
    *,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Write the answers here, not to standard output.")
    ] = None,
    errors: Annotated[Path | None, typer.Option(help="Write the failed lines here.")] = None,
    partial: Annotated[
        bool, typer.Option("--partial", help="Take what there is of a batch that runs, expired or was cancelled.")
    ] = False,
    order: Annotated[Order | None, typer.Option(help="Default: the order that the batch was submitted with.")] = None,
) -> None:
    """The answers of a batch, one JSON line each. Exit 3 when some lines failed.

    With -o the file appears when it is whole; repeated after an interruption, the download goes on where it stopped.
    """
    if target.json and out is None:
        raise Failure("--json and the answers cannot both go to standard output; give -o FILE", USAGE)

    async def work(client: Client) -> int:
        batch = await client.get(f"/v1/batches/{batch_id}")
        _check_readable(batch, partial)
        path = f"/v1/batches/{batch_id}/results"
        written = await save(client, path, {"kind": "output", "order": order}, out)
        failed = await save(client, path, {"kind": "errors", "order": order}, errors) if errors else 0
        if target.json:
            files = {"output": str(out), "output_lines": written, "errors": str(errors) if errors else None}
            document({"batch": batch, **files, "error_lines": failed})
        elif out:
            line(f"{written} answers in {out}" + (f", {failed} failed lines in {errors}" if errors else ""))
        if report.unanswered(batch) and not errors and not target.json:
            line("some lines have no answer; see why with --errors FILE", sys.stderr)
        return exits.of_batch(batch)

    target.run(work)


def _check_readable(batch: Document, partial: bool) -> None:
    if partial:
        return
    take = "take what there is with --partial"
    if batch["status"] not in report.ENDED:
        raise Failure(
            f"{batch['id']} is {batch['status']} ({report.counts(batch)}); {take}, "
            f"or wait for it with: broker status {batch['id']} -w"
        )
    if batch["status"] in ("expired", "cancelled"):
        message = f"{batch['id']} is {batch['status']} and has only {report.counts(batch)}; {take}"
        raise Failure(message, exits.of_batch(batch))
