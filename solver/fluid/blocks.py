"""The bound with whole starts: what no plan can cost less than, block by block, and the prices that prove most.

A *block* is a pool at a resource: y instances are started, each start is paid whole, and what they do of each class must be done
before its deadline. Classes are paid a price each for being served, capacity is paid for as `Scarcity` says; a block then is a
small problem of its own,

    least over y of   y · (USD of a start) − most of Σ gain·x   with  Σ_{due ≤ edge} cautious hours·x ≤ y · (edge − start-up),

and its inner part is solved exactly by taking classes in order of gain an hour as far as the nested deadlines allow (they form
a polymatroid). What it gives is concave in y. The sum of all prices, less what capacity is paid and what blocks gain, is a bound
whatever the prices are; `ascend` looks for better ones by the volume algorithm (Barahona and Anbil 2000), by counts.

The bound that gives every class its share of a start over the whole horizon (`Pricing.bound`) was 6 to 9 % below the plan where
most of that was the bound.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from solver.fluid.figures import Flags, Floats, Ints
from solver.fluid.prices import NEVER, TOO_DEAR, Pricing, Scarcity

# Resources of each class that the ascent looks at; half as many with more than so many classes, for a look then takes half of the
# time: after 60 looks the bound of all plans at 5,000 works was 21,505 instead of 21,346. The bound itself looks at all.
CANDIDATES, MANY_CLASSES, FEW_CANDIDATES = 40, 2_000, 20
# Prices of classes may rise to this many times of what they cost with a start shared as the program steers.
MOST = 2.0
# Starts of a block that are tried, those of a group at once (a call for each was 16 calls a look, for few blocks most of them);
# each more gains at most what the last one brought, until all is done.
TOGETHER = ((1,), (2, 3, 4), tuple(range(5, 17)))
# No limit on starts.
MANY = 1_000_000
# The ascent: its first step as a part of what is missing to the plan, misses before a step gets shorter, what the mean keeps of
# itself, and what a row of capacity weighs of its price. Tried out on 1,000 works and 500 offers: 5,601 to 5,614 after 100 and
# 400 looks, of a plan of 5,840; the mean keeping 0.7 or 0.95, or weights ten times as large or small, are within 0.1 %.
PACE, PATIENCE, MEMORY, ROW_WEIGHT = 0.1, 3, 0.85, 0.05
# What the mean keeps where nobody asks where the blocks are, as when the prices of plans of classes become those of all plans:
# after 30 and 60 looks at 5,000 works 21,265 and 21,487 instead of 21,119 and 21,346.
SHORT_MEMORY = 0.7


@dataclass(frozen=True, slots=True)
class Prices:
    """What each class pays in USD for being served whole, and what capacity costs."""

    classes: Floats
    scarcity: Scarcity


@dataclass(frozen=True, slots=True)
class Pairs:
    """Classes at resources, sorted by block. `usd` and `long`: expected price and cautious hours of the whole class there."""

    k: Ints
    r: Ints
    usd: Floats
    long: Floats
    block: Ints
    block_kind: Ints
    block_r: Ints
    start: Floats
    fixed: Floats
    most: Ints


@dataclass(frozen=True, slots=True)
class Seen:
    """One look at all blocks: the bound, and of each pair the part that its block would do."""

    bound: float
    x: Floats


def pairs_below(pricing: Pricing, edges: Floats, scarcity: Scarcity, most: Floats, many: int | None = None) -> Pairs:
    """All pairs whose price without a start is below `most` of the class, without blocks that cannot pay a start at such prices;
    or of each class the `many` cheapest."""
    kinds = pricing.classes.kind
    parts = [
        _of_kind(pricing, np.flatnonzero(kinds == kind), (edges, scarcity, most), many)
        for kind in np.unique(kinds).tolist()
    ]
    if not parts:
        none = np.empty(0, dtype=np.int64)
        return _sorted(pricing, none, none, np.empty(0), np.empty(0))
    k, r = (np.concatenate([each[number] for each in parts]) for number in (0, 1))
    usd, long, gain = (np.concatenate([each[number] for each in parts]) for number in (2, 3, 4))
    if many is None and k.size:  # works of one pool pay a start together, also those of several kinds
        code = pricing.classes.pool[k] * len(pricing.figures.resources) + r
        _, block = np.unique(code, return_inverse=True)
        fixed = pricing.figures.start[kinds[k], r] * pricing.figures.resources.price[r]
        keep = (np.bincount(block, weights=gain)[block] > fixed) | (pricing.figures.resources.pool[r] >= 0)
        k, r, usd, long = k[keep], r[keep], usd[keep], long[keep]
    return _sorted(pricing, k, r, usd, long)


def _of_kind(
    pricing: Pricing, classes: Ints, where: tuple[Floats, Scarcity, Floats], many: int | None
) -> tuple[Ints, Ints, Floats, Floats, Floats]:
    """(class, resource, USD, cautious hours, what is left of `most`) of the pairs of these classes, all of one kind."""
    edges, scarcity, most = where
    kind = int(pricing.classes.kind[classes[0]])
    rents, start = pricing.rents(kind, scarcity, edges), pricing.figures.start[kind]
    found_r, found_usd, found_long, found_gain = [], [], [], []
    for k in classes.tolist():
        bucket = int(pricing.classes.bucket[k])
        at = pricing.masks.few(k, is_bound=True)
        usd, long = pricing.whole(k, at)
        price = usd + long * rents[bucket, at]
        those = np.flatnonzero((start[at] < edges[bucket]) & (price < min(most[k], TOO_DEAR)))
        if many is not None and those.size > many:
            those = those[np.argpartition(price[those], many - 1)[:many]]
        found_r.append(at[those])
        found_usd.append(usd[those])
        found_long.append(long[those])
        found_gain.append(most[k] - price[those])
    k_of = np.repeat(classes, [each.size for each in found_r])
    return (
        k_of,
        np.concatenate(found_r),
        np.concatenate(found_usd),
        np.concatenate(found_long),
        np.concatenate(found_gain),
    )


def _sorted(pricing: Pricing, k: Ints, r: Ints, usd: Floats, long: Floats) -> Pairs:
    classes, figures = pricing.classes, pricing.figures
    resources = figures.resources
    code = classes.pool[k] * len(resources) + r
    order = np.lexsort((k, code))
    k, r, usd, long, code = k[order], r[order], usd[order], long[order], code[order]
    codes, block = np.unique(code, return_inverse=True)
    block_r = codes % max(1, len(resources))
    kind = figures.kind_of_pool[codes // max(1, len(resources))] if codes.size else codes
    is_new = resources.pool[block_r] < 0
    start = figures.start[kind, block_r]
    return Pairs(
        k=k,
        r=r,
        usd=usd,
        long=long,
        block=block.astype(np.int64),
        block_kind=kind,
        block_r=block_r,
        start=start,
        # running ones have been started; there are so many and no more
        fixed=np.where(is_new, start * resources.price[block_r], 0.0),
        most=np.where(is_new, MANY, resources.count[block_r]).astype(np.int64),
    )


@dataclass(frozen=True, slots=True)
class Rows:
    """Blocks whose resource or quota has a price, and what one cautious hour takes of the capacity row and of the quota row of
    each edge. `mine` are the pairs of these blocks, `cell` where each is in a table of these blocks by edge."""

    blocks: Ints
    mine: Ints
    cell: Ints
    capacity: Floats
    quota: Floats

    @staticmethod
    def of(pricing: Pricing, pairs: Pairs, scarcity: Scarcity, edges: Floats) -> Rows:
        is_scarce: Flags = np.any(scarcity.capacity, axis=1)
        is_priced = is_scarce[pairs.block_r]
        quota = pricing.quota[pairs.block_r]
        is_granted = bool(pricing.quota_names) and bool(scarcity.quota.any())
        if is_granted:
            is_priced = is_priced | (quota >= 0)
        blocks = np.flatnonzero(is_priced)
        where = np.full(len(pairs.block_r), -1, dtype=np.int64)
        where[blocks] = np.arange(blocks.size)
        r = pairs.block_r[blocks]
        time = edges[np.newaxis, :] - pairs.start[blocks][:, np.newaxis]
        room = pricing.figures.resources.count[r][:, np.newaxis] * time
        granted = np.zeros((0, 0))
        if is_granted:
            has_one = (quota[blocks] >= 0)[:, np.newaxis]
            granted = np.where(has_one, 1.0 / np.maximum(pricing.granted[r][:, np.newaxis] * time, 1e-12), 0.0)
        of_pair = where[pairs.block]
        mine = np.flatnonzero(of_pair >= 0)
        cell = of_pair[mine] * len(edges) + pricing.classes.bucket[pairs.k[mine]]
        return Rows(blocks, mine, cell, np.where(room > 1e-12, 1.0 / np.maximum(room, 1e-12), NEVER), granted)


def look(
    pricing: Pricing,
    pairs: Pairs,
    prices: Prices,
    edges: Floats,
    served: Floats | None = None,
    rows: Rows | None = None,
) -> Seen:
    """What the blocks would do at these prices. It is a bound if the pairs are all that are below the classes' prices."""
    rows = rows or Rows.of(pricing, pairs, prices.scarcity, edges)
    classes = pricing.classes
    parts = np.ones(len(classes)) if served is None else served
    gain = prices.classes[pairs.k] - pairs.usd - pairs.long * _rents(pricing, pairs, prices.scarcity, rows)
    x, won = _solve(pairs, np.where(gain > 0, gain, 0.0), classes.bucket[pairs.k], edges)
    bound = float((prices.classes * parts).sum()) - prices.scarcity.rent - won
    return Seen(bound, x)


def _rents(pricing: Pricing, pairs: Pairs, scarcity: Scarcity, rows: Rows) -> Floats:
    """USD of scarcity of a cautious hour of each pair."""
    found = np.zeros(len(pairs.k))
    r = pairs.block_r[rows.blocks]
    each = scarcity.capacity[r] * rows.capacity
    if rows.quota.size:
        each = each + scarcity.quota[pricing.quota[r]] * rows.quota
    hourly = np.cumsum(each[:, ::-1], axis=1)[:, ::-1]
    found[rows.mine] = hourly.ravel()[rows.cell]
    return found


def _solve(pairs: Pairs, gain: Floats, bucket: Ints, edges: Floats) -> tuple[Floats, float]:
    """(part of each pair, what all blocks gain together)."""
    x = np.zeros(len(pairs.k))
    blocks = len(pairs.block_r)
    worth = np.bincount(pairs.block, weights=gain, minlength=blocks)
    use = np.flatnonzero((gain > 0) & (worth > pairs.fixed)[pairs.block])
    use = use[
        np.lexsort((-gain[use] / np.maximum(pairs.long[use], 1e-12), pairs.block[use]))
    ]  # stable: ties as they are
    if not use.size:
        return x, 0.0
    which, first, size = np.unique(pairs.block[use], return_index=True, return_counts=True)
    # blocks with most classes first, so that those that still have one at a rank are the first ones
    order = np.argsort(-size, kind="stable")
    which, first, size = which[order], first[order], size[order]
    # edges before blocks: over its last, short axis numpy takes a minimum several times slower
    time = np.maximum(0.0, edges[:, np.newaxis] - pairs.start[which])
    fixed, most = pairs.fixed[which], pairs.most[which]
    won, whole = np.zeros(len(which)), worth[which] * (1 - 1e-12)
    alive, gave = np.arange(len(which)), np.zeros(len(which))
    for counts in TOGETHER:
        group, tried = np.repeat(alive, len(counts)), np.tile(counts, alive.size)
        slack = time[:, group] * np.minimum(tried, most[group])
        part, filled = _fill(use, first[group], size[group], slack, gain, pairs.long, bucket)
        value = filled.reshape(alive.size, len(counts))
        net = value - fixed[alive][:, np.newaxis] * np.array(counts)
        best = net.argmax(axis=1)
        net = np.take_along_axis(net, best[:, np.newaxis], axis=1)[:, 0]
        is_better = net > won[alive] + 1e-12
        better = alive[is_better]
        won[better] = net[is_better]
        base = (np.cumsum(size[group]) - size[group])[np.arange(alive.size) * len(counts) + best]
        x[use[_members(first[better], size[better])]] = part[_members(base[is_better], size[better])]
        last = value[:, -1]
        more = last - (value[:, -2] if len(counts) > 1 else gave)
        goes_on = (more > fixed[alive] + 1e-12) & (last < whole[alive]) & (counts[-1] < most[alive])
        alive, gave, more = alive[goes_on], last[goes_on], more[goes_on]
        if not alive.size:
            break
    until = TOGETHER[-1][-1] + (worth[which[alive]] - gave) / more
    won[alive] = np.maximum(won[alive], worth[which[alive]] - until * fixed[alive])
    return x, float(won.sum())


def _members(first: Ints, size: Ints) -> Ints:
    """All positions of groups that begin at `first` and have `size` members."""
    if not size.size:
        return np.empty(0, dtype=np.int64)
    ends = np.cumsum(size)
    return np.repeat(first - (ends - size), size) + np.arange(int(ends[-1]))


def _fill(
    use: Ints, first: Ints, size: Ints, slack: Floats, gain: Floats, long: Floats, bucket: Ints
) -> tuple[Floats, Floats]:
    """(part of each pair, group after group, gain of each group): in order of gain an hour, as far as each later edge has room.
    `slack` hours are [edge, group].

    Kept is `room`, the least slack of an edge and all later ones, which rises from edge to edge: the same numbers as with slack
    itself, without looking for the least each time.
    """
    base = np.cumsum(size) - size
    part, value = np.zeros(int(size.sum())), np.zeros(len(first))
    room = np.minimum.accumulate(slack[::-1], axis=0)[::-1].copy()
    group = np.arange(len(first))
    many = len(first)
    for rank in range(int(size[0])):
        while many and size[many - 1] <= rank:
            many -= 1
        pair = use[first[:many] + rank]
        due, needs = bucket[pair], long[pair]
        there = room[due, group[:many]]
        hours = np.minimum(there, needs)
        left = room[:, :many]
        # from its bucket on there are so many hours less, before it no more than what is left there
        np.maximum(left - hours, np.minimum(left, there - hours), out=left)
        did = np.where(needs > 0, hours / np.maximum(needs, 1e-300), 1.0)
        part[base[:many] + rank] = did
        value[:many] += did * gain[pair]
    return part, value


@dataclass(slots=True)
class _Ascent:
    """The prices that proved most, what they proved, and the mean of what blocks did, which tells where to go on."""

    prices: Prices
    bound: float
    mean: Floats
    memory: float = MEMORY
    pace: float = PACE
    misses: int = 0

    def note(self, tried: Prices, seen: Seen) -> None:
        self.mean = self.memory * self.mean + (1 - self.memory) * seen.x
        if seen.bound > self.bound:
            self.prices, self.bound = tried, seen.bound
            self.pace, self.misses = min(2.0, 1.1 * self.pace), 0
            return
        self.misses += 1
        if self.misses == PATIENCE:
            self.pace, self.misses = 0.7 * self.pace, 0


def bound(
    pricing: Pricing, edges: Floats, first: Prices, *, plan_usd: float, served: Floats, looks: int
) -> tuple[float, Prices]:
    """(USD that no plan of these edges costs less than, the prices that prove it). `first` are the prices to begin with, of them
    those of the classes about what each is worth; `served` the part of each class that counts."""
    most = first.classes * MOST
    many = CANDIDATES if len(pricing.classes) <= MANY_CLASSES else FEW_CANDIDATES
    pairs = pairs_below(pricing, edges, first.scarcity, most, many)
    prices, _ = ascend(pricing, pairs, first, edges, plan_usd=plan_usd, looks=looks, memory=SHORT_MEMORY)
    return proven(pricing, edges, prices, served), prices


def proven(pricing: Pricing, edges: Floats, prices: Prices, served: Floats) -> float:
    """USD that no plan of these edges costs less than, by these prices. An ascent looks at the likely pairs: what counts is all
    that are below the prices."""
    every = pairs_below(pricing, edges, prices.scarcity, prices.classes)
    return look(pricing, every, prices, edges, served).bound


def ascend(
    pricing: Pricing,
    pairs: Pairs,
    first: Prices,
    edges: Floats,
    *,
    plan_usd: float,
    looks: int,
    memory: float = MEMORY,
) -> tuple[Prices, Floats]:
    """(the best prices found in so many looks, the mean part of each pair that the blocks did). `plan_usd` is about what a plan
    costs, which no bound exceeds; `memory` what the mean keeps of itself at each look."""
    classes, resources = pricing.classes, pricing.figures.resources
    is_row = first.scarcity.capacity > 0
    rows = Rows.of(pricing, pairs, first.scarcity, edges)
    weight = first.classes
    row_weight = ROW_WEIGHT * (resources.price * resources.count)[:, np.newaxis] * edges[np.newaxis, :]
    seen = look(pricing, pairs, first, edges, rows=rows)
    found = _Ascent(first, seen.bound, seen.x, memory)
    for _ in range(looks):
        short = 1.0 - np.bincount(pairs.k, weights=found.mean, minlength=len(classes))
        over = np.where(is_row, _load(pricing, pairs, found.mean, rows) - 1.0, 0.0)
        norm = float((weight * short * short).sum() + (row_weight * over * over).sum())
        step = found.pace * max(0.0, plan_usd - found.bound) / max(norm, 1e-12)
        tried = Prices(
            np.maximum(0.0, found.prices.classes + step * weight * short),
            Scarcity(
                np.maximum(0.0, found.prices.scarcity.capacity + step * row_weight * over),
                found.prices.scarcity.quota,
            ),
        )
        found.note(tried, look(pricing, pairs, tried, edges, rows=rows))
    return found.prices, found.mean


def _load(pricing: Pricing, pairs: Pairs, x: Floats, rows: Rows) -> Floats:
    """What is used of each capacity row, as a part of it, by the blocks of `rows`."""
    many, edges = len(pricing.figures.resources), rows.capacity.shape[1]
    hours = np.bincount(rows.cell, weights=pairs.long[rows.mine] * x[rows.mine], minlength=rows.capacity.size)
    # what has time before no edge takes nothing, as a block it is worth nothing
    part = np.cumsum(hours.reshape(rows.capacity.shape), axis=1) * np.where(rows.capacity < NEVER, rows.capacity, 0.0)
    place = pairs.block_r[rows.blocks][:, np.newaxis] * edges + np.arange(edges)[np.newaxis, :]
    used: Floats = np.bincount(place.ravel(), weights=part.ravel(), minlength=many * edges).astype(np.float64)
    return used.reshape(many, edges)
