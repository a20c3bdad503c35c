"""`demo`: the whole way of one batch on this machine, a kill included."""

from __future__ import annotations

import asyncio
import sys
from json import dumps
from pathlib import Path
from typing import Annotated

import typer

from broker.cli import configuration, exits, options
from broker.cli.exits import Failure
from broker.cli.market import fetch_weights
from broker.cli.output import line

MODEL = "smollm2-135m-instruct"  # the model that the prompts ask for


def demo(
    *,
    folder: Annotated[
        Path, typer.Option("--data", envvar="DEMO_DIR", help="Where it keeps its data; made anew by each run.")
    ] = Path("demo-data"),
    json: Annotated[bool, typer.Option("--json", help="Tell the story on standard error.")] = False,
) -> None:
    """Run a real batch here, kill a worker halfway, and check that every answer is there once and the books balance.

    The last line on standard output is JSON. Exit 0 only when all of that is so.
    """
    from broker.demo.folder import prepare  # noqa: PLC0415 - what only this command needs
    from broker.demo.run import run  # noqa: PLC0415

    stream = sys.stderr if json else sys.stdout
    weights = fetch_weights(MODEL, configuration.load(), stream)
    try:
        verdict = options.ended(run(prepare(folder, MODEL, weights), stream))
    except asyncio.CancelledError:
        raise Failure("ended by SIGTERM") from None
    line(dumps(verdict.document()))
    raise typer.Exit(exits.OK if verdict.passed else exits.ERROR)
