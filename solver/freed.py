"""Machines that are at work for others and will be free: from when, and what a queued run would cost on them then. Pure.

An offer that is in use cannot be rented once more. Who has time may follow on it when what runs there, or is begun there by the
same plan, is done, instead of renting something dearer at once: the swap is a start of its own, and paid as one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from solver.data_costs import moving_nano, once_nano
from solver.durations import PPM, SECOND_US
from solver.eligibility import survey_one
from solver.schedule import Pool, ceil_div
from solver.slack import latest_us
from solver.types import HOUR_US, OfferView, Plan, Work
from solver.view import View, pool_of

# Offers that are looked at for a run, the cheapest by its first work: every rule is asked of each with every work of it.
MOST_LOOKED_AT = 6


@dataclass(frozen=True, slots=True)
class Occupied:
    """The machines of an offer that the plan keeps, begins or lets go: how many, until when they are surely in use (µs from now),
    and whose they are."""

    machines: int
    until_us: int
    pools: frozenset[Pool]


@dataclass(frozen=True, slots=True)
class Freed:
    """A run on machines of an offer once they are free, `free_us` from now, for `cost_nano`."""

    offer: OfferView
    free_us: int
    cost_nano: int


def occupied(view: View, plan: Plan) -> dict[str, Occupied]:
    """By offer, what is in use there."""
    machines: dict[str, int] = {}
    pools: dict[str, set[Pool]] = {}
    until: dict[str, int] = {}
    groups: dict[tuple[str, Pool], list[tuple[int, int]]] = {}
    kept = set(plan.keeps)
    for rental in view.snapshot.running:
        pool = Pool(rental.project, rental.model, rental.precision)
        machines[rental.offer_key] = machines.get(rental.offer_key, 0) + 1
        pools.setdefault(rental.offer_key, set()).add(pool)
        if rental.rental_id in kept:
            groups.setdefault((rental.offer_key, pool), []).append((rental.ready_in_s * SECOND_US, 1))
    for start in plan.starts:
        pool = Pool(start.project, start.model, start.precision)
        machines[start.offer_key] = machines.get(start.offer_key, 0) + start.count
        pools.setdefault(start.offer_key, set()).add(pool)
        begins_us = start.from_us - view.snapshot.now_us
        ready_us = begins_us + view.offers[start.offer_key].timings_of(start.model).total_s * SECOND_US
        groups.setdefault((start.offer_key, pool), []).append((ready_us, start.count))
    works = {work.id: work for work in view.snapshot.works}
    loads: dict[tuple[str, Pool], int] = {}
    for each in plan.assignments:
        work = works[each.work_id]
        busy = view.busy(work, view.offers[each.offer_key])
        place = (each.offer_key, pool_of(work))
        loads[place] = loads.get(place, 0) + (ceil_div(busy[1] * each.share_ppm, PPM) if busy else 0)
    for (key, pool), those in groups.items():
        # the last is ready, and then all of the work is yet to be done: never too early
        end_us = max(ready for ready, _ in those) + ceil_div(
            loads.get((key, pool), 0), sum(count for _, count in those)
        )
        until[key] = max(until.get(key, 0), end_us)
    return {key: Occupied(count, until.get(key, 0), frozenset(pools[key])) for key, count in machines.items()}


def freed(
    view: View,
    used: Mapping[str, Occupied],
    full: Sequence[str],
    pool: Pool,
    parts: Sequence[tuple[Work, int]],
    within_us: int,
) -> Freed | None:
    """The cheapest run on an offer of `full`, of which nothing is left to rent, once its machines are free: within `within_us`,
    and in time for every deadline. Not where the pool has machines itself: it is planned on those already."""
    first = parts[0][0]
    ranked = []
    for key in full:
        offer, there = view.offers[key], used[key]
        busy = view.busy(first, offer)
        if (
            pool in there.pools
            or there.until_us > within_us
            or not offer.is_priced
            or offer.pricing == "token"
            or not busy
        ):
            continue
        ranked.append(((offer.price_nano_hour or 0) * busy[0], key))
    best: Freed | None = None
    for _, key in sorted(ranked)[:MOST_LOOKED_AT]:
        offer, there = view.offers[key], used[key]
        enough = next(
            (n for n in range(1, there.machines + 1) if latest_us(view, offer, n, parts, 1) >= there.until_us), None
        )
        if enough is None:
            continue
        cost_nano = _cost(view, offer, enough, parts)
        if best is not None and cost_nano >= best.cost_nano:
            continue
        if all(_only_sold_out(view, work, offer) for work, _ in parts):
            best = Freed(offer, there.until_us, cost_nano)
    return best


def _only_sold_out(view: View, work: Work, offer: OfferView) -> bool:
    return {broken.rule for broken in survey_one(work, offer, view).broken} <= {"sold_out"}


def _cost(view: View, offer: OfferView, machines: int, parts: Sequence[tuple[Work, int]]) -> int:
    """Expected nano-USD of the run there, start-ups and data included."""
    busy_us = data_nano = 0
    for work, ppm in parts:
        busy = view.busy(work, offer)
        busy_us += ceil_div(busy[0] * ppm, PPM) if busy else 0
        data_nano += ceil_div(moving_nano(work, offer) * ppm, PPM)
    model = parts[0][0].model
    start_us = machines * offer.timings_of(model).total_s * SECOND_US
    hours_nano = ceil_div((offer.price_nano_hour or 0) * max(busy_us + start_us, offer.minimum_s * SECOND_US), HOUR_US)
    return hours_nano + machines * once_nano(offer, model, view.snapshot.fetched_bytes) + data_nano
