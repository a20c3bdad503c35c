"""Large queues: planned by classes on time-shared capacity, exact in the end, bounded, and the same each time."""

from __future__ import annotations

from collections import Counter
from random import Random
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from benchmarks.solver_events import judge, runs_of
from benchmarks.solver_world import world
from solver.check import check
from solver.eligibility import survey
from solver.errors import BadSnapshot
from solver.fluid.backends import solve as solve_program
from solver.fluid.classes import group
from solver.fluid.figures import OPEN, Figures
from solver.fluid.fill import fill
from solver.fluid.generate import generate
from solver.fluid.masks import Masks
from solver.fluid.prices import Pricing
from solver.held import held_of
from solver.plan import solve, solve_large
from solver.residency import compile_countries
from solver.size import is_small
from solver.types import SMALL, Plan, Refusal, Snapshot, encode
from solver.view import View
from solver.what_if import Standing, WhatIf, applied

SEEDS = st.integers(min_value=0, max_value=10**9)
FEW = settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def pricing_of(snapshot: Snapshot) -> Pricing:
    figures = Figures(View(snapshot))
    classes = group(figures)
    return Pricing(figures, classes, Masks(figures, classes))


@pytest.fixture(scope="module")
def middling() -> Snapshot:
    """150 works on 60 offers of the benchmark's world."""
    return world(150, 60)


def test_a_large_queue_gets_a_plan_that_the_checker_finds_nothing_in(middling: Snapshot) -> None:
    plan = solve(middling)
    assert check(middling, plan) == []
    assert plan.stage == "program"
    assert 0 < plan.bound_nano <= plan.cost_nano
    served = {each.work_id for each in plan.assignments}
    assert len(served) > 100


def test_an_offer_serves_one_pool_after_another(middling: Snapshot) -> None:
    plan = solve(middling)
    assert any(start.from_us > middling.now_us for start in plan.starts)


def comes_back(towns: Any) -> Snapshot:
    """One cheap machine for a little early and much late work of one model, and for another model's between; a dear one."""
    town = towns()
    works = [
        town.work("early", 1.0, within_h=2),
        town.work("between", 7.0, within_h=11, model="n"),
        town.work("late", 12.0, within_h=40),
    ]
    offers = [town.offer("x/cheap", 1.0, start_s=300), town.offer("x/dear", 20.0, start_s=300, capacity=9)]
    return town.snapshot(works, offers, speeds={("m", "gpu"): 1000.0, ("n", "gpu"): 1000.0})


def test_a_pool_leaves_an_offer_to_urgent_work_and_comes_back_in_another_turn(towns: Any) -> None:
    snapshot = comes_back(towns)
    plan = solve_large(View(snapshot), is_program=True)
    assert check(snapshot, plan) == []
    assert {start.offer_key for start in plan.starts} == {"x/cheap"}
    turns = {(start.model, start.turn) for start in plan.starts}
    assert Counter(model for model, _ in turns) == {"m": 2, "n": 1}
    assert judge(snapshot, runs_of(snapshot, plan)).cost == pytest.approx(plan.cost_nano / 1e9)


def test_what_is_held_stays_in_its_turn(towns: Any) -> None:
    snapshot = comes_back(towns)
    before = solve_large(View(snapshot), is_program=True)
    after = solve_large(View(msgspec.structs.replace(snapshot, held=held_of(before))), is_program=True)
    assert (after.starts, after.assignments) == (before.starts, before.assignments)


@pytest.mark.parametrize("stage", ["program", "greedy"])
def test_without_later_starts_all_begin_now_and_no_instance_serves_two_pools(middling: Snapshot, stage: Any) -> None:
    """The next snapshot says sold out while the first pool runs: the start that waited for it never came, and went elsewhere."""
    snapshot = msgspec.structs.replace(middling, later_starts=False)
    plan = solve(snapshot, stage=stage)
    assert check(snapshot, plan) == []
    assert {start.from_us for start in plan.starts} == {snapshot.now_us}
    capacity = {offer.key: offer.capacity or 1 for offer in snapshot.offers}
    rented = Counter[str]()
    for start in plan.starts:
        rented[start.offer_key] += start.count
    assert all(count <= capacity[key] for key, count in rented.items())
    assert len({each.work_id for each in plan.assignments}) > 60


def test_the_program_costs_less_than_the_first_placement_and_serves_no_less(middling: Snapshot) -> None:
    program, first = solve(middling), solve(middling, stage="greedy")
    assert check(middling, first) == []
    assert first.stage == "greedy"
    assert len(program.unplaced) <= len(first.unplaced)
    assert program.cost_nano < first.cost_nano * 1.01


def test_pulp_and_highs_agree_on_the_objective() -> None:
    for seed in range(4):
        pricing = pricing_of(world(80, 50, seed))
        edges = pricing.classes.edge_low
        fluid = generate(pricing, edges, first=fill(pricing))
        values = [solve_program(pricing, fluid.program, edges, backend=name).objective for name in ("pulp", "highs")]
        assert values[0] == pytest.approx(values[1], rel=1e-6)


@FEW
@given(seed=SEEDS, stage=st.sampled_from(["program", "greedy"]))
def test_any_large_queue_keeps_every_rule_and_costs_at_least_its_bound(towns: Any, seed: int, stage: Any) -> None:
    snapshot = towns().random(seed, works=45, offers=70)
    assert len(snapshot.works) * len(snapshot.offers) > SMALL
    plan = solve_large(View(snapshot), is_program=stage == "program")
    assert check(snapshot, plan) == []


@pytest.mark.parametrize("stage", ["program", "greedy"])
@pytest.mark.parametrize(("works", "hours", "offers"), [(60, 7, 400), (1, 420, 3_100)])
def test_work_that_needs_more_than_fifty_places_finds_them(
    town: Any, works: int, hours: int, offers: int, stage: Any
) -> None:
    """Places were once worth nothing below two percent of the class: no batch was served, and hundreds of offers were free."""
    listed = [town.offer(f"x/{number:04}", 1 + number % 7) for number in range(offers)]
    snapshot = town.snapshot([town.work(f"w{number:02}", hours) for number in range(works)], listed)
    plan = solve(snapshot, stage=stage)
    assert check(snapshot, plan) == []
    assert plan.unplaced == ()
    assert plan.cost_nano < 1.2 * 420 * town.USD


@FEW
@given(seed=SEEDS, stage=st.sampled_from(["program", "greedy"]))
def test_alike_batches_on_many_small_offers_all_find_a_place(towns: Any, seed: int, stage: Any) -> None:
    snapshot = towns().alike(seed)
    plan = solve(snapshot, stage=stage)
    assert check(snapshot, plan) == []
    assert plan.unplaced == ()


@pytest.mark.parametrize("why", ["excluded", "price", "capacity", "policy"])
def test_rows_that_serve_nobody_do_not_make_a_queue_large(town: Any, why: str) -> None:
    """5,000 price-only rows once took the exact plan of a single batch away."""
    idle: dict[str, dict[str, Any]] = {
        "excluded": {"excluded": "prices of 'y' are read"},
        "price": {"price": None},
        "capacity": {"capacity": 0},
        "policy": {"country": "US"},
    }
    listed = [town.offer("x/1", 3.0), *(town.offer(f"y/{number:04}", **idle[why]) for number in range(5_000))]
    snapshot = town.snapshot([town.work("w", policy=compile_countries(["DE"]))], listed)
    plan = solve(snapshot)
    assert check(snapshot, plan) == []
    assert plan.stopped_by == "optimal"
    assert [start.offer_key for start in plan.starts] == ["x/1"]
    assert not is_small(
        View(msgspec.structs.replace(snapshot, offers=tuple(town.offer(f"z/{n:04}") for n in range(5_000))))
    )


@pytest.mark.parametrize("stage", ["program", "greedy"])
def test_estimated_speeds_are_packed_with_caution_and_lose_nobody_a_place(town: Any, stage: Any) -> None:
    """The search once packed by expected speeds, and what deadlines count on was cut off in the end: half the queue waited."""
    listed = [town.offer(f"x/{number:04}", 1 + number % 7, capacity=1 + number % 4) for number in range(90)]
    works = [town.work(f"w{number:03}", 5) for number in range(150)]  # 1,250 cautious hours of 2,250
    snapshot = town.snapshot(works, listed, cautious=0.6)
    plan = solve(snapshot, stage=stage)
    assert check(snapshot, plan) == []
    assert plan.unplaced == ()
    figures = pricing_of(snapshot)
    assert figures.masks.hours(0, is_long=True)[0] == pytest.approx(figures.masks.hours(0)[0] / 0.6)


@FEW
@given(seed=SEEDS)
def test_the_tables_decide_as_the_rules_do(towns: Any, seed: int) -> None:
    """A resource that the tables open, the rules open for a work of the class, and the other way round, money left aside."""
    snapshot = towns().random(seed, works=12, offers=20)
    random = Random(seed)
    refusals = (
        Refusal(
            work_id=work.id,
            offer_key=offer.key,
            found="a hold was refused",
            from_nano_hour=offer.price_nano_hour if random.random() < 0.1 else None,
        )
        for work in snapshot.works
        for offer in snapshot.offers
        if random.random() < 0.1
    )
    snapshot = msgspec.structs.replace(
        snapshot,
        budgets=(),
        works=tuple(msgspec.structs.replace(work, max_nano=None) for work in snapshot.works),
        running=tuple(
            msgspec.structs.replace(
                each, covered=random.choice([None, (), tuple(work.id for work in snapshot.works[::2])])
            )
            for each in snapshot.running
        ),
        refusals=tuple(refusals),
        offers=tuple(
            msgspec.structs.replace(each, held_back={"p": "given up there"} if random.random() < 0.1 else {})
            for each in snapshot.offers
        ),
    )
    pricing = pricing_of(snapshot)
    view = View(snapshot)
    for k, members in enumerate(pricing.classes.members):
        codes = pricing.masks.offer_codes(k)
        latest = max((snapshot.works[each] for each in members), key=lambda work: work.deadline_us)
        verdicts = survey(latest, view)
        assert [each.is_eligible for each in verdicts] == (codes == OPEN).tolist()
        assert sum(step.count for step in pricing.masks.funnel(k)) == len(snapshot.offers)


def test_the_same_queue_gives_the_same_bytes(middling: Snapshot) -> None:
    assert encode(solve(middling)) == encode(solve(world(150, 60)))


def test_prices_that_pricing_forms_are_those_of_the_programs_columns(middling: Snapshot) -> None:
    pricing = pricing_of(middling)
    edges = pricing.classes.edge_low
    fluid = generate(pricing, edges, first=fill(pricing))
    least, _ = pricing.cheapest(fluid.scarcity, edges, is_bound=False)
    reached = np.isfinite(least)
    assert float(least[reached].sum()) - fluid.scarcity.rent == pytest.approx(
        fluid.objective - float(fluid.program.cost[len(fluid.columns.k) :][: len(fluid.u)] @ fluid.u), rel=0.02
    )


# Prices move


def test_a_plan_is_held_when_prices_tremble_and_left_when_its_offers_are_gone(middling: Snapshot) -> None:
    before = solve(middling)
    trembling = tuple(
        msgspec.structs.replace(
            offer, price_nano_hour=round((offer.price_nano_hour or 0) * (1 + 0.02 * (-1) ** number))
        )
        for number, offer in enumerate(middling.offers)
    )
    moved = msgspec.structs.replace(middling, offers=trembling, held=held_of(before))
    after = solve(moved)
    assert check(moved, after) == []
    places = {(each.work_id, each.offer_key) for each in before.assignments}
    stayed = sum(each.share_ppm for each in after.assignments if (each.work_id, each.offer_key) in places)
    assert stayed > 0.97 * sum(each.share_ppm for each in after.assignments)
    gone = {before.assignments[0].offer_key}
    without = tuple(
        msgspec.structs.replace(offer, excluded="gone") if offer.key in gone else offer for offer in trembling
    )
    left = msgspec.structs.replace(moved, offers=without)
    again = solve(left)
    assert check(left, again) == []
    assert not gone & {each.offer_key for each in again.assignments}


# A question


def test_another_world_is_the_same_queue_with_what_was_asked_for(town: Any) -> None:
    offers = [town.offer("x/de", 1.0), town.offer("y/us", 2.0, country="US")]
    snapshot = town.snapshot([town.work("w")], offers)

    def starts(**question: Any) -> list[str]:
        return [start.offer_key for start in solve(applied(snapshot, WhatIf(**question))).starts]

    assert starts() == ["x/de"]
    assert starts(without=("x",)) == ["y/us"]
    assert starts(price_factor={"x/de": "2.5"}) == ["y/us"]
    assert starts(countries={"*": ("US",)}) == ["y/us"]
    assert starts(max_usd={"w": "0.5"}) == []
    assert starts(later_hours={"w": -11.0}) == []


@pytest.mark.parametrize(
    ("question", "said"),
    [
        (WhatIf(without=("mars",)), "mars"),
        (WhatIf(later_hours={"nobody": 1.0}), "nobody"),
        (WhatIf(price_factor={"x": "-1"}), "price_factor"),
        (WhatIf(max_usd={"w": "much"}), "max_usd"),
    ],
)
def test_a_question_about_what_there_is_not_names_it(town: Any, question: WhatIf, said: str) -> None:
    snapshot = town.snapshot([town.work("w")], [town.offer("x/de")])
    with pytest.raises(BadSnapshot, match=said):
        applied(snapshot, question)


def test_a_question_moves_the_data_nearer_or_farther(town: Any) -> None:
    offers = [town.offer("f/x", 1.0, rtt_ms=90), town.offer("n/x", 3.0, rtt_ms=8), town.offer("u/x", 0.5)]
    snapshot = town.snapshot([town.work("w", max_rtt_ms=8)], offers)

    def plan(**question: Any) -> Plan:
        changed = applied(snapshot, WhatIf(**question))
        found = solve(changed)
        assert check(changed, found) == []
        return found

    def starts(**question: Any) -> list[str]:
        return [start.offer_key for start in plan(**question).starts]

    assert starts() == ["n/x"]
    assert starts(max_rtt_ms={"*": 90}) == ["f/x"]
    assert starts(max_rtt_ms={"w": None}) == ["u/x"]  # what was never measured is far enough only for who asks nothing
    assert starts(rtt_ms={"f/": 8}) == ["f/x"]
    (waits,) = plan(max_rtt_ms={"w": 7}).unplaced
    assert (waits.waiting_on, [each.needed for each in waits.relaxations]) == ("latency", ["8"])


def test_a_provider_that_is_gone_takes_its_machines_along(town: Any) -> None:
    """They went on in the answer, and the world without the provider cost nothing."""
    offers = [town.offer("x/de", 1.0), town.offer("y/de", 2.0)]
    snapshot = town.snapshot([town.work("w")], offers, running=[town.rental("r", offers[0])])
    assert solve(snapshot).keeps == ("r",)
    changed = applied(snapshot, WhatIf(without=("x",)))
    plan = solve(changed)
    assert (plan.keeps, [start.offer_key for start in plan.starts], check(changed, plan)) == ((), ["y/de"], [])


def test_tokens_that_cost_more_are_a_question_too(town: Any) -> None:
    """The factor was asked of prices by the hour alone, and tokens stayed as cheap as they were."""
    tokens = town.offer("t/m", 0.1, pricing="token", per_million_nano=(100, 200))
    snapshot = town.snapshot([town.work("w")], [tokens])
    (offer,) = applied(snapshot, WhatIf(price_factor={"t": "1.5"})).offers
    assert offer.per_million_nano == (150, 300)


def test_a_document_is_asked_about_for_the_class_of_the_data(town: Any) -> None:
    text = (
        "language: 1\npolicy: p\nversion: 1\nrules:\n"
        "  - {id: a, effect: allow, on: [machine], when: {country: [US], location_tier: [named_datacenter]}}\n"
        "  - {id: h, effect: deny, on: [machine], classes: [health], when: {country: [US]}}\n"
    )
    snapshot = town.snapshot([town.work("w")], [town.offer("x/de", 1.0), town.offer("y/us", 2.0, country="US")])
    health = {"p": Standing(node="org/p", data_class="health")}
    assert [each.offer_key for each in solve(applied(snapshot, WhatIf(policies={"*": text}))).starts] == ["y/us"]
    assert solve(applied(snapshot, WhatIf(policies={"w": text}), health)).unplaced[0].waiting_on == "residency"
