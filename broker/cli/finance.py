"""`spend`, `reports`, `decide` and `ledger anomalies`: what finance asks of the books, in the terminal or as JSON, CSV, HTML."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from broker.cli import exits
from broker.cli.client import Client
from broker.cli.exits import USAGE, Failure
from broker.cli.option_groups import declare
from broker.cli.options import Target
from broker.cli.output import document, line, table, usd

Form = Annotated[str, typer.Option("--format", help="table, json, csv or html.")]
Out = Annotated[Path | None, typer.Option("--out", "-o", help="Write here, not to standard output.")]


def spend(
    target: Target,
    *,
    by: Annotated[str, typer.Option(help="project, provider, model, pricing, region, category, batch, day, month, tag:NAME; "
                                         "several with commas.")] = "project",
    period: Annotated[str | None, typer.Option(help="A UTC month, YYYY-MM; all time without it.")] = None,
) -> None:  # fmt: skip
    """What was spent, dearest first; the rows sum to the books, to the last digit."""

    async def work(client: Client) -> int:
        found = await client.get("/v1/spend", {"by": by, "period": period})
        if target.json:
            document(found)
            return exits.OK
        table((*found["by"], "cost"), [(*each["values"], usd(each["usd"])) for each in found["data"]])
        line(f"in all {usd(found['usd'])}")
        return exits.OK

    target.run(work)


def weekly(
    target: Target,
    *,
    until: Annotated[
        str | None, typer.Option(help="The day after the week, YYYY-MM-DD; the last Monday without it.")
    ] = None,
    form: Form = "table",
    out: Out = None,
) -> None:
    """The weekly spend review: movers, budgets against forecast, anomalies, waste, stale holds, recommendations."""
    _report("/v1/reports/weekly", {"until": until}, form, out, target)


def chargeback(
    target: Target,
    *,
    period: Annotated[str, typer.Option(help="A UTC month, YYYY-MM.")],
    form: Form = "table",
    out: Out = None,
) -> None:
    """A month's statement by project: direct and shared cost and the share of what has no project. It sums to the books."""
    _report("/v1/reports/chargeback", {"period": period}, form, out, target)


def policies(
    target: Target,
    *,
    period: Annotated[str | None, typer.Option(help="A UTC month, YYYY-MM; this one without it.")] = None,
    form: Form = "table",
    out: Out = None,
) -> None:
    """What residency policies cost in a month: the spend under each, and the part that the policy is (estimated)."""
    _report("/v1/reports/policies", {"period": period}, form, out, target)


def positions(
    target: Target,
    *,
    at: Annotated[
        str | None, typer.Option(help="The last UTC day that counts, YYYY-MM-DD; until now without it.")
    ] = None,
    form: Form = "table",
    out: Out = None,
) -> None:
    """What is held and owed in other currencies and coins, at a day's rates: lots, balances, unrealised gains."""
    _report("/v1/reports/positions", {"at": at}, form, out, target)


def _report(path: str, query: dict[str, str | None], form: str, out: Path | None, target: Target) -> None:
    form = "json" if target.json else form
    if form not in ("table", "json", "csv", "html"):
        raise Failure(f"--format {form!r}: table, json, csv or html is meant", USAGE)

    async def work(client: Client) -> int:
        if form == "table":
            _print(await client.get(path, query))
            return exits.OK
        _write(b"".join([chunk async for chunk in client.stream(path, {**query, "form": form})]), out)
        return exits.OK

    target.run(work)


def _write(body: bytes, out: Path | None) -> None:
    if out is None:
        sys.stdout.buffer.write(body)
        sys.stdout.buffer.flush()
    else:
        out.write_bytes(body)


def _print(found: dict[str, Any]) -> None:
    line(found["title"])
    table(("", ""), [(name, value) for name, value in found["facts"].items()])
    for section in found["sections"]:
        line()
        line(section["title"] + (f" ({section['note']})" if section["note"] else ""))
        if section["rows"]:
            table(section["columns"], section["rows"])


def list_anomalies(
    target: Target,
    *,
    day: Annotated[str | None, typer.Option(help="A UTC day, YYYY-MM-DD; the last whole one without it.")] = None,
) -> None:
    """What was out of the ordinary: who contributed, and what people said of it."""

    async def work(client: Client) -> int:
        found = await client.get("/v1/ledger/anomalies", {"day": day})
        if target.json:
            document(found)
            return exits.OK
        rows = [
            (each["id"], each["scope"], each["rule"], usd(each["actual_usd"]), usd(each["expected_usd"]),
             ", ".join(part["name"] for part in each["contributors"]), each["label"] or "open")
            for each in found["data"]
        ]  # fmt: skip
        table(("id", "scope", "rule", "spent", "expected", "contributors", "label"), rows)
        return exits.OK

    target.run(work)


def label_anomaly(
    anomaly_id: Annotated[str, typer.Argument(help="The anomaly's id.", metavar="ANOMALY")],
    label: Annotated[str, typer.Argument(help="true, false (alarm) or planned.", metavar="LABEL")],
    target: Target,
    *,
    note: Annotated[str, typer.Option(help="Why.")] = "",
) -> None:
    """Say what an anomaly was; it is kept with your name."""

    async def work(client: Client) -> int:
        said = await client.put(f"/v1/ledger/anomalies/{anomaly_id}/label", {"label": label, "note": note})
        if target.json:
            document(said)
        else:
            line(f"{said['id']} is {said['label']}, says {said['labelled_by']}")
        return exits.OK

    target.run(work)


def _decide(kind: str, file: Path, target: Target) -> None:
    try:
        body = json.loads(file.read_text(encoding="utf-8"))
    except OSError as missing:
        raise Failure(f"{file} cannot be read: {missing.strerror}", USAGE) from missing
    except ValueError as wrong:
        raise Failure(f"{file} is not JSON: {wrong}", USAGE) from wrong

    async def work(client: Client) -> int:
        found = await client.post(f"/v1/decisions/{kind}", body, again=True)
        if target.json:
            document(found)
            return exits.OK
        answer = found["answer"]
        rows = [("input", name, _short(value)) for name, value in answer["inputs"].items()]
        rows += [("observed", name, value) for name, value in found["observed"].items()]
        rows += [("answer", name, _short(value)) for name, value in answer.items() if name != "inputs"]
        table(("", "what", "value"), rows)
        return exits.OK

    target.run(work)


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 80 else f"{text[:77]}…"


Inputs = Annotated[Path, typer.Argument(help="JSON with the inputs; the API's document says which.", metavar="INPUTS")]


def hosting(file: Inputs, target: Target) -> None:
    """Self-host a model, or buy its tokens."""
    _decide("hosting", file, target)


def hardware(file: Inputs, target: Target) -> None:
    """Own machines, or rent them."""
    _decide("hardware", file, target)


def commitment(file: Inputs, target: Target) -> None:
    """How many machines to commit to."""
    _decide("commitment", file, target)


def sizing(file: Inputs, target: Target) -> None:
    """The cheapest machine per token that the model fits into."""
    _decide("sizing", file, target)


reports = declare(
    typer.Typer(no_args_is_help=True, help="What finance reads on Mondays and bills at the month's end."),
    {"weekly": weekly, "chargeback": chargeback, "policies": policies, "positions": positions},
)
anomalies = declare(
    typer.Typer(no_args_is_help=True, help="Spend that is out of the ordinary."),
    {"list": list_anomalies, "label": label_anomaly},
)
decide = declare(
    typer.Typer(no_args_is_help=True, help="Decisions about money, with their inputs shown."),
    {"hosting": hosting, "hardware": hardware, "commitment": commitment, "sizing": sizing},
)
