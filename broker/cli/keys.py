"""`keys create` and `keys revoke`: who may do what, in which project."""

from __future__ import annotations

import re
from typing import Annotated, Any

import typer

from broker.cli import exits
from broker.cli.client import Client
from broker.cli.exits import USAGE, Failure
from broker.cli.option_groups import declare
from broker.cli.options import Target
from broker.cli.output import document, line, moment

UNIT_S = {"h": 3600, "d": 86_400}


def create(
    principal: Annotated[str, typer.Argument(help="Whose key: a person or a service.")],
    role: Annotated[
        list[str],
        typer.Option(help="submitter, viewer, compliance, finance, operator or admin; as often as needed."),
    ],
    target: Target,
    *,
    lasts: Annotated[str | None, typer.Option(help="Such as 12h or 90d; else until it is revoked.")] = None,
    all_projects: Annotated[
        bool,
        typer.Option("--all-projects", help="A key of the house: its policies, audits and budgets are for such keys."),
    ] = False,
) -> None:
    """Make an API key for a person or a service. It is shown this once. --project PROJECT makes the project, too."""
    body: dict[str, Any] = {"principal": principal, "roles": role}
    if all_projects:
        body["all_projects"] = True
    if target.project:
        body["project"] = target.project
    if lasts is not None:
        body["expires_in_s"] = _seconds(lasts)

    async def work(client: Client) -> int:
        made = await client.post("/v1/admin/keys", body)
        if target.json:
            document(made)
            return exits.OK
        until = "until it is revoked" if made["expires_at"] is None else f"until {moment(made['expires_at'])}"
        line(
            f"{made['id']}: {made['principal']}, {', '.join(made['roles'])}, {made['project'] or 'all projects'}, {until}"
        )
        line(f"{made['key']} (keep it: it is not shown again)")
        return exits.OK

    # The new key's project need not be there yet, so that this request cannot be made in its name.
    _unnamed(target).run(work)


def revoke(
    key_id: Annotated[str, typer.Argument(help="The key's id, `key_…`: not its text.", metavar="KEY_ID")],
    target: Target,
) -> None:
    """Make a key worthless, at once."""

    async def work(client: Client) -> int:
        gone = await client.delete(f"/v1/admin/keys/{key_id}")
        if target.json:
            document(gone)
        else:
            line(f"{gone['id']} is revoked")
        return exits.OK

    target.run(work)


def _seconds(text: str) -> int:
    match = re.fullmatch(r"([1-9]\d{0,5})([hd])", text)
    if match is None:
        raise Failure(f"--lasts {text!r}: want a number and h or d, such as 12h or 90d", USAGE)
    return int(match[1]) * UNIT_S[match[2]]


def _unnamed(target: Target) -> Target:
    return Target(json=target.json, data=target.data, url=target.url, key=target.key)


keys = declare(
    typer.Typer(no_args_is_help=True, help="API keys: who may do what, in which project."),
    {"create": create, "revoke": revoke},
)
