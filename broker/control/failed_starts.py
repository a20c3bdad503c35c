"""Offers that are held back for a while, because starting there failed."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from broker.tables import Worker
from markets.tables import RentalRow

SECOND_US = 1_000_000
# How long a failed start counts against its offer.
FAILED_MEMORY_US = 3600 * SECOND_US
# One that ran for longer before it failed is not looked for.
LONGEST_RUN_US = 7 * 86_400 * SECOND_US


@dataclass(frozen=True, slots=True)
class HeldBack:
    """Why nothing is begun on an offer now: by offer for everybody, and by offer and project where its executors gave up."""

    everywhere: Mapping[str, str]
    of_projects: Mapping[str, Mapping[str, str]]

    def why(self, offer_key: str, project: str) -> str | None:
        return self.everywhere.get(offer_key) or self.of_projects.get(offer_key, {}).get(project)


@dataclass(slots=True)
class _Failures:
    count: int = 0
    last_us: int = 0

    def add(self, count: int, last_us: int | None) -> None:
        self.count += count
        self.last_us = max(self.last_us, last_us or 0)


async def held_back(session: AsyncSession, now_us: int) -> HeldBack:
    """Offers on which renting or starting failed a moment ago: 15 s after the first failure, doubling to 16 min.

    A capacity error is a market signal, not a reason to ask again at once. A token endpoint that was given up said nothing for
    minutes before: 5 min after the first time, doubling to 40, or batches would wait there for nothing until their deadline. That
    holds for the project that gave it up: what it always refuses may be that project's lines alone, and no other is to wait for
    them. Where it is down for all, each finds out by itself, and no more often than that.
    """
    horizon = now_us - FAILED_MEMORY_US
    refused = (col(RentalRow.state) == "failed") & col(RentalRow.release_us).is_(None)
    # its machine ended by itself before there was a worker: it would do so again; one that we gave back would not
    ended_badly = col(RentalRow.end_reason).in_(("exited", "failed")) & col(RentalRow.release_us).is_(None)
    died_early = col(Worker.ready_us).is_(None) & ended_badly
    at_us = func.coalesce(col(Worker.gone_us), col(RentalRow.created_us))
    failed = (
        select(
            col(RentalRow.offer_key),
            col(RentalRow.pricing),
            col(RentalRow.project),
            func.count(),
            func.max(at_us),
            func.count(col(Worker.ready_us)),
            func.max(at_us).filter(col(Worker.ready_us).is_not(None)),
            func.max(at_us).filter(col(Worker.ready_us).is_(None)),
        )
        .join(Worker, col(Worker.rental) == col(RentalRow.id), isouter=True)
        .where(col(RentalRow.created_us) > now_us - LONGEST_RUN_US)
        .where((col(RentalRow.created_us) > horizon) | (col(Worker.gone_us) > horizon))
        .where(refused | (col(Worker.state) == "failed") | died_early)
        .group_by(col(RentalRow.offer_key), col(RentalRow.pricing), col(RentalRow.project))
    )
    starts: defaultdict[str, _Failures] = defaultdict(_Failures)
    given_up: defaultdict[tuple[str, str], _Failures] = defaultdict(_Failures)
    for key, pricing, project, count, last_us, worked, gave_up_us, did_not_us in (await session.execute(failed)).all():
        if pricing != "token":
            starts[key].add(count, last_us)
            continue
        if worked:
            given_up[key, project].add(worked, gave_up_us)
        if count > worked:
            starts[key].add(count - worked, did_not_us)
    everywhere = {
        key: why
        for key, each in starts.items()
        if (why := _why(f"offer {key}", each, 15 * 2 ** min(each.count - 1, 6), now_us))
    }
    of_projects: dict[str, dict[str, str]] = {}
    for (key, project), each in given_up.items():
        if why := _why(f"offer {key}", each, 300 * 2 ** min(each.count - 1, 3), now_us):
            of_projects.setdefault(key, {})[project] = why
    return HeldBack(everywhere, of_projects)


def _why(what: str, failures: _Failures, wait_s: int, now_us: int) -> str | None:
    until_us = failures.last_us + wait_s * SECOND_US
    if now_us >= until_us:
        return None
    return f"{what}: failed {failures.count} times in the last hour; held back for {(until_us - now_us) // SECOND_US} s more"
