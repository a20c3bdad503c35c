"""The short ways to what is asked of whole tables agree with the long ones."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest

from benchmarks.solver_world import world
from solver.fluid.classes import group
from solver.fluid.figures import Figures
from solver.fluid.least import bound_of_free, least_usd
from solver.fluid.masks import Masks
from solver.fluid.prices import Pricing
from solver.types import Budget, Running, Snapshot
from solver.view import View


def with_accounts_money_and_machines(snapshot: Snapshot) -> Snapshot:
    """Some offers of accounts or held back, some works with a limit or far from their data, a budget, and machines that run."""
    offers = tuple(
        msgspec.structs.replace(
            each,
            only_for="p" if number % 7 == 1 else None,
            not_for=("q",) * (number % 11 == 3),
            held_back={"q": "why"} if number % 13 == 5 else {},
        )
        for number, each in enumerate(snapshot.offers)
    )
    works = tuple(
        msgspec.structs.replace(
            each,
            project="q" if number % 3 else "p",
            max_nano=5_000_000_000 if number % 5 == 0 else None,
            max_rtt_ms=80 if number % 4 == 0 else None,
        )
        for number, each in enumerate(snapshot.works)
    )
    running = tuple(
        Running(
            rental_id=f"r{number:03}",
            offer_key=offers[number * 3].key,
            project=works[number].project,
            model=works[number].model,
            precision=works[number].precision,
            ready_in_s=60 * number,
            price_nano_hour=10**9,
        )
        for number in range(12)
    )
    budgets = (Budget(project="q", remaining_nano=40_000_000_000),)
    return msgspec.structs.replace(snapshot, works=works, offers=offers, running=running, budgets=budgets)


@pytest.fixture(scope="module", params=[False, True])
def pricing(request: pytest.FixtureRequest) -> Pricing:
    snapshot = world(150, 80)
    figures = Figures(View(with_accounts_money_and_machines(snapshot) if request.param else snapshot))
    classes = group(figures)
    return Pricing(figures, classes, Masks(figures, classes))


def test_one_offer_of_a_class_is_judged_as_all_of_them_are(pricing: Pricing) -> None:
    for k in range(len(pricing.classes)):
        together = pricing.masks.open_to(k).tolist()
        assert [pricing.masks.may_serve(k, r) for r in range(len(together))] == together


@pytest.mark.parametrize("is_bound", [True, False])
@pytest.mark.parametrize("part", [1.0, 0.05])  # with little time some start-ups come too late
def test_the_least_price_of_all_classes_is_that_of_each(pricing: Pricing, is_bound: bool, part: float) -> None:
    price, start = pricing.figures.resources.price, pricing.figures.start
    within = pricing.classes.due_up * part
    found = least_usd(pricing, lambda _: price, within, is_bound=is_bound)
    for k in range(len(pricing.classes)):
        at = pricing.masks.few(k, is_bound=is_bound)
        at = at[start[pricing.classes.kind[k], at] < within[k]]
        usd = pricing.masks.hours(k, at) * price[at]
        assert found[k] == pytest.approx(usd.min() if usd.size else np.inf)


def test_where_nothing_is_scarce_the_bound_is_the_same_for_all_edges(pricing: Pricing) -> None:
    served = np.linspace(0, 1, len(pricing.classes))
    expected = pricing.bound(pricing.free(), pricing.classes.edge_up, served)
    assert bound_of_free(pricing, served) == pytest.approx(expected)
