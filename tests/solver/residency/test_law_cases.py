"""The ready-made policies mean what the laws that they are examples of say, in sixty cases written by hand as data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml

from solver.residency import FactEvidence, Facts, Held, PathFacts, evaluate
from solver.residency.document import Document, read_document
from solver.residency.effective import effective
from solver.residency.marks import read
from solver.residency.spans import day_us
from solver.residency.types import Operator

POLICIES = Path(__file__).parents[3] / "policies"
TABLE: dict[str, Any] = read((Path(__file__).parent / "law_cases.yaml").read_text()).value
CASES: list[dict[str, Any]] = TABLE["cases"]
OTHERS = ("storage", "checkpoint", "log", "registry", "control_plane")
FOREVER = 10**17


def document(name: str) -> Document:
    reading = read_document((POLICIES / f"{name}.yaml").read_text())
    assert reading.document is not None, reading.findings
    return reading.document


def evidence(kind: str = "valid") -> tuple[FactEvidence, ...]:
    until = {"valid": FOREVER, "expired": -FOREVER}.get(kind)
    return () if until is None else (FactEvidence(kind="region_table", source="case", valid_until_us=until),)


def other_paths(case: dict[str, Any], change: dict[str, Any]) -> tuple[PathFacts, ...]:
    country, operator = ("US", "usneo") if case.get("paths") == "us" else ("DE", "self")
    found = []
    for path in OTHERS:
        at = change.pop(path, country)
        found.append(PathFacts(path=path, country=at, operator=operator, jurisdictions=(country,), evidence=evidence()))
    return tuple(found)


def facts_of(case: dict[str, Any]) -> Facts:
    change = dict(case.get("change", {}))
    paths = other_paths(case, change)
    stated = TABLE["options"][case["option"]] | change
    until = day_us(stated.pop("agreements_until", None))
    held = tuple(Held(id=each, valid_until_us=until) for each in stated.pop("agreements", []))
    return Facts(
        subdivision=None,
        jurisdictions=None if stated.get("jurisdictions") is None else tuple(stated.pop("jurisdictions")),
        evidence=evidence(stated.pop("evidence", "valid")),
        agreements=held,
        paths=paths,
        until_us=day_us(stated.pop("until", None)),
        **{name: value for name, value in stated.items() if name != "jurisdictions"},
    )


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case['policy']}: {case['why']}")
def test_the_ready_made_policies_decide_as_the_laws_that_they_are_examples_of(case: dict[str, Any]) -> None:
    at_us = day_us(case.get("at", TABLE["now"]))
    assert at_us is not None
    policy = effective([document(case["policy"])], data_class=case["class"], project="acme/ml/chat")
    if case.get("paths") == "us":
        signed = msgspec.json.decode(b'[{"name": "usneo", "agreements": [{"id": "BAA"}]}]', type=tuple[Operator, ...])
        policy = msgspec.structs.replace(policy, operators=signed)
    decision = evaluate(policy, facts_of(case), at_us)
    assert decision.outcome == case["expect"], (case["why"], decision.reasons)
    assert case["rule"] in {reason.rule_id for reason in decision.reasons}, decision.reasons


def test_there_are_sixty_cases_of_which_both_outcomes_are_many() -> None:
    assert len(CASES) >= 60
    assert len([case for case in CASES if case["expect"] == "allow"]) >= 20
    assert len({yaml.safe_dump(case) for case in CASES}) == len(CASES)


@pytest.mark.parametrize("name", sorted(each.stem for each in POLICIES.glob("*.yaml")))
def test_a_ready_made_policy_names_its_sources_and_is_not_legal_advice(name: str) -> None:
    text = (POLICIES / f"{name}.yaml").read_text()
    value = read(text).value
    assert value["sources"]
    assert "Not legal advice" in value["notice"]
    assert not read_document(text).findings
    assert value["policy"] == name
