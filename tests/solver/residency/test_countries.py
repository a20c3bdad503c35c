"""Residency: unknown never satisfies an allow, deny overrides, and any input gives a decision."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from solver.errors import UnknownCountry
from solver.residency import INTERNAL, FactEvidence, Facts, Policy, PolicyRule, compile_countries, evaluate
from solver.residency.groups import GROUPS

FIELDS = ("country", "subdivision", "location_tier", "confidentiality", "launch", "market", "operator", "jurisdictions")
WORDS = st.sampled_from(["DE", "US", "anonymous", "named_datacenter", "process", "token_api", "none", ""])
RULES = st.builds(
    PolicyRule,
    id=st.text(max_size=4),
    effect=st.sampled_from(["allow", "deny"]),
    field=st.sampled_from([*FIELDS, "colour"]),
    values=st.lists(WORDS, max_size=4).map(tuple),
)
POLICIES = st.builds(Policy, name=st.just("p"), rules=st.lists(RULES, max_size=5).map(tuple))
EVIDENCE = st.builds(
    FactEvidence, kind=st.just("probe"), source=st.just("t"), valid_until_us=st.integers(min_value=-5, max_value=5)
)
FACTS = st.builds(
    Facts,
    country=st.none() | WORDS,
    subdivision=st.none() | WORDS,
    location_tier=WORDS,
    confidentiality=WORDS,
    launch=WORDS,
    market=WORDS,
    operator=st.none() | WORDS,
    jurisdictions=st.none() | st.lists(WORDS, max_size=3).map(tuple),
    evidence=st.lists(EVIDENCE, max_size=2).map(tuple),
)


def place(country: str | None = "DE", tier: str = "named_datacenter", valid_until_us: int = 100, **more: str) -> Facts:
    evidence = (FactEvidence(kind="region_table", source="test", valid_until_us=valid_until_us),)
    facts = Facts(
        country=country,
        subdivision=None,
        location_tier=tier,
        confidentiality="none",
        launch="process",
        market="sandbox",
        evidence=evidence,
    )
    return msgspec.structs.replace(facts, **more)


@given(POLICIES, FACTS, st.integers(min_value=-10, max_value=10))
def test_every_policy_and_every_fact_give_a_decision_with_a_reason(policy: Policy, facts: Facts, at: int) -> None:
    decision = evaluate(policy, facts, at)
    assert decision.outcome in ("allow", "deny")
    assert decision.reasons


@given(POLICIES, RULES, FACTS, st.integers(min_value=-10, max_value=10))
def test_adding_a_deny_never_turns_deny_into_allow(policy: Policy, rule: PolicyRule, facts: Facts, at: int) -> None:
    stricter = msgspec.structs.replace(policy, rules=(*policy.rules, msgspec.structs.replace(rule, effect="deny")))
    if evaluate(policy, facts, at).outcome == "deny":
        assert evaluate(stricter, facts, at).outcome == "deny"


@given(POLICIES, FACTS, st.sampled_from(["country", "subdivision", "operator", "jurisdictions"]))
def test_an_unknown_fact_never_satisfies_an_allow(policy: Policy, facts: Facts, field: str) -> None:
    asks = PolicyRule(id="asks", effect="allow", field=field, values=("DE", "US", "", "None", "unknown"))
    policy = msgspec.structs.replace(policy, rules=(*policy.rules, asks))
    assert evaluate(policy, msgspec.structs.replace(facts, **{field: None}), 0).outcome == "deny"


@given(POLICIES, FACTS)
def test_a_policy_about_countries_denies_when_all_evidence_has_expired(policy: Policy, facts: Facts) -> None:
    asks = PolicyRule(id="asks", effect="allow", field="country", values=("DE", "US"))
    policy = msgspec.structs.replace(policy, rules=(*policy.rules, asks))
    assert evaluate(policy, facts, 6).outcome == "deny"


def test_a_policy_without_an_allow_rule_permits_nothing() -> None:
    denies = Policy(name="only denies", rules=(PolicyRule(id="d", effect="deny", field="country", values=("US",)),))
    assert evaluate(denies, place("DE"), 0).reasons[-1].code == "no_permission"
    assert evaluate(Policy(name="empty", rules=()), place("DE"), 0).outcome == "deny"


@pytest.mark.parametrize(
    ("facts", "outcome"),
    [
        (place("DE"), "allow"),
        (place("US"), "deny"),
        (place(None), "deny"),
        (place("DE", tier="claimed"), "deny"),  # a country that only the host claims
        (place("DE", tier="verified_host"), "allow"),  # the own machine
        (place("DE", launch="token_api"), "deny"),  # needs an explicit opt-in
        (place("DE", valid_until_us=10), "deny"),  # evidence ends exactly now
        (place("DE", valid_until_us=11), "allow"),
    ],
)
def test_a_list_of_countries_is_internal_plus_the_countries(facts: Facts, outcome: str) -> None:
    assert evaluate(compile_countries(["DE"]), facts, 10).outcome == outcome


def test_internal_allows_known_places_anywhere_and_nothing_else() -> None:
    for tier in ("verified_host", "named_datacenter", "hyperscaler_region"):
        assert evaluate(INTERNAL, place(None, tier=tier), 0).outcome == "allow"
    for tier in ("claimed", "anonymous", "a tier of tomorrow"):
        assert evaluate(INTERNAL, place("DE", tier=tier), 0).outcome == "deny"


def test_of_several_jurisdictions_all_must_be_allowed_and_any_can_be_denied() -> None:
    allow = PolicyRule(id="a", effect="allow", field="jurisdictions", values=("DE", "FR"))
    deny = PolicyRule(id="d", effect="deny", field="jurisdictions", values=("US",))
    both = msgspec.structs.replace(place(), jurisdictions=("DE", "US"))
    assert evaluate(Policy(name="p", rules=(allow,)), both, 0).outcome == "deny"
    assert evaluate(Policy(name="p", rules=(*INTERNAL.rules, deny)), both, 0).outcome == "deny"
    assert (
        evaluate(Policy(name="p", rules=(allow,)), msgspec.structs.replace(both, jurisdictions=("DE",)), 0).outcome
        == "allow"
    )


def test_groups_are_made_of_iso_codes_and_the_eea_is_wider_than_the_eu() -> None:
    for name, group in GROUPS.items():
        assert compile_countries([name]).rules[-1].values == tuple(sorted(group.members))
        for code in group.members:
            compile_countries([code])
    assert len(GROUPS["eu"].members) == 27
    assert set(GROUPS["eea"].members) - set(GROUPS["eu"].members) == {"IS", "LI", "NO"}


@pytest.mark.parametrize(
    ("written", "meant"), [("Germany", "DE"), ("Germny", "DE"), ("UK", "GB"), ("deu", "DE"), ("European Union", "eu")]
)
def test_an_unknown_country_names_the_value_and_what_may_have_been_meant(written: str, meant: str) -> None:
    with pytest.raises(UnknownCountry) as error:
        compile_countries(["FR", written])
    assert repr(written) in str(error.value)
    assert meant in str(error.value).split("did you mean")[1]


def test_an_empty_list_of_countries_is_refused() -> None:
    with pytest.raises(UnknownCountry):
        compile_countries([])
