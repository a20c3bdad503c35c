"""`doctor`: is everything in place, and if not, what mends it."""

from __future__ import annotations

import asyncio
import os
import sys
from typing import Annotated, Any

import typer

from broker.cli import configuration, exits
from broker.cli.client import Client
from broker.cli.options import Target
from broker.cli.output import document, line, table

STATES = {"ok": "ok", "warn": "WARNING", "fail": "NOT OK"}


def doctor(
    target: Target,
    offline: Annotated[
        bool, typer.Option("--offline", help="Without a broker: settings, folder, database, store.")
    ] = False,
) -> None:
    """Check the broker and what it stands on. Exit 1 when something is not in order; warnings alone are 0."""
    if offline:
        # Imported here: the broker's rooms take a second that no other command should pay.
        from broker.api.offline import offline_checks  # noqa: PLC0415

        settings = configuration.load(data=target.settings().data)
        code = _show(asyncio.run(offline_checks(settings)).model_dump(), target.json)
        # obstore's own threads abort the process when the interpreter ends around them right after their last answer
        # (measured, 0.12.1: every second time), and the exit code would be a signal's.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)

    async def work(client: Client) -> int:
        return _show(await client.get("/v1/doctor"), target.json)

    target.run(work)


def _show(found: dict[str, Any], as_json: bool) -> int:
    if as_json:
        document(found)
    else:
        rows = [
            (check["name"], STATES[check["state"]], check["found"], check["mend"] or "") for check in found["checks"]
        ]
        table(("check", "", "found", "to mend it"), rows)
        line("all is in order" if found["ok"] else "something is not in order")
    return exits.OK if found["ok"] else exits.ERROR
