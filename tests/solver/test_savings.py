"""What would make a placed work cheaper: every saving told is one that solving the changed queue finds."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from solver.plan import solve
from solver.relax import alone
from solver.residency import compile_countries
from solver.savings import savings
from solver.types import Quota

USD = 1_000_000_000


def told(snapshot: Any, work_id: str = "w") -> dict[str, tuple[int, str]]:
    return {each.field: (each.saves_nano, each.message) for each in savings(snapshot, solve(snapshot), work_id)}


def test_a_country_more_and_the_policy_have_their_price(town: Any) -> None:
    offers = [town.offer("a/de", 3.0), town.offer("b/ch", 2.0, country="CH"), town.offer("c/us", 1.0, country="US")]
    found = told(town.snapshot([town.work("w", 4, policy=compile_countries(["DE", "FR"]))], offers))
    # the cheapest country is the one that is named
    assert found["residency.country"][0] == 8 * USD
    assert "allowing US would save" in found["residency.country"][1]
    assert found["residency"][0] == 8 * USD


def test_more_slack_has_its_price(town: Any) -> None:
    """The cheap machine is ready half an hour after the deadline, and needs 4.5 hours then."""
    offers = [town.offer("a/now", 4.0), town.offer("b/slow-to-come", 1.0, start_s=30_600)]
    found = told(town.snapshot([town.work("w", 4.5, within_h=8)], offers))
    assert found["deadline_us"] == (5 * USD, "6 h more slack would save $5.00: b/slow-to-come")


def test_what_is_sold_out_has_its_price(town: Any) -> None:
    offers = [town.offer("a/here", 3.0), town.offer("b/gone", 1.0, capacity=0)]
    found = told(town.snapshot([town.work("w", 4)], offers))
    assert found["capacity"][0] == 8 * USD


def test_what_other_work_takes_is_no_saving(town: Any) -> None:
    """The other project's instance of the cheap offer is not free for this one, whatever the deadline is."""
    offers = [town.offer("a/cheap", 1.0, capacity=1), town.offer("b/dear", 3.0, capacity=5)]
    works = [town.work("other", 9, project="q", within_h=10), town.work("w", 4, within_h=10)]
    snapshot = town.snapshot(works, offers)
    plan = solve(snapshot)
    assert {each.work_id: each.offer_key for each in plan.assignments} == {"other": "a/cheap", "w": "b/dear"}
    assert "deadline_us" not in {each.field for each in savings(snapshot, plan, "w")}


def test_a_saving_was_told_for_which_the_quota_of_the_family_was_used_up(town: Any) -> None:
    """It counted instances of the market, where what is granted are vCPUs of a family of machine types."""
    more = {"quota": "aws/g", "quota_units": 48}
    offers = [
        town.offer("aws/one", 1.0, **more), town.offer("aws/sooner", 1.0, start_s=18_000, **more),
        town.offer("b/dear", 3.0, capacity=5),
    ]  # fmt: skip
    works = [town.work("other", 9, project="q", within_h=10), town.work("w", 6, within_h=10)]
    snapshot = town.snapshot(works, offers, quotas=[Quota(market="aws/g", remaining=48)])
    plan = solve(snapshot)
    assert {each.work_id: each.offer_key for each in plan.assignments} == {"other": "aws/one", "w": "b/dear"}
    assert savings(snapshot, plan, "w") == ()


def test_a_work_in_the_best_place_is_told_nothing(town: Any) -> None:
    assert told(town.snapshot([town.work("w", 4)], [town.offer("a/1", 1.0), town.offer("b/2", 2.0)])) == {}


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_every_saving_is_found_again_by_solving(towns: Any, seed: int) -> None:
    snapshot = towns().random(seed)
    plan = solve(snapshot)
    for work in snapshot.works:
        for each in savings(snapshot, plan, work.id):
            assert each.saves_nano > 0
            if each.field == "deadline_us":
                free = msgspec.structs.replace(work, deadline_us=int(each.needed))
                lone = alone(msgspec.structs.replace(snapshot, works=(work,)), free)
                assert lone.is_whole


def test_an_unknown_work_is_named(town: Any) -> None:
    with pytest.raises(KeyError):
        savings(town.snapshot([], []), solve(town.snapshot([], [])), "w")
