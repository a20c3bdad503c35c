"""What holds of every policy: total, closed, monotone, without order, and the same in words and in codes."""

from __future__ import annotations

import random
from pathlib import Path

import msgspec
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from solver.residency import (
    INTERNAL,
    Evaluator,
    Facts,
    Policy,
    compile_countries,
    digest,
    evaluate,
    with_confidentiality,
)
from solver.residency.document import Document, read_document
from solver.residency.effective import Waiver, effective
from solver.residency.types import FactEvidence, PathFacts
from tests.solver.residency.random_policies import CLASSES, a_document, some_facts

DAY = 86_400_000_000
CASES = settings(max_examples=60, deadline=None)


def understood(source: random.Random, name: str) -> Document:
    while True:
        if (document := read_document(yaml.safe_dump(a_document(source, name))).document) is not None:
            return document


def policy_of(*documents: Document, data_class: str = "personal", waivers: tuple[Waiver, ...] = ()) -> Policy:
    return effective(documents, data_class=data_class, project="org/team/p", waivers=waivers)


@given(st.integers(0, 2**32).map(random.Random))
@CASES
def test_a_document_further_down_only_narrows(source: random.Random) -> None:
    """What a chain with an allow, of whatever data, refuses, no document added to it permits."""
    above, below = understood(source, "above"), understood(source, "below")
    wide, narrow = policy_of(above), policy_of(above, below)
    permits = [clause for rule in above.rules for clause in rule.clauses if clause.effect == "permit"]
    if not any("machine" in clause.paths for clause in permits):
        return  # it says nothing of who may compute: permission is for others to give
    for _ in range(20):
        facts = some_facts(source)
        if evaluate(wide, facts, 50).outcome == "deny":
            assert evaluate(narrow, facts, 50).outcome == "deny"


@given(st.integers(0, 2**32).map(random.Random))
@CASES
def test_the_order_of_documents_and_of_rules_makes_no_difference(source: random.Random) -> None:
    one, other = understood(source, "one"), understood(source, "other")
    policy = policy_of(one, other)
    assert digest(policy) == digest(policy_of(other, one))
    shuffled = list(policy.clauses)
    source.shuffle(shuffled)
    turned = msgspec.structs.replace(policy, clauses=tuple(shuffled))
    for _ in range(20):
        facts = some_facts(source)
        mine, theirs = evaluate(policy, facts, 50), evaluate(turned, facts, 50)
        assert mine.outcome == theirs.outcome
        assert {(r.rule_id, r.field, r.code) for r in mine.reasons} == {
            (r.rule_id, r.field, r.code) for r in theirs.reasons
        }


@given(st.integers(0, 2**32).map(random.Random))
@CASES
def test_codes_and_words_agree_and_an_evaluator_remembers_nothing_wrong(source: random.Random) -> None:
    policy = policy_of(understood(source, "one"), understood(source, "two"), data_class=source.choice(CLASSES))
    used = Evaluator(policy)
    for at_us in (50, 150, 50):
        for _ in range(10):
            facts = some_facts(source)
            decision = evaluate(policy, facts, at_us)
            assert used.decide(facts, at_us) == decision
            assert decision.reasons
            broken = used.codes(facts, at_us)
            assert (decision.outcome == "deny") == bool(broken)
            assert {used.rule_id(code) for code in broken} >= {
                reason.rule_id for reason in decision.reasons if decision.outcome == "deny"
            }


@given(st.integers(0, 2**32).map(random.Random))
@CASES
def test_unknown_facts_never_permit_what_known_ones_did_not(source: random.Random) -> None:
    policy = policy_of(understood(source, "one"))
    for _ in range(20):
        facts = some_facts(source)
        if evaluate(policy, facts, 50).outcome == "deny":
            blank: dict[str, object] = {"country": None, "operator": None, "jurisdictions": None, "evidence": ()}
            name = source.choice(sorted(blank))
            less = msgspec.structs.replace(facts, **{name: blank[name]})
            assert evaluate(policy, less, 50).outcome == "deny"


@given(st.integers(0, 2**32).map(random.Random))
@CASES
def test_a_waiver_widens_while_it_lasts_and_not_a_moment_longer(source: random.Random) -> None:
    document = understood(source, "one")
    plain = policy_of(document)
    waivers = tuple(Waiver("one", rule.id, "org", 10 * DAY, 20 * DAY) for rule in document.rules)
    waived = policy_of(document, waivers=waivers)
    elsewhere = effective([document], data_class="personal", project="other/p", waivers=waivers)
    for _ in range(10):
        facts = msgspec.structs.replace(some_facts(source), evidence=())
        for at_us in (10 * DAY - 1, 20 * DAY):
            assert evaluate(waived, facts, at_us) == evaluate(plain, facts, at_us)
        assert evaluate(elsewhere, facts, 15 * DAY) == evaluate(plain, facts, 15 * DAY)
        permits = [clause for clause in plain.clauses if clause.effect == "permit"]
        if any("machine" in clause.paths for clause in permits) and all(clause.alternatives for clause in permits):
            assert evaluate(waived, facts, 15 * DAY).outcome == "allow"


def test_a_policy_of_countries_has_the_hash_that_earlier_releases_stored() -> None:
    plain = {"name": INTERNAL.name, "rules": msgspec.to_builtins(INTERNAL.rules), "version": 1}
    assert digest(msgspec.convert(plain, Policy)) == digest(INTERNAL) == "cc9e04dbecbd99fd"


def test_what_is_held_must_be_good_until_the_work_is_over() -> None:
    text = """
language: 1
policy: p
version: 1
operators:
  aws: {agreements: [{id: BAA, until: 2027-01-01}]}
  market:own: {agreements: [{id: BAA}]}
rules:
  - {id: a, effect: allow, when: {agreements: [BAA], location_tier: {at_least: claimed}}}
"""
    document = read_document(text).document
    assert document is not None
    policy = policy_of(document)
    facts = Facts(
        country=None, subdivision=None, location_tier="claimed", confidentiality="none", launch="vm", market="x", operator="aws"
    )  # fmt: skip
    end_of_2026 = 1_798_761_600_000_000
    for until_us, outcome in ((end_of_2026 - 1, "allow"), (end_of_2026, "deny"), (None, "allow")):
        assert evaluate(policy, msgspec.structs.replace(facts, until_us=until_us), 0).outcome == outcome
    own = msgspec.structs.replace(facts, market="own", operator=None, until_us=end_of_2026 + 10**15)
    assert evaluate(policy, own, 0).outcome == "allow"


HOUSE = """
language: 1
policy: house
version: 1
title: known places for what is not secret
rules:
  - id: known
    effect: allow
    classes: [internal, confidential]
    when: {location_tier: [named_datacenter, hyperscaler_region]}
"""
LAX = """
language: 1
policy: lax
version: 1
title: anything goes
rules:
  - {id: all, effect: allow, classes: [health], when: {country: [CN, DE]}}
"""


def read(text: str) -> Document:
    document = read_document(text).document
    assert document is not None, read_document(text).findings
    return document


def test_a_further_document_cannot_allow_data_that_the_house_does_not() -> None:
    """Found by a reader: rules of other classes were dropped before layers were formed, and the lax one alone was asked."""
    facts = msgspec.structs.replace(some_facts(random.Random(1)), country="CN", location_tier="anonymous")
    for documents in ((read(HOUSE),), (read(HOUSE), read(LAX))):
        assert evaluate(policy_of(*documents, data_class="health"), facts, 0).outcome == "deny"


def test_what_a_job_wishes_for_permits_nothing_where_documents_or_a_class_decide() -> None:
    """Found by a reader: a list of countries counted as permission, and a wish for confidentiality replaced the policy."""
    facts = msgspec.structs.replace(
        some_facts(random.Random(1)), country="CN", location_tier="anonymous", confidentiality="at_rest", evidence=()
    )
    facts = msgspec.structs.replace(facts, launch="token_api")
    china = compile_countries(["CN"]).rules[-1]
    for policy in (Policy(name="no-policy", data_class="health"), policy_of(read(HOUSE), data_class="health")):
        wished = msgspec.structs.replace(policy, rules=(*policy.rules, china))
        assert evaluate(wished, facts, 0).outcome == "deny"
        careful = with_confidentiality(policy, "at_rest")
        assert careful.clauses == policy.clauses and careful.data_class == policy.data_class
        assert evaluate(careful, facts, 0).outcome == "deny"


def test_the_condition_of_a_group_holds_for_where_data_lies_too() -> None:
    """Found by a reader: the United States counts with the DPF only, and was taken without for stores and logs."""
    text = (Path(__file__).parents[3] / "policies" / "eea-adequacy.yaml").read_text()
    now = 1_780_000_000_000_000
    known = (FactEvidence(kind="provider_api", source="s", valid_until_us=now + 1_000_000),)
    home = msgspec.structs.replace(
        some_facts(random.Random(1)), country="DE", location_tier="named_datacenter", launch="vm", evidence=known
    )

    def lying_in(country: str) -> Facts:
        kinds = ("storage", "checkpoint", "log", "registry", "control_plane")
        paths = tuple(
            PathFacts(path=each, country=country, operator="Nobody", jurisdictions=(country,), evidence=known)
            for each in kinds
        )
        return msgspec.structs.replace(home, paths=paths)

    policy = policy_of(read(text))
    assert evaluate(policy, lying_in("DE"), now).outcome == "allow", evaluate(policy, lying_in("DE"), now).reasons
    assert evaluate(policy, lying_in("US"), now).outcome == "deny"
