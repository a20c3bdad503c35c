"""`budget limits`, `set`, `changes`, `approve`, `reject`: the limits of the budget tree."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

import typer

from broker.cli import exits
from broker.cli.client import Client
from broker.cli.exits import USAGE, Failure
from broker.cli.options import Target
from broker.cli.output import document, line, table, usd

Change = Annotated[str, typer.Argument(help="The change (`budget changes`).", metavar="APPROVAL")]


def limits(target: Target) -> None:
    """Each budget of the tree, what is spent and set aside of it, and its breaker."""

    async def work(client: Client) -> int:
        found = await client.get("/v1/budgets/limits")
        if target.json:
            document(found)
            return exits.OK
        rows = [
            (
                each["scope"],
                _amount(each, "limit"),
                _amount(each, "booked"),
                _amount(each, "held"),
                f"{each['percent']} %",
                each["window"],
                each["state"] if each["mode"] == "enforce" else f"{each['state']}, alerts only",
            )
            for each in found["data"]
        ]
        table(("scope", "limit", "spent", "held", "used", "window", "state"), rows)
        return exits.OK

    target.run(work)


def put(
    scope: Annotated[
        str,
        typer.Argument(help="org:NAME, team:NAME, project:NAME, batch:ID or tag:PROJECT/KEY=VALUE.", metavar="SCOPE"),
    ],
    target: Target,
    *,
    money: Annotated[str | None, typer.Option("--usd", help="The limit in USD.", show_default=False)] = None,
    tokens: Annotated[int | None, typer.Option(help="The limit in tokens instead.", show_default=False)] = None,
    per_hour: Annotated[
        str | None, typer.Option(help="What its machines may cost an hour, in USD.", show_default=False)
    ] = None,
    monthly: Annotated[bool, typer.Option(help="The limit is for each month (UTC), not for all time.")] = False,
    alert_only: Annotated[bool, typer.Option(help="Tell, but refuse and stop nothing.")] = False,
    email: Annotated[list[str] | None, typer.Option(help="Whom to mail at 50, 80 and 100 %; repeatable.")] = None,
) -> None:
    """Set the limit of a node. A raise waits for a second person."""
    if (money is None) == (tokens is None):
        raise Failure("give one of --usd and --tokens", USAGE)

    async def work(client: Client) -> int:
        body = {
            "scope": scope,
            "usd": money,
            "tokens": tokens,
            "per_hour_usd": per_hour,
            "window": "month" if monthly else "total",
            "mode": "alert_only" if alert_only else "enforce",
            "emails": email or [],
        }
        answer = await client.put("/v1/budgets/limits", {name: each for name, each in body.items() if each is not None})
        if target.json:
            document(answer)
        elif answer["approval"]:
            line(f"that is a raise: another person runs `broker budget approve {answer['approval']}`")
        else:
            line(
                f"{scope} may spend {_amount(answer['budget'], 'limit')}; {answer['budget']['percent']} % of it are used"
            )
        return exits.OK

    target.run(work)


def changes(target: Target) -> None:
    """Raises that wait for a second person."""

    async def work(client: Client) -> int:
        found = await client.get("/v1/budgets/changes")
        if target.json:
            document(found)
        else:
            rows = [(each["id"], each["proposer"], each["reason"]) for each in found["data"]]
            table(("approval", "proposed by", "what"), rows)
        return exits.OK

    target.run(work)


def approve(change: Change, target: Target) -> None:
    """Let a raise hold; not by whoever proposed it."""
    _decide(change, "approve", target)


def reject(change: Change, target: Target) -> None:
    """Drop a raise; not by whoever proposed it."""
    _decide(change, "reject", target)


def _decide(change: str, word: str, target: Target) -> None:
    async def work(client: Client) -> int:
        answer = await client.post(f"/v1/budgets/changes/{change}/{word}", {})
        if target.json:
            document(answer)
        else:
            line(f"{answer['scope']} may spend {_amount(answer, 'limit')}")
        return exits.OK

    target.run(work)


def _amount(budget: dict[str, Any], name: str) -> str:
    return usd(budget[name]) if budget["unit"] == "USD" else f"{int(budget[name]):,} tokens"


COMMANDS: dict[str, Callable[..., None]] = {
    "limits": limits,
    "set": put,
    "changes": changes,
    "approve": approve,
    "reject": reject,
}
