"""`results`: the answers of a batch, and the lines that have none."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from broker.cli import exits, live, report
from broker.cli.batches import BatchId
from broker.cli.client import Client
from broker.cli.exits import ERROR, USAGE, Failure
from broker.cli.options import Target
from broker.cli.output import document, line

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
        bool, typer.Option("--partial", help="Take what an expired or cancelled batch has; else they are refused.")
    ] = False,
) -> None:
    """The answers of a batch that has ended, one JSON line each. Exit 3 when some lines failed."""
    if target.json and out is None:
        raise Failure("--json and the answers cannot both go to standard output; give -o FILE", USAGE)

    async def work(client: Client) -> int:
        batch = await client.get(f"/v1/batches/{batch_id}")
        _check_readable(batch, partial)
        written = await save(client, batch["output_file_id"], out)
        failed = await save(client, batch["error_file_id"], errors) if errors else 0
        if target.json:
            files = {"output": str(out), "output_lines": written, "errors": str(errors) if errors else None}
            document({"batch": batch, **files, "error_lines": failed})
        elif out:
            line(f"{written} answers in {out}" + (f", {failed} failed lines in {errors}" if errors else ""))
        if batch["error_file_id"] and not errors and not target.json:
            line("some lines have no answer; see why with --errors FILE", sys.stderr)
        return exits.of_batch(batch)

    target.run(work)


def _check_readable(batch: Document, partial: bool) -> None:
    if batch["status"] not in live.ENDED:
        raise Failure(
            f"{batch['id']} is {batch['status']} ({report.counts(batch)}) and has no answers to read yet; "
            f"wait for it with: broker status {batch['id']} -w",
            ERROR,
        )
    if batch["status"] in ("expired", "cancelled") and not partial:
        raise Failure(
            f"{batch['id']} is {batch['status']} and has only {report.counts(batch)}; take them with --partial",
            exits.of_batch(batch),
        )


async def save(client: Client, file_id: str | None, out: Path | None) -> int:
    """Copy a file of the broker to `out` (None: standard output); the number of lines. No file is no lines.

    The file appears whole or not at all: it is written beside its place and then put there.
    """
    if out is None:
        return await _copy(client, file_id, sys.stdout.buffer)
    fresh = out.with_name(f".{out.name}.part")
    try:
        with fresh.open("wb") as stream:
            lines = await _copy(client, file_id, stream)
        fresh.replace(out)
    except OSError as wrong:
        raise Failure(f"{out}: cannot be written: {wrong.strerror}") from wrong
    return lines


async def _copy(client: Client, file_id: str | None, stream: Any) -> int:
    lines = 0
    if file_id:
        async for chunk in client.stream(f"/v1/files/{file_id}/content"):
            lines += chunk.count(b"\n")
            stream.write(chunk)
    stream.flush()
    return lines
