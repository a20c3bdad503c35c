"""The options that every command has, and the shell in which a command runs."""

from __future__ import annotations

import asyncio
import tomllib
from collections.abc import Coroutine
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
from pydantic import ValidationError

from broker import settings as broker_settings
from broker.cli.client import ApiFailure, BrokerUnreachable
from broker.cli.exits import USAGE, Failure
from broker.settings import Settings

T = TypeVar("T")

Data = Annotated[
    Path | None,
    typer.Option("--data", help="The data folder (default: the user's).", show_default=False),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on standard output.")]
Url = Annotated[str | None, typer.Option("--url", help="A broker elsewhere (also BROKER_URL).", show_default=False)]
Key = Annotated[
    str | None,
    typer.Option("--key", help="Its API key; BROKER_API_KEY hides it from other users.", show_default=False),
]


def load(*, config: Path | None = None, **given: Any) -> Settings:
    """Settings with the command's own options on top; options that were not given (None) leave the rest as it is.

    Raises Failure (usage) that names each setting that is wrong.
    """
    overrides = {name: value for name, value in given.items() if value is not None}
    if "data" in overrides:
        overrides["data"] = Path(overrides["data"]).expanduser().resolve()
    if config and not config.is_file():
        raise Failure(f"--config {config}: no such file", USAGE)
    try:
        loaded = broker_settings.load(config, **overrides)
    except ValidationError as wrong:
        raise Failure(_described(wrong), USAGE) from wrong
    except tomllib.TOMLDecodeError as wrong:
        raise Failure(f"{config or 'broker.toml in the data folder'}: not TOML: {wrong}", USAGE) from wrong
    return loaded


def target(data: Path | None, url: str | None, key: str | None) -> Settings:
    """Settings of a command that talks to a broker. `--data` means that folder's broker, whatever BROKER_URL says."""
    if data and url:
        raise Failure("--data and --url name two brokers; give one of them", USAGE)
    settings = load(data=data, url=url, api_key=key)
    return settings.model_copy(update={"url": None}) if data else settings


def run(work: Coroutine[Any, Any, int]) -> None:
    """Run a command's coroutine and end with the exit code that it returns."""
    raise typer.Exit(ended(work))


def ended(work: Coroutine[Any, Any, T]) -> T:
    """What the coroutine returns. What the broker refused, or that it did not answer, is a Failure here: one line."""
    try:
        return asyncio.run(work)
    except ApiFailure as refused:
        where = f" ({refused.param})" if refused.param else ""
        raise Failure(f"the broker refused{where}: {refused} [{refused.code or refused.status}]") from refused
    except BrokerUnreachable as silent:
        raise Failure(str(silent)) from silent


def _described(wrong: ValidationError) -> str:
    lines = []
    for error in wrong.errors(include_url=False):
        name = ".".join(str(part) for part in error["loc"])
        lines.append(f"setting {name or '(whole)'} = {error['input']!r}: {error['msg']}")
    return "\n".join(lines)
