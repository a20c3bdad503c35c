"""`budget show` and `budget grant`: what projects may still commit."""

from __future__ import annotations

import uuid
from typing import Annotated

import typer

from broker.cli import budget_limits, budget_teams, exits
from broker.cli.client import Client
from broker.cli.option_groups import declare
from broker.cli.options import Target
from broker.cli.output import document, line, table, usd


def show(target: Target) -> None:
    """What each project may still commit, what is held for its machines, and what of that nothing is behind any more."""

    async def work(client: Client) -> int:
        found = await client.get("/v1/budgets")
        if target.json:
            document(found)
            return exits.OK
        rows = [
            (
                each["project"],
                "no limit" if each["remaining_usd"] is None else usd(each["remaining_usd"]),
                usd(each["held_usd"]),
                # an older broker says neither
                usd(each["stale_usd"]) if "stale_usd" in each else "-",
                usd(each["expired_usd"]) if "expired_usd" in each else "-",
            )
            for each in found["data"]
        ]
        table(("project", "remaining", "held", "of it stale", "expired this month"), rows)
        return exits.OK

    target.run(work)


def grant(
    grantee: Annotated[str, typer.Argument(help="The project's name.", metavar="PROJECT")],
    amount: Annotated[str, typer.Argument(help="How much more it may commit, in USD.", metavar="USD")],
    target: Target,
) -> None:
    """Grant a project money; its first grant is also its first limit."""

    async def work(client: Client) -> int:
        once = str(uuid.uuid4())
        given = await client.post(f"/v1/budgets/{grantee}/grants", {"usd": amount}, idempotency_key=once)
        if target.json:
            document(given)
        else:
            line(f"{given['project']} may commit another {usd(given['remaining_usd'])}")
        return exits.OK

    target.run(work)


budget = declare(
    typer.Typer(no_args_is_help=True, help="Budgets: what a project may commit; without a grant there is no limit."),
    {"show": show, "grant": grant, **budget_limits.COMMANDS, **budget_teams.COMMANDS},
)
