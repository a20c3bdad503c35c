"""What Prometheus is told: counts of state out of the database at each scrape, and of our own HTTP answers as they go.

Names are `broker_<noun>_<unit>`; no ids in labels, so the number of series stays small whatever is submitted. The
registry is this application's own: two brokers in one process (tests) do not share counters.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from sqlalchemy import case, func, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from broker.control.loops import LoopState
from broker.tables import Delivery, Webhook
from jobs import outbox
from jobs.tables import Batch
from ledger.book import balances
from ledger.money import from_nano
from markets.tables import RentalRow

OUTCOMES = ("completed", "failed", "expired", "cancelled")
DELIVERIES = ("pending", "delivered", "gave_up")


@dataclass(frozen=True)
class State:
    """Sums over the database at one moment. Money is integer nano-USD."""

    batches: Mapping[str, int]
    lines: Mapping[str, int]
    tokens: Mapping[str, int]
    rentals: Mapping[str, int]
    spend_nano: int
    webhooks: Mapping[str, int]
    deliveries: Mapping[str, int]
    events_waiting: int


async def read_state(session: AsyncSession) -> State:
    """Count what there is. Spend is what the expense accounts say: accruals net of corrections."""
    batches = await session.execute(select(col(Batch.status), func.count()).group_by(col(Batch.status)))
    sums = [func.coalesce(func.sum(getattr(Batch, outcome)), 0) for outcome in OUTCOMES]
    lines = (await session.execute(select(*sums))).one()
    used = (Batch.used_input_tokens, Batch.used_output_tokens, Batch.used_cached_tokens)
    tokens = (await session.execute(select(*(func.coalesce(func.sum(column), 0) for column in used)))).one()
    rentals = await session.execute(select(col(RentalRow.state), func.count()).group_by(col(RentalRow.state)))
    spend = sum(each.nano for each in await balances(session) if each.account.startswith("Expenses:"))
    enabled = case((col(Webhook.disabled_us).is_(None), "enabled"), else_="disabled")
    webhooks = await session.execute(select(enabled, func.count()).group_by(enabled))
    ended = case(
        (col(Delivery.next_us).is_not(None), "pending"),
        (col(Delivery.delivered_us).is_not(None), "delivered"),
        else_="gave_up",
    )
    deliveries = await session.execute(select(ended, func.count()).group_by(ended))
    return State(
        batches={status: int(count) for status, count in batches},
        lines={outcome: int(count) for outcome, count in zip(OUTCOMES, lines, strict=True)},
        tokens={name: int(count) for name, count in zip(("input", "output", "cached"), tokens, strict=True)},
        rentals={state: int(count) for state, count in rentals},
        spend_nano=spend,
        webhooks={"enabled": 0, "disabled": 0} | {state: int(count) for state, count in webhooks},
        deliveries=dict.fromkeys(DELIVERIES, 0) | {state: int(count) for state, count in deliveries},
        events_waiting=await outbox.waiting(session),
    )


@dataclass(eq=False)
class _Snapshot:
    """The collector that hands the newest state to the registry."""

    families: list[Metric] = field(default_factory=list)

    def collect(self) -> Iterable[Metric]:
        return self.families


class Metrics:
    """One application's metrics."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._snapshot = _Snapshot()
        self._registry.register(self._snapshot)
        self._answers = Counter(
            "broker_http_requests",
            "HTTP answers by route and status",
            ("method", "route", "status"),
            registry=self._registry,
        )
        self._seconds = Histogram(
            "broker_http_request_seconds", "Seconds until the answer was prepared", ("route",), registry=self._registry
        )

    def answered(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count one answer. `route` is the declared path with its placeholders, never the path with ids."""
        self._answers.labels(method, route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def text(self, state: State, loops: Mapping[str, LoopState]) -> bytes:
        """The exposition format, with `state` and the loops as they are now."""
        self._snapshot.families = [*_state_families(state), *_loop_families(loops)]
        return generate_latest(self._registry)


def _state_families(state: State) -> list[Metric]:
    batches = GaugeMetricFamily("broker_batches", "Batches by status", labels=["status"])
    for status, count in sorted(state.batches.items()):
        batches.add_metric([status], count)
    lines = CounterMetricFamily("broker_lines_total", "Request lines by outcome", labels=["outcome"])
    for outcome, count in state.lines.items():
        lines.add_metric([outcome], count)
    tokens = CounterMetricFamily("broker_tokens_total", "Metered tokens by direction", labels=["direction"])
    for direction, count in state.tokens.items():
        tokens.add_metric([direction], count)
    rentals = GaugeMetricFamily("broker_rentals", "Rentals by state", labels=["state"])
    for name, count in sorted(state.rentals.items()):
        rentals.add_metric([name], count)
    # Prometheus knows only floats; the exact amount is the ledger's business.
    spend = CounterMetricFamily(
        "broker_spend_usd_total", "Accrued cost of rentals in USD", value=float(from_nano(state.spend_nano))
    )
    return [batches, lines, tokens, rentals, spend, *_event_families(state)]


def _event_families(state: State) -> list[Metric]:
    webhooks = GaugeMetricFamily("broker_webhooks", "Webhooks by state", labels=["state"])
    for name, count in sorted(state.webhooks.items()):
        webhooks.add_metric([name], count)
    deliveries = GaugeMetricFamily(
        "broker_webhook_deliveries", "Events for webhooks that are not yet forgotten, by outcome", labels=["outcome"]
    )
    for name, count in sorted(state.deliveries.items()):
        deliveries.add_metric([name], count)
    waiting = GaugeMetricFamily(
        "broker_events_waiting", "Events that the deliver loop has not seen yet", value=state.events_waiting
    )
    return [webhooks, deliveries, waiting]


def _loop_families(loops: Mapping[str, LoopState]) -> list[Metric]:
    seconds = CounterMetricFamily("broker_loop_seconds_total", "Seconds spent in each control loop", labels=["loop"])
    runs = CounterMetricFamily("broker_loop_runs_total", "Runs of each control loop", labels=["loop"])
    failures = CounterMetricFamily("broker_loop_failures_total", "Runs that failed, defects included", labels=["loop"])
    for name, state in sorted(loops.items()):
        seconds.add_metric([name], state.seconds)
        runs.add_metric([name], state.runs)
        failures.add_metric([name], state.failures + state.defects)
    return [seconds, runs, failures]
