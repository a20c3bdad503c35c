"""The one judge of all plans: machines as events in time, whoever planned them.

A plan is told as *runs*: so many instances of an offer from a moment on, for one pool, with a queue of parts of works. The judge
starts each run when it was told to, works its queue in order, ends it when that is empty, bills what was rented, and looks who is
late. Work that is late or has no run is charged at the dearest of what it could have been bought for: on demand, alone, at once.
"""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass

from solver.durations import busy_both, slow_down_ppm
from solver.types import HOUR_US, OfferView, Plan, Snapshot, Throughput, Work


@dataclass(frozen=True, slots=True)
class Run:
    """`begins` of each instance and `warm` ready times, in microseconds from now; `queue` of (work id, part in millionths)."""

    offer_key: str
    model: str
    precision: str
    begins: tuple[int, ...]
    queue: tuple[tuple[str, int], ...]
    warm: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Judged:
    """Cost in USD with the penalty for what is late or unserved, hours of work that are late, and who."""

    cost: float
    late_hours: float
    late_works: int
    unserved: int
    overbooked: int


def runs_of(snapshot: Snapshot, plan: Plan) -> list[Run]:
    """The runs that a plan of ours stands for."""
    works = {work.id: work for work in snapshot.works}
    kept = set(plan.keeps)
    begins: dict[tuple[str, str, str, str, int], list[int]] = defaultdict(list)
    warm: dict[tuple[str, str, str, str, int], list[int]] = defaultdict(list)
    queues: dict[tuple[str, str, str, str, int], list[tuple[int, str, int]]] = defaultdict(list)
    for start in plan.starts:
        place = (start.offer_key, start.project, start.model, start.precision, start.turn)
        begins[place].extend([start.from_us - snapshot.now_us] * start.count)
    for rental in snapshot.running:
        if rental.rental_id in kept:
            place = (rental.offer_key, rental.project, rental.model, rental.precision, 0)
            warm[place].append(rental.ready_in_s * 1_000_000)
    for each in plan.assignments:
        work = works[each.work_id]
        place = (each.offer_key, work.project, work.model, work.precision, each.turn)
        queues[place].append((each.order, work.id, each.share_ppm))
    return [
        Run(
            offer_key=place[0],
            model=place[2],
            precision=place[3],
            begins=tuple(sorted(begins[place])),
            queue=tuple((work_id, ppm) for _, work_id, ppm in sorted(queue)),
            warm=tuple(sorted(warm[place])),
        )
        for place, queue in sorted(queues.items())
    ]


def judge(snapshot: Snapshot, runs: list[Run]) -> Judged:
    """What becomes of these runs."""
    world = _World(snapshot)
    cost = late_hours = 0.0
    served: dict[str, int] = defaultdict(int)
    late: set[str] = set()
    changes: dict[str, list[tuple[int, int]]] = defaultdict(list)
    for run in runs:
        offer = world.offers[run.offer_key]
        price = (offer.price_nano_hour or 0) / 1e9
        start_us = offer.timings_of(run.model).total_s * 1_000_000
        free = [*(begin + start_us for begin in run.begins), *run.warm]
        end = 0
        load = 0
        for work_id, ppm in run.queue:
            served[work_id] += ppm
            load += -(-ppm * world.busy(work_id, offer) // 1_000_000)
            end = _done(free, load)
            lateness = end - world.due(work_id)
            if lateness > 0:
                late.add(work_id)
                late_hours += min(lateness, ppm * world.busy(work_id, offer) // 1_000_000) / HOUR_US
        for begin in run.begins:
            until = max(end, begin + start_us)
            seconds = max(math.ceil((until - begin) / 1e6), offer.minimum_s)
            cost += price * math.ceil(seconds / offer.granularity_s) * offer.granularity_s / 3600
            changes[run.offer_key].extend([(begin, 1), (until, -1)])
        cost += sum(price * max(end, ready) / HOUR_US for ready in run.warm)
    unserved = [work for work in snapshot.works if served[work.id] < 1_000_000 and world.could(work)]
    cost += sum(world.bought(work) * (1 - served[work.id] / 1e6) for work in unserved)
    cost += sum(world.bought(world.works[work_id]) for work_id in late)
    return Judged(
        cost, late_hours, len(late), len(unserved), sum(world.is_over(key, each) for key, each in changes.items())
    )


def _done(ready: list[int], load: int) -> int:
    """When instances that are ready at these times have done this load together."""
    total, level = load, 0
    for number, each in enumerate(sorted(ready), 1):
        total += each
        level = -(-total // number)
        if number == len(ready) or level <= sorted(ready)[number]:
            return level
    return level


class _World:
    """Look-ups of one snapshot, without the planner's."""

    def __init__(self, snapshot: Snapshot) -> None:
        self.snapshot = snapshot
        self.offers = {offer.key: offer for offer in snapshot.offers}
        self.works = {work.id: work for work in snapshot.works}
        self.speeds: dict[tuple[str, str, str], Throughput] = {
            (each.model, each.precision, each.accelerator): each for each in snapshot.throughput
        }
        self._bought: dict[str, float] = {}

    def busy(self, work_id: str, offer: OfferView) -> int:
        work = self.works[work_id]
        speed = self.speeds[work.model, work.precision, offer.accelerator]
        return busy_both(work, speed, slow_down_ppm(offer, work.model))[0]

    def due(self, work_id: str) -> int:
        return self.works[work_id].deadline_us - self.snapshot.now_us

    def could(self, work: Work) -> bool:
        return math.isfinite(self.bought(work))

    def bought(self, work: Work) -> float:
        """USD of the work alone on the cheapest allowed offer that is not spot and takes it in time; infinite where none does."""
        if work.id not in self._bought:
            self._bought[work.id] = min((self._alone(work, offer) for offer in self.allowed(work)), default=math.inf)
        return self._bought[work.id]

    def allowed(self, work: Work) -> list[OfferView]:
        from solver.residency import evaluate  # noqa: PLC0415

        policy, facts = self.snapshot.policies[work.policy_hash], self.snapshot.facts
        return [
            offer
            for offer in self.snapshot.offers
            if (work.model, work.precision, offer.accelerator) in self.speeds
            and offer.pricing != "spot"
            and evaluate(policy, facts[offer.facts_hash], self.snapshot.now_us).outcome == "allow"
        ]

    def _alone(self, work: Work, offer: OfferView) -> float:
        start = offer.timings_of(work.model).total_s / 3600
        hours = self.busy(work.id, offer) / HOUR_US
        left = (work.deadline_us - self.snapshot.now_us) / HOUR_US - start
        if left <= 0:
            return math.inf
        return (offer.price_nano_hour or 0) / 1e9 * (math.ceil(hours / left) * start + hours)

    def is_over(self, key: str, changes: list[tuple[int, int]]) -> bool:
        """Whether more instances of an offer ran at once than it has."""
        level, most = 0, self.offers[key].capacity or 1
        for _, change in sorted(changes):
            level += change
            if level > most:
                return True
        return False
