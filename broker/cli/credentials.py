"""`credentials`: what a project logs in with at its markets, and the keys that it lies under."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from broker.cli import exits
from broker.cli.client import Client
from broker.cli.exits import USAGE, Failure
from broker.cli.option_groups import declare
from broker.cli.options import Target
from broker.cli.output import document, line, moment, table

COLUMNS = ("market", "project", "account", "names", "version", "changed", "by")
HOUSE_COLUMNS = ("market", "account", "since", "before", "given up by", "trouble")
KEK_COLUMNS = ("key", "data keys", "current", "here")

Market = Annotated[str, typer.Argument(help="A market, such as aws.")]


def keep(
    market: Market,
    target: Target,
    *,
    file: Annotated[
        typer.FileText, typer.Option(help="A JSON object of names and values; - is standard input.", mode="r")
    ] = "-",  # type: ignore[assignment]
) -> None:
    """Keep what the project logs in with at a market: JSON on standard input, such as {"access_key_id": "AKIA…",
    "secret_access_key": "…"}. Never as an argument: other users of this machine can see those."""
    values = _values(file.read())

    async def work(client: Client) -> int:
        kept = await client.post(f"/v1/credentials/{market}", {"values": values}, again=True)
        if target.json:
            document(kept)
        else:
            line(f"{market}: {', '.join(kept['names'])} kept for project {kept['project']}, version {kept['version']}")
        return exits.OK

    target.run(work)


def show(target: Target) -> None:
    """At which markets the project has credentials of its own, and since when. Values are never shown."""

    async def work(client: Client) -> int:
        found = await client.get("/v1/credentials")
        if target.json:
            document(found)
            return exits.OK
        rows = [
            (
                e["market"],
                e["project"],
                e["account"] or "-",
                ",".join(e["names"]),
                str(e["version"]),
                moment(e["updated_at"]),
                e["updated_by"],
            )
            for e in found["data"]
        ]
        table(COLUMNS, rows)
        return exits.OK

    target.run(work)


def remove(market: Market, target: Target) -> None:
    """Forget the project's credentials at a market."""

    async def work(client: Client) -> int:
        gone = await client.delete(f"/v1/credentials/{market}")
        if target.json:
            document(gone)
        else:
            line(f"{market}: forgotten")
        return exits.OK

    target.run(work)


def house(target: Target) -> None:
    """Which of its providers' accounts the house's machines run in, and whether its login is of another one."""

    async def work(client: Client) -> int:
        found = await client.get("/v1/admin/house-accounts")
        if target.json:
            document(found)
            return exits.OK
        rows = [
            (
                e["market"],
                e["account"],
                moment(e["since"]),
                e["before"] or "-",
                e["given_up_by"] or "-",
                e["reason"] or "",
            )
            for e in found["data"]
        ]
        table(HOUSE_COLUMNS, rows)
        return exits.OK

    target.run(work)


def give_up(
    market: Market,
    account: Annotated[str, typer.Argument(help="The number of the account that is left, machines and all.")],
    target: Target,
) -> None:
    """Go over to the account of the house's login. Machines that run in the one before are written off, and cost on until
    somebody who can log in there ends them."""

    async def work(client: Client) -> int:
        now = await client.post(f"/v1/admin/house-accounts/{market}/give-up", {"account": account})
        if target.json:
            document(now)
        else:
            line(f"{market}: {account} is given up; the house's account is {now['account']}")
        return exits.OK

    target.run(work)


def rotate(target: Target) -> None:
    """Wrap every data key with the current key-encryption key (vault.current). May be stopped and repeated. Those that do not
    open are named, and it ends with 1."""

    async def work(client: Client) -> int:
        standing = await client.post("/v1/admin/vault/rewrap", {}, again=True)
        if target.json:
            document(standing)
            return exits.ERROR if standing["closed"] else exits.OK
        line(f"{standing['rewrapped']} data keys wrapped again")
        rows = [
            (e["kek"], str(e["data_keys"]), "yes" if e["current"] else "", "yes" if e["here"] else "no")
            for e in standing["keks"]
        ]
        table(KEK_COLUMNS, rows)
        closed = [f"{e['data_key']} of {e['owner']}: {e['why']}" for e in standing["closed"]]
        if closed:
            told = "\n  ".join(closed)
            raise Failure(f"{len(closed)} data keys do not open and were left as they are:\n  {told}")
        return exits.OK

    target.run(work)


def _values(text: str) -> dict[str, Any]:
    """The object. The message never holds what was read."""
    try:
        values = json.loads(text)
    except ValueError:
        raise Failure("the credentials are not JSON (what was read is not shown)", USAGE) from None
    if not isinstance(values, dict):
        raise Failure("the credentials must be one JSON object of names and values", USAGE)
    return values


credentials = declare(
    typer.Typer(
        no_args_is_help=True, help="What a project, and the house, log in with at markets; and the keys over it."
    ),
    {"set": keep, "list": show, "remove": remove, "house": house, "give-up": give_up, "rotate": rotate},
)
