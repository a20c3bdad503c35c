"""Costs besides time: capacity that is paid for anyway, data that moves, deposits that stay there."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from solver.check import check
from solver.plan import solve, solve_large
from solver.types import Plan, Snapshot
from solver.view import View

USD = 1_000_000_000


def plans(snapshot: Snapshot) -> list[Plan]:
    return [
        solve(snapshot),
        solve(snapshot, stage="greedy"),
        solve_large(View(snapshot), is_program=True),
        solve_large(View(snapshot), is_program=False),
    ]


def programs(snapshot: Snapshot) -> list[Plan]:
    """Where a program decides. The first placement of a large queue takes a part of a start for a part of what it costs."""
    return [solve(snapshot), solve_large(View(snapshot), is_program=True)]


def test_capacity_that_is_paid_for_anyway_is_used_first_and_costs_nothing_more(town: Any) -> None:
    reserved = town.offer("a/reserved", 0.0, pricing="reserved", sunk=True, capacity=1)
    snapshot = town.snapshot([town.work("w", 4, within_h=6)], [reserved, town.offer("b/cheap", 0.1)])
    for plan in plans(snapshot):
        assert [start.offer_key for start in plan.starts] == ["a/reserved"]
        assert (plan.cost_nano, check(snapshot, plan)) == (0, [])


def test_a_reservation_that_is_too_small_is_filled_before_anything_else_is_rented(town: Any) -> None:
    reserved = town.offer("a/reserved", 0.0, pricing="reserved", sunk=True, capacity=1)
    snapshot = town.snapshot([town.work("w", 8, within_h=6)], [reserved, town.offer("b/dear", 3.0)])
    for plan in plans(snapshot):
        share = {each.offer_key: each.share_ppm for each in plan.assignments}
        assert share["a/reserved"] == pytest.approx(750_000, abs=2_000)
        assert check(snapshot, plan) == []


def test_a_price_of_nothing_is_unknown_where_nothing_is_paid_for_anyway(town: Any) -> None:
    snapshot = town.snapshot([town.work("w")], [town.offer("a/free", 0.0, pricing="reserved")])
    for plan in plans(snapshot):
        assert not plan.starts


def test_what_moves_in_and_out_decides_between_places_of_nearly_one_price(town: Any) -> None:
    """SkyPilot #1819: data is elsewhere, and the hourly price alone chose the dearer place."""
    work = town.work("w", 4, input_bytes=40 * 10**9, output_bytes=10 * 10**9)
    far = town.offer("a/far", 1.0, egress_nano_gb=90_000_000, ingress_nano_gb=10_000_000)
    snapshot = town.snapshot([work], [far, town.offer("b/near", 1.2)])
    for plan in plans(snapshot):
        assert [start.offer_key for start in plan.starts] == ["b/near"]
        assert plan.bound_nano <= plan.cost_nano
    only_far = town.snapshot([work], [far])
    for each in plans(only_far):
        # 4 hours of 1 USD, 40 GB in at 0.01 and 10 GB out at 0.09
        assert each.cost_nano == pytest.approx(5.3 * USD, abs=100)
        assert check(only_far, each) == []


def test_a_deposit_that_stays_there_is_paid_for_each_start(town: Any) -> None:
    lost = town.offer("a/deposit", 1.0, lost_nano=5 * USD)
    snapshot = town.snapshot([town.work("w", 4)], [lost, town.offer("b/plain", 2.0)])
    for plan in programs(snapshot):
        assert [start.offer_key for start in plan.starts] == ["b/plain"]
    long = town.snapshot([town.work("w", 8)], [lost, town.offer("b/plain", 2.0)])
    for plan in programs(long):
        assert [(start.offer_key, start.cost_nano) for start in plan.starts] == [("a/deposit", 13 * USD)]
        assert check(long, plan) == []
        assert plan.bound_nano <= plan.cost_nano


def test_each_start_pays_for_what_it_downloads(town: Any) -> None:
    metered = town.offer("a/metered", 1.0, ingress_nano_gb=100_000_000)
    snapshot = msgspec.structs.replace(
        town.snapshot([town.work("w", 1)], [metered, town.offer("b/plain", 1.5)]), fetched_bytes={"m": 16 * 10**9}
    )
    for plan in programs(snapshot):
        assert [start.offer_key for start in plan.starts] == ["b/plain"]


def test_the_checker_finds_a_start_that_hides_its_deposit(town: Any) -> None:
    snapshot = town.snapshot([town.work("w", 4)], [town.offer("a/deposit", 1.0, lost_nano=5 * USD)])
    plan = solve(snapshot)
    cheaper = msgspec.structs.replace(plan.starts[0], cost_nano=plan.starts[0].cost_nano - 5 * USD)
    found = check(snapshot, msgspec.structs.replace(plan, starts=(cheaper,)))
    assert "start_cost" in {each.rule for each in found}
