"""`ledger reconcile` and `ledger exceptions`: providers' invoices against the books, and what waits for a person."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from broker.cli import exits
from broker.cli.client import Client
from broker.cli.exits import ERROR, USAGE, Failure
from broker.cli.option_groups import declare
from broker.cli.options import Target
from broker.cli.output import document, line, table, usd

FORMS = ("focus", "aws-cur", "csv", "sandbox")


def reconcile(
    target: Target,
    *,
    provider: Annotated[str, typer.Option(help="The market's name, such as aws.")],
    invoice: Annotated[Path, typer.Option(help="The invoice's file.")],
    form: Annotated[str, typer.Option("--format", help=f"One of {', '.join(FORMS)}.")] = "focus",
    period: Annotated[str | None, typer.Option(help="The month, YYYY-MM, where the lines do not say it.")] = None,
    number: Annotated[str | None, typer.Option(help="The invoice's number, where the file holds several.")] = None,
    rate: Annotated[str | None, typer.Option(help="USD for one of the invoice's currency.")] = None,
    mapping: Annotated[Path | None, typer.Option(help="--format csv: JSON, which column means what.")] = None,
    trial: Annotated[bool, typer.Option("--trial", help="Match and tell, post nothing.")] = False,
) -> None:
    """Import an invoice: match it to what was accrued, explain every difference. Exit 1 when something waits for a person."""
    if form not in FORMS:
        raise Failure(f"--format {form!r}: one of {', '.join(FORMS)} is meant", USAGE)
    text, columns = _read(invoice), None if mapping is None else _read(mapping).decode(errors="replace")
    query = {
        "provider": provider, "form": form, "period": period, "number": number, "rate": rate, "columns": columns,
        "trial": "true" if trial else None,
    }  # fmt: skip

    async def work(client: Client) -> int:
        found = await client.post_bytes("/v1/ledger/invoices", query, text)
        if target.json:
            document(found)
        else:
            _print(found)
        return ERROR if found["exceptions"] else exits.OK

    target.run(work)


def _print(found: dict[str, Any]) -> None:
    rows = [
        (each["subject"], each["code"], *(usd(each[name]) for name in ("usd", "time_usd", "price_usd", "rest_usd")))
        for each in found["variances"]
    ]
    if rows:
        table(("what", "why", "variance", "of it time or tokens", "price", "rest"), rows)
    for each in found["variances"]:
        line(f"{each['subject']}: {each['explanation']}")
    line(
        f"invoice {found['number']} of {found['provider']} for {found['period']}: billed {usd(found['billed_usd'])}, "
        f"accrued {usd(found['accrued_usd'])}, {found['matched']} rentals matched"
    )
    for rental in found["not_billed"]:
        line(f"accrued and not on the invoice: {rental}")
    for each in found["exceptions"]:
        line(f"waits for a decision: {each['id']} {each['code']} {usd(each['usd'])} {each['subject']}")


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as missing:
        raise Failure(f"{path} cannot be read: {missing.strerror}", USAGE) from missing


def list_exceptions(
    target: Target,
    *,
    state: Annotated[str | None, typer.Option(help="open, accepted or disputed.")] = None,
) -> None:
    """What invoices charge and nothing explains: who decides on it, and what was decided."""

    async def work(client: Client) -> int:
        found = await client.get("/v1/ledger/exceptions", {"state": state})
        if target.json:
            document(found)
            return exits.OK
        table(
            ("id", "provider", "what", "why", "variance", "state", "decided by"),
            [
                (each["id"], each["provider"], each["subject"], each["code"], usd(each["usd"]), each["state"],
                 each["decided_by"] or "-")
                for each in found["data"]
            ],
        )  # fmt: skip
        for each in found["data"]:
            line(f"{each['id']}: {each['explanation']}" + (f"; {each['decision']}" if each["decision"] else ""))
        return exits.OK

    target.run(work)


def _decide(decision: str, exception_id: str, reason: str, target: Target) -> None:
    async def work(client: Client) -> int:
        body = {"decision": decision, "reason": reason}
        found = await client.post(f"/v1/ledger/exceptions/{exception_id}/decision", body)
        if target.json:
            document(found)
        else:
            line(f"{found['id']} is {found['state']} by {found['decided_by']}: {usd(found['usd'])}")
        return exits.OK

    target.run(work)


ExceptionId = Annotated[str, typer.Argument(help="The exception's id.", metavar="EXCEPTION")]
Reason = Annotated[str, typer.Option(help="Why: it is kept with the decision.")]


def accept(exception_id: ExceptionId, target: Target, *, reason: Reason) -> None:
    """We pay it: it becomes a cost. Not by who imported the invoice."""
    _decide("accept", exception_id, reason, target)


def dispute(exception_id: ExceptionId, target: Target, *, reason: Reason) -> None:
    """The provider is asked to give it back: it stays in suspense until it is accepted or credited."""
    _decide("dispute", exception_id, reason, target)


exceptions = declare(
    typer.Typer(no_args_is_help=True, help="What invoices charge and nothing explains."),
    {"list": list_exceptions, "accept": accept, "dispute": dispute},
)
