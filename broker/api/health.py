"""Is the process there, can it work, and what has it done: for supervisors and Prometheus."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

from aiohttp import web
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, text
from sqlalchemy.exc import SQLAlchemyError

from broker.api import health_shapes as shapes
from broker.api.registry import Call, Route, route
from broker.control.loops import LoopState
from broker.database import Database
from broker.metrics.exposition import Exposition
from broker.migrate import config

# A loop is late when it has not ended a run for this many intervals plus this many seconds (a solve or a poll takes long).
LATE_INTERVALS = 3
LATE_GRACE_S = 60


def late_loops(loops: Mapping[str, LoopState], now_s: float) -> list[str]:
    """What is wrong with each loop that has stopped running; times are of the monotonic clock.

    >>> late_loops({"plan": LoopState(5.0, last_end=100.0)}, 110.0)
    []
    >>> late_loops({"plan": LoopState(5.0, last_end=100.0)}, 200.0)
    ['loop plan last ended 100 s ago; it should run every 5 s']
    """
    found = []
    for name, state in sorted(loops.items()):
        if state.last_end is None or state.stands_by:
            continue  # its first run is still going on, or it runs at another broker
        silent_s = now_s - state.last_end
        if silent_s > LATE_INTERVALS * state.every_s + LATE_GRACE_S:
            found.append(f"loop {name} last ended {silent_s:.0f} s ago; it should run every {state.every_s:g} s")
    return found


def starting_loops(loops: Mapping[str, LoopState]) -> list[str]:
    """Loops that have not tried once yet. Before the first poll there are no offers, and every quote would say so; markets that
    are only followed (`prices:`) are not waited for.

    >>> starting_loops({"poll": LoopState(5.0), "plan": LoopState(5.0, runs=1), "place": LoopState(5.0, defects=1)})
    ['loop poll has not ended its first run yet']
    """
    awaited = (name for name, state in sorted(loops.items()) if not (state.runs or state.defects or state.stands_by))
    return [f"loop {name} has not ended its first run yet" for name in awaited if not name.startswith("prices:")]


async def database_problems(database: Database) -> list[str]:
    """Why the database cannot be used: it does not answer, or its schema is not the one of this code."""
    try:
        async with database.engine.connect() as connection:
            await connection.execute(text("SELECT 1"))
            found = await connection.run_sync(_revision)
    except SQLAlchemyError as error:
        return [f"database: {type(error).__name__}: {error}"]
    wanted = ScriptDirectory.from_config(config(database.url)).get_current_head()
    return (
        []
        if found == wanted
        else [f"database: schema is at revision {found}, this broker needs {wanted}; restart it to migrate"]
    )


def _revision(connection: Connection) -> str | None:
    return MigrationContext.configure(connection).get_current_revision()


@dataclass(frozen=True)
class Health:
    """The health routes of one application; `loops` is the live mapping that the control loops keep."""

    loops: Mapping[str, LoopState]
    exposition: Exposition

    def routes(self) -> tuple[Route, ...]:
        async def healthz(call: Call) -> shapes.Health:
            """The process lives."""
            return shapes.Health(status="ok", problems=[], leads=call.services.leadership.leads)

        async def readyz(call: Call) -> web.Response:
            """The broker can work: database, migrations and loops are in order; else 503 names what is not.

            `leads`: whether this broker decides for all that share its database. One that does not serves as well.
            """
            problems = await database_problems(call.services.database)
            problems += starting_loops(self.loops) + late_loops(self.loops, time.monotonic())
            leads = call.services.leadership.leads
            health = shapes.Health(status="unready" if problems else "ok", problems=problems, leads=leads)
            return web.Response(
                status=503 if problems else 200, body=health.model_dump_json().encode(), content_type="application/json"
            )

        async def metrics(call: Call) -> web.Response:
            """Prometheus metrics (docs/metrics.md lists them)."""
            return web.Response(
                body=await self.exposition.text(), headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"}
            )

        return (
            route("GET", "/healthz", healthz, tag="health", access="open"),
            route(
                "GET", "/readyz", readyz, tag="health", access="open", response=shapes.Health, also={503: shapes.Health}
            ),
            route(
                "GET", "/metrics", metrics, tag="health", roles=("operator",), of_house=True, produces=("text/plain",)
            ),
        )
