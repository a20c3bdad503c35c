"""Let starts of a plan wait for a better moment: read what is recorded of their offers, and ask the solver."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence

import msgspec
import structlog

from broker.services import Services
from markets import history
from solver import later
from solver.check import check
from solver.types import Later, Plan, Record, Snapshot

log = structlog.get_logger()
# How much of an offer's past is looked at.
HISTORY_US = 14 * 86_400_000_000


# The word for what a batch waits on that begins later.
LATER = "later"


def later_of(snapshot: Snapshot, plan: Plan) -> dict[str, list[Later]]:
    """By work, what of it begins later."""
    places = {(each.offer_key, each.project, each.model, each.precision): each for each in plan.later}
    works = {work.id: work for work in snapshot.works} if places else {}
    found: dict[str, list[Later]] = {}
    for each in plan.assignments if places else ():
        work = works[each.work_id]
        if later := places.get((each.offer_key, work.project, work.model, work.precision)):
            found.setdefault(work.id, []).append(later)
    return found


async def postponed(
    services: Services, snapshot: Snapshot, plan: Plan, waits: Sequence[Later] = ()
) -> tuple[Snapshot, Plan]:
    """The snapshot with the records that bear on when its plan begins, and the plan with what waits. Both as they were where
    nothing could wait, or where the settings want everything at once (`control.begin_later`)."""
    if not services.settings.control.begin_later or not plan.starts:
        return snapshot, plan
    waiting = msgspec.structs.replace(snapshot, waits=tuple(waits))
    keys = await asyncio.to_thread(later.asked, waiting, plan)
    if not keys and not waits:
        return snapshot, plan
    recorded = msgspec.structs.replace(waiting, records=await _records(services, keys, snapshot.now_us))
    moved = await asyncio.to_thread(later.replanned, recorded, plan)
    if found := check(recorded, moved):
        log.error("plan.later_refused", violations=[f"{each.rule}: {each.message}" for each in found[:5]])
        return snapshot, plan
    return recorded, moved


async def _records(services: Services, keys: Sequence[str], now_us: int) -> tuple[Record, ...]:
    records = []
    async with services.database.transaction() as session:
        for key in keys:
            told = await history.changes(session, key, from_us=now_us - HISTORY_US, to_us=now_us)
            records.append(Record(offer_key=key, spans=_spans(history.spans(told, now_us - HISTORY_US, now_us))))
    return tuple(records)


def _spans(told: Iterable[history.Span]) -> tuple[tuple[int, int, int | None], ...]:
    """What could be rented at which price; changes of anything else are one span."""
    spans: list[tuple[int, int, int | None]] = []
    for each in told:
        price = each.change.price_nano_hour if history.is_rentable(each.change) else None
        if spans and spans[-1][1:] == (each.from_us, price):
            spans[-1] = (spans[-1][0], each.to_us, price)
        else:
            spans.append((each.from_us, each.to_us, price))
    return tuple(spans)
