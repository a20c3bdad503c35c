"""`ledger show` and `ledger export`: what was spent, entry by entry, and whether the books balance."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Annotated, Any

import typer

from broker.cli import exits, options
from broker.cli.client import Client
from broker.cli.connection import connect
from broker.cli.exits import ERROR, USAGE, Failure
from broker.cli.output import document, line, table, usd

Document = dict[str, Any]
PAGE = 500

ledger = typer.Typer(no_args_is_help=True, help="The books: every hold, accrual and correction.")


@ledger.command()
def show(
    *,
    batch: Annotated[str | None, typer.Option(help="Only entries of this batch.")] = None,
    rental: Annotated[str | None, typer.Option(help="Only entries of this rental.")] = None,
    project: Annotated[str | None, typer.Option(help="Only entries of this project.")] = None,
    kind: Annotated[str | None, typer.Option(help="Only entries of this kind, such as accrual.")] = None,
    json: options.Json = False,
    data: options.Data = None,
    url: options.Url = None,
    key: options.Key = None,
) -> None:
    """The entries with their postings, what they sum to, and whether the books balance. Exit 1 when they do not."""

    async def work() -> int:
        query = {"batch": batch, "rental": rental, "project": project, "kind": kind}
        async with connect(options.target(data, url, key)) as client:
            books = await read(client, query)
        if json:
            document(books)
        else:
            print_books(books, sys.stdout)
        return exits.OK if books["balanced"] else ERROR

    options.run(work())


async def read(client: Client, query: dict[str, str | None]) -> Document:
    """All entries that match: pages are joined; balances and totals are of the whole match on every page."""
    books = await client.get("/v1/ledger/entries", {**query, "limit": PAGE})
    page = books
    while page["has_more"]:
        after = page["entries"][-1]["seq"]
        page = await client.get("/v1/ledger/entries", {**query, "limit": PAGE, "after": after})
        books["entries"] += page["entries"]
    books["has_more"] = False
    return books


def print_books(books: Document, stream: IO[str]) -> None:
    rows = [row for entry in books["entries"] for row in _rows(entry)]
    table(("seq", "occurred at", "kind", "of", "account", "amount"), rows, stream)
    print_totals(books, stream)


def print_totals(books: Document, stream: IO[str]) -> None:
    table(("account", "balance"), sorted(books["balances"].items()), stream)
    line(f"accrued {usd(books['accrued_usd'])}, held {usd(books['held_usd'])}", stream)
    if books["balanced"]:
        line("the books balance", stream)
    for finding in books["findings"]:
        line(f"finding: {finding}", stream)


def _rows(entry: Document) -> Sequence[tuple[str, ...]]:
    """One row a posting; what is the entry's own is written once."""
    about = entry["rental"] or entry["batch"] or entry["project"] or "-"
    head = (str(entry["seq"]), entry["occurred_at"], entry["kind"], about)
    return [
        (*(head if number == 0 else ("", "", "", "")), posting["account"], f"{posting['amount']} {posting['unit']}")
        for number, posting in enumerate(entry["postings"])
    ]


@ledger.command()
def export(
    *,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Write the CSV here, not to standard output.")] = None,
    json: options.Json = False,
    data: options.Data = None,
    url: options.Url = None,
    key: options.Key = None,
) -> None:
    """All postings as CSV, one row each, amounts as exact decimals."""
    if json and out is None:
        raise Failure("--json and the CSV cannot both go to standard output; give -o FILE", USAGE)

    async def work() -> int:
        async with connect(options.target(data, url, key)) as client:
            rows = await save_csv(client, out)
        if json:
            document({"output": str(out), "rows": rows})
        elif out:
            line(f"{rows} postings in {out}")
        return exits.OK

    options.run(work())


async def save_csv(client: Client, out: Path | None) -> int:
    """Write the ledger's CSV to `out` (None: standard output); the number of lines without the header's."""
    lines = 0
    stream: IO[bytes] = sys.stdout.buffer if out is None else out.open("wb")
    try:
        async for chunk in client.stream("/v1/ledger/export.csv"):
            lines += chunk.count(b"\n")
            stream.write(chunk)
        stream.flush()
    finally:
        if out is not None:
            stream.close()
    return max(0, lines - 1)
