"""The options that every command has, and the shell in which a command runs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, NoReturn, TypeVar

import typer

from broker.cli import configuration
from broker.cli.client import ApiFailure, BrokerUnreachable, Client
from broker.cli.connection import connect
from broker.cli.exits import INTERRUPTED, USAGE, Failure
from broker.client_settings import ClientSettings

T = TypeVar("T")

Data = Annotated[
    Path | None,
    typer.Option("--data", help="The data folder (default: the user's).", show_default=False),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on standard output.")]


@dataclass(frozen=True, kw_only=True)
class Target:
    """Which broker and whose batches a command means, and whether it answers in JSON: a group of options."""

    json: Json = False
    data: Data = None
    url: Annotated[str | None, typer.Option(help="A broker elsewhere (also BROKER_URL).", show_default=False)] = None
    key: Annotated[
        str | None, typer.Option(help="Its API key; BROKER_API_KEY hides it from other users.", show_default=False)
    ] = None
    project: Annotated[
        str | None,
        typer.Option(help="Whose batches, for keys that see all projects (also BROKER_PROJECT).", show_default=False),
    ] = None

    def settings(self) -> ClientSettings:
        """`--data` means that folder's broker, whatever BROKER_URL says. Raises Failure (usage)."""
        if self.data and self.url:
            raise Failure("--data and --url name two brokers; give one of them", USAGE)
        settings = configuration.load_client(data=self.data, url=self.url, api_key=self.key, project=self.project)
        return replace(settings, url=None) if self.data else settings

    def ask(self, work: Callable[[Client], Coroutine[Any, Any, T]]) -> T:
        """What `work` makes of that broker. What the broker refused, or that it did not answer, is a Failure."""
        settings = self.settings()

        async def connected() -> T:
            async with connect(settings) as client:
                return await work(client)

        return ended(connected())

    def run(self, work: Callable[[Client], Coroutine[Any, Any, int]]) -> NoReturn:
        """A whole command: `work` with that broker, then the exit code that it returned."""
        raise typer.Exit(self.ask(work))


def ended(work: Coroutine[Any, Any, T]) -> T:
    """What the coroutine returns. What the broker refused, or that it did not answer, is a Failure here: one line.

    Ctrl-C ends it by way of every `finally`, and the command with exit code 130.
    """
    try:
        return asyncio.run(work)
    except ApiFailure as refused:
        where = f" ({refused.param})" if refused.param else ""
        raise Failure(f"the broker refused{where}: {refused} [{refused.code or refused.status}]") from refused
    except BrokerUnreachable as silent:
        raise Failure(str(silent)) from silent
    except KeyboardInterrupt:
        raise typer.Exit(INTERRUPTED) from None
