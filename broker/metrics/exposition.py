"""The answer to a scrape: the state at this moment beside what this process counted."""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import Iterable, Mapping
from importlib.metadata import version

from prometheus_client import generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from sqlalchemy.pool import QueuePool

from broker.control.loops import LoopState
from broker.control.snapshot import max_age_s
from broker.database import Database
from broker.metrics.catalogue import CATALOGUE, Family
from broker.metrics.state import StateReader, Values
from broker.services import Services
from jobs.clock import db_now


class Exposition(Collector):
    """One application's metrics."""

    def __init__(self, services: Services, loops: Mapping[str, LoopState]) -> None:
        self._services, self._loops = services, loops
        self._reader = StateReader(tuple(sorted(services.markets)), max_age_s(services))
        self._values: Mapping[str, Values] = {}
        self._turn = asyncio.Lock()
        services.counters.registry.register(self)

    async def text(self) -> bytes:
        """Prometheus's text format. One scrape at a time: a second one would sum what is new twice."""
        async with self._turn, self._services.database.transaction() as session:
            state = await self._reader.read(session, await db_now(session))
        self._values = {**state, **_of_loops(self._loops, time.monotonic()), **self._of_process()}
        return generate_latest(self._services.counters.registry)

    def collect(self) -> Iterable[Metric]:
        """Every family that is not counted elsewhere, in the catalogue's order; also those without a value now."""
        counted = self._services.counters.names
        return [
            _metric(family, self._values.get(family.name, {})) for family in CATALOGUE if family.name not in counted
        ]

    def _of_process(self) -> dict[str, Values]:
        return {
            "broker_leader": {(): float(self._services.leadership.leads)},
            "broker_database_connections": _pool(self._services.database),
            "broker_disk_free_bytes": {(): shutil.disk_usage(self._services.settings.data).free},
            "broker_build_info": {(version("compute-broker"),): 1},
        }


def _metric(family: Family, values: Values) -> Metric:
    made = CounterMetricFamily if family.kind == "counter" else GaugeMetricFamily
    metric = made(family.name, family.help, labels=family.labels)
    for labels, value in sorted(values.items()):
        metric.add_metric(labels, value)
    return metric


def _of_loops(loops: Mapping[str, LoopState], now_s: float) -> dict[str, Values]:
    return {
        "broker_loop_seconds_total": {(name,): state.seconds for name, state in loops.items()},
        "broker_loop_runs_total": {(name,): state.runs for name, state in loops.items()},
        "broker_loop_failures_total": {(name,): state.failures + state.defects for name, state in loops.items()},
        "broker_loop_lag_seconds": {(name,): lag_s(state, now_s) for name, state in loops.items()},
    }


def lag_s(state: LoopState, now_s: float) -> float:
    """How long ago a run should have ended; before the first run, and while another broker runs it, nothing is late.

    >>> lag_s(LoopState(5.0, last_end=100.0), 103.0), lag_s(LoopState(5.0, last_end=100.0), 112.0), lag_s(LoopState(5.0), 9.0)
    (0.0, 7.0, 0.0)
    """
    if state.last_end is None or state.stands_by:
        return 0.0
    return max(0.0, now_s - state.last_end - state.every_s)


def _pool(database: Database) -> Values:
    pool = database.engine.pool
    if not isinstance(pool, QueuePool):  # a database in memory has one connection and no pool to speak of
        return {}
    return {("used",): pool.checkedout(), ("idle",): pool.checkedin()}
