"""What one does with a batch that exists: `list`, `status`, `results`, `explain`, `cancel`."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from broker.cli import exits, live, options, report
from broker.cli.client import Client
from broker.cli.connection import connect
from broker.cli.exits import ERROR, USAGE, Failure
from broker.cli.output import document, line, moment, table, usd

Document = dict[str, Any]
BatchId = Annotated[str, typer.Argument(help="The batch's id.", metavar="BATCH")]
PAGE = 100


def show_list(
    limit: Annotated[int, typer.Option(min=1, help="At most so many, newest first.")] = 20,
    json: options.Json = False,
    data: options.Data = None,
    url: options.Url = None,
    key: options.Key = None,
) -> None:
    """The newest batches."""

    async def work() -> int:
        async with connect(options.target(data, url, key)) as client:
            batches = await _newest(client, limit)
        if json:
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

    options.run(work())


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
    *,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Follow it until it has ended.")] = False,
    json: options.Json = False,
    data: options.Data = None,
    url: options.Url = None,
    key: options.Key = None,
) -> None:
    """Where a batch stands. The exit code tells how it ended; 0 while it is under way."""

    async def work() -> int:
        async with connect(options.target(data, url, key)) as client:
            if watch:
                await live.follow(client, batch_id, sys.stderr if json else sys.stdout)
            batch = await client.get(f"/v1/batches/{batch_id}")
            placements = (await client.get(f"/v1/batches/{batch_id}/placements"))["data"]
        if json:
            document({"batch": batch, "placements": placements})
        else:
            report.print_batch(batch, placements, sys.stdout, time.time())
        return exits.of_batch(batch)

    options.run(work())


def results(
    batch_id: BatchId,
    *,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Write the answers here, not to standard output.")
    ] = None,
    errors: Annotated[Path | None, typer.Option(help="Write the failed lines here.")] = None,
    partial: Annotated[
        bool, typer.Option("--partial", help="Take what an expired or cancelled batch has; else they are refused.")
    ] = False,
    json: options.Json = False,
    data: options.Data = None,
    url: options.Url = None,
    key: options.Key = None,
) -> None:
    """The answers of a batch that has ended, one JSON line each. Exit 3 when some lines failed."""
    if json and out is None:
        raise Failure("--json and the answers cannot both go to standard output; give -o FILE", USAGE)

    async def work() -> int:
        async with connect(options.target(data, url, key)) as client:
            batch = await client.get(f"/v1/batches/{batch_id}")
            _check_readable(batch, partial)
            written = await save(client, batch["output_file_id"], out)
            failed = await save(client, batch["error_file_id"], errors) if errors else 0
        if json:
            files = {"output": str(out), "output_lines": written, "errors": str(errors) if errors else None}
            document({"batch": batch, **files, "error_lines": failed})
        elif out:
            line(f"{written} answers in {out}" + (f", {failed} failed lines in {errors}" if errors else ""))
        if batch["error_file_id"] and not errors and not json:
            line("some lines have no answer; see why with --errors FILE", sys.stderr)
        return exits.of_batch(batch)

    options.run(work())


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


def explain(
    batch_id: BatchId,
    *,
    json: options.Json = False,
    data: options.Data = None,
    url: options.Url = None,
    key: options.Key = None,
) -> None:
    """What the plan chose for a batch, what it rejected and by which rule, and what it waits for."""

    async def work() -> int:
        async with connect(options.target(data, url, key)) as client:
            plan = await client.get(f"/v1/batches/{batch_id}/explain")
        if json:
            document(plan)
        else:
            report.print_explanation(plan, sys.stdout)
        return exits.OK

    options.run(work())


def cancel(
    batch_id: BatchId,
    *,
    json: options.Json = False,
    data: options.Data = None,
    url: options.Url = None,
    key: options.Key = None,
) -> None:
    """Stop a batch. What it has so far is published and stays readable with `results --partial`."""

    async def work() -> int:
        async with connect(options.target(data, url, key)) as client:
            batch = await client.post(f"/v1/batches/{batch_id}/cancel", {})
        if json:
            document(batch)
        else:
            line(f"{batch['id']}: {batch['status']}, {report.counts(batch)}")
        return exits.OK

    options.run(work())
