"""`ledger rates`: rates of exchange, which prices and invoices in other currencies are counted by."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from broker.cli import exits
from broker.cli.client import Client
from broker.cli.exits import USAGE, Failure
from broker.cli.option_groups import declare
from broker.cli.options import Target
from broker.cli.output import document, line, table

PATH = "/v1/ledger/rates"


def list_rates(
    target: Target,
    *,
    unit: Annotated[str | None, typer.Option(help="Only of this currency, such as EUR.")] = None,
    limit: Annotated[int, typer.Option(help="So many at most.", min=1, max=1000)] = 100,
) -> None:
    """The rates that the books know, newest first."""

    async def work(client: Client) -> int:
        found = await client.get(PATH, {"unit": unit.upper() if unit else None, "limit": limit})
        if target.json:
            document(found)
        elif not found["data"]:
            line("no rates yet; `broker ledger rates import` takes the ECB's, `add` a single one")
        else:
            names = ("unit", "rate", "quote", "dated", "source")
            table(names, [tuple(str(each[name]) for name in names) for each in found["data"]])
        return exits.OK

    target.run(work)


def add_rate(
    unit: Annotated[str, typer.Argument(help="The currency or coin, such as EUR.", metavar="UNIT")],
    rate: Annotated[str, typer.Argument(help="US dollars for one of it.", metavar="USD")],
    target: Target,
    *,
    source: Annotated[str, typer.Option(help="Who published it.")],
    dated: Annotated[str | None, typer.Option(help="Of which day, YYYY-MM-DD; today by default.")] = None,
) -> None:
    """Record one rate. It counts from its day on, until a later one is known."""
    day = dated or datetime.now(UTC).date().isoformat()
    _send(target, {"rates": [{"unit": unit.upper(), "rate": rate, "dated": day, "source": source}]})


def import_rates(
    file: Annotated[
        Path, typer.Argument(help="The ECB's eurofxref CSV, or unit,rate,dated,source.", metavar="RATES.csv")
    ],
    target: Target,
    *,
    since: Annotated[str | None, typer.Option(help="Only of this day and later, YYYY-MM-DD.")] = None,
    source: Annotated[str | None, typer.Option(help="Who published them, where the file does not say it.")] = None,
) -> None:
    """Record the rates of a file: all of them, or none when a line is wrong."""
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as problem:
        raise Failure(f"{file} cannot be read: {problem}", USAGE) from problem
    _send(target, {"text": text, "since": since, "source": source})


def _send(target: Target, body: dict[str, Any]) -> None:
    async def work(client: Client) -> int:
        taken = await client.post(PATH, {name: value for name, value in body.items() if value is not None}, again=True)
        if target.json:
            document(taken)
        else:
            line(f"{taken['read']} rates read, {taken['new']} of them new")
        return exits.OK

    target.run(work)


rates = declare(
    typer.Typer(no_args_is_help=True, help="Rates of exchange, dated: what other currencies' prices are counted by."),
    {"list": list_rates, "add": add_rate, "import": import_rates},
)
