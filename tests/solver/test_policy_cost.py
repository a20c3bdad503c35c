"""What a policy costs: the works of a start planned once more without it, on what the rest of the plan leaves free."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from solver.plan import solve
from solver.policy_cost import PolicyShare, asked, policy_shares
from solver.residency import compile_countries
from solver.types import Snapshot

GERMANY = compile_countries(["DE"])
SWISS = compile_countries(["CH"])
PPM = 1_000_000


def told(snapshot: Snapshot, *, is_solved: bool = True) -> dict[str, tuple[PolicyShare, ...]]:
    plan = solve(snapshot)
    solved = {key: solve(free) for key, free in asked(snapshot, plan, plan.starts).items()} if is_solved else {}
    return {start.offer_key: each for start, each in policy_shares(snapshot, plan, plan.starts, solved).items()}


def test_a_policy_costs_what_the_same_work_would_cost_less_without_it(town: Any) -> None:
    offers = [town.offer("a/de", 3.0), town.offer("b/us", 1.0, country="US")]
    (share,) = told(town.snapshot([town.work("w", 4, policy=GERMANY)], offers))["a/de"]
    assert (share.of_ppm, share.premium_ppm, share.instead_key) == (PPM, 2 * PPM // 3, "b/us")
    assert share.policy == "countries:de"


def test_a_policy_that_keeps_nothing_cheaper_away_costs_nothing(town: Any) -> None:
    offers = [town.offer("a/de", 1.0), town.offer("b/us", 3.0, country="US")]
    (share,) = told(town.snapshot([town.work("w", 4, policy=GERMANY)], offers))["a/de"]
    assert (share.premium_ppm, share.instead_key) == (0, None)


def test_two_batches_do_not_both_save_by_the_one_machine_that_is_cheaper(town: Any) -> None:
    """Each alone would run on it, for 2/3 of the bill less. Of their 16 hours it has 10 before the deadline: $48 become $28."""
    offers = [town.offer("a/de", 3.0, capacity=2), town.offer("b/us", 1.0, country="US", capacity=1)]
    works = [town.work(name, 8, within_h=10, policy=GERMANY) for name in ("v", "w")]
    (share,) = told(town.snapshot(works, offers))["a/de"]
    assert (share.premium_ppm, share.instead_key) == (pytest.approx(20 * PPM // 48, rel=1e-3), "b/us")


def test_what_other_work_takes_elsewhere_is_not_what_the_policy_costs(town: Any) -> None:
    offers = [town.offer("a/de", 3.0), town.offer("b/us", 1.0, country="US", capacity=1)]
    works = [town.work("free", 8, project="q", within_h=10), town.work("w", 8, within_h=10, policy=GERMANY)]
    snapshot = town.snapshot(works, offers)
    assert {each.work_id: each.offer_key for each in solve(snapshot).assignments} == {"free": "b/us", "w": "a/de"}
    assert told(snapshot)["a/de"][0].premium_ppm == 0


def test_two_policies_on_one_machine_bear_their_own_parts(town: Any) -> None:
    """The one kept to Germany pays for that; the other chose among both and is there for company."""
    offers = [town.offer("a/de", 3.0, capacity=1), town.offer("b/us", 1.0, country="US", capacity=0)]
    works = [town.work("v", 2, policy=GERMANY), town.work("w", 6, policy=compile_countries(["DE", "US"]))]
    shares = told(town.snapshot(works, offers))["a/de"]
    assert sum(each.of_ppm for each in shares) == PPM
    assert {each.policy: each.of_ppm for each in shares} == {"countries:de": PPM // 4, "countries:de,us": 3 * PPM // 4}
    assert [each.premium_ppm for each in shares] == [0, 0]


def test_a_small_queue_is_solved_again_and_a_large_one_estimated_and_said_to_be(town: Any) -> None:
    """Of more works than 150, and of many policies, most were `not estimated`."""
    offers = [town.offer("a/de", 3.0, capacity=90), town.offer("b/us", 1.0, country="US", capacity=90)]
    for many, by in ((4, "solved"), (400, "estimated")):
        works = [town.work(f"w{n:03}", 1, project=f"p{n % 40:02}", policy=GERMANY) for n in range(many)]
        snapshot = town.snapshot(works, offers)
        plan = solve(snapshot)
        solved = {key: solve(free) for key, free in asked(snapshot, plan, plan.starts).items()}
        assert len(solved) == (1 if by == "solved" else 0)
        found = policy_shares(snapshot, plan, plan.starts, solved)
        assert {each.by for (each,) in found.values()} == {by}
        assert all(abs((each.premium_ppm or 0) - 2 * PPM // 3) < PPM // 50 for (each,) in found.values())


def test_an_hour_of_an_offer_that_others_fill_counts_what_it_is_worth_to_them(town: Any) -> None:
    """Without its policy the work would take the one cheap machine from another, who then pays $2 an hour more: nothing saved."""
    offers = [town.offer("a/de", 3.0, capacity=9), town.offer("b/us", 1.0, country="US", capacity=1)]
    works = [town.work("free", 8, project="q", within_h=10), town.work("w", 8, within_h=10, policy=GERMANY)]
    for is_solved in (True, False):
        (share,) = told(town.snapshot(works, offers), is_solved=is_solved)["a/de"]
        assert (share.premium_ppm, share.by) == (0, "solved" if is_solved else "estimated")


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_parts_sum_to_the_start_and_a_premium_is_a_part_of_its_own(towns: Any, seed: int) -> None:
    snapshot = towns().random(seed)
    found = told(snapshot)
    assert found == told(snapshot)
    for shares in (*found.values(), *told(snapshot, is_solved=False).values()):
        assert sum(each.of_ppm for each in shares) == PPM
        for each in shares:
            assert each.premium_ppm is not None and 0 <= each.premium_ppm <= PPM
            assert (each.instead_key is not None) == bool(each.premium_ppm)
