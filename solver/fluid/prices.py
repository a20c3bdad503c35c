"""What an hour at a resource is worth while others queue for it, and the bound that such prices prove.

Capacity has one row per (resource, deadline bucket): Σ cautious hours due by then, start-ups included, ≤ count · edge.
Rows are divided by their right-hand side, so each reads Σ … ≤ 1. `scarcity[resource, bucket]` is the row's price in USD. A
quota is such a row over all offers that count against it, in its units. The price of any pair is then closed-form (no program is
solved for it):

    expected hours · hourly price · (1 + start-up's share) + cautious hours · Σ_{later edges} scarcity/(count·(edge − start-up))

To steer, the start-up's share is taken for the hours of capacity, too, so that the program needs each pair in one row alone:
cautious hours · (1 + share) · Σ_{later edges} scarcity/(count·edge).

Two shares of start-up: to steer, a start serves one class's deadline, s/(d − s); for a valid bound it may serve the whole
horizon, s/(D − s). Using the former as a bound was once found wrong by a plan 0.08 % below it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from solver.fluid.besides import Besides
from solver.fluid.classes import Classes
from solver.fluid.figures import Figures, Floats, Ints
from solver.fluid.masks import Masks

# Of the time to a deadline, what start-up may take at most for a pair to be worth a column.
MOST_START_UP = 0.9
# USD an hour of what cannot be had, and the price from which a pair is one that cannot: infinity times no tokens is no number.
NEVER, TOO_DEAR = 1e30, 1e18


@dataclass(frozen=True, slots=True)
class Scarcity:
    """Prices of the capacity rows, [resource, bucket], and of the quota rows, [quota, bucket], in USD of a whole row."""

    capacity: Floats
    quota: Floats

    @property
    def rent(self) -> float:
        """What all rows together are worth: taken off a sum of pair prices to make it a bound."""
        return float(self.capacity.sum() + self.quota.sum())


class Pricing:
    """Prices of all pairs of classes and resources. Rows are for the edges given: the low ones plan, the high ones bound."""

    def __init__(self, figures: Figures, classes: Classes, masks: Masks) -> None:
        self.figures, self.classes, self.masks = figures, classes, masks
        self.besides = Besides(figures, classes)
        self.buckets = len(classes.edge_low)
        used = {each.quota_group for each in figures.offers}
        self.quota_names = sorted(name for name in figures.view.quotas if name in used)
        number = {name: index for index, name in enumerate(self.quota_names)}
        of_offer = np.array([number.get(each.quota_group, -1) for each in figures.offers], dtype=np.int64)
        is_new = figures.resources.pool < 0
        of_resource = of_offer[figures.resources.offer] if len(of_offer) else of_offer
        self.quota: Ints = np.where(is_new, of_resource, -1) if len(of_offer) else of_resource
        self.granted = self._granted()
        self._last_rents: tuple[int, Scarcity, Floats, Floats] | None = None
        self._last_steering: tuple[Scarcity, Floats, Floats] | None = None
        self.horizon = np.full(len(figures.kinds), 1.0)
        for kind, each in enumerate(figures.kinds):
            # one start serves all works of its pool, those with a p95 to keep too
            alike = [number for number, other in enumerate(figures.kinds) if other[:2] == each[:2]]
            self.horizon[kind] = max(classes.due_up[np.isin(classes.kind, alike)], default=1.0)

    def _granted(self) -> Floats:
        """Instances of each resource that its quota alone would grant; 1 where there is none."""
        units = np.array([float(each.quota_units) for each in self.figures.offers])
        left = np.array([max(1e-9, float(self.figures.view.quotas[each])) for each in self.quota_names] or [1.0])
        if not len(units):
            return np.ones(len(self.figures.resources))
        granted: Floats = left[self.quota] / units[self.figures.resources.offer]
        return np.where(self.quota >= 0, granted, 1.0)

    def free(self) -> Scarcity:
        """No row is scarce."""
        shape = (len(self.figures.resources), self.buckets)
        return Scarcity(np.zeros(shape), np.zeros((len(self.quota_names), self.buckets)))

    def room_per_hour(self, kind: int, edge: float) -> Floats:
        """What one cautious hour takes of the row of each resource at an edge: 1/(count · (edge − start-up))."""
        room = self.figures.resources.count * (edge - self.figures.start[kind])
        per_hour: Floats = np.where(room > 1e-12, 1.0 / np.maximum(room, 1e-12), NEVER)
        return per_hour

    def quota_per_hour(self, kind: int, edge: float) -> Floats:
        """The same of the row of each resource's quota; 0 where there is none."""
        if not self.quota_names:
            return np.zeros(len(self.figures.resources))
        room = self.granted * (edge - self.figures.start[kind])
        per_hour: Floats = np.where(self.quota >= 0, 1.0 / np.maximum(room, 1e-12), 0.0)
        return per_hour

    def steering_share(self, kind: int, due: float) -> Floats:
        """Start-up hours per busy hour when one start serves work due at `due`; infinite where start-up takes nearly all."""
        start = self.figures.start[kind]
        share: Floats = np.where(start < MOST_START_UP * due, start / np.maximum(due - start, 1e-12), NEVER)
        return share

    def horizon_share(self, kind: int) -> Floats:
        """The same when one start serves the whole horizon."""
        start, horizon = self.figures.start[kind], self.horizon[kind]
        share: Floats = np.where(start < horizon, start / np.maximum(horizon - start, 1e-12), NEVER)
        return share

    def hourly(
        self, kind: int, bucket: int, scarcity: Scarcity, edges: Floats, *, is_bound: bool
    ) -> tuple[Floats, Floats]:
        """(USD per expected hour, USD per cautious hour) on each resource for work of a kind due in a bucket."""
        if is_bound:
            share = self.horizon_share(kind)
            # a copy: a row that is kept would keep the table of all buckets, a gigabyte for 600 rows at 5,000 offers
            return self.figures.resources.price * (1 + share), self._rents_of(kind, scarcity, edges)[bucket].copy()
        share = self.steering_share(kind, float(edges[bucket]))
        return self.figures.resources.price * (1 + share), self._steering(scarcity, edges)[bucket] * (1 + share)

    def _rents_of(self, kind: int, scarcity: Scarcity, edges: Floats) -> Floats:
        """`rents`, kept for the next of the kind."""
        last = self._last_rents
        if last is None or last[0] != kind or last[1] is not scarcity or last[2] is not edges:
            last = self._last_rents = (kind, scarcity, edges, self.rents(kind, scarcity, edges))
        return last[3]

    def _steering(self, scarcity: Scarcity, edges: Floats) -> Floats:
        """USD of scarcity of an hour of each resource, starts included as they steer, [bucket it is due in, resource]."""
        last = self._last_steering
        if last is None or last[0] is not scarcity or last[1] is not edges:
            hours = np.maximum(edges, 1e-9)[:, np.newaxis]
            each = scarcity.capacity.T / (np.maximum(self.figures.resources.count, 1e-12) * hours)
            if self.quota_names and scarcity.quota.any():
                value = np.where(self.quota >= 0, scarcity.quota.T[:, self.quota], 0.0)
                each = each + value / (self.granted * hours)
            last = self._last_steering = (scarcity, edges, np.cumsum(each[::-1], axis=0)[::-1])
        return last[2]

    def rents(self, kind: int, scarcity: Scarcity, edges: Floats) -> Floats:
        """USD of scarcity of a cautious hour of a kind, [bucket it is due in, resource]."""
        found = np.zeros((self.buckets, len(self.figures.resources)))
        at = np.flatnonzero(scarcity.capacity.any(axis=1))
        if at.size:
            room = self.figures.resources.count[at] * (edges[:, np.newaxis] - self.figures.start[kind, at])
            each = scarcity.capacity[at].T * np.where(room > 1e-12, 1.0 / np.maximum(room, 1e-12), NEVER)
            found[:, at] = np.cumsum(each[::-1], axis=0)[::-1]
        if self.quota_names and scarcity.quota.any():
            value = np.where(self.quota >= 0, scarcity.quota.T[:, self.quota], 0.0)
            each = value * np.array([self.quota_per_hour(kind, float(edge)) for edge in edges])
            found += np.cumsum(each[::-1], axis=0)[::-1]
        return found

    def whole(self, k: int, at: Ints) -> tuple[Floats, Floats]:
        """(USD without start-up, cautious hours) of the whole class on these resources."""
        hours = self.masks.hours(k, at)
        return hours * self.figures.resources.price[at], hours if self._is_sure(k) else self.masks.hours(
            k, at, is_long=True
        )

    def _is_sure(self, k: int) -> bool:
        """Whether its cautious hours are the expected ones."""
        is_cautious = bool(self.figures.is_cautious[self.classes.kind[k]])
        return bool(self.classes.tokens_long[k] == self.classes.tokens_out[k]) and not is_cautious

    def cheapest(
        self, scarcity: Scarcity, edges: Floats, *, is_bound: bool, many: int = 0
    ) -> tuple[Floats, list[Ints]]:
        """Per class the least price of the whole class in USD (infinite where there is none) and its `many` best resources."""
        least = np.full(len(self.classes), np.inf)
        best: list[Ints] = [np.empty(0, dtype=np.int64)] * len(self.classes)
        order = np.lexsort((self.classes.bucket, self.classes.kind))
        before: tuple[int, int] | None = None
        for k in order.tolist():
            group = (int(self.classes.kind[k]), int(self.classes.bucket[k]))
            if group != before:
                busy, long = self.hourly(*group, scarcity, edges, is_bound=is_bound)
                before = group
            at, price = self.of_class(k, busy, long, is_bound=is_bound)
            if not price.size:
                continue
            least[k] = price.min()
            if many and np.isfinite(least[k]):
                few = min(many, price.size)
                found = np.argpartition(price, few - 1)[:few] if few < price.size else np.arange(price.size)
                found = found[np.isfinite(price[found])]
                best[k] = at[found[np.lexsort((found, price[found]))]]
        return least, best

    def of_class(self, k: int, busy: Floats, long: Floats, *, is_bound: bool = False) -> tuple[Ints, Floats]:
        """(resources where it may run, USD of the whole class there), infinite where it would be too dear."""
        at = self.masks.few(k, is_bound=is_bound)
        hours = self.masks.hours(k, at)
        if self._is_sure(k):
            price = hours * (busy[at] + long[at])
        else:
            price = hours * busy[at] + self.masks.hours(k, at, is_long=True) * long[at]
        price[price > TOO_DEAR] = np.inf
        return at, price

    def bound(self, scarcity: Scarcity, edges: Floats, served: Floats | None = None) -> float:
        """No plan that serves these parts of the classes and keeps the rows of `edges` costs less (USD)."""
        least = self.classes.either(self.cheapest(scarcity, edges, is_bound=True)[0])
        parts = np.ones(len(self.classes)) if served is None else served
        possible = np.isfinite(least) & (parts > 0)
        return float((least[possible] * parts[possible]).sum()) - scarcity.rent
