"""`ledger show` and `ledger export`: what was spent, entry by entry, and whether the books balance."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path
from typing import IO, Annotated, Any

import typer

from broker.cli import exits, ledger_seal, provider_money
from broker.cli.client import Client
from broker.cli.completion import batch_ids
from broker.cli.exits import ERROR, USAGE, Failure
from broker.cli.finance import anomalies
from broker.cli.ledger_export import FORMATS, accounts, folder_export
from broker.cli.option_groups import declare
from broker.cli.options import Target
from broker.cli.output import document, line, table, usd
from broker.cli.rates import rates
from broker.cli.reconcile import exceptions, reconcile

Document = dict[str, Any]
PAGE = 500


def show(
    target: Target,
    *,
    batch: Annotated[
        str | None, typer.Option(help="Only entries of machines that served this batch.", autocompletion=batch_ids)
    ] = None,
    rental: Annotated[str | None, typer.Option(help="Only entries of this rental.")] = None,
    kind: Annotated[str | None, typer.Option(help="Only entries of this kind, such as accrual.")] = None,
) -> None:
    """The entries with their postings, what they sum to, and whether the books balance. Exit 1 when they do not."""

    async def work(client: Client) -> int:
        query = {"rental": rental, "kind": kind}
        books = await (read_batch(client, batch, query) if batch else read(client, query))
        if target.json:
            document(books)
        else:
            print_books(books, sys.stdout)
        return exits.OK if books["balanced"] else ERROR

    target.run(work)


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


async def read_batch(client: Client, batch_id: str, query: dict[str, str | None]) -> Document:
    """The entries of the machines that served a batch, with its share: machines are booked, batches are allotted to.

    A machine may have served other batches too; what of its cost is this batch's is in `shares`, by rental.
    """
    placements = (await client.get(f"/v1/batches/{batch_id}/placements"))["data"]
    shares = {placement["rental"]: placement["usd"] for placement in placements}
    wanted = [rental for rental in shares if query["rental"] in (None, rental)]
    parts = [await read(client, {**query, "rental": rental}) for rental in wanted]
    # what is booked for the batch itself (savings); without any machine, too, the books are checked
    parts += [await read(client, {**query, "batch": batch_id})]
    return joined(parts) | {"batch": batch_id, "shares": {rental: shares[rental] for rental in wanted}}


def joined(parts: Sequence[Document]) -> Document:
    """Several excerpts of the books, of different rentals, as one."""
    balances: dict[str, Decimal] = {}
    for account, amount in (pair for part in parts for pair in part["balances"].items()):
        balances[account] = balances.get(account, Decimal(0)) + Decimal(amount)
    return {
        "object": "ledger",
        "entries": sorted((entry for part in parts for entry in part["entries"]), key=lambda entry: int(entry["seq"])),
        "balances": {account: f"{amount:f}" for account, amount in balances.items()},
        "accrued_usd": f"{sum((Decimal(part['accrued_usd']) for part in parts), Decimal(0)):f}",
        "held_usd": f"{sum((Decimal(part['held_usd']) for part in parts), Decimal(0)):f}",
        "balanced": all(part["balanced"] for part in parts),
        "findings": list(dict.fromkeys(finding for part in parts for finding in part["findings"])),
        "has_more": False,
    }


def print_books(books: Document, stream: IO[str]) -> None:
    rows = [row for entry in books["entries"] for row in _rows(entry)]
    table(("seq", "occurred at", "kind", "of", "account", "amount"), rows, stream)
    print_totals(books, stream)


def print_totals(books: Document, stream: IO[str]) -> None:
    table(("account", "balance"), sorted(books["balances"].items()), stream)
    line(f"accrued {usd(books['accrued_usd'])}, held {usd(books['held_usd'])}", stream)
    if "shares" in books:
        share = sum((Decimal(amount) for amount in books["shares"].values()), Decimal(0))
        line(f"of which {usd(str(share))} is the share of {books['batch']}", stream)
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


def export(
    target: Target,
    *,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Write here: a file, or with --format a new folder.")
    ] = None,
    form: Annotated[str | None, typer.Option("--format", help=f"One of {', '.join(FORMATS)}.")] = None,
    mode: Annotated[str, typer.Option(help="passthrough (the markets' bills) or chargeback (ours).")] = "passthrough",
    period: Annotated[str | None, typer.Option(help="A UTC month, YYYY-MM.")] = None,
) -> None:
    """All postings as CSV; with --format, a folder in one of finance's formats with a manifest of hashes.

    FOCUS, ERP and XLSX exports are of one month; the journals, csv and audit are of all months when none is given.
    """
    if form is not None:
        target.run(folder_export(form, mode, period, out, target))
    if target.json and out is None:
        raise Failure("--json and the CSV cannot both go to standard output; give -o FILE", USAGE)

    async def work(client: Client) -> int:
        rows = await save_csv(client, out)
        if target.json:
            document({"output": str(out), "rows": rows})
        elif out:
            line(f"{rows} postings in {out}")
        return exits.OK

    target.run(work)


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


ledger = declare(
    typer.Typer(no_args_is_help=True, help="The books: every hold, accrual and correction."),
    {"show": show, "export": export, "reconcile": reconcile, "pay": provider_money.pay, **ledger_seal.COMMANDS},
)
ledger.add_typer(accounts, name="accounts")
ledger.add_typer(exceptions, name="exceptions")
ledger.add_typer(rates, name="rates")
ledger.add_typer(anomalies, name="anomalies")
for _name, _group in provider_money.GROUPS.items():
    ledger.add_typer(_group, name=_name)
