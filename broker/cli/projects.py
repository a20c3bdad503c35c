"""`projects show`, `set` and `erase`: a project's limits, from what cost on a batch needs a second person, and its end."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from broker.cli import exits
from broker.cli.client import Client
from broker.cli.exits import USAGE, Failure
from broker.cli.option_groups import declare
from broker.cli.options import Target
from broker.cli.output import document, line, table, usd
from broker.cli.wishes import decimal_usd, pairs

Document = dict[str, Any]
Name = Annotated[str, typer.Argument(help="The project's name.", metavar="PROJECT")]
NONE = "none"


def show(name: Name, target: Target) -> None:
    """What holds for a project, and which of it is its own; the rest are the broker's settings."""

    async def work(client: Client) -> int:
        _show(await client.get(f"/v1/admin/projects/{name}"), json=target.json)
        return exits.OK

    target.run(work)


def change(
    name: Name,
    target: Target,
    *,
    limit: Annotated[
        list[str] | None,
        typer.Option("--limit", help="NAME=NUMBER, as often as needed; `none` for the broker's own setting."),
    ] = None,
    approve_above: Annotated[
        str | None,
        typer.Option(help="USD above which a batch waits for a second person; `none` for the broker's own setting."),
    ] = None,
) -> None:
    """Change a project's limits, or from what cost on its batches need a second person."""
    wanted: Document = {"limits": {key: _number(key, text) for key, text in pairs("--limit", limit).items()}}
    if approve_above is not None:
        is_none = approve_above == NONE
        wanted["approve_above_usd"] = None if is_none else decimal_usd("--approve-above", approve_above)
    if wanted == {"limits": {}}:
        raise Failure("nothing to set was named; give --limit or --approve-above", USAGE)

    async def work(client: Client) -> int:
        _show(await client.patch(f"/v1/admin/projects/{name}", wanted), json=target.json)
        return exits.OK

    target.run(work)


def erase(
    name: Name,
    target: Target,
    *,
    yes: Annotated[bool, typer.Option("--yes", help="Do it: nothing brings it back.")] = False,
) -> None:
    """Erase a project's files, results and what people typed. Ids, counts and the books stay, and so do its settings."""
    if not yes:
        raise Failure(f"this erases every file and result of project {name} for good; say --yes", USAGE)

    async def work(client: Client) -> int:
        gone = await client.delete(f"/v1/admin/projects/{name}/data")
        if target.json:
            document(gone)
        else:
            line(f"the data of project {name} is erased: {gone['objects']} objects")
        return exits.OK

    target.run(work)


def _number(name: str, text: str) -> int | None:
    if text != NONE and not text.isdecimal():
        raise Failure(f"--limit {name}={text}: want a whole number, or none", USAGE)
    return None if text == NONE else int(text)


def _show(project: Document, *, json: bool) -> None:
    if json:
        document(project)
        return
    own = set(project["own"])
    rows = [(name, str(value), "own" if name in own else "the broker's") for name, value in project["limits"].items()]
    table(("limit", "value", "whose"), rows)
    above = project["approve_above_usd"]
    whose = " (own)" if "approve_above_usd" in own else ""
    line("no batch needs approval" if above is None else f"batches above {usd(above)} need approval{whose}")


projects = declare(
    typer.Typer(no_args_is_help=True, help="Projects: limits, and from what cost on a second person decides."),
    {"show": show, "set": change, "erase": erase},
)
