"""A snapshot in numbers: resources, start-ups, speeds, and which rule forbids what, as arrays over all offers at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from solver.durations import REQUEST_S, UNKNOWN_SPOT_HAZARD, rate_micro
from solver.eligibility import RULES
from solver.latency import paced
from solver.schedule import Pool
from solver.types import OfferView, Work
from solver.view import View

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]

NANO_USD = 1e9
RULE = {rule: number for number, rule in enumerate(RULES)}
# Beyond every rule: nothing forbids it.
OPEN = len(RULES)


class Kind(NamedTuple):
    """What determines speed and start-up: a model in one precision, and, of works with a p95 to keep, how many requests at once
    each accelerator may have (in the order of their names)."""

    model: str
    precision: str
    at_once: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Resources:
    """What can be bought hours at. The first are the snapshot's offers rented anew, in order; then running rentals in groups.

    `price` in USD an hour, `count` instances at most, `pool` the only one that it serves (-1: any), `ready` hours until running
    ones serve.
    """

    offer: Ints
    price: Floats
    count: Floats
    pool: Ints
    ready: Floats
    rentals: tuple[tuple[str, ...], ...]

    def __len__(self) -> int:
        return len(self.offer)


class Figures:
    """The snapshot of a view as arrays. `start[kind, resource]` in hours, `slow[kind, resource]` instance time per useful time,
    `per_input[kind, accelerator]` and `per_output` hours a token (infinite where unknown), `caution[kind, accelerator]` cautious
    time per time at these speeds, at least 1, `rtt[resource]` ms to the data and back (infinite where unknown)."""

    def __init__(self, view: View) -> None:
        snapshot = view.snapshot
        self.view = view
        self.offers = snapshot.offers
        self.works = snapshot.works
        self.pools = sorted({Pool(work.project, work.model, work.precision) for work in snapshot.works})
        self.pool_of = {pool: number for number, pool in enumerate(self.pools)}
        self.accelerators = sorted({each.accelerator for each in self.offers})
        self._paced = {work.id: self._pace(work) for work in snapshot.works if work.max_p95_ms is not None}
        plain = {Kind(pool.model, pool.precision) for pool in self.pools}
        self.kinds = sorted(plain | set(self._paced.values()))
        kind_of = {kind: number for number, kind in enumerate(self.kinds)}
        self._number_of_kind = kind_of
        self.kind_of_pool = np.array([kind_of[Kind(pool.model, pool.precision)] for pool in self.pools], dtype=np.int64)
        self.resources = self._resources()
        is_priced = np.array([each.is_priced for each in self.offers], dtype=bool)[self.resources.offer]
        self.bought = [number for number, each in enumerate(self.resources.offer) if self.offers[each].is_bought]
        self.is_priced: Flags = is_priced | (self.resources.pool >= 0)
        self._speeds()
        self._times()
        self.renting = self._renting()
        rtt = [np.inf if each.rtt_ms is None else float(each.rtt_ms) for each in self.offers]
        self.rtt: Floats = np.array(rtt, dtype=np.float64)[self.resources.offer]
        self._residency: dict[str, Flags] = {}
        self._hardest: dict[str, Work] = {}
        for work in sorted(self.works, key=lambda each: (each.deadline_us, each.id)):
            self._hardest[view.standing(work)] = work
        self._by_facts: tuple[list[OfferView], Ints] | None = None
        self._of_accounts = [n for n, each in enumerate(self.offers) if each.only_for is not None or each.not_for]
        self._closed: dict[str, Flags] = {}
        self._held_from: dict[str, Flags] = {}
        self._held_back = [number for number, each in enumerate(self.offers) if each.held_back]

    def _resources(self) -> Resources:
        offer = list(range(len(self.offers)))
        price = [(each.price_nano_hour or 0) / NANO_USD for each in self.offers]
        count = [1.0 if each.capacity is None else float(max(0, each.capacity)) for each in self.offers]
        pool, ready = [-1] * len(offer), [0.0] * len(offer)
        rentals: list[tuple[str, ...]] = [()] * len(offer)
        index = {each.key: number for number, each in enumerate(self.offers)}
        groups: dict[tuple[int, int, int, int], list[str]] = {}
        for (key, whose), running in sorted(self.view.running.items()):
            for each in running if whose in self.pool_of else ():
                group = (index[key], self.pool_of[whose], each.ready_in_s, each.price_nano_hour)
                groups.setdefault(group, []).append(each.rental_id)
        for (number, whose_number, ready_s, nano), ids in sorted(groups.items()):
            offer.append(number)
            price.append(nano / NANO_USD)
            count.append(float(len(ids)))
            pool.append(whose_number)
            ready.append(ready_s / 3600)
            rentals.append(tuple(ids))
        return Resources(
            offer=np.array(offer, dtype=np.int64),
            price=np.array(price),
            count=np.array(count),
            pool=np.array(pool, dtype=np.int64),
            ready=np.array(ready),
            rentals=tuple(rentals),
        )

    def _speeds(self) -> None:
        names = self.accelerators
        number = {name: index for index, name in enumerate(names)}
        of_offer = np.array([number[each.accelerator] for each in self.offers], dtype=np.int64)
        self.accelerator = of_offer[self.resources.offer] if len(self.offers) else self.resources.offer
        self.per_input = np.full((len(self.kinds), len(names)), np.inf)
        self.per_output = np.full((len(self.kinds), len(names)), np.inf)
        self.caution = np.ones((len(self.kinds), len(names)))
        self.too_slow: Flags = np.zeros((len(self.kinds), len(names)), dtype=bool)
        kinds_of: dict[tuple[str, str], list[int]] = {}
        for index, kind in enumerate(self.kinds):
            kinds_of.setdefault((kind.model, kind.precision), []).append(index)
        for each in self.view.snapshot.throughput:
            accelerator = number.get(each.accelerator)
            for index in kinds_of.get((each.model, each.precision), ()) if accelerator is not None else ():
                at_once = self._limit_of(index, accelerator)
                rate = each if at_once is None else paced(each, at_once)
                self.too_slow[index, accelerator] = at_once == 0
                self.per_input[index, accelerator] = 1e6 / rate_micro(rate.input_per_s) / 3600
                self.per_output[index, accelerator] = 1e6 / rate_micro(rate.output_per_s) / 3600
                if 0 < rate.cautious < 1:  # as in `durations.busy_both`
                    self.caution[index, accelerator] = 1 / rate.cautious
        self.is_cautious: Flags = np.any(self.caution > 1, axis=1)
        is_known = np.isfinite(self.per_input)
        self.known_input: Floats = np.where(is_known, self.per_input, 0.0)
        self.known_output: Floats = np.where(is_known, self.per_output, 0.0)

    def _times(self) -> None:
        """Start-ups and slow-downs (Daly's formula as in `durations.slow_down_ppm`, over arrays)."""
        hazard = np.array([_hazard(each) for each in self.offers]) / 3600
        start = np.empty((len(self.kinds), len(self.offers)))
        general = np.array([float(each.timings.total_s) for each in self.offers])
        special = [(number, each) for number, each in enumerate(self.offers) if each.start_up]
        unfit = [(number, each) for number, each in enumerate(self.offers) if each.unfit]
        self.unfit = np.zeros((len(self.kinds), len(self.resources)), dtype=bool)
        offer = self.resources.offer
        for index, kind in enumerate(self.kinds):
            start[index] = general
            for number, each in special:
                start[index, number] = each.timings_of(kind.model).total_s
            is_unfit = np.zeros(len(self.offers), dtype=bool)
            is_unfit[[number for number, each in unfit if kind.model in each.unfit]] = True
            self.unfit[index] = is_unfit[offer]
        request = np.minimum(hazard * REQUEST_S, 20.0)
        again = np.minimum(hazard * start, 20.0)
        lost = np.where(request > 0, np.expm1(request) / np.where(request > 0, request, 1.0), 1.0)
        slow = np.where(request > 0, np.exp(again) * lost, 1.0)
        self.slow = slow[:, offer]
        is_new = self.resources.pool < 0
        self.start = np.where(is_new, start[:, offer] / 3600, self.resources.ready)

    def _renting(self) -> Ints:
        """The first rule that forbids to rent each offer anew, `OPEN` where none does; running rentals are open."""
        codes = np.full(len(self.resources), OPEN, dtype=np.int64)
        for number, each in enumerate(self.offers):
            codes[number] = _renting_code(each, self.view.quota_left(each))
        return codes

    def kind_of(self, work: Work) -> int:
        """The number of the work's kind: that of its pool, or one of its own where its requests have a p95 to keep."""
        kind = self._paced.get(work.id) or Kind(work.model, work.precision)
        return self._number_of_kind[kind]

    def _pace(self, work: Work) -> Kind:
        known: dict[str, int] = {}
        for each in self.offers:
            if each.accelerator not in known:
                known[each.accelerator] = self.view.at_once(work, each) or 0
        return Kind(work.model, work.precision, tuple(known[name] for name in self.accelerators))

    def _limit_of(self, kind: int, accelerator: int | None) -> int | None:
        at_once = self.kinds[kind].at_once
        return at_once[accelerator] if at_once and accelerator is not None else None

    @property
    def is_of_projects(self) -> bool:
        """Whether any offer is closed to some projects."""
        return bool(self._of_accounts or self._held_back)

    def closed_to(self, project: str) -> Flags | None:
        """Where nothing is rented anew for this project, because of whose account the offer is of; None: nowhere."""
        if not self._of_accounts:
            return None
        if project not in self._closed:
            closed = np.zeros(len(self.offers), dtype=bool)
            closed[[number for number in self._of_accounts if not self.offers[number].is_open_to(project)]] = True
            self._closed[project] = closed[self.resources.offer] & (self.resources.pool < 0)
        return self._closed[project]

    def held_back_from(self, project: str) -> Flags | None:
        """Where nothing is begun for this project now; None: nowhere."""
        if not self._held_back:
            return None
        if project not in self._held_from:
            found = np.zeros(len(self.offers), dtype=bool)
            found[[number for number in self._held_back if project in self.offers[number].held_back]] = True
            self._held_from[project] = found[self.resources.offer] & (self.resources.pool < 0)
        return self._held_from[project]

    def residency(self, standing: str) -> Flags:
        """Whether the policy allows each resource to all works of this standing (`View.standing`)."""
        if standing not in self._residency:
            work = self._hardest[standing]
            example, of_offer = self._facts()
            allowed = np.array([self.view.allows(work, each) for each in example], dtype=bool)[of_offer]
            self._residency[standing] = allowed[self.resources.offer]
        return self._residency[standing]

    def _facts(self) -> tuple[list[OfferView], Ints]:
        """An offer of each facts, and of every offer which of these has its facts."""
        if self._by_facts is None:
            example: dict[str, OfferView] = {}
            for each in self.offers:
                example.setdefault(each.facts_hash, each)
            number = {facts: index for index, facts in enumerate(example)}
            of_offer = np.array([number[each.facts_hash] for each in self.offers], dtype=np.int64)
            self._by_facts = (list(example.values()), of_offer)
        return self._by_facts


def _hazard(offer: OfferView) -> float:
    if offer.hazard is not None:
        return offer.hazard
    return UNKNOWN_SPOT_HAZARD if offer.pricing in ("spot", "bid") else 0.0


def _renting_code(offer: OfferView, quota_left: int | None) -> int:
    if offer.excluded is not None:
        return RULE["excluded"]
    if offer.pricing == "token" and not offer.is_bought:
        return RULE["token_priced"]
    if not offer.is_priced:
        return RULE["price_unknown"]
    if offer.capacity is not None and offer.capacity <= 0:
        return RULE["sold_out"]
    return RULE["quota"] if quota_left is not None and quota_left <= 0 else OPEN
