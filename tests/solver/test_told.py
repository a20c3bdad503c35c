"""Plans without words: the same decisions, and their words when somebody asks."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from benchmarks.solver_world import world
from broker.control.explain import explain
from solver.check import check
from solver.plan import solve
from solver.told import told
from solver.types import Plan, Snapshot


@pytest.fixture(scope="module")
def asked() -> Snapshot:
    return world(200, 120)


@pytest.fixture(scope="module")
def silent(asked: Snapshot) -> Snapshot:
    return msgspec.structs.replace(asked, words=False)


@pytest.fixture(scope="module")
def with_words(asked: Snapshot) -> Plan:
    return solve(asked, stage="greedy")


@pytest.fixture(scope="module")
def without_words(silent: Snapshot) -> Plan:
    return solve(silent, stage="greedy")


def test_a_plan_without_words_decides_the_same_and_passes_the_checker(
    silent: Snapshot, with_words: Plan, without_words: Plan
) -> None:
    assert check(silent, without_words) == []
    assert (without_words.funnels, without_words.choices) == ({}, ())
    assert without_words == msgspec.structs.replace(
        with_words, snapshot_sha256=without_words.snapshot_sha256, funnels={}, choices=()
    )


def test_a_plan_that_was_asked_for_words_must_have_them(asked: Snapshot, with_words: Plan) -> None:
    mute = msgspec.structs.replace(with_words, funnels={}, choices=())
    assert {each.rule for each in check(asked, mute)} == {"funnel", "choice"}


def test_what_is_told_later_are_the_words_that_the_plan_would_have_had(
    silent: Snapshot, with_words: Plan, without_words: Plan
) -> None:
    said = {each.work_id: each for each in with_words.choices}
    for work in silent.works:
        funnel, choice = told(silent, without_words, work.id)
        assert [(each.rule, each.count) for each in funnel] == [
            (each.rule, each.count) for each in with_words.funnels[work.id]
        ]
        before = said.get(work.id)
        assert (choice is None) == (before is None)
        if choice is not None and before is not None:
            assert (choice.offer_key, choice.usd_nano_per_million) == (before.offer_key, before.usd_nano_per_million)
            assert choice.sentence.startswith(f"{choice.offer_key} at $")


def test_told_words_are_those_that_a_plan_has(asked: Snapshot, with_words: Plan) -> None:
    choice = with_words.choices[0]
    assert told(asked, with_words, choice.work_id) == (with_words.funnels[choice.work_id], choice)
    with pytest.raises(KeyError):
        told(asked, with_words, "nobody")


def test_a_batch_of_a_large_queue_is_explained_though_its_plan_has_no_words(
    silent: Snapshot, without_words: Plan
) -> None:
    work_id = without_words.assignments[0].work_id
    found: Any = explain(work_id, silent, without_words, plan_id="plan_1", planned_us=1)
    assert found.funnel[-1].rule == "eligible"
    assert sum(each.count for each in found.funnel) == len(silent.offers)
    assert any(each.sentence and each.offer_key in each.sentence for each in found.chosen)
