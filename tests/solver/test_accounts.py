"""Whose account an offer is of: a project's own is rented for nobody else, and the house's not for who has his own."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from solver.check import check
from solver.plan import solve, solve_large
from solver.types import Assignment, Plan, Snapshot, Start
from solver.view import View


def account_world(town: Any) -> Snapshot:
    """Acme's own account is the cheapest, then the house's, which acme does not use."""
    listed = [
        town.offer("aws~acme/1", 1.0, capacity=9, only_for="acme"),
        town.offer("aws/1", 2.0, capacity=9, not_for=("acme",)),
        town.offer("vast/1", 3.0, capacity=9),
    ]
    works = [town.work("a", project="acme"), town.work("b", project="bravo")]
    return town.snapshot(works, listed)  # type: ignore[no-any-return]


def places(plan: Plan) -> dict[str, str]:
    return {each.work_id: each.offer_key for each in plan.assignments}


@pytest.mark.parametrize("how", ["small", "greedy", "large"])
def test_who_has_an_own_account_rents_there_and_the_others_at_the_houses(town: Any, how: str) -> None:
    snapshot = account_world(town)
    plan = (
        solve_large(View(snapshot), is_program=True)
        if how == "large"
        else solve(snapshot, stage="greedy" if how == "greedy" else "program")
    )
    assert check(snapshot, plan) == []
    assert places(plan) == {"a": "aws~acme/1", "b": "aws/1"}


@pytest.mark.parametrize("how", ["small", "large"])
def test_an_own_account_that_is_sold_out_sends_nobody_to_the_houses_of_the_same_market(town: Any, how: str) -> None:
    snapshot = account_world(town)
    sold_out = msgspec.structs.replace(snapshot.offers[1], capacity=0)
    offers = (snapshot.offers[0], sold_out, snapshot.offers[2])
    assert sold_out.key == "aws~acme/1"
    snapshot = msgspec.structs.replace(snapshot, offers=offers)
    plan = solve_large(View(snapshot), is_program=True) if how == "large" else solve(snapshot)
    assert check(snapshot, plan) == []
    assert places(plan) == {"a": "vast/1", "b": "aws/1"}


@pytest.mark.parametrize("how", ["small", "large"])
def test_nothing_of_anothers_account_is_told(town: Any, how: str) -> None:
    snapshot = account_world(town)
    snapshot = msgspec.structs.replace(snapshot, offers=(snapshot.offers[1],))
    plan = solve_large(View(snapshot), is_program=True) if how == "large" else solve(snapshot)
    assert places(plan) == {"a": "aws~acme/1"}
    (waits,) = plan.unplaced
    told = str((waits, plan.funnels["b"]))
    assert waits.work_id == "b"
    assert "acme" not in told, told


def test_a_rental_that_runs_serves_on_when_its_project_gets_an_account(town: Any) -> None:
    house = town.offer("aws/1", 2.0, not_for=("acme",))
    running = [town.rental("rental_1", house, project="acme")]
    snapshot = town.snapshot([town.work("a", project="acme")], [house], running=running)
    plan = solve(snapshot)
    assert (places(plan), plan.starts, check(snapshot, plan)) == ({"a": "aws/1"}, (), [])


@pytest.mark.parametrize(("key", "project"), [("aws~acme/1", "bravo"), ("aws/1", "acme")])
def test_the_checker_finds_who_is_given_an_account_that_is_not_for_him(town: Any, key: str, project: str) -> None:
    snapshot = account_world(town)
    work = next(each for each in snapshot.works if each.project == project)
    start = Start(
        offer_key=key, project=project, model="m", precision="bf16", count=1, from_us=0, until_us=0, cost_nano=0
    )
    there = Assignment(work_id=work.id, offer_key=key, share_ppm=1_000_000, order=0, cost_nano=0, end_us=0)
    wrong = msgspec.structs.replace(solve(snapshot), starts=(start,), assignments=(there,))
    assert "account" in {each.rule for each in check(snapshot, wrong)}
