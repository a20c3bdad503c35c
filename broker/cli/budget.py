"""`budget show` and `budget grant`: what projects may still commit."""

from __future__ import annotations

import uuid
from typing import Annotated

import typer

from broker.cli import exits, options
from broker.cli.connection import connect
from broker.cli.output import document, line, table, usd

budget = typer.Typer(
    no_args_is_help=True, help="Budgets: what a project may commit; without a grant there is no limit."
)


@budget.command()
def show(
    *,
    json: options.Json = False,
    data: options.Data = None,
    url: options.Url = None,
    key: options.Key = None,
) -> None:
    """What each project may still commit, and what is held for its machines."""

    async def work() -> int:
        async with connect(options.target(data, url, key)) as client:
            found = await client.get("/v1/budgets")
        if json:
            document(found)
            return exits.OK
        rows = [
            (
                each["project"],
                "no limit" if each["remaining_usd"] is None else usd(each["remaining_usd"]),
                usd(each["held_usd"]),
            )
            for each in found["data"]
        ]
        table(("project", "remaining", "held"), rows)
        return exits.OK

    options.run(work())


@budget.command()
def grant(
    project: Annotated[str, typer.Argument(help="The project's name.")],
    amount: Annotated[str, typer.Argument(help="How much more it may commit, in USD.", metavar="USD")],
    *,
    json: options.Json = False,
    data: options.Data = None,
    url: options.Url = None,
    key: options.Key = None,
) -> None:
    """Grant a project money; its first grant is also its first limit."""

    async def work() -> int:
        async with connect(options.target(data, url, key)) as client:
            given = await client.post(
                f"/v1/budgets/{project}/grants", {"usd": amount}, idempotency_key=str(uuid.uuid4())
            )
        if json:
            document(given)
        else:
            line(f"{given['project']} may commit another {usd(given['remaining_usd'])}")
        return exits.OK

    options.run(work())
