"""What became of each line and shard: `lines`, `shards`."""

from __future__ import annotations

import sys
from typing import Annotated, Any, Literal

import typer

from broker.cli import exits
from broker.cli.batches import BatchId
from broker.cli.client import Client
from broker.cli.options import Target
from broker.cli.output import document, line, moment, table
from broker.cli.pages import pages

Document = dict[str, Any]
# The words of broker/api/result_shapes.py, which the commands do not load; a test holds the two beside each other.
LineStatus = Literal["completed", "failed", "invalid", "expired", "cancelled", "pending", "in_flight"]
Limit = Annotated[int, typer.Option(min=1, help="At most so many.")]
PAGE = 1000


def lines(
    batch_id: BatchId,
    target: Target,
    *,
    status: Annotated[LineStatus | None, typer.Option(help="Only lines of this status.")] = None,
    custom_id: Annotated[
        str | None, typer.Option("--id", help="Only lines with exactly this custom_id; the whole input is searched.")
    ] = None,
    after: Annotated[int, typer.Option(min=0, help="Only lines after this number.")] = 0,
    limit: Limit = 100,
) -> None:
    """What became of each line: its answer's tokens and place, or why it has none."""

    async def work(client: Client) -> int:
        path = f"/v1/batches/{batch_id}/lines"
        query = {"status": status, "custom_id": custom_id, "after": after}
        found = await pages(client, path, limit=limit, query=query, last="last_line", most=PAGE)
        if target.json:
            document(found)
            return exits.OK
        columns = ("line", "custom_id", "status", "code", "tries", "tokens", "placement", "error")
        table(columns, [_line_row(each) for each in found["data"]])
        _more(found, "last_line")
        return exits.OK

    target.run(work)


def shards(
    batch_id: BatchId,
    target: Target,
    *,
    after: Annotated[int, typer.Option(min=-1, help="Only shards after this number.")] = -1,
    limit: Limit = 100,
) -> None:
    """The runs of lines that are leased as one: how far each is, and which machine holds it."""

    async def work(client: Client) -> int:
        path = f"/v1/batches/{batch_id}/shards"
        found = await pages(client, path, limit=limit, query={"after": after}, last="last_shard", most=PAGE)
        if target.json:
            document(found)
            return exits.OK
        columns = ("shard", "from line", "lines", "done", "state", "placement", "lease", "until", "in flight")
        table(columns, [_shard_row(each) for each in found["data"]])
        _more(found, "last_shard")
        return exits.OK

    target.run(work)


def _more(found: Document, last: str) -> None:
    if found["has_more"]:
        line(f"there are more; go on with --after {found[last]}", sys.stderr)


def _line_row(each: Document) -> tuple[str, ...]:
    tokens, error = each["tokens"], each["error"]
    return (
        str(each["line"]),
        each["custom_id"] or "-",
        each["status"],
        "-" if each["status_code"] is None else str(each["status_code"]),
        str(each["attempts"]),
        "-" if tokens is None else f"{tokens['input']}+{tokens['output']}",
        each["placement"] or "-",
        "-" if error is None else f"{error['message']} [{error['code']}]",
    )


def _shard_row(each: Document) -> tuple[str, ...]:
    return (
        str(each["number"]),
        str(each["first_line"]),
        str(each["lines"]),
        str(each["done"]),
        each["state"],
        each["placement"] or "-",
        str(each["epoch"]),
        moment(each["lease_expires_at"]),
        str(each["in_flight"]),
    )
