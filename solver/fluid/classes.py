"""Works that are alike are one class: the same pool, policy, priority and deadline bucket, and the same shape of tokens.

Deadlines fall into buckets of a ratio of at most 1.2. What a plan keeps is the earliest deadline of a class; a bound on all plans
uses the latest one of its bucket, so that grouping never makes a bound wrong.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np

from solver.fluid.figures import Figures, Flags, Floats, Ints
from solver.schedule import Pool
from solver.types import HOUR_US, Work

RATIO = 1.2
# Small queues are grouped finer: they can afford more classes (`effort`).
FINE_RATIO = 1.05
# Hours before which all deadlines are one bucket: nothing finer than a minute matters.
LEAST_H = 1 / 60


@dataclass(frozen=True, slots=True)
class Classes:
    """All classes of a queue, as arrays. Tokens are sums over the class; hours count from now.

    `due` is the earliest deadline of the class, `edge_low[b]` and `edge_up[b]` the earliest and latest of bucket b. `limit` is
    the least that one of its works may still cost in USD (infinite without a limit), `policy` how its works stand to residency
    (`View.standing`), `max_rtt` how many ms its data may be
    away (infinite without a limit), `largest` the tokens of its largest work.
    """

    members: tuple[tuple[int, ...], ...]
    pool: Ints
    kind: Ints
    bucket: Ints
    due: Floats
    due_up: Floats
    tokens_in: Floats
    tokens_out: Floats
    tokens_long: Floats
    priority: Ints
    policy: tuple[str, ...]
    limit: Floats
    max_rtt: Floats
    largest: Floats
    begun: Flags
    edge_low: Floats
    edge_up: Floats
    served_by: Ints

    def __len__(self) -> int:
        return len(self.members)

    @property
    def is_first(self) -> Flags:
        """Of classes of twins the first, of which the row of the program is; every class that has no twins."""
        found: Flags = self.served_by == np.arange(len(self))
        return found

    def either(self, least: Floats) -> Floats:
        """Prices of classes where one of the twins is served: the first has the least of them, the others none (infinite)."""
        found = np.full(len(self), np.inf)
        np.minimum.at(found, self.served_by, least)
        return found


Twins = Mapping[str, tuple[str, int]]


def group(figures: Figures, *, fine_works: int = 500, twins: Twins | None = None) -> Classes:
    """The classes of a snapshot's works, in a stable order. Up to `fine_works` they are grouped finely.

    `twins`: by work that is one of several twins (`variants`), the work they are twins of and its number. Works are alike when
    all their twins are: the classes of the twins of a class are of the same works, and `served_by` has the first of them.
    """
    now_us = figures.view.snapshot.now_us
    ratio = FINE_RATIO if len(figures.works) <= fine_works else RATIO
    own = [_key(work, figures, now_us, ratio) for work in figures.works]
    if twins:
        own = _joint(figures, own, twins)
    found: dict[tuple[object, ...], list[int]] = {}
    for number, key in enumerate(own):
        found.setdefault(key, []).append(number)
    keys = sorted(found, key=repr)
    members = tuple(tuple(found[key]) for key in keys)
    works = figures.works
    hours = [[(works[each].deadline_us - now_us) / HOUR_US for each in those] for those in members]
    raw = np.array([_bucket(each[0], ratio) for each in hours], dtype=np.int64)
    buckets = np.unique(raw)
    due, due_up = np.array([min(each) for each in hours]), np.array([max(each) for each in hours])
    bucket = np.searchsorted(buckets, raw)
    first = [works[those[0]] for those in members]
    pool = np.array([figures.pool_of[Pool(each.project, each.model, each.precision)] for each in first], dtype=np.int64)
    return Classes(
        members=members,
        pool=pool,
        kind=np.array([figures.kind_of(each) for each in first], dtype=np.int64),
        bucket=bucket,
        due=due,
        due_up=due_up,
        tokens_in=np.array([float(sum(works[each].input_tokens for each in those)) for those in members]),
        tokens_out=np.array([float(sum(works[each].output_tokens_p50 for each in those)) for those in members]),
        tokens_long=np.array([float(sum(_long(works[each]) for each in those)) for those in members]),
        priority=np.array([each.priority for each in first], dtype=np.int64),
        policy=tuple(figures.view.standing(each) for each in first),
        limit=np.array([min(_limit(works[each]) for each in those) for those in members]),
        max_rtt=np.array(
            [math.inf if each.max_rtt_ms is None else each.max_rtt_ms for each in first], dtype=np.float64
        ),
        largest=np.array(
            [max(works[each].input_tokens + works[each].output_tokens_p50 for each in those) for those in members],
            dtype=np.float64,
        ),
        begun=np.array([each.progress.lines_done > 0 for each in first], dtype=bool),
        edge_low=np.array([due[bucket == number].min() for number in range(len(buckets))]),
        edge_up=np.array([due_up[bucket == number].max() for number in range(len(buckets))]),
        served_by=_firsts([[works[each].id for each in those] for those in members], twins or {}),
    )


def _joint(figures: Figures, own: list[tuple[object, ...]], twins: Twins) -> list[tuple[object, ...]]:
    """The key of each work with those of all its twins."""
    together: dict[str, list[tuple[int, tuple[object, ...]]]] = {}
    for work, key in zip(figures.works, own, strict=True):
        if work.id in twins:
            base, number = twins[work.id]
            together.setdefault(base, []).append((number, key))
    joint = {base: tuple(sorted(those, key=repr)) for base, those in together.items()}
    return [
        (*key, twins[work.id][1], joint[twins[work.id][0]]) if work.id in twins else key
        for work, key in zip(figures.works, own, strict=True)
    ]


def _firsts(members: list[list[str]], twins: Twins) -> Ints:
    first: dict[str, int] = {}
    for k, those in enumerate(members):
        first.setdefault(twins.get(those[0], (those[0], 0))[0], k)
    return np.array([first[twins.get(those[0], (those[0], 0))[0]] for those in members], dtype=np.int64)


def _key(work: Work, figures: Figures, now_us: int, ratio: float) -> tuple[object, ...]:
    hours = (work.deadline_us - now_us) / HOUR_US
    shape = _step((work.input_tokens + 1) / (work.output_tokens_p50 + 1), 1.2)
    length = _step((_long(work) + 1) / (work.output_tokens_p50 + 1), 1.2)
    begun = work.progress.lines_done > 0
    money: tuple[object, ...] = (begun if work.project in figures.view.budgets else None,)
    if work.max_nano is not None:  # alike in size and limit, so that one judgement holds for all of them
        money = (begun, _step(max(1e-9, _limit(work)), 1.1), _step(work.input_tokens + work.output_tokens_p50 + 1, 1.1))
    if refused := figures.view.refused(work):  # where it may not be tried again now
        money = (*money, figures.view.refusal_key(work), _covered_at(work, figures, refused))
    pool = figures.pool_of[Pool(work.project, work.model, work.precision)]
    kind = figures.kind_of(work)
    standing = figures.view.standing(work)
    return (pool, kind, standing, work.max_rtt_ms, work.priority, _bucket(hours, ratio), shape, length, *money)


def _covered_at(work: Work, figures: Figures, refused: Collection[str]) -> tuple[str, ...]:
    """Those of the refused offers where a hold pays for the work already."""
    held = sorted({each.offer_key for each in figures.view.snapshot.running})
    return tuple(key for key in held if key in refused and figures.view.is_covered(work, figures.view.offers[key]))


def _bucket(hours: float, ratio: float) -> int:
    return -1 if hours <= 0 else max(0, _step(max(hours, LEAST_H) / LEAST_H, ratio))


def _step(value: float, ratio: float) -> int:
    return math.floor(math.log(value) / math.log(ratio))


def _long(work: Work) -> int:
    return max(work.output_tokens_p50, work.output_tokens_p90)


def _limit(work: Work) -> float:
    return math.inf if work.max_nano is None else (work.max_nano - work.progress.spent_nano) / 1e9
