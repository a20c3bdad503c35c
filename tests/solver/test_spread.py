"""Deadline work on spot is spread over regions, not zones, where that costs hardly more; and never at the price of serving it."""

from __future__ import annotations

from random import Random
from typing import Any

import msgspec
import pytest

from solver.check import check
from solver.plan import solve, solve_large
from solver.size import is_small
from solver.view import View


def spot(town: Any, key: str, price: float, region: str, **more: Any) -> Any:
    return town.offer(key, price, pricing="spot", hazard=0.0, domain=region, capacity=8, **more)


def machines(snapshot: Any) -> dict[str, int]:
    plan = solve(snapshot)
    assert check(snapshot, plan) == []
    assert plan.unplaced == ()
    assert plan.bound_nano <= plan.cost_nano
    return {start.offer_key: start.count for start in plan.starts}


def test_six_machines_are_not_all_in_one_region(town: Any) -> None:
    east = [spot(town, f"a/east-{zone}", 1.0, "a/east") for zone in (1, 2)]
    offers = [*east, spot(town, "a/west", 1.02, "a/west")]
    found = machines(town.snapshot([town.work("w", 55, within_h=10)], offers))
    assert found["a/west"] == 3
    assert sum(found.values()) == 6


@pytest.mark.parametrize(("west", "is_spread"), [(1.01, True), (1.3, False)])
def test_a_large_queue_is_spread_over_regions_too(town: Any, west: float, is_spread: bool) -> None:
    """60 batches on 120 small offers, planned by classes: at hardly more than the east, half of the machines are in the west."""
    offers = [
        town.offer(
            f"a/{region}-{n:02}", price, pricing="spot", hazard=0.0, domain=f"a/{region}", capacity=1 if n % 2 else 3
        )
        for region, price in (("east", 1.0), ("west", west))
        for n in range(60)
    ]
    works = [town.work(f"w{n:02}", 9.0, within_h=10, max_usd=200 if n % 3 else None) for n in range(60)]
    snapshot = town.snapshot(works, offers)
    snapshot = msgspec.structs.replace(snapshot, later_starts=False)
    assert not is_small(View(snapshot))
    found = machines(snapshot)
    west_machines = sum(count for key, count in found.items() if key.startswith("a/west"))
    assert (west_machines >= 8) == is_spread, found


@pytest.mark.parametrize(
    "seed",
    [
        3,
        81,  # the guide of the plan put a work where its max_usd forbids it, and the checker refused the plan
        144,  # the same
    ],
)
def test_a_large_queue_on_spot_of_few_regions_keeps_every_rule(towns: Any, seed: int) -> None:
    random = Random(f"domains {seed}")
    snapshot = towns().random(seed, works=40, offers=80)
    offers = tuple(
        msgspec.structs.replace(
            each,
            domain=random.choice(["a/east", "a/west", "b/x", None]),
            pricing=random.choice([each.pricing, "spot"]) if each.pricing != "token" else "token",
        )
        for each in snapshot.offers
    )
    snapshot = msgspec.structs.replace(snapshot, offers=offers, later_starts=False)
    plan = solve_large(View(snapshot), is_program=True)
    assert check(snapshot, plan) == []
    assert plan.bound_nano <= plan.cost_nano


def test_another_region_that_costs_more_than_a_little_is_not_taken(town: Any) -> None:
    offers = [spot(town, "a/east", 1.0, "a/east"), spot(town, "a/west", 1.2, "a/west")]
    assert machines(town.snapshot([town.work("w", 55, within_h=10)], offers)) == {"a/east": 6}


def test_one_machine_is_not_two(town: Any) -> None:
    offers = [spot(town, "a/east", 1.0, "a/east"), spot(town, "a/west", 1.0, "a/west")]
    assert sum(machines(town.snapshot([town.work("w", 9, within_h=10)], offers)).values()) == 1


def test_what_is_not_taken_away_is_not_spread(town: Any) -> None:
    offers = [
        town.offer(f"a/{region}", price, domain=f"a/{region}", capacity=8)
        for region, price in (("east", 1.0), ("west", 1.01))
    ]
    assert machines(town.snapshot([town.work("w", 55, within_h=10)], offers)) == {"a/east": 6}


def test_a_limit_of_money_goes_before_spreading(town: Any) -> None:
    offers = [spot(town, "a/east", 1.0, "a/east"), spot(town, "a/west", 1.02, "a/west")]
    work = town.work("w", 55, within_h=10, max_usd=55.2)
    assert machines(town.snapshot([work], offers)) == {"a/east": 6}
