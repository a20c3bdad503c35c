"""What the search for a bound says of the plan itself: what capacity is worth, and about where each class goes.

The volume algorithm that proves the bound (`blocks`) keeps a mean of what the blocks did at its prices. Unlike the program, whose
classes pay a share of a start each, the blocks paid whole starts: at 5,000 works and 2,000 offers a plan restored from this mean
costs 0.9 % less than one restored from the program. The search begins at the program's prices, or where the program would take
longer than the search itself, at those of the first placement: at 20,000 works and 5,000 offers four rounds of the program take
19 CPU-seconds and a look takes 0.06.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from solver.fluid import blocks
from solver.fluid.blocks import Prices
from solver.fluid.figures import Floats
from solver.fluid.prices import Pricing, Scarcity

# Of the prices that a program's scarcity gives, this part of a class's price has a start shared until its deadline, the rest one
# shared over the whole horizon: prices that are too high let every block gain. After 20 looks at 5,000 works and 2,000 offers the
# bound was 21,958 (none of it: 21,883; half: 21,861; all of it, after 40: 21,863).
EARLY_SHARE = 0.3
# Rows that the first placement fills to this part may get a price, and begin with nearly none (a part of what they cost).
FILLED, FIRST_PRICE = 0.6, 1e-6
# What a plan is taken to cost before there is one, beside the program or the first placement without starts.
ABOVE = 1.05
# A part of a class below this in the mean says nothing; after a search from the first placement, where the mean is not yet sharp,
# below the second: 141,102 instead of 143,004 USD at 20,000 works and 5,000 offers (from a program, at 5,000 works: 0.5 % worse).
LEAST_PART, LEAST_PART_AT_FIRST = 0.05, 0.3
# Resources of each class that are looked at: more where prices are not yet near.
LIKELY, LIKELY_AT_FIRST = blocks.CANDIDATES, 60

Pieces = list[tuple[int, int, float]]


@dataclass(frozen=True, slots=True)
class Guide:
    """Prices that prove a good bound, and (class, resource, part of the class) of where the blocks do it on the average."""

    prices: Prices
    pieces: Pieces


def is_guided(pricing: Pricing) -> bool:
    """Whether the search knows all that the program knows: quotas and budgets it does not price anew."""
    return not pricing.quota_names and not pricing.figures.view.budgets


def by_program(pricing: Pricing, scarcity: Scarcity, usd: float, looks: int) -> Guide:
    """From the prices of a solved program that costs so much."""
    edges = pricing.classes.edge_low
    return _search(pricing, first_prices(pricing, edges, scarcity), ABOVE * usd, [looks], (LIKELY, LEAST_PART))


def by_placement(pricing: Pricing, pieces: Pieces, looks: Sequence[int]) -> Guide:
    """From a first placement alone."""
    classes, resources, edges = pricing.classes, pricing.figures.resources, pricing.classes.edge_low
    load, paid = np.zeros((len(resources), pricing.buckets)), np.zeros(len(classes))
    for k, r, part in pieces:
        usd, long = pricing.whole(k, np.array([r]))
        load[r, classes.bucket[k]] += part * float(long[0])
        paid[k] += part * float(usd[0])
    room = resources.count[:, np.newaxis] * edges[np.newaxis, :]
    is_filled = np.cumsum(load, axis=1) > FILLED * room
    free = pricing.free()
    scarcity = Scarcity(np.where(is_filled, FIRST_PRICE * resources.price[:, np.newaxis] * room, 0.0), free.quota)
    least = _worth(pricing, scarcity, edges, is_bound=True)
    first = Prices(np.maximum(least, 0.5 * (least + paid)), scarcity)
    return _search(pricing, first, ABOVE * float(paid.sum()), looks, (LIKELY_AT_FIRST, LEAST_PART_AT_FIRST))


def first_prices(pricing: Pricing, edges: Floats, scarcity: Scarcity) -> Prices:
    """Where a search begins whose capacity has these prices already."""
    early, late = (_worth(pricing, scarcity, edges, is_bound=each) for each in (False, True))
    return Prices(EARLY_SHARE * early + (1 - EARLY_SHARE) * late, scarcity)


def _worth(pricing: Pricing, scarcity: Scarcity, edges: Floats, *, is_bound: bool) -> Floats:
    least, _ = pricing.cheapest(scarcity, edges, is_bound=is_bound)
    return np.where(np.isfinite(least), least, 0.0)


def _search(pricing: Pricing, prices: Prices, usd: float, looks: Sequence[int], which: tuple[int, float]) -> Guide:
    """The best prices of some searches, each from those of the one before, and what the last one's blocks did. `which`: resources
    of each class that are looked at, and the least part of a class that counts.

    Each looks at the resources that are likely at its first prices. Where these were far off, no bound came of the first search:
    123,071 after 300 looks at 20,000 works, when it was 128,924 of what was looked at.
    """
    edges, (many, least) = pricing.classes.edge_low, which
    for each in looks:
        pairs = blocks.pairs_below(pricing, edges, prices.scarcity, blocks.MOST * prices.classes, many)
        prices, mean = blocks.ascend(pricing, pairs, prices, edges, plan_usd=usd, looks=each)
    total = np.bincount(pairs.k, weights=mean, minlength=len(pricing.classes))
    part = mean / np.maximum(1.0, total[pairs.k])
    used = np.flatnonzero(part > least)
    pieces = zip(pairs.k[used].tolist(), pairs.r[used].tolist(), part[used].tolist(), strict=True)
    return Guide(prices, sorted(pieces))
