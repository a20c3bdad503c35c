"""What this process counts as it happens: HTTP answers, leases, commits, plans. One set an application, never global."""

from __future__ import annotations

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
)

from broker.metrics.catalogue import NAMED, Family
from jobs.types import CommitAnswer
from solver.types import Plan

SOLVE_BUCKETS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 60)


class Counters:
    """The counts of one process; a restart begins at 0, as Prometheus expects of counters."""

    def __init__(self) -> None:
        # beside each counter and histogram the library would tell when it was born: a series more for each route and status
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = CollectorRegistry()
        self.names: set[str] = set()
        ProcessCollector(registry=self.registry)
        self._answers = self._counter("broker_http_requests_total")
        self._seconds = self._histogram("broker_http_request_seconds", Histogram.DEFAULT_BUCKETS)
        self.requests_open = self._gauge("broker_http_requests_open")
        self._leases = self._counter("broker_leases_total")
        self._commits = self._counter("broker_commits_total")
        self._part_bytes = self._counter("broker_part_bytes_total")
        self._orphans = self._counter("broker_orphans_removed_total")
        self._orphan_bytes = self._counter("broker_orphans_removed_bytes_total")
        self._plans = self._counter("broker_plans_total")
        self._solve = self._histogram("broker_plan_solve_seconds", SOLVE_BUCKETS)
        self._gap = self._gauge("broker_plan_gap_ratio")
        self._refused = self._counter("broker_plan_refused_total")

    def answered(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count one answer. `route` is the declared path with its placeholders, never the path with ids."""
        self._answers.labels(method, route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def leased(self) -> None:
        self._leases.inc()

    def committed(self, answer: CommitAnswer, size: int) -> None:
        """Count what became of a commit of a part of `size` bytes."""
        self._commits.labels(answer.outcome).inc()
        if answer.outcome in ("committed", "committed_superseded"):
            self._part_bytes.inc(size)

    def orphan_removed(self, size: int) -> None:
        self._orphans.inc()
        self._orphan_bytes.inc(size)

    def commit_refused(self, code: str) -> None:
        """Count a commit that got an error and no outcome; `code` is the error's."""
        self._commits.labels(code).inc()

    def planned(self, plan: Plan, seconds: float) -> None:
        self._plans.labels(plan.stage, plan.stopped_by).inc()
        self._solve.observe(seconds)
        self._gap.set(gap(plan.cost_nano, plan.bound_nano))

    def plan_refused(self, stage: str) -> None:
        self._refused.labels(stage).inc()

    def _family(self, name: str) -> Family:
        self.names.add(name)
        return NAMED[name]

    def _counter(self, name: str) -> Counter:
        family = self._family(name)
        return Counter(name, family.help, family.labels, registry=self.registry)

    def _gauge(self, name: str) -> Gauge:
        family = self._family(name)
        return Gauge(name, family.help, family.labels, registry=self.registry)

    def _histogram(self, name: str, buckets: tuple[float, ...]) -> Histogram:
        family = self._family(name)
        return Histogram(name, family.help, family.labels, buckets=buckets, registry=self.registry)


def gap(cost_nano: int, bound_nano: int) -> float:
    """The part of a plan's cost that a better plan might save.

    >>> gap(200, 150), gap(0, 0), gap(100, 120)
    (0.25, 0.0, 0.0)
    """
    return max(0.0, (cost_nano - bound_nano) / cost_nano) if cost_nano > 0 else 0.0
