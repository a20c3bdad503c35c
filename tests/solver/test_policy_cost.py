"""What a policy costs: the works of a start planned once more without it, on what the rest of the plan leaves free."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from solver.plan import solve
from solver.policy_cost import PolicyShare, policy_shares
from solver.residency import compile_countries
from solver.types import Snapshot

GERMANY = compile_countries(["DE"])
SWISS = compile_countries(["CH"])
PPM = 1_000_000


def told(snapshot: Snapshot) -> dict[str, tuple[PolicyShare, ...]]:
    plan = solve(snapshot)
    return {start.offer_key: each for start, each in policy_shares(snapshot, plan, plan.starts).items()}


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
    assert (share.premium_ppm, share.instead_key) == (20 * PPM // 48, "b/us")


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


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_parts_sum_to_the_start_and_a_premium_is_a_part_of_its_own(towns: Any, seed: int) -> None:
    snapshot = towns().random(seed)
    found = told(snapshot)
    assert found == told(snapshot)
    for shares in found.values():
        assert sum(each.of_ppm for each in shares) == PPM
        for each in shares:
            assert each.premium_ppm is None or 0 <= each.premium_ppm <= PPM
            assert (each.instead_key is not None) == bool(each.premium_ppm)
