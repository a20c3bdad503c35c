"""Deadline work on spot is spread over regions, not zones, where that costs hardly more; and never at the price of serving it."""

from __future__ import annotations

from typing import Any

from solver.check import check
from solver.plan import solve


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
