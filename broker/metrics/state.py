"""The state of the whole at one moment, out of the database: a constant number of queries, none over more than what is
open, listed, or new since the last scrape."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import and_, case, func, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from broker.compliance.lifecycle import approved_at, standing, withdrawals
from broker.compliance.tables import Proposal, Verdict
from broker.finance.tables import AnomalyRow
from broker.house_accounts import held
from broker.metrics.totals import Growing, Spent
from broker.tables import Delivery, Waiting, Webhook, Worker
from jobs import outbox
from jobs.clock import MICROSECONDS
from jobs.tables import Batch, Shard
from jobs.types import TERMINAL
from ledger.tables import HoldState
from markets.own_account import provider_of
from markets.rentals import OPEN, OVER
from markets.tables import OfferRow, PollRow, RentalRow

OUTCOMES = ("completed", "failed", "expired", "cancelled")
DIRECTIONS = ("input", "output", "cached", "reasoning")
HEARD = ("starting", "ready", "draining")  # agents in these states send heartbeats

WEEK_US = 7 * 86_400 * MICROSECONDS

Values = dict[tuple[str, ...], float]


def usd(nano: int) -> float:
    """Prometheus knows only floats; what must be exact is asked of the ledger."""
    return nano / 1e9


def _batches() -> Growing:
    sums: dict[str, Any] = {outcome: func.sum(getattr(Batch, outcome)) for outcome in OUTCOMES}
    sums |= {direction: func.sum(getattr(Batch, f"used_{direction}_tokens")) for direction in DIRECTIONS}
    sums["batches"] = func.count()
    return Growing("batch_", col(Batch.id), (col(Batch.status),), sums, col(Batch.status).in_(TERMINAL))


def _rentals() -> Growing:
    over = and_(col(RentalRow.state).in_(OVER), col(RentalRow.settled).is_(True))
    groups = (col(RentalRow.market), col(RentalRow.state))
    return Growing("rental_", col(RentalRow.id), groups, {"rentals": func.count()}, over)


@dataclass
class StateReader:
    """Reads what the catalogue calls state. It remembers sums of what is over, so keep one a process."""

    markets: tuple[str, ...]
    max_price_age_s: int
    _batches: Growing = field(default_factory=_batches)
    _rentals: Growing = field(default_factory=_rentals)
    _spent: Spent = field(default_factory=Spent)

    async def read(self, session: AsyncSession, now_us: int) -> Mapping[str, Values]:
        """Name of a metric → labels' values → value. Metrics without a value now are missing or empty."""
        return {
            **await self._of_batches(session, now_us),
            **await _queue(session),
            **await _waiting(session, now_us),
            **await self._of_rentals(session, now_us),
            **await _workers(session, now_us),
            **await self._money(session),
            **await _offers(session, now_us, self.max_price_age_s),
            **await _polls(session, now_us, self.markets),
            **await _house_accounts(session, self.markets),
            **await _webhooks(session),
            **await _break_glass(session, now_us),
            **await _anomalies(session, now_us),
        }

    async def _of_batches(self, session: AsyncSession, now_us: int) -> dict[str, Values]:
        sums = await self._batches.read(session, now_us)
        lines: Values = {(outcome,): 0 for outcome in OUTCOMES}
        tokens: Values = {(direction,): 0 for direction in DIRECTIONS}
        statuses: Values = {}
        for ((status,), name), value in sums.items():
            if name == "batches":
                statuses[status,] = value
            elif name in OUTCOMES:
                lines[name,] += value
            else:
                tokens[name,] += value
        active = col(Batch.status).not_in(TERMINAL)
        first = select(func.min(col(Batch.created_us)), func.min(col(Batch.expires_us))).where(active)
        created_us, expires_us = (await session.execute(first)).one()
        return {
            "broker_batches": statuses,
            "broker_lines_total": lines,
            "broker_tokens_total": tokens,
            "broker_queue_oldest_seconds": {(): _age(created_us, now_us)},
            "broker_deadline_nearest_seconds": {} if expires_us is None else {(): -_age(expires_us, now_us)},
        }

    async def _of_rentals(self, session: AsyncSession, now_us: int) -> dict[str, Values]:
        over = await self._rentals.read(session, now_us)
        rows = await session.execute(
            select(col(RentalRow.market), col(RentalRow.state), func.count(), func.sum(col(RentalRow.price_nano_hour)))
            .where(col(RentalRow.state).in_(OPEN))
            .group_by(col(RentalRow.market), col(RentalRow.state))
        )
        rentals: Counter[tuple[str, ...]] = Counter()
        rate: Values = {(market,): 0 for market in self.markets}
        for name, state, count, nano in rows:
            market = provider_of(name)  # a project's own account has the project's name in its
            rentals[market, state] += int(count)
            if state in ("running", "releasing"):
                rate[market,] = rate.get((market,), 0) + usd(int(nano))
        ended: Counter[tuple[str, ...]] = Counter()
        for (group, _), count in over.items():
            if group[1] in OVER:
                ended[provider_of(group[0]), group[1]] += count
        unsettled = select(func.count()).where(col(RentalRow.settled).is_(False), col(RentalRow.state).in_(OVER))
        return {
            "broker_rentals": dict(rentals),
            "broker_rentals_over_total": dict(ended),
            "broker_rentals_unsettled": {(): int(await session.scalar(unsettled) or 0)},
            "broker_rate_usd_per_hour": rate,
        }

    async def _money(self, session: AsyncSession) -> dict[str, Values]:
        spent = dict.fromkeys(self.markets, 0) | await self._spent.read(session)
        held = select(func.sum(col(HoldState.remaining_nano))).where(col(HoldState.resolved).is_(None))
        return {
            "broker_spend_usd_total": {(market,): usd(nano) for market, nano in spent.items()},
            "broker_held_usd": {(): usd(int(await session.scalar(held) or 0))},
        }


def _age(then_us: int | None, now_us: int) -> float:
    return 0.0 if then_us is None else (now_us - then_us) / MICROSECONDS


async def _queue(session: AsyncSession) -> dict[str, Values]:
    rows = await session.execute(
        select(col(Shard.state), func.count(), func.sum(col(Shard.lines) - col(Shard.done_lines)))
        .join(Batch, col(Batch.id) == col(Shard.batch_id))
        .where(col(Batch.status) == "in_progress", col(Shard.state).in_(("pending", "leased")))
        .group_by(col(Shard.state))
    )
    shards: Values = {("pending",): 0, ("leased",): 0}
    lines = dict(shards)
    for state, count, open_lines in rows:
        shards[state,], lines[state,] = int(count), int(open_lines)
    return {"broker_queue_shards": shards, "broker_queue_lines": lines}


async def _waiting(session: AsyncSession, now_us: int) -> dict[str, Values]:
    rows = await session.execute(
        select(col(Waiting.waiting_on), func.count(), func.min(col(Waiting.since_us)))
        .join(Batch, col(Batch.id) == col(Waiting.batch))
        .where(col(Batch.status).not_in(TERMINAL))
        .group_by(col(Waiting.waiting_on))
    )
    found = [(cause, int(count), _age(since_us, now_us)) for cause, count, since_us in rows]
    return {
        "broker_waiting_batches": {(cause,): count for cause, count, _ in found},
        "broker_waiting_oldest_seconds": {(cause,): age for cause, _, age in found},
    }


async def _workers(session: AsyncSession, now_us: int) -> dict[str, Values]:
    rows = await session.execute(
        select(col(Worker.state), func.count(), func.min(col(Worker.seen_us)))
        .join(RentalRow, col(RentalRow.id) == col(Worker.rental))
        .where(col(RentalRow.state).in_(OPEN))
        .group_by(col(Worker.state))
    )
    found = [(state, int(count), seen_us) for state, count, seen_us in rows]
    silent = max((_age(seen_us, now_us) for state, _, seen_us in found if state in HEARD), default=0.0)
    return {
        "broker_workers": {(state,): count for state, count, _ in found},
        "broker_worker_silence_seconds": {(): silent},
    }


async def _offers(session: AsyncSession, now_us: int, max_age_s: int) -> dict[str, Values]:
    state = case(
        (col(OfferRow.quarantined).is_not(None), "quarantined"),
        (col(OfferRow.observed_us) < now_us - max_age_s * MICROSECONDS, "stale"),
        (col(OfferRow.capacity) == 0, "sold_out"),
        else_="usable",
    )
    rows = await session.execute(
        select(col(OfferRow.market), state, func.count(), func.min(col(OfferRow.observed_us)))
        .where(col(OfferRow.gone_us).is_(None))
        .group_by(col(OfferRow.market), state)
    )
    offers: Counter[tuple[str, ...]] = Counter()
    ages: Values = {}
    for name, named, count, observed_us in rows:
        market = provider_of(name)
        offers[market, named] += int(count)
        ages[market,] = max(ages.get((market,), 0.0), _age(observed_us, now_us))
    return {"broker_offers": dict(offers), "broker_price_age_seconds": ages}


async def _polls(session: AsyncSession, now_us: int, markets: tuple[str, ...]) -> dict[str, Values]:
    """Of the markets that are configured: one that was taken out of the settings is no news any more."""
    rows = (await session.scalars(select(PollRow).where(col(PollRow.market).in_(markets)))).all()
    return {
        "broker_market_poll_age_seconds": {
            (row.market,): _age(row.ok_us, now_us) for row in rows if row.ok_us is not None
        },
        "broker_market_poll_failing": {(row.market,): float(row.error is not None) for row in rows},
    }


async def _house_accounts(session: AsyncSession, markets: tuple[str, ...]) -> dict[str, Values]:
    rows = [row for row in await held(session) if row.market in markets]
    return {"broker_market_account_changed": {(row.market,): float(row.other is not None) for row in rows}}


async def _webhooks(session: AsyncSession) -> dict[str, Values]:
    state = case(
        (col(Webhook.disabled_us).is_not(None), "disabled"),
        (col(Webhook.failing_since_us).is_not(None), "failing"),
        else_="enabled",
    )
    webhooks = await session.execute(select(state, func.count()).group_by(state))
    outcome = case(
        (col(Delivery.next_us).is_not(None), "pending"),
        (col(Delivery.delivered_us).is_not(None), "delivered"),
        else_="gave_up",
    )
    deliveries = await session.execute(select(outcome, func.count()).group_by(outcome))
    none: Values = dict.fromkeys((("enabled",), ("failing",), ("disabled",)), 0.0)
    no_delivery: Values = dict.fromkeys((("pending",), ("delivered",), ("gave_up",)), 0.0)
    return {
        "broker_webhooks": none | {(name,): int(count) for name, count in webhooks},
        "broker_webhook_deliveries": no_delivery | {(name,): int(count) for name, count in deliveries},
        "broker_events_waiting": {(): await outbox.waiting(session)},
    }


async def _break_glass(session: AsyncSession, now_us: int) -> dict[str, Values]:
    """Who watches the house must see when somebody has broken the glass: there are few of these rows, ever."""
    kinds = ("break_glass", "withdrawal")
    proposals = (await session.scalars(select(Proposal).where(col(Proposal.kind).in_(kinds)))).all()
    glasses = {each.id: each for each in proposals if each.kind == "break_glass"}
    taken_back = withdrawals(proposals)
    verdicts = (
        await session.scalars(select(Verdict).where(col(Verdict.proposal).in_([each.id for each in proposals])))
    ).all()
    in_force = {name for name, _, _ in standing(proposals, verdicts, now_us).active if name in glasses}
    said = {each.id: [word for word in verdicts if word.proposal == each.id] for each in proposals}
    waiting = [
        each
        for each in glasses.values()
        if each.id not in taken_back
        and approved_at(each, said[each.id]) is None
        and not any(word.outcome == "rejected" for word in said[each.id])
    ]
    return {"broker_break_glass": {("in_force",): len(in_force), ("proposed",): len(waiting)}}


async def _anomalies(session: AsyncSession, now_us: int) -> dict[str, Values]:
    query = select(col(AnomalyRow.rule), func.count()).where(col(AnomalyRow.found_us) > now_us - WEEK_US)
    rows = await session.execute(query.group_by(col(AnomalyRow.rule)))
    return {"broker_anomalies": {(rule,): int(count) for rule, count in rows}}
