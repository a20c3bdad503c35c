"""Which starts of a plan wait for a better moment, though they could begin now. Pure; never at the deadline's risk.

Three things are waited for: an hour at which the offer itself was cheaper on past days (`when`), spot that is sold out now
where on-demand would begin in its stead (`spot.expected_cost`, fitted to what is recorded of it), and machines that are at work
for others and cheaper once they are free (`freed`). What waits keeps time for twice its cautious run and an hour more; then it
begins, whatever the prices are. Until then its offer may be sold out to others, so
that the time must do for a cautious run on another offer, too, which is not taken away and has room besides the plan.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import msgspec

from solver.durations import PPM, SECOND_US
from solver.eligibility import survey_one
from solver.freed import Freed, Occupied, freed, occupied
from solver.schedule import Pool
from solver.slack import MARGIN_US, latest_us
from solver.types import HOUR_US, Assignment, Later, OfferView, Plan, Running, Snapshot, Start, Work, sha256
from solver.variants import as_run
from solver.view import View, pool_of
from solver.when import Held, begin_later

# Cautious runs that must still fit when it begins at last, and what is kept besides.
RUNS = 2
# Whether to wait is decided anew after so long; the same decision with every plan would cost more than it finds.
HELD_US = 600 * SECOND_US
# From when a machine is let go until its market offers it again.
GIVEN_BACK_US = 1200 * SECOND_US
# Sites of more works than this begin now, and of the others so many, the dearest: each is held against every offer, which
# would take longer than the plan.
MOST_WORKS, MOST_SITES = 50, 20
TICK_S = 300
HISTORY_US, LEAST_HISTORY_US = 7 * 24 * HOUR_US, 24 * HOUR_US
# So many pools of spot are looked at together: the table of the expected cost grows with each. Those of the cheapest that have a
# record; it is read of so many.
MOST_POOLS, MOST_AWAITED = 2, 6
# Less than this part of the cost is not worth any waiting.
WORTH = 0.02
TAKEN_AWAY = ("spot", "bid")


@dataclass(frozen=True, slots=True)
class _Site:
    """New starts of one offer and pool that all begin now, with the parts of works that they serve, in queue order.

    `latest_us` is how much later they may begin at most, on their offer or on `fallback`; `awaited` are the spot offers that only
    being sold out excludes; `follows` is a run on machines that are free later, for less.
    """

    offer: OfferView
    pool: Pool
    starts: tuple[Start, ...]
    parts: tuple[tuple[Work, int], ...]
    latest_us: int
    fallback: OfferView
    awaited: tuple[OfferView, ...]
    follows: Freed | None = None

    @property
    def machines(self) -> int:
        return sum(start.count for start in self.starts)

    @property
    def run_us(self) -> int:
        return max(start.until_us - start.from_us for start in self.starts)


class _Room:
    """What is left to rent of each offer besides the plan's starts and what is waiting already counts on."""

    def __init__(self, view: View, plan: Plan) -> None:
        self._view = view
        self._machines: Counter[str] = Counter()
        self._units: Counter[str] = Counter()
        self._used: dict[str, Occupied] = occupied(view, plan)
        self._claimed = set[str]()
        for start in plan.starts:
            self._take(view.offers[start.offer_key], start.count)

    def left(self, offer: OfferView, instead_of: OfferView, machines: int) -> int:
        """So many machines of `offer` at most could serve instead of those machines."""
        left = (1 if offer.capacity is None else offer.capacity) - self._machines[offer.key]
        granted = self._view.quotas.get(offer.quota_group)
        if granted is None:
            return left
        freed = machines * instead_of.quota_units if offer.quota_group == instead_of.quota_group else 0
        return min(left, (granted - self._units[offer.quota_group] + freed) // offer.quota_units)

    def freed(
        self,
        own: OfferView,
        machines: int,
        pool: Pool,
        parts: Sequence[tuple[Work, int]],
        within_us: int,
        cost_nano: int,
    ) -> Freed | None:
        """A run for less than `cost_nano` on machines that are in use, if nobody else waits for them."""
        full = [
            key
            for key in sorted(self._used.keys() - self._claimed - {own.key})
            if self.left(self._view.offers[key], own, machines) <= 0
        ]
        found = freed(self._view, self._used, full, pool, parts, within_us)
        return found if found is not None and found.cost_nano < cost_nano * (1 - WORTH) else None

    def rely(self, site: _Site, later: Later) -> None:
        """The site begins later: what its work then needs of its fallback is nobody else's, nor what it follows on."""
        later_us = later.begin_us - self._view.snapshot.now_us
        if later.kind == "free" and later.awaits is not None:
            self._claimed.add(later.awaits)
        choices = range(1, self.left(site.fallback, site.offer, site.machines) + 1)
        too_few = bisect_left(
            choices, later_us, key=lambda count: latest_us(self._view, site.fallback, count, site.parts, 1)
        )
        self._take(site.fallback, too_few + 1)

    def _take(self, offer: OfferView, count: int) -> None:
        self._machines[offer.key] += count
        self._units[offer.quota_group] += count * offer.quota_units


def asked(snapshot: Snapshot, plan: Plan) -> tuple[str, ...]:
    """The offers of which a record would help to decide whether anything waits: none of sites where `waits` still hold."""
    snapshot = as_run(snapshot, plan)
    view = View(snapshot)
    room, keys = _Room(view, plan), set[str]()
    for site in _sites(view, plan, room):
        if later := _held(snapshot, site):
            room.rely(site, later)
        else:
            keys |= {each.key for each in (site.offer, *site.awaited)}
    return tuple(sorted(keys))


def postponed(view: View, plan: Plan) -> Plan:
    """The plan with those starts moved that should wait. Without records it is the plan."""
    snapshot = view.snapshot
    if not snapshot.records and not snapshot.waits:
        return plan
    room, found = _Room(view, plan), []
    for site in _sites(view, plan, room):
        if later := _held(snapshot, site) or _decided(view, site):
            room.rely(site, later)
            found.append(later)
    return _moved(view, plan, _free_in_time(found))


def _free_in_time(found: Sequence[Later]) -> list[Later]:
    """Without those that follow on machines whose own start is postponed by the same plan: when those are free nobody knows any
    more, and `free_us` was reckoned as if they began now."""
    waiting = {each.offer_key for each in found}
    return [each for each in found if each.kind != "free" or each.awaits not in waiting]


def replanned(snapshot: Snapshot, plan: Plan) -> Plan:
    """The plan of the same snapshot with records: what `solve` would answer, without solving again."""
    plan = msgspec.structs.replace(plan, snapshot_sha256=sha256(snapshot))
    return postponed(View(as_run(snapshot, plan)), plan)


def _sites(view: View, plan: Plan, room: _Room) -> Iterator[_Site]:
    """The dearest first. Those that wait take of the room before the next is made."""
    now_us, works = view.snapshot.now_us, {work.id: work for work in view.snapshot.works}
    kept = set(plan.keeps)
    warm = {(each.offer_key, _pool(each)) for each in view.snapshot.running if each.rental_id in kept}
    starts: dict[tuple[str, Pool], list[Start]] = {}
    queues: dict[tuple[str, Pool], list[Assignment]] = {}
    for start in plan.starts:
        starts.setdefault((start.offer_key, _pool(start)), []).append(start)
    for each in sorted(plan.assignments, key=lambda each: each.order):
        queues.setdefault((each.offer_key, pool_of(works[each.work_id])), []).append(each)
    could = []
    for (key, pool), those in starts.items():
        queue = queues.get((key, pool), [])
        is_now = all(start.from_us <= now_us and not start.turn for start in those)
        if (key, pool) in warm or not is_now or not 0 < len(queue) <= MOST_WORKS:
            continue
        parts = [(works[each.work_id], each.share_ppm) for each in queue]
        if latest_us(view, view.offers[key], sum(start.count for start in those), parts, RUNS) >= HOUR_US:
            could.append((-sum(start.cost_nano for start in those), key, pool, those, parts))
    for _, key, pool, those, parts in sorted(could, key=lambda each: each[:3])[:MOST_SITES]:
        site = _site(view, room, view.offers[key], pool, those, parts)
        if site is not None:
            yield site


def _site(
    view: View, room: _Room, offer: OfferView, pool: Pool, starts: Sequence[Start], parts: Sequence[tuple[Work, int]]
) -> _Site | None:
    machines = sum(start.count for start in starts)
    own_us = latest_us(view, offer, machines, parts, RUNS)
    fallback, fallback_us = _fallback(view, room, offer, machines, parts, own_us)
    waits_us = min(own_us, fallback_us)
    if fallback is None or waits_us < HOUR_US:
        return None
    is_dear = offer.pricing not in TAKEN_AWAY and bool(offer.price_nano_hour)
    awaited = tuple(_awaited(view, offer, parts)) if is_dear else ()
    follows = room.freed(offer, machines, pool, parts, waits_us, sum(start.cost_nano for start in starts))
    return _Site(offer, pool, tuple(starts), tuple(parts), waits_us, fallback, awaited, follows)


def _fallback(
    view: View, room: _Room, own: OfferView, machines: int, parts: Sequence[tuple[Work, int]], enough_us: int
) -> tuple[OfferView | None, int]:
    """Another offer, not taken away, on which the work may begin `enough_us` later, else the one that leaves most time; and how
    much it leaves."""
    best: tuple[OfferView | None, int] = None, 0
    for offer in view.snapshot.offers:
        if offer.key == own.key or offer.pricing in (*TAKEN_AWAY, "token") or not offer.is_priced:
            continue
        left = room.left(offer, own, machines)
        later_us = latest_us(view, offer, left, parts, 1) if left > 0 else 0
        if later_us > best[1] and all(survey_one(work, offer, view).is_eligible for work, _ in parts):
            best = offer, later_us
            if later_us >= enough_us:
                break
    return best


def _awaited(view: View, offer: OfferView, parts: Sequence[tuple[Work, int]]) -> list[OfferView]:
    """Spot that would serve the same works for less, and that nothing but being sold out excludes; the cheapest few, in order."""
    found = []
    for each in view.snapshot.offers:
        if each.pricing not in TAKEN_AWAY or not each.price_nano_hour or each.capacity != 0:
            continue
        ratio = _ratio(view, each, offer, parts)
        if ratio is None or each.price_nano_hour * ratio >= (offer.price_nano_hour or 0) * (1 - WORTH):
            continue
        if all({broken.rule for broken in survey_one(work, each, view).broken} == {"sold_out"} for work, _ in parts):
            found.append((each.price_nano_hour * ratio, each.key, each))
    return [each for *_, each in sorted(found, key=lambda each: each[:2])[:MOST_AWAITED]]


def _ratio(view: View, one: OfferView, other: OfferView, parts: Sequence[tuple[Work, int]]) -> float | None:
    """Expected time on one offer for each hour on the other."""
    times = [(view.busy(work, one), view.busy(work, other), ppm) for work, ppm in parts]
    if any(here is None or there is None for here, there, _ in times):
        return None
    return sum(h[0] * ppm for h, _, ppm in times if h) / sum(t[0] * ppm for _, t, ppm in times if t)


def _held(snapshot: Snapshot, site: _Site) -> Later | None:
    """What was decided a moment ago for the same place, as long as it is safe."""
    for each in snapshot.waits:
        if (each.offer_key, _pool(each)) != (site.offer.key, site.pool):
            continue
        if snapshot.now_us < each.begin_us <= snapshot.now_us + site.latest_us and _still_holds(snapshot, site, each):
            return each
    return None


def _still_holds(snapshot: Snapshot, site: _Site, each: Later) -> bool:
    is_new = each.decided_us + HELD_US > snapshot.now_us
    if each.kind != "free" or each.free_us is None:
        return is_new and (each.awaits is None or each.awaits in {offer.key for offer in site.awaited})
    if site.follows is not None and site.follows.offer.key == each.awaits:
        return is_new
    # what was at work there is done: it is given back, and its market has not said yet that it is to be rented again
    is_gone = all(rental.offer_key != each.awaits for rental in snapshot.running)
    return is_gone and snapshot.now_us < max(each.free_us, each.decided_us + HELD_US) + GIVEN_BACK_US


def _decided(view: View, site: _Site) -> Later | None:
    return _for_spot(view, site) or _to_follow(view, site) or _for_the_hour(view, site)


def _to_follow(view: View, site: _Site) -> Later | None:
    """On machines that are in use now, for less; where they are not free in time after all, here, at the last safe moment."""
    snapshot, follows = view.snapshot, site.follows
    if follows is None:
        return None
    here_nano = sum(start.cost_nano for start in site.starts)
    saving = 1 - follows.cost_nano / here_nano
    begin_us = snapshot.now_us + site.latest_us // (60 * SECOND_US) * (60 * SECOND_US)
    free_us = snapshot.now_us + follows.free_us
    words = (
        f"waits for {follows.offer.key}: in use until about {_at(free_us)} at the latest, it then costs {saving:.0%} less, start "
        f"included, than {site.offer.key} now, which begins at {_at(begin_us)} if it is not free by then"
    )
    return _later(
        snapshot, site, kind="free", begin_us=begin_us, saving_ppm=round(saving * PPM), awaits=follows.offer.key,
        free_us=free_us, sentence=words,
    )  # fmt: skip


def _for_the_hour(view: View, site: _Site) -> Later | None:
    snapshot = view.snapshot
    record = [Held(*span) for span in _spans(snapshot, site.offer.key)]
    deadline_us = snapshot.now_us + site.latest_us + site.run_us + MARGIN_US
    found = begin_later(snapshot.now_us, deadline_us, site.run_us, site.run_us, record, MARGIN_US)
    if found is None:
        return None
    words = (
        f"begins at {_at(found.begin_us)} instead of now: at that hour {site.offer.key} was {found.saving:.0%} cheaper on "
        f"{found.days} past days (at least {found.sure:.0%} with 95 % confidence), and the deadline leaves room for it"
    )
    return _later(
        snapshot, site, kind="hour", begin_us=found.begin_us, saving_ppm=round(found.saving * PPM),
        sure_ppm=round(found.sure * PPM), days=float(found.days), sentence=words,
    )  # fmt: skip


def _for_spot(view: View, site: _Site) -> Later | None:
    """Waiting for spot where that costs less than to begin now on what is not taken away, by the expected-cost policy."""
    snapshot = view.snapshot
    pools = [each for each in site.awaited if _known_us(snapshot, each.key) >= LEAST_HISTORY_US][:MOST_POOLS]
    if not pools or not site.offer.price_nano_hour:
        return None
    # Imported here: numpy's tables are for plans in which something may wait.
    from solver.spot import await_spot  # noqa: PLC0415

    back_us = min(HISTORY_US, *(_known_us(snapshot, each.key) for each in pools))
    busy_us = sum(busy[0] * ppm for work, ppm in site.parts if (busy := view.busy(work, site.offer))) / PPM
    restart_s = max(each.timings_of(site.pool.model).total_s for each in (site.offer, *pools))
    found = await_spot.worth_waiting(
        work_s=busy_us / site.machines / SECOND_US,
        spare_s=site.latest_us / SECOND_US,
        restart_s=float(restart_s),
        spot=[(each.price_nano_hour or 0) * (_ratio(view, each, site.offer, site.parts) or 1.0) for each in pools],
        on_demand=float(site.offer.price_nano_hour),
        was_up=[_flags(snapshot, each.key, back_us) for each in pools],
        tick_s=TICK_S,
    )
    if found is None or found < WORTH:
        return None
    begin_us = snapshot.now_us + site.latest_us // (60 * SECOND_US) * (60 * SECOND_US)
    up = [sum(flags) / len(flags) for flags in (_flags(snapshot, each.key, back_us) for each in pools)]
    names = " and ".join(f"{each.key} ({share:.0%} of the time)" for each, share in zip(pools, up, strict=True))
    words = (
        f"waits for {names}: sold out now, by its last {back_us / 24 / HOUR_US:.1f} days it is expected to come back in time, at "
        f"{found:.0%} less than {site.offer.key} now, which begins at {_at(begin_us)} if it does not"
    )
    return _later(
        snapshot, site, kind="spot", begin_us=begin_us, saving_ppm=round(found * PPM),
        days=round(back_us / 24 / HOUR_US, 3), awaits=pools[0].key, sentence=words,
    )  # fmt: skip


def _later(snapshot: Snapshot, site: _Site, **what: object) -> Later:
    place = {"offer_key": site.offer.key, "project": site.pool.project, "model": site.pool.model}
    return msgspec.convert({**place, "precision": site.pool.precision, "decided_us": snapshot.now_us, **what}, Later)


def _moved(view: View, plan: Plan, found: Sequence[Later]) -> Plan:
    """Starts and ends of what waits, later by so much; costs are what they would be now."""
    shifts = {(each.offer_key, _pool(each)): each.begin_us - view.snapshot.now_us for each in found}
    pools = {work.id: pool_of(work) for work in view.snapshot.works}

    def start(each: Start) -> Start:
        shift = shifts.get((each.offer_key, _pool(each)), 0)
        return msgspec.structs.replace(each, from_us=each.from_us + shift, until_us=each.until_us + shift)

    def assignment(each: Assignment) -> Assignment:
        return msgspec.structs.replace(each, end_us=each.end_us + shifts.get((each.offer_key, pools[each.work_id]), 0))

    return msgspec.structs.replace(
        plan,
        starts=tuple(map(start, plan.starts)),
        assignments=tuple(map(assignment, plan.assignments)),
        later=tuple(found),
    )


def _spans(snapshot: Snapshot, key: str) -> tuple[tuple[int, int, int | None], ...]:
    return next((each.spans for each in snapshot.records if each.offer_key == key), ())


def _known_us(snapshot: Snapshot, key: str) -> int:
    spans = _spans(snapshot, key)
    return snapshot.now_us - spans[0][0] if spans else 0


def _flags(snapshot: Snapshot, key: str, back_us: int) -> list[bool]:
    """Whether there was any to rent at the end of each tick up to now, the oldest first."""
    spans, flags, number = _spans(snapshot, key), [], 0
    ticks = back_us // (TICK_S * SECOND_US)
    for tick in range(ticks - 1, -1, -1):
        at_us = snapshot.now_us - tick * TICK_S * SECOND_US - 1
        while number + 1 < len(spans) and spans[number + 1][0] <= at_us:
            number += 1
        flags.append(spans[number][2] is not None and spans[number][0] <= at_us < spans[number][1])
    return flags


def _pool(each: Start | Later | Running) -> Pool:
    return Pool(each.project, each.model, each.precision)


def _at(at_us: int) -> str:
    return datetime.fromtimestamp(at_us // SECOND_US, UTC).strftime("%Y-%m-%dT%H:%MZ")
