"""The plan: joint optimum, reasons, running rentals, limits, and what happens when not all can be served."""

from __future__ import annotations

from collections.abc import Callable
from itertools import permutations, product
from typing import Any

import msgspec
import pytest

from solver import program
from solver.check import check
from solver.errors import BadSnapshot
from solver.plan import solve
from solver.residency import INTERNAL, compile_countries
from solver.types import Budget, Plan, Progress, Quota, Snapshot, Timings, sha256

STAGES = ["program", "greedy"]


HOURS = {"a": 0.8, "b": 0.8, "c": 1.2}  # on either scarce offer; the plentiful one is as fast and dear
PRICE = {"x/ready": 2.0, "x/slow_start": 1.0, "x/plenty": 9.0}
START_H = {"x/ready": 0.0, "x/slow_start": 1.0, "x/plenty": 0.0}
SCARCE = ("x/ready", "x/slow_start")


def scarce(town: Any) -> Snapshot:
    """Three batches, two offers with one instance each, and a dear plentiful one.

    a and b are of one pool and can share an instance. By itself, a and b are each cheapest without a start-up and c with
    one; only who sees all three lets a and b share the start-up, and sends c where it costs a little more.
    """
    works = [town.work("a", HOURS["a"]), town.work("b", HOURS["b"]), town.work("c", HOURS["c"], project="q")]
    offers = [
        town.offer(key, price, start_s=round(START_H[key] * 3600), capacity=1 if key in SCARCE else 10)
        for key, price in PRICE.items()
    ]
    return town.snapshot(works, offers)


def cost_of(places: dict[str, str]) -> float | None:
    """Dollars of a whole assignment, computed by hand; None when a scarce offer would have to serve two projects."""
    pools: dict[str, set[str]] = {}
    for work, key in places.items():
        pools.setdefault(key, set()).add("q" if work == "c" else "p")
    if any(len(pools.get(key, ())) > 1 for key in SCARCE):
        return None
    started = sum(PRICE[key] * START_H[key] * len(projects) for key, projects in pools.items())
    return started + sum(PRICE[key] * HOURS[work] for work, key in places.items())


def one_by_one(order: tuple[str, ...]) -> float:
    """Each work goes where it adds least to the cost, given where those before it went; sharing their instances is allowed."""
    places: dict[str, str] = {}
    for work in order:
        trials = {key: cost for key in PRICE if (cost := cost_of({**places, work: key})) is not None}
        places[work] = min(trials, key=lambda key: trials[key])
    return cost_of(places) or 0.0


def test_all_batches_together_cost_less_than_in_any_order_one_by_one(town: Any) -> None:
    snapshot = scarce(town)
    together = solve(snapshot)
    assert check(snapshot, together) == []
    assert not together.unplaced
    orders = [one_by_one(order) for order in permutations(HOURS)]
    assert len(orders) == 6
    assert together.cost_nano < min(orders) * town.USD
    every = [cost_of(dict(zip(HOURS, keys, strict=True))) for keys in product(PRICE, repeat=3)]
    assert together.cost_nano == pytest.approx(min(cost for cost in every if cost is not None) * town.USD, rel=1e-9)


def test_the_joint_plan_rents_no_more_than_there_is(town: Any) -> None:
    """Fails when the program's capacity row is deleted: c would rather share the offer that a and b take."""
    plan = solve(scarce(town))
    assert {(start.offer_key, start.project): start.count for start in plan.starts} == {
        ("x/slow_start", "p"): 1,
        ("x/ready", "q"): 1,
    }


def test_without_the_capacity_row_the_checker_refuses_the_plan(town: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    snapshot = scarce(town)
    monkeypatch.setattr(program._Model, "_capacity_rows", lambda self: None)
    assert "capacity" in {violation.rule for violation in check(snapshot, solve(snapshot))}


def test_a_cheaper_forbidden_offer_changes_the_reasons_and_not_the_choice(town: Any) -> None:
    policy = compile_countries(["DE", "FR"])
    works, offers = [town.work("w", policy=policy)], [town.offer("x/de", 2.0), town.offer("x/fr", 3.0, country="FR")]
    before = solve(town.snapshot(works, offers))
    after = solve(town.snapshot(works, [*offers, town.offer("x/us", 0.5, country="US")]))
    assert after.starts == before.starts
    assert after.assignments == before.assignments
    assert [(step.rule, step.count) for step in after.funnels["w"]] == [("residency", 1), ("eligible", 2)]
    assert after.choices[0].cheaper_excluded == (("x/us", "residency"),)
    assert after.choices[0].sentence != before.choices[0].sentence
    assert "x/us (residency: country US is not one of DE, FR" in after.choices[0].sentence
    assert after.choices[0].next_best_key == before.choices[0].next_best_key == "x/fr"


def test_every_rule_has_its_step_in_the_funnel_and_the_counts_sum_to_the_offers(town: Any) -> None:
    policy = compile_countries(["DE"])
    budgets = [Budget(project="p", remaining_nano=30 * town.USD)]
    offers = [
        town.offer("a/excluded", excluded="circuit breaker: 3 failed starts"),
        town.offer("a/tokens", pricing="token", price_nano_hour=None, per_million_nano=(1, 2)),
        town.offer("a/free", 0.0),  # zero is unknown, not free
        town.offer("a/sold_out", capacity=0),
        town.offer("full/quota"),
        town.offer("a/small", unfit={"m": "m: needs 4 accelerators"}),
        town.offer("a/unknown_speed", accelerator="abacus"),
        town.offer("a/abroad", country="US"),
        town.offer("a/far", rtt_ms=31),
        town.offer("a/slow_boot", start_s=11 * 3600, rtt_ms=30),
        town.offer("a/dear", 25.0, rtt_ms=0),
        town.offer("a/dearer", 35.0, rtt_ms=0),
        town.offer("a/fine", 2.0, rtt_ms=30),
    ]
    work = town.work("w", max_usd=20, policy=policy, max_rtt_ms=30)
    snapshot = town.snapshot([work], offers, budgets=budgets, quotas=[Quota(market="full", remaining=0)])
    funnel = solve(snapshot).funnels["w"]
    assert [(step.rule, step.count) for step in funnel] == [
        ("excluded", 1),
        ("token_priced", 1),
        ("price_unknown", 1),
        ("sold_out", 1),
        ("quota", 1),
        ("unfit", 1),
        ("model", 1),
        ("residency", 1),
        ("latency", 1),
        ("deadline", 1),
        ("price_ceiling", 2),
        ("eligible", 1),
    ]
    broke = msgspec.structs.replace(snapshot, budgets=(Budget(project="p", remaining_nano=town.USD),))
    assert ("budget", 1) in [(step.rule, step.count) for step in solve(broke).funnels["w"]]


@pytest.mark.parametrize("many", [1, 60])  # alone, and planned by classes
def test_a_work_runs_only_where_its_data_is_known_to_be_near(town: Any, many: int) -> None:
    """Cheaper ones are farther away, or nobody has measured how far; works that set no limit take them."""
    offers = [town.offer(f"u/{n}", 0.5, capacity=9) for n in range(many)]
    offers += [town.offer(f"f/{n}", 1.0, capacity=9, rtt_ms=90) for n in range(many)]
    offers += [town.offer(f"n/{n}", 3.0, capacity=9, rtt_ms=8) for n in range(many)]
    works = [town.work(f"near{n}", max_rtt_ms=8) for n in range(many)] + [town.work(f"any{n}") for n in range(many)]
    snapshot = town.snapshot(works, offers)
    plan = solve(snapshot)
    assert not check(snapshot, plan)
    assert not plan.unplaced
    assert {(each.work_id[:3], each.offer_key[0]) for each in plan.assignments} == {("nea", "n"), ("any", "u")}
    assert [(each.rule, each.count) for each in plan.funnels["near0"]] == [("latency", 2 * many), ("eligible", many)]


def test_a_work_whose_data_is_too_far_everywhere_waits_on_latency_and_hears_how_far_would_do(town: Any) -> None:
    offers = [town.offer("u/x", 0.5), town.offer("f/x", 1.0, rtt_ms=90), town.offer("f/y", 2.0, rtt_ms=40)]
    snapshot = town.snapshot([town.work("w", max_rtt_ms=8)], offers)
    (waiting,) = solve(snapshot).unplaced
    assert waiting.waiting_on == "latency"
    assert "to the data and back takes" in waiting.reasons[0]
    assert [(each.field, each.needed, each.offer_key) for each in waiting.relaxations] == [("max_rtt_ms", "40", "f/y")]


def test_a_running_machine_too_far_from_the_data_gets_no_work_of_it(town: Any) -> None:
    offer = town.offer("f/x", 1.0, rtt_ms=90)
    near = town.offer("n/x", 5.0, rtt_ms=8)
    snapshot = town.snapshot([town.work("w", max_rtt_ms=8)], [offer, near], running=[town.rental("rental_1", offer)])
    plan = solve(snapshot)
    assert (plan.drains, [each.offer_key for each in plan.assignments]) == (("rental_1",), ["n/x"])


def test_a_model_that_comes_up_slowly_somewhere_is_planned_elsewhere_and_the_other_model_stays(town: Any) -> None:
    """Start-up was one constant for all models and offers."""
    cheap = town.offer("x/cheap", 0.9, capacity=9, start_up={"m": Timings(boot_s=3600, load_s=1800)})
    plan = solve(
        town.snapshot(
            [town.work("slow"), town.work("other", model="n")],
            [cheap, town.offer("x/quick", 1.0, capacity=9, start_s=60)],
            speeds={("m", "gpu"): 1000.0, ("n", "gpu"): 1000.0},
        )
    )
    assert {each.work_id: each.offer_key for each in plan.assignments} == {"slow": "x/quick", "other": "x/cheap"}


def test_an_offer_on_which_a_model_cannot_be_served_says_why_and_the_checker_would_refuse_it(town: Any) -> None:
    why = "m: needs 4 accelerators (tensor_parallel 4 × pipeline_parallel 1), the offer has 1x gpu"
    offers = [town.offer("x/small", 0.1, unfit={"m": why}), town.offer("x/large", 1.0)]
    snapshot = town.snapshot([town.work("w")], offers)
    plan = solve(snapshot)
    assert [each.offer_key for each in plan.assignments] == ["x/large"]
    assert [(step.rule, step.example) for step in plan.funnels["w"]] == [
        ("unfit", f"x/small: {why}"),
        ("eligible", "x/large"),
    ]
    fitting = town.snapshot([town.work("w")], [msgspec.structs.replace(offers[0], unfit={}), offers[1]])
    found = check(snapshot, msgspec.structs.replace(solve(fitting), snapshot_sha256=sha256(snapshot)))
    assert "unfit" in {each.rule for each in found}


def test_a_warm_rental_is_kept_before_a_slightly_cheaper_offer_is_started(town: Any) -> None:
    warm, cheap = town.offer("x/warm", 1.0, start_s=600, capacity=0), town.offer("x/cheap", 0.95, start_s=600)
    running = [town.rental("rental_1", warm)]
    snapshot = town.snapshot([town.work("w", 1.0)], [warm, cheap], running=running)
    plan = solve(snapshot)
    assert (plan.keeps, plan.drains, plan.starts) == (("rental_1",), (), ())
    assert plan.cost_nano == town.USD  # no start-up
    assert check(snapshot, plan) == []


def test_a_warm_rental_is_left_for_an_offer_that_is_cheaper_with_its_start_up(town: Any) -> None:
    warm, cheap = town.offer("x/warm", 1.0, capacity=0), town.offer("x/cheap", 0.5, start_s=600)
    plan = solve(town.snapshot([town.work("w", 2.0)], [warm, cheap], running=[town.rental("rental_1", warm)]))
    assert plan.drains == ("rental_1",)
    assert [start.offer_key for start in plan.starts] == ["x/cheap"]


def test_two_warm_rentals_of_one_offer_share_the_work(town: Any) -> None:
    """Draining one would save nothing: the other would run twice as long."""
    offer = town.offer("x/1", capacity=0)
    running = [town.rental("rental_1", offer), town.rental("rental_2", offer)]
    plan = solve(town.snapshot([town.work("w", 1.0)], [offer], running=running))
    assert plan.keeps == ("rental_1", "rental_2")
    assert plan.assignments[0].end_us == town.NOW + 1_800_000_000


def test_rentals_without_work_of_their_own_pool_are_drained(town: Any) -> None:
    offer = town.offer("x/1", capacity=2)
    running = [
        town.rental("rental_1", offer, project="other"),  # an instance never changes its project
        town.rental("rental_2", offer, model="n"),
    ]
    plan = solve(town.snapshot([town.work("w")], [offer], running=running))
    assert plan.drains == ("rental_1", "rental_2")
    assert plan.starts[0].count == 1
    assert solve(town.snapshot([], [offer], running=running)).drains == ("rental_1", "rental_2")


def test_a_rental_whose_place_is_no_longer_allowed_is_drained(town: Any) -> None:
    offer = town.offer("x/1", facts_hash=town.place("DE", valid=False))
    work = town.work("w", policy=compile_countries(["DE"]))
    plan = solve(town.snapshot([work], [offer], running=[town.rental("rental_1", offer)]))
    assert plan.drains == ("rental_1",)
    assert plan.unplaced[0].waiting_on == "residency"
    assert "without valid evidence" in plan.unplaced[0].reasons[0]


def test_an_excluded_offer_takes_no_new_start_and_its_running_rental_goes_on(town: Any) -> None:
    offer = town.offer("x/1", excluded="circuit breaker", capacity=5)
    running = [town.rental("rental_1", offer)]
    plan = solve(town.snapshot([town.work("w", 20.0)], [offer], running=running))
    assert (plan.starts, plan.keeps) == ((), ("rental_1",))
    assert plan.assignments[0].share_ppm == pytest.approx(500_000, abs=100)  # 10 of 20 hours


@pytest.mark.parametrize("stage", STAGES)
def test_works_of_one_pool_share_an_instance_and_run_by_deadline(town: Any, stage: Any) -> None:
    works = [town.work("late", 2.0, within_h=9), town.work("soon", 1.0, within_h=2)]
    snapshot = town.snapshot(works, [town.offer("x/1", start_s=600)])
    plan = solve(snapshot, stage=stage)
    assert [start.count for start in plan.starts] == [1]
    assert {each.work_id: each.order for each in plan.assignments} == {"soon": 0, "late": 1}
    assert check(snapshot, plan) == []


def test_instances_are_not_shared_between_projects(town: Any) -> None:
    works = [town.work("a", project="a"), town.work("b", project="b")]
    plan = solve(town.snapshot(works, [town.offer("x/1", capacity=2)]))
    assert sorted((start.project, start.count) for start in plan.starts) == [("a", 1), ("b", 1)]


def test_a_near_deadline_takes_as_many_instances_as_it_needs(town: Any) -> None:
    """4 h of work, 1 h left, 10 minutes of start-up: 5 instances, not 4."""
    plan = solve(town.snapshot([town.work("w", 4.0, within_h=1)], [town.offer("x/1", start_s=600, capacity=9)]))
    assert plan.starts[0].count == 5


def test_the_deadline_is_planned_with_long_outputs_and_the_cost_with_expected_ones(town: Any) -> None:
    work = town.work("w", 1.0, within_h=1.2, output_tokens_p90=2 * 3_600_000)
    plan = solve(town.snapshot([work], [town.offer("x/1", capacity=5)]))
    assert plan.starts[0].count == 2
    assert plan.cost_nano == town.USD


def test_interruptions_make_spot_dearer_than_its_price(town: Any) -> None:
    spot = town.offer("x/spot", 0.9, pricing="spot", hazard=3.0, start_s=600)
    steady = town.offer("x/steady", 1.0, start_s=600)
    assert solve(town.snapshot([town.work("w", 3.0)], [spot, steady])).starts[0].offer_key == "x/steady"


def test_the_billing_minimum_decides_for_small_work(town: Any) -> None:
    hourly = town.offer("x/hourly", 1.0, granularity_s=3600)
    by_second = town.offer("x/second", 5.0)
    works = [town.work("w", 0.1)]
    assert solve(town.snapshot(works, [hourly, by_second])).starts[0].offer_key == "x/second"
    works = [town.work("w", 0.5)]
    assert solve(town.snapshot(works, [hourly, by_second])).starts[0].offer_key == "x/hourly"


@pytest.mark.parametrize("stage", STAGES)
def test_tiny_amounts_do_not_vanish(town: Any, stage: Any) -> None:
    """60 lines of 4,000 tokens at 40 tokens/s on $0.05 an hour: 0.14 cents, and still the cheaper machine is found."""
    work = town.work("w", lines=60, output_tokens_p50=4000, output_tokens_p90=5000)
    offers = [town.offer("x/a", 0.051, start_s=20), town.offer("x/b", 0.05, start_s=20)]
    snapshot = town.snapshot([work], offers, speeds={("m", "gpu"): 40.0})
    plan = solve(snapshot, stage=stage)
    assert plan.starts[0].offer_key == "x/b"
    assert plan.cost_nano == round(town.USD * 0.05 * 120 / 3600)
    assert check(snapshot, plan) == []


def test_a_few_nano_dollars_are_planned_like_millions(town: Any) -> None:
    for scale in (1e-7, 1.0, 1e6):
        offers = [town.offer("x/a", 0.06 * max(scale, 1e-3)), town.offer("x/b", 0.05 * max(scale, 1e-3))]
        snapshot = town.snapshot([town.work("w", scale, within_h=max(10, 2 * scale))], offers)
        plan = solve(snapshot)
        assert plan.starts[0].offer_key == "x/b", scale
        assert check(snapshot, plan) == []


# What waits, and why


def only(plan: Plan) -> Any:
    assert len(plan.unplaced) == 1
    return plan.unplaced[0]


@pytest.mark.parametrize("stage", STAGES)
def test_higher_priority_is_served_first_when_not_all_can_be(town: Any, stage: Any) -> None:
    works = [town.work("a", 5, project="a"), town.work("b", 9, project="b", priority=3), town.work("c", 1, project="c")]
    plan = solve(town.snapshot(works, [town.offer("x/1")]), stage=stage)
    assert [each.work_id for each in plan.assignments] == ["b"]
    assert {each.work_id: each.waiting_on for each in plan.unplaced} == {"a": "capacity", "c": "capacity"}


def test_within_a_priority_as_many_as_possible_are_served(town: Any) -> None:
    works = [town.work("a", 18), town.work("b", 9, project="b"), town.work("c", 9, project="c")]
    plan = solve(town.snapshot(works, [town.offer("x/1", capacity=2)]))
    assert only(plan).work_id == "a"


def test_work_that_cannot_all_be_done_in_time_gets_what_can(town: Any) -> None:
    snapshot = town.snapshot([town.work("w", 20.0)], [town.offer("x/1")])
    plan = solve(snapshot)
    assert plan.assignments[0].share_ppm == pytest.approx(500_000, abs=100)
    waiting = only(plan)
    assert waiting.waiting_on == "deadline"
    later = next(each for each in waiting.relaxations if each.field == "deadline_us")
    relaxed = msgspec.structs.replace(snapshot.works[0], deadline_us=int(later.needed))
    assert not solve(msgspec.structs.replace(snapshot, works=(relaxed,))).unplaced
    barely = msgspec.structs.replace(relaxed, deadline_us=int(later.needed) - 20 * 60_000_000)
    assert solve(msgspec.structs.replace(snapshot, works=(barely,))).unplaced


def test_too_little_money_waits_for_the_price_and_says_how_much_is_needed(town: Any) -> None:
    snapshot = town.snapshot([town.work("w", 4.0, max_usd=5)], [town.offer("x/1", 2.0)])
    waiting = only(solve(snapshot))
    assert waiting.waiting_on == "price_ceiling"
    needed = next(each for each in waiting.relaxations if each.field == "max_nano")
    assert (needed.needed, needed.cost_nano) == (str(8 * town.USD), 8 * town.USD)
    richer = msgspec.structs.replace(snapshot.works[0], max_nano=int(needed.needed))
    assert not solve(msgspec.structs.replace(snapshot, works=(richer,))).unplaced


def test_a_country_that_would_help_is_named_and_not_used(town: Any) -> None:
    policy = compile_countries(["DE"])
    offers = [town.offer("x/us", country="US"), town.offer("x/jp", 3.0, country="JP")]
    offers.append(town.offer("x/claimed", 0.1, facts_hash=town.place("GB", "claimed")))
    plan = solve(town.snapshot([town.work("w", policy=policy)], offers))
    assert not plan.starts
    waiting = only(plan)
    assert waiting.waiting_on == "residency"
    assert [(each.field, each.needed, each.offer_key) for each in waiting.relaxations] == [
        ("residency.country", "DE,US", "x/us")
    ]


@pytest.mark.parametrize(
    ("waiting_on", "change"),
    [
        ("model", lambda town: {"speeds": {}}),
        ("quota", lambda town: {"quotas": [Quota(market="x", remaining=0)]}),
        ("budget", lambda town: {"budgets": [Budget(project="p", remaining_nano=5)]}),
    ],
)
def test_what_blocks_a_work_is_what_it_waits_on(town: Any, waiting_on: str, change: Callable[[Any], Any]) -> None:
    assert only(solve(town.snapshot([town.work("w")], [town.offer("x/1")], **change(town)))).waiting_on == waiting_on


@pytest.mark.parametrize(
    ("waiting_on", "change"),
    [
        ("quota", lambda town: {"quotas": [Quota(market="x", remaining=1)]}),
        ("budget", lambda town: {"budgets": [Budget(project="p", remaining_nano=9 * town.USD)]}),
    ],
)
def test_of_two_works_the_second_waits_on_what_the_first_used_up(
    town: Any, waiting_on: str, change: Callable[[Any], Any]
) -> None:
    works = [town.work("a", 8, within_h=9), town.work("b", 8, within_h=9)]
    snapshot = town.snapshot(works, [town.offer("x/1", capacity=5)], **change(town))
    plan = solve(snapshot)
    assert check(snapshot, plan) == []
    assert {each.waiting_on for each in plan.unplaced} == {waiting_on}


def test_a_batch_is_not_begun_on_a_budget_that_pays_half_of_it_but_a_begun_one_goes_on(town: Any) -> None:
    budget = [Budget(project="p", remaining_nano=4 * town.USD)]
    fresh = town.snapshot([town.work("w", 8)], [town.offer("x/1")], budgets=budget)
    assert not solve(fresh).assignments
    begun = town.work("w", 8, progress=Progress(lines_done=1))
    plan = solve(town.snapshot([begun], [town.offer("x/1")], budgets=budget))
    assert 0 < plan.cost_nano <= 4 * town.USD
    assert plan.assignments[0].share_ppm == pytest.approx(500_000, rel=0.05)


@pytest.mark.parametrize("stage", STAGES)
def test_an_empty_queue_and_an_empty_market_are_plans_and_not_errors(town: Any, stage: Any) -> None:
    for snapshot in (
        town.snapshot([], []),
        town.snapshot([], [town.offer("x/1")]),
        town.snapshot([town.work("w")], []),
        town.snapshot([town.work("w", within_h=-1)], [town.offer("x/1")]),
    ):
        plan = solve(snapshot, stage=stage)
        assert plan.stage == "empty"
        assert plan.cost_nano == 0
        assert [each.work_id for each in plan.unplaced] == [work.id for work in snapshot.works]
        assert check(snapshot, plan) == []


def twice(snapshot: Snapshot) -> Snapshot:
    return msgspec.structs.replace(snapshot, works=snapshot.works * 2)


def changed(snapshot: Snapshot, kind: str, **more: Any) -> Snapshot:
    first, *rest = getattr(snapshot, kind)
    return msgspec.structs.replace(snapshot, **{kind: (msgspec.structs.replace(first, **more), *rest)})


@pytest.mark.parametrize(
    ("break_it", "said"),
    [
        (twice, "each once"),
        (lambda each: msgspec.structs.replace(each, policies={}), "policy"),
        (lambda each: msgspec.structs.replace(each, facts={}), "facts"),
        (lambda each: msgspec.structs.replace(each, version=2), "version 2"),
        (lambda each: msgspec.structs.replace(each, offers=()), "rental_1"),
        (lambda each: msgspec.structs.replace(each, now_us=-1), "now_us"),
        (lambda each: changed(each, "works", max_nano=-5), "max_nano"),
        (lambda each: changed(each, "offers", price_nano_hour=-5), "price_nano_hour"),  # it was taken for unknown
    ],
)
def test_a_snapshot_that_contradicts_itself_is_refused_with_the_place(
    town: Any, break_it: Callable[[Snapshot], Snapshot], said: str
) -> None:
    offer = town.offer("x/1", timings=Timings(boot_s=1, load_s=1))
    snapshot = town.snapshot([town.work("w", policy=INTERNAL)], [offer], running=[town.rental("rental_1", offer)])
    with pytest.raises(BadSnapshot, match=said):
        solve(break_it(snapshot))


def test_the_fallback_is_a_right_plan_and_not_a_cheaper_one(town: Any) -> None:
    snapshot = scarce(town)
    plan = solve(snapshot, stage="greedy")
    assert (plan.stage, plan.stopped_by) == ("greedy", "none")
    assert check(snapshot, plan) == []
    assert plan.cost_nano > solve(snapshot).cost_nano


def grouped(town: Any, key: str, units: int, **how: Any) -> Any:
    return msgspec.structs.replace(town.offer(key, **how), quota="aws/eu/L-1", quota_units=units)


def test_a_quota_of_vcpus_is_shared_by_all_types_and_zones_that_count_against_it(town: Any) -> None:
    """Eight zones of a quota for one machine were planned as eight machines, and seven of them refused."""
    offers = [grouped(town, f"aws/zone{n}", 48, capacity=2) for n in range(8)]
    works = [town.work(f"w{n}", 8, within_h=9) for n in range(8)]
    for left, started in ((47, 0), (48, 1), (100, 2)):
        snapshot = town.snapshot(works, offers, quotas=[Quota(market="aws/eu/L-1", remaining=left)])
        plan = solve(snapshot)
        assert check(snapshot, plan) == []
        assert sum(start.count for start in plan.starts) == started
        assert {each.waiting_on for each in plan.unplaced} == {"quota"}
    assert "47 are left, one instance counts 48" in str(
        solve(town.snapshot(works[:1], offers, quotas=[Quota(market="aws/eu/L-1", remaining=47)])).unplaced
    )


def test_the_quota_of_one_group_does_not_stop_another_of_the_same_market(town: Any) -> None:
    offers = [grouped(town, "aws/a", 4), town.offer("aws/b", 5.0)]
    snapshot = town.snapshot([town.work("w", 1)], offers, quotas=[Quota(market="aws/eu/L-1", remaining=0)])
    assert [start.offer_key for start in solve(snapshot).starts] == ["aws/b"]
