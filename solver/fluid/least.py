"""What busy time costs each class at least, where nothing is scarce, without asking every offer for every class.

What decides where a class may run, but for its deadline and its money, is decided for all classes of its kind, policy and
distance alike; and at offers of one accelerator its hours differ by the offer alone. So of each accelerator the cheapest offer
is enough: 2,000 tables instead of 15,000 at 20,000 works and 5,000 offers, in an eighth of the time.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from solver.fluid.figures import Floats, Ints
from solver.fluid.prices import TOO_DEAR, Pricing

# What keeps a start in time at the edge of float: as in `masks`.
EXACT = 1e-12


def least_usd(pricing: Pricing, rate: Callable[[int], Floats], within: Floats, *, is_bound: bool) -> Floats:
    """Per class the least USD of its expected hours over the resources that may serve it, infinite where there is none.

    `rate` has the USD of an hour of a kind at each resource; `within` of each class the hours that a start may take. `is_bound`:
    as a bound must, also where only money forbids it.
    """
    tables = _Tables(pricing)
    found = np.full(len(pricing.classes), np.inf)
    groups: dict[tuple[object, ...], list[int]] = {}
    for k in range(len(pricing.classes)):
        groups.setdefault(pricing.masks.timeless_key(k), []).append(k)
    for members in groups.values():
        tables.fill(np.array(members, dtype=np.int64), rate, within, found, is_bound=is_bound)
    return found


def bound_of_free(pricing: Pricing, served: Floats) -> float:
    """`Pricing.bound` where nothing is scarce, whatever the edges: no plan of these parts of the classes costs less (USD)."""
    share = pricing.horizon_share
    price = pricing.figures.resources.price
    least = least_usd(pricing, lambda kind: price * (1 + share(kind)), pricing.classes.due_up, is_bound=True)
    possible = np.isfinite(least) & (served > 0)
    return float((least[possible] * served[possible]).sum())


class _Tables:
    """Resources sorted by accelerator."""

    def __init__(self, pricing: Pricing) -> None:
        self._pricing = pricing
        accelerator = pricing.figures.accelerator
        self._order = np.argsort(accelerator, kind="stable")
        self._names, self._first = np.unique(accelerator[self._order], return_index=True)

    def fill(
        self, members: Ints, rate: Callable[[int], Floats], within: Floats, found: Floats, *, is_bound: bool
    ) -> None:
        """The least of classes that are alike, in `found`."""
        pricing, figures, classes = self._pricing, self._pricing.figures, self._pricing.classes
        kind = int(classes.kind[members[0]])
        is_open = pricing.masks.timeless(int(members[0]))
        if not is_open.any():
            return
        hourly, start = rate(kind), figures.start[kind]
        latest = float(start[is_open].max())
        is_alike = latest < within[members] * (1 - EXACT)
        if not is_bound:
            is_alike &= np.array([not pricing.masks.has_money(k) for k in members.tolist()], dtype=bool)
        alike = members[is_alike]
        if alike.size:
            cost = np.where(is_open, hourly * figures.slow[kind], np.inf)[self._order]
            cheapest = np.minimum.reduceat(cost, self._first)
            at = np.flatnonzero(np.isfinite(cheapest))
            hours = (
                classes.tokens_in[alike, np.newaxis] * figures.known_input[kind][self._names[at]]
                + classes.tokens_out[alike, np.newaxis] * figures.known_output[kind][self._names[at]]
            )
            found[alike] = (hours * cheapest[at]).min(axis=1)
        for k in members[~is_alike].tolist():
            few = pricing.masks.few(k, is_bound=is_bound)
            few = few[start[few] < within[k] * (1 - EXACT)]
            if few.size:
                found[k] = (pricing.masks.hours(k, few) * hourly[few]).min()
        found[members] = np.where(found[members] > TOO_DEAR, np.inf, found[members])
