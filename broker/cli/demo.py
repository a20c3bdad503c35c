"""`demo`: the whole way of one batch on this machine, a kill included."""

from __future__ import annotations

import asyncio
import sys
from json import dumps
from pathlib import Path
from typing import Annotated

import typer

from broker.cli import exits
from broker.cli.output import line
from broker.demo.folder import prepare
from broker.demo.run import run


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
    stream = sys.stderr if json else sys.stdout
    verdict = asyncio.run(run(prepare(folder), stream))
    line(dumps(verdict.document()))
    raise typer.Exit(exits.OK if verdict.passed else exits.ERROR)
