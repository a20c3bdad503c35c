"""The first way to place the classes: one after another, each where it is cheapest and hours are left before its deadline."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from solver.fluid.figures import Floats, Ints
from solver.fluid.prices import Pricing, Scarcity
from solver.fluid.yard import least_hours

# Resources whose room is looked at together, cheapest first.
TOGETHER = 64
# A part of a class below this is not split off, unless its hours are worth a place.
LEAST_PART = 0.02

# The part of its hours that must be left at an idle resource.
IDLE = 0.9


class Room:
    """Hours left before each edge, as parts of the rows: [bucket, resource], never below 0."""

    def __init__(self, pricing: Pricing, edges: Floats) -> None:
        self.pricing, self.edges = pricing, edges
        self.left = np.ones((pricing.buckets, len(pricing.figures.resources)))
        self.quota = np.ones((pricing.buckets, len(pricing.quota_names)))

    def take(self, kind: int, bucket: int, resource: int, hours: float) -> None:
        time = self.edges[bucket:] - self.pricing.figures.start[kind, resource]
        used = hours / (self.pricing.figures.resources.count[resource] * time)
        self.left[bucket:, resource] = np.maximum(0.0, self.left[bucket:, resource] - used)
        quota = self.pricing.quota[resource]
        if quota >= 0:
            used = hours / (self.pricing.granted[resource] * time)
            self.quota[bucket:, quota] = np.maximum(0.0, self.quota[bucket:, quota] - used)

    def is_idle(self, bucket: int, resource: int) -> bool:
        """Whether nearly all its hours are left: no splinter, however little of a large class it holds."""
        return bool(self.left[bucket:, resource].min() > IDLE)


def fill(pricing: Pricing, scarcity: Scarcity | None = None) -> list[tuple[int, int, float]]:
    """(class, resource, part of the class) of a first placement: highest priority first, then earliest deadline, then most work.

    What finds no room is left out.
    """
    classes = pricing.classes
    edges = classes.edge_low
    scarcity = scarcity or pricing.free()
    size = np.array([classes.tokens_in[k] + classes.tokens_out[k] for k in range(len(classes))])
    order = (
        np.lexsort((np.arange(len(classes)), -size, classes.bucket, -classes.priority))
        if len(classes)
        else np.empty(0, dtype=np.int64)
    )
    room = Room(pricing, edges)
    hourly: dict[tuple[int, int], tuple[Floats, Floats]] = {}
    pieces = []
    for k in order.tolist():
        kind, bucket = int(classes.kind[k]), int(classes.bucket[k])
        if edges[bucket] <= 0:
            continue
        if (kind, bucket) not in hourly:
            hourly[kind, bucket] = pricing.hourly(kind, bucket, scarcity, edges, is_bound=False)
        at, price = pricing.of_class(k, *hourly[kind, bucket])
        if pricing.besides.is_any:
            price = price + _besides(pricing, k, at, float(edges[bucket]))
        pieces.extend(_place(pricing, room, k, at, price))
    return pieces


def _besides(pricing: Pricing, k: int, at: Ints, edge: float) -> Floats:
    """What the class pays there for its data, and for its part of starts."""
    kind = int(pricing.classes.kind[k])
    time = edge - pricing.figures.start[kind, at]
    besides = pricing.besides
    return besides.moving(k, at) + besides.of_starts(kind, at, pricing.masks.hours(k, at), time)


def _place(pricing: Pricing, room: Room, k: int, at: Ints, price: Floats) -> list[tuple[int, int, float]]:
    kind, bucket = int(pricing.classes.kind[k]), int(pricing.classes.bucket[k])
    hours = pricing.masks.hours(k, at, is_long=True)
    candidates = _Ascending(at, hours, price)
    pieces = _pieces(room, (k, kind, bucket), candidates, (1.0, LEAST_PART))
    left = 1.0 - sum(part for _, _, part in pieces)
    if left > 1e-9:  # a large class: smaller parts are worth a place, but only where they must be
        least = least_hours(float(room.edges[bucket])) / max(float(hours.max(initial=0.0)), 1e-12)
        if least < LEAST_PART:
            pieces += _pieces(room, (k, kind, bucket), candidates, (left, least))
    return pieces


class _Ascending:
    """Resources and the hours of a class there, cheapest first, `TOGETHER` at a time; sorted as far as is looked at."""

    def __init__(self, at: Ints, hours: Floats, price: Floats) -> None:
        finite = np.isfinite(price)
        self.at, self.hours, self.price = at[finite], hours[finite], price[finite]
        self._order: Ints | None = None

    def __iter__(self) -> Iterator[tuple[Ints, Floats]]:
        many = len(self.at)
        if many > TOGETHER:
            first = np.argpartition(self.price, TOGETHER - 1)[:TOGETHER]
            first = first[np.lexsort((first, self.price[first]))]
            yield self.at[first], self.hours[first]
            if self._order is None:
                rest = np.ones(many, dtype=bool)
                rest[first] = False
                others = np.flatnonzero(rest)
                self._order = others[np.lexsort((others, self.price[others]))]
        elif self._order is None:
            self._order = np.lexsort((np.arange(many), self.price))
        for begin in range(0, len(self._order), TOGETHER):
            those = self._order[begin : begin + TOGETHER]
            yield self.at[those], self.hours[those]


def _pieces(
    room: Room, which: tuple[int, int, int], candidates: _Ascending, parts: tuple[float, float]
) -> list[tuple[int, int, float]]:
    """What of a class (number, kind, bucket) fits at the candidates in turn. `parts` of it: what is left, and the least piece."""
    (k, kind, bucket), (left, least) = which, parts
    worth = least_hours(float(room.edges[bucket]))
    pieces: list[tuple[int, int, float]] = []
    for together, hours in candidates:
        fitting = _fits(room, kind, bucket, together).tolist()
        for resource, takes, fits in zip(together.tolist(), hours.tolist(), fitting, strict=True):
            whole = max(takes, 1e-12)
            part = min(left, min(fits, _granted(room, kind, bucket, resource)) / whole)
            if part < min(least, left) and not (room.is_idle(bucket, resource) and part * whole >= worth):
                continue
            room.take(kind, bucket, resource, part * takes)
            pieces.append((k, resource, part))
            left -= part
            if left <= 1e-9:
                return pieces
    return pieces


def _fits(room: Room, kind: int, bucket: int, resources: Ints) -> Floats:
    """Cautious hours of work of a kind, due in a bucket, that still fit at each of these resources."""
    time = room.edges[bucket:, np.newaxis] - room.pricing.figures.start[kind, resources]
    hours: Floats = (room.left[bucket:, resources] * time).min(axis=0) * room.pricing.figures.resources.count[resources]
    return np.where(time[0] > 0, hours, 0.0)


def _granted(room: Room, kind: int, bucket: int, resource: int) -> float:
    """Hours that the resource's quota leaves."""
    quota = room.pricing.quota[resource]
    if quota < 0:
        return np.inf
    time = room.edges[bucket:] - float(room.pricing.figures.start[kind, resource])
    return float((room.quota[bucket:, quota] * time).min()) * float(room.pricing.granted[resource])
