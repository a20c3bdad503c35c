"""Works that several models or precisions may serve: one plan decides which, with all the rest."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from benchmarks.solver_world import world
from solver.__main__ import answer
from solver.check import check
from solver.errors import BadSnapshot
from solver.held import held_of
from solver.plan import solve, solve_large
from solver.residency import INTERNAL, ModelFacts
from solver.residency.types import PolicyRule
from solver.size import is_small
from solver.told import told
from solver.types import Chosen, Plan, Snapshot, Throughput, Variant, encode, json_schemas
from solver.variants import as_run
from solver.view import View

FP8 = Variant(model="m", precision="fp8")


def speed(precision: str, accelerator: str, per_s: float = 1000.0, model: str = "m") -> Throughput:
    return Throughput(
        model=model,
        precision=precision,
        accelerator=accelerator,
        input_per_s=10 * per_s,
        output_per_s=per_s,
        source="test",
    )


def two_machines(town: Any, works: list[Any], *, h100: float = 4.0, l40s: float = 1.0, **more: Any) -> Snapshot:
    """bf16 fits an H100 alone, fp8 runs on the L40S at 80 % of its speed."""
    offers = [
        town.offer("x/h100", h100, accelerator="h100", **more),
        town.offer("y/l40s", l40s, accelerator="l40s", **more),
    ]
    snapshot = town.snapshot(works, offers, speeds={})
    return msgspec.structs.replace(snapshot, throughput=(speed("bf16", "h100"), speed("fp8", "l40s", 800)))


def chosen(plan: Plan) -> dict[str, str]:
    return {each.work_id: f"{each.model} {each.precision}" for each in plan.variants}


@pytest.mark.parametrize("stage", ["program", "greedy"])
def test_a_quantised_checkpoint_on_a_smaller_machine_is_taken_where_it_is_allowed_and_cheaper(
    town: Any, stage: Any
) -> None:
    works = [town.work("free", 2, alternatives=(FP8,)), town.work("fixed", 2)]
    snapshot = two_machines(town, works)
    plan = solve(snapshot, stage=stage)
    assert check(snapshot, plan) == []
    assert {(each.work_id, each.offer_key) for each in plan.assignments} == {("free", "y/l40s"), ("fixed", "x/h100")}
    assert {(start.offer_key, start.precision) for start in plan.starts} == {("x/h100", "bf16"), ("y/l40s", "fp8")}
    assert plan.cost_nano == 10_500_000_000
    (told,) = plan.variants
    assert told.sentence == "m (fp8) on y/l40s instead of m (bf16) on x/h100: $5.50 less (alone $2.50, not $8.00)"


def test_a_warm_machine_of_another_variant_is_used_before_a_cheaper_one_is_started(town: Any) -> None:
    """What a variant costs depends on what runs: an hour to start is not paid for an hour's work."""
    snapshot = two_machines(town, [town.work("w", 0.1, alternatives=(FP8,))], start_s=3600)
    assert chosen(solve(snapshot)) == {"w": "m fp8"}
    warm = msgspec.structs.replace(snapshot, running=(town.rental("rental_1", snapshot.offers[0]),))
    plan = solve(warm)
    assert (chosen(plan), plan.keeps, plan.starts) == ({"w": "m bf16"}, ("rental_1",), ())
    assert "all queued work together costs less this way" not in plan.variants[0].sentence


def test_capacity_goes_to_the_work_that_has_no_other_variant(town: Any) -> None:
    """The H100 is the cheaper one here, and there is one: who may run elsewhere does."""
    works = [town.work("free", 8, alternatives=(FP8,), within_h=11), town.work("fixed", 8, within_h=11)]
    snapshot = two_machines(town, works, h100=1.0, l40s=1.5)
    plan = solve(snapshot)
    assert plan.unplaced == ()
    assert chosen(plan) == {"free": "m fp8"}
    assert "all queued work together costs less this way" in plan.variants[0].sentence


def test_a_batch_is_never_served_by_two_variants(town: Any) -> None:
    """Neither machine alone is in time: what one variant can do is served, and the rest waits with its reasons."""
    snapshot = two_machines(town, [town.work("w", 15, alternatives=(FP8,), within_h=10)], h100=1.0)
    plan = solve(snapshot)
    assert check(snapshot, plan) == []
    assert [each.offer_key for each in plan.assignments] == ["x/h100"]
    assert [each.work_id for each in plan.unplaced] == ["w"]


def test_a_variant_that_does_not_fit_or_that_policy_forbids_is_not_taken_however_cheap(town: Any) -> None:
    policy = msgspec.structs.replace(
        INTERNAL,
        rules=(
            *INTERNAL.rules,
            PolicyRule(id="licence", effect="allow", field="model_licence", values=("apache-2.0",)),
        ),
    )
    open_model, closed = (ModelFacts(name=name, licence=name) for name in ("apache-2.0", "other"))

    def planned(facts: ModelFacts | None, unfit: dict[str, str]) -> str:
        work = town.work("w", 1, policy=policy, alternatives=(Variant(model="n", precision="fp8", facts=facts),))
        snapshot = two_machines(town, [work])
        snapshot = msgspec.structs.replace(
            snapshot,
            models={"w": open_model},
            offers=(snapshot.offers[0], msgspec.structs.replace(snapshot.offers[1], unfit=unfit)),
            throughput=(speed("bf16", "h100"), speed("fp8", "l40s", 800, "n")),
        )
        plan = solve(snapshot)
        assert check(snapshot, plan) == []
        return chosen(plan)["w"]

    assert planned(open_model, {}) == "n fp8"
    assert planned(closed, {}) == "m bf16"
    assert (
        planned(None, {}) == "m bf16"
    )  # unknown never satisfies an allow, and the own model's facts are not another's
    assert planned(open_model, {"n": "its weights need 90 GB"}) == "m bf16"


def test_the_checker_refuses_a_variant_that_was_not_allowed_and_one_that_was_not_said(town: Any) -> None:
    snapshot = two_machines(town, [town.work("free", 2, alternatives=(FP8,)), town.work("fixed", 2)])
    plan = solve(snapshot)

    def rules(variants: tuple[Chosen, ...]) -> set[str]:
        return {each.rule for each in check(snapshot, msgspec.structs.replace(plan, variants=variants))}

    fp8 = plan.variants[0]
    assert rules((msgspec.structs.replace(fp8, precision="int4"),)) == {"variant"}
    assert rules((fp8, msgspec.structs.replace(fp8, work_id="fixed"))) == {"variant"}
    assert rules(()) == {"variant"}
    assert rules((msgspec.structs.replace(fp8, work_id="other"),)) == {"variant", "unknown_work"}
    own = msgspec.structs.replace(fp8, precision="bf16")  # allowed, but not what is started there
    assert {"idle_start", "instances", "model"} <= rules((own,))


def test_work_without_a_place_is_told_what_each_variant_lacks(town: Any) -> None:
    snapshot = two_machines(town, [town.work("w", 1, alternatives=(FP8,), max_usd=0.01)])
    plan = solve(snapshot)
    assert check(snapshot, plan) == []
    assert [each.waiting_on for each in plan.unplaced] == ["price_ceiling"]
    assert [each.found is not None for each in plan.variants[0].costs] == [True, True]


def test_a_variant_that_is_the_works_own_is_a_contradiction(town: Any) -> None:
    snapshot = two_machines(town, [town.work("w", 1, alternatives=(Variant(model="m", precision="bf16"),))])
    with pytest.raises(BadSnapshot, match="given twice"):
        View(snapshot)


def test_the_door_takes_alternatives_and_says_what_it_chose(town: Any) -> None:
    """As anyone hands a case to `broker solve`: JSON of the published schema in, JSON of the published schema out."""
    snapshot = two_machines(town, [town.work("w", 2, alternatives=(FP8,))])
    body = json.loads(encode(snapshot))
    assert body["works"][0]["alternatives"] == [{"model": "m", "precision": "fp8", "facts": None}]
    said = json.loads(answer(json.dumps(body).encode(), "program"))
    schemas = json_schemas()
    for name, document in (("snapshot", body), ("plan", said)):
        jsonschema.validate(document, {**schemas[name], "$defs": schemas["$defs"]})
    assert (said["variants"][0]["model"], said["variants"][0]["precision"]) == ("m", "fp8")


def test_the_queue_as_it_runs_has_the_chosen_variants_and_nothing_left_to_choose(town: Any) -> None:
    snapshot = two_machines(town, [town.work("free", 2, alternatives=(FP8,)), town.work("fixed", 2)])
    run = as_run(snapshot, solve(snapshot))
    assert [(work.id, work.precision, work.alternatives) for work in run.works] == [
        ("fixed", "bf16", ()),
        ("free", "fp8", ()),
    ]


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(seed=st.integers(min_value=0, max_value=10**9), stage=st.sampled_from(["program", "greedy"]))
def test_plans_of_works_with_alternatives_keep_every_rule_and_are_the_same_each_time(
    towns: Any, seed: int, stage: Any
) -> None:
    """The checker, which shares no code with the solver, finds nothing: a work is served by one variant, which it allows."""
    town = towns()
    snapshot = town.with_variants(seed, town.random(seed))
    plan = solve(snapshot, stage=stage)
    assert check(snapshot, plan) == []
    assert encode(plan) == encode(solve(snapshot, stage=stage))


@pytest.mark.parametrize("is_program", [True, False])
def test_a_large_queue_is_held_to_what_a_policy_asks_of_each_model_and_deadline(town: Any, is_program: bool) -> None:
    """Tables of residency were those of one work of the policy: works of another model were put where it forbids them, and the
    checker refused the whole plan."""
    policy = msgspec.structs.replace(
        INTERNAL,
        rules=(*INTERNAL.rules, PolicyRule(id="licence", effect="allow", field="model_licence", values=("mit",))),
    )
    works = [town.work(name, 1, policy=policy, model=model) for name, model in (("a", "m"), ("b", "n"), ("c", "n"))]
    snapshot = msgspec.structs.replace(
        town.snapshot(works, [town.offer("x/1", capacity=5)], speeds={("m", "gpu"): 1000.0, ("n", "gpu"): 1000.0}),
        models={"a": ModelFacts(name="m", licence="mit"), "b": ModelFacts(name="n", licence="other")},
    )
    plan = solve_large(View(snapshot), is_program=is_program)
    assert check(snapshot, plan) == []
    assert {each.work_id for each in plan.assignments} == {"a"}
    assert {(each.work_id, each.waiting_on) for each in plan.unplaced} == {("b", "residency"), ("c", "residency")}


def large_queue() -> Snapshot:
    """More than 3,000 pairs; every second work may be served by a checkpoint that is a third faster."""
    snapshot = world(60, 200)
    faster = tuple(
        msgspec.structs.replace(
            each, precision="q8", input_per_s=each.input_per_s * 1.3, output_per_s=each.output_per_s * 1.3
        )
        for each in snapshot.throughput
    )
    works = tuple(
        msgspec.structs.replace(each, alternatives=(Variant(model=each.model, precision="q8"),)) if number % 2 else each
        for number, each in enumerate(snapshot.works)
    )
    found = msgspec.structs.replace(snapshot, works=works, throughput=snapshot.throughput + faster)
    assert not is_small(View(found))
    return found


def test_a_large_queue_takes_variants_by_classes_and_is_no_dearer_than_with_its_own() -> None:
    """Every rule is kept, as much is served, and the bound holds for the plan that had no choice, too."""
    free = large_queue()
    own = tuple(msgspec.structs.replace(each, alternatives=()) for each in free.works)
    plan, before = solve(free), solve(msgspec.structs.replace(free, works=own))
    assert check(free, plan) == []
    assert (plan.unplaced, before.unplaced) == ((), ())
    assert 0 < plan.bound_nano <= plan.cost_nano < before.cost_nano
    assert sum(each.precision == "q8" for each in plan.variants) > 15
    assert " less (alone " in plan.variants[0].sentence


def test_a_large_plan_that_is_held_keeps_the_variants_that_it_had() -> None:
    """Otherwise every small move of a price would change the model of works that wait."""
    free = large_queue()
    first = solve(free, stage="greedy")
    held = tuple(msgspec.structs.replace(each, precision="bf16" if each.precision else "") for each in held_of(first))
    again = solve(msgspec.structs.replace(free, held=held), stage="greedy")
    assert "q8" in {each.precision for each in first.variants}
    assert {each.precision for each in again.variants} == {"bf16"}


def test_a_work_that_joins_a_large_plan_that_is_held_is_served_by_whichever_variant_can() -> None:
    """It was given its own, which nothing serves, until the next plan from nothing: 20 plans later."""
    free = large_queue()
    first = solve(free, stage="greedy")
    like = free.works[1]
    new = msgspec.structs.replace(
        like, id="zz_new", model="nobody", alternatives=(Variant(model=like.model, precision="q8"),)
    )
    joined = msgspec.structs.replace(free, works=(*free.works, new), held=held_of(first))
    plan = solve(joined, stage="greedy")
    assert (plan.unplaced, check(joined, plan)) == ((), [])
    assert {each.work_id: each.precision for each in plan.variants}["zz_new"] == "q8"


def test_words_made_later_are_of_the_variant_that_serves_the_work() -> None:
    free = large_queue()
    silent = msgspec.structs.replace(free, words=False)
    plan, spoken = solve(silent, stage="greedy"), solve(free, stage="greedy")
    prices = {each.work_id: each.next_best_nano_per_million for each in spoken.choices}
    other = [each.work_id for each in plan.variants if each.precision == "q8" and each.work_id in prices]
    assert other
    for work_id in other:
        _, choice = told(silent, plan, work_id)
        assert choice is not None
        assert choice.next_best_nano_per_million == prices[work_id]
