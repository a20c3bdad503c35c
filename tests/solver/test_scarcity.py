"""What one instance more would save the queue, as planning with it says."""

from __future__ import annotations

from typing import Any

from solver.plan import solve
from solver.scarcity import Scarce, candidates, estimated, scarce, with_one_more
from solver.types import Snapshot

USD = 1_000_000_000


def told(snapshot: Snapshot) -> tuple[Scarce, ...]:
    plan = solve(snapshot)
    return scarce(plan, {key: solve(with_one_more(snapshot, key)) for key in candidates(snapshot, plan)})


def test_the_pool_that_is_taken_to_the_last_is_named_with_what_one_more_saves(town: Any) -> None:
    works = [town.work("a", 8, project="p"), town.work("b", 8, project="q")]
    [found] = told(town.snapshot(works, [town.offer("x/cheap", 1.0, capacity=1), town.offer("x/dear", 3.0)]))
    assert (found.offer_key, found.saves_nano, found.message) == (
        "x/cheap", 16 * USD, "one x/cheap more would save $16.00"
    )  # fmt: skip
    assert found.until_us is not None


def test_of_a_large_queue_what_one_more_saves_is_estimated_and_said_to_be(town: Any) -> None:
    """Queues above 3,000 pairs were told nothing of what they lack."""
    works = [town.work("a", 8, project="p"), town.work("b", 8, project="q")]
    dear = town.offer("x/dear", 3.0, capacity=2)
    snapshot = town.snapshot(works, [town.offer("x/cheap", 1.0, capacity=1), dear])
    [found] = estimated(snapshot, plan := solve(snapshot))
    assert (found.offer_key, found.saves_nano) == ("x/cheap", 16 * USD)
    assert found.message == "one x/cheap more would save up to $16.00 (estimated: an hour there is worth $2.00 more)"
    assert found.until_us == next(each.until_us for each in plan.starts if each.offer_key == "x/cheap")
    plenty = town.snapshot(works, [town.offer("x/cheap", 1.0, capacity=9), town.offer("x/dear", 3.0)])
    assert estimated(plenty, solve(plenty)) == ()


def test_a_pool_that_would_give_waiting_work_a_place_comes_before_one_that_saves(town: Any) -> None:
    works = [town.work("a", 8, project="p"), town.work("b", 8, project="q")]
    [found] = told(town.snapshot(works, [town.offer("x/only", 1.0, capacity=1)]))
    assert found.message == "one x/only more would give 1.00 waiting batches a place"


def test_a_queue_that_lacks_nothing_is_told_nothing(town: Any) -> None:
    assert told(town.snapshot([town.work("a", 2)], [town.offer("x/cheap", 1.0), town.offer("x/dear", 3.0)])) == ()


def test_what_is_sold_out_and_cheaper_is_asked_about(town: Any) -> None:
    [found] = told(town.snapshot([town.work("a", 2)], [town.offer("x/gone", 1.0, capacity=0), town.offer("x/1", 3.0)]))
    assert (found.offer_key, found.saves_nano, found.until_us) == ("x/gone", 4 * USD, None)
