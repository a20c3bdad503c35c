"""How long the requests of batches with a p95 to keep took, beside what the plan expected: what people see, and what corrects
the next plan.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from sqlalchemy import select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from broker.measurements import Machine
from broker.tables import Assignment, RequestTimes
from jobs.clock import db_now
from markets.tables import RentalRow
from workers.agent.took import AT_ONCE, counts_of, p95_ms

DAY_US = 86_400_000_000
# What is older is forgotten: engines and drivers change.
REMEMBERED_US, READ_AT_MOST = 7 * DAY_US, 500
# Before so many requests were seen, the model's own word counts as so many more.
ENOUGH_REQUESTS = 20
# How far the model of a request's time is believed to have been wrong.
LEAST_WRONG, MOST_WRONG = 0.5, 8.0
PPM = 1_000_000
# More requests than a part has are not believed.
MOST_OF_A_PART = 10_000


@dataclass(frozen=True, slots=True)
class Seen:
    """Requests of one batch on one kind of machine: how many, p95 as it was and as the model had it, in ms."""

    requests: int
    p95_ms: int
    modelled_ms: float


def slower(seen: Iterable[Seen]) -> float:
    """How much longer p95 was than the model says, each batch by its requests. Pure.

    >>> slower([]), slower([Seen(180, 3000, 1000.0)]), slower([Seen(20, 3000, 1000.0)])
    (1.0, 2.8, 2.0)
    """
    observed = expected = 0.0
    for each in seen:
        observed += each.requests * each.p95_ms / each.modelled_ms
        expected += each.requests
    return min(max((observed + ENOUGH_REQUESTS) / (expected + ENOUGH_REQUESTS), LEAST_WRONG), MOST_WRONG)


async def corrections(session: AsyncSession, now_us: int) -> Mapping[tuple[str, str, str], float]:
    """`slower` of every kind of machine that requests with a limit ran on in the last days."""
    rows = await session.scalars(
        select(RequestTimes)
        .where(col(RequestTimes.observed_us) > now_us - REMEMBERED_US)
        .order_by(col(RequestTimes.observed_us).desc(), col(RequestTimes.batch))
        .limit(READ_AT_MOST)
    )
    found: dict[tuple[str, str, str], list[Seen]] = {}
    for row in rows:
        observed = p95_ms(_counts(row))
        if observed is not None and row.modelled_ms > 0:
            machine = (row.model, row.precision, row.accelerator)
            found.setdefault(machine, []).append(Seen(row.requests, observed, row.modelled_ms / row.requests))
    return {machine: slower(seen) for machine, seen in found.items()}


async def observed_p95_ms(session: AsyncSession, batch: str) -> int | None:
    """p95 of the batch's requests so far, wherever they ran; None where none was timed."""
    total: Counter[int] = Counter()
    for row in await session.scalars(select(RequestTimes).where(col(RequestTimes.batch) == batch)):
        total.update(_counts(row))
    return p95_ms(total)


async def paced_work(
    session: AsyncSession, batch: str, rental: str, machine: Machine, counters: Mapping[str, int]
) -> float:
    """Note how long a part's requests took; how much longer the machine was busy with them than it would have been without a
    limit. 1 for parts of batches without one."""
    took = {bucket: min(count, MOST_OF_A_PART) for bucket, count in counts_of(counters).items()}
    if not took:
        return 1.0
    offer = select(col(RentalRow.offer_key)).where(col(RentalRow.id) == rental).scalar_subquery()
    placed = (
        await session.scalars(
            select(Assignment).where(col(Assignment.batch) == batch, col(Assignment.offer_key) == offer)
        )
    ).first()
    if placed is None or placed.p95_ms is None:
        return 1.0  # planned elsewhere meanwhile: nobody knows what was expected of it here
    slowed = (placed.slowed_ppm or PPM) / PPM
    if counters.get(AT_ONCE) != placed.concurrency:
        # A lease keeps its number when the plan says a lower one. Held against what is expected at the lower one, its times
        # looked worse with every plan: an engine 8 % slower than modelled was planned at 4, 3, 2, 1 at once, then nowhere.
        return slowed
    insert = sqlite.insert if session.get_bind().dialect.name == "sqlite" else postgresql.insert
    key = {"batch": batch, **machine._asdict()}
    fresh = insert(RequestTimes).values(**key, requests=0, modelled_ms=0, took={}, observed_us=0)
    await session.execute(fresh.on_conflict_do_nothing(index_elements=list(key)))
    row = await session.get_one(RequestTimes, tuple(key.values()), with_for_update=True, populate_existing=True)
    requests = sum(took.values())
    row.requests += requests
    row.modelled_ms += requests * placed.p95_ms
    row.took = {str(bucket): count for bucket, count in sorted((Counter(_counts(row)) + Counter(took)).items())}
    row.observed_us = await db_now(session)
    session.add(row)
    return slowed


def _counts(row: RequestTimes) -> dict[int, int]:
    return {int(bucket): count for bucket, count in row.took.items()}
