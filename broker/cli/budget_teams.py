"""`budget teams`, `team`, `assign`, `moves`, `approve-move`, `reject-move`: who belongs to whom in the budget tree."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

import typer

from broker.cli import exits
from broker.cli.client import Client
from broker.cli.options import Target
from broker.cli.output import document, line, table

Waiting = Annotated[str, typer.Argument(help="The move (`budget moves`).", metavar="APPROVAL")]


def teams(target: Target) -> None:
    """The tree: organisations, their teams and projects."""

    async def work(client: Client) -> int:
        found = await client.get("/v1/teams")
        if target.json:
            document(found)
        else:
            rows = [(each["org"], each["name"], ", ".join(each["projects"]) or "-") for each in found["data"]]
            table(("organisation", "team", "projects"), rows)
        return exits.OK

    target.run(work)


def team(
    name: Annotated[str, typer.Argument(help="The team's name.", metavar="TEAM")],
    target: Target,
    *,
    org: Annotated[str, typer.Option(help="The organisation that it belongs to.")],
) -> None:
    """Make a team of an organisation."""

    async def work(client: Client) -> int:
        answer = await client.put(f"/v1/teams/{name}", {"org": org})
        if target.json:
            document(answer)
        else:
            line(f"team {answer['name']} belongs to {answer['org']}")
            _told(answer)
        return exits.OK

    target.run(work)


def assign(
    member: Annotated[str, typer.Argument(help="The project's name.", metavar="PROJECT")],
    to: Annotated[str, typer.Argument(help="The team's name.", metavar="TEAM")],
    target: Target,
) -> None:
    """Say which team a project belongs to."""

    async def work(client: Client) -> int:
        answer = await client.put(f"/v1/teams/projects/{member}", {"team": to})
        if target.json:
            document(answer)
        else:
            line(f"{member} belongs to team {answer['team'] or '-'}")
            _told(answer)
        return exits.OK

    target.run(work)


def moves(target: Target) -> None:
    """Moves of teams and projects that wait for a second person: they would leave a limit behind."""

    async def work(client: Client) -> int:
        found = await client.get("/v1/teams/moves")
        if target.json:
            document(found)
        else:
            rows = [(each["id"], each["proposer"], each["reason"]) for each in found["data"]]
            table(("approval", "proposed by", "what"), rows)
        return exits.OK

    target.run(work)


def approve_move(waiting: Waiting, target: Target) -> None:
    """Carry a move out; not by whoever proposed it."""
    _decide(waiting, "approve", target)


def reject_move(waiting: Waiting, target: Target) -> None:
    """Drop a move; not by whoever proposed it."""
    _decide(waiting, "reject", target)


def _decide(waiting: str, word: str, target: Target) -> None:
    async def work(client: Client) -> int:
        answer = await client.post(f"/v1/teams/moves/{waiting}/{word}", {})
        if target.json:
            document(answer)
        else:
            line(f"{answer['outcome']}: {answer['reason']}")
        return exits.OK

    target.run(work)


def _told(answer: dict[str, Any]) -> None:
    if answer["approval"]:
        line(f"a limit would be left behind: another person runs `broker budget approve-move {answer['approval']}`")


COMMANDS: dict[str, Callable[..., None]] = {
    "teams": teams,
    "team": team,
    "assign": assign,
    "moves": moves,
    "approve-move": approve_move,
    "reject-move": reject_move,
}
