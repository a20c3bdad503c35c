"""`completion`: commands, options, batch ids and model names when Tab is pressed in bash, zsh or fish.

The scripts ask the program itself (`_BROKER_COMPLETE` in its environment), so that they never go stale. What only a
broker knows is asked of the data folder's live one, for a second at most (setting `completion_s`); none is started, and
what goes wrong is silence: a message would land in the middle of the line that somebody types.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

# typer exports these only behind its own --install-completion, which edits people's files; the tests run every shell
from typer._completion_classes import completion_init
from typer._completion_shared import get_completion_script

from broker.cli import configuration
from broker.cli.client import ApiFailure, BrokerUnreachable, Client
from broker.cli.exits import Failure
from broker.cli.output import line
from broker.owner import owner

PROGRAM = "broker"
VARIABLE = "_BROKER_COMPLETE"
NEWEST = 50

Found = list[tuple[str, str]]


def completion(shell: Annotated[Literal["bash", "zsh", "fish"], typer.Argument(help="Which shell.")]) -> None:
    """Print the script that completes commands, options, batch ids and model names.

    \b
    bash: echo 'eval "$(broker completion bash)"' >> ~/.bashrc
    zsh:  echo 'eval "$(broker completion zsh)"' >> ~/.zshrc     (after compinit)
    fish: broker completion fish > ~/.config/fish/completions/broker.fish
    """
    line_by_line = get_completion_script(prog_name=PROGRAM, complete_var=VARIABLE, shell=shell).splitlines()
    for text in line_by_line:
        line(text)


def answer_shells() -> None:
    """Let the program answer what these scripts ask; typer does so only for programs with its own --install-completion."""
    completion_init()


def batch_ids(context: typer.Context) -> Found:
    """The newest batches, each with its state."""
    found = _look(context, "/v1/batches", {"limit": NEWEST})
    return [(batch["id"], f"{batch['status']}, {batch['model'] or 'no model'}") for batch in found]


def model_names(context: typer.Context) -> Found:
    """The models that may be asked for, each with its engine."""
    return [(model["id"], str(model["x_broker"].get("engine", ""))) for model in _look(context, "/v1/models", {})]


def _look(context: typer.Context, path: str, query: dict[str, str | int | None]) -> list[dict[str, Any]]:
    """A list of the data folder's live broker; of no broker, an unwilling or a slow one: nothing."""
    data = context.params.get("data")
    try:
        settings = configuration.load_client(data=Path(data) if data else None)
        live = owner(settings.data)
        if live is None or live.url is None or (settings.url and not data):
            return []
        return asyncio.run(_list(live.url, live.key, path, query, settings.completion_s))
    except (Failure, ApiFailure, BrokerUnreachable, OSError, TimeoutError):
        return []


async def _list(
    url: str, key: str | None, path: str, query: dict[str, str | int | None], within_s: float
) -> list[dict[str, Any]]:
    async with asyncio.timeout(within_s), Client(url, key) as client:
        found: list[dict[str, Any]] = (await client.get(path, query))["data"]
        return found
