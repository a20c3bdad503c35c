"""Bad policy documents are refused with line, column and a suggestion; good ones mean what they say."""

from __future__ import annotations

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from solver.residency import Facts, evaluate
from solver.residency.document import Document, read_document
from solver.residency.effective import effective
from solver.residency.schema import schema

HEAD = "language: 1\npolicy: p\nversion: 1\n"
PLACE = Facts(
    country=None, subdivision=None, location_tier="named_datacenter", confidentiality="none", launch="vm", market="aws"
)


def document(rules: str, head: str = HEAD) -> Document:
    reading = read_document(f"{head}rules:\n{rules}")
    assert reading.document is not None, reading.findings
    return reading.document


def outcome(rules: str, facts: Facts = PLACE, data_class: str = "internal") -> str:
    policy = effective([document(rules)], data_class=data_class, project="org/team/p")
    return evaluate(policy, facts, 0).outcome


@pytest.mark.parametrize(
    ("text", "code", "line", "column", "hint"),
    [
        # a field that there is not, and the one that is meant
        (HEAD + "rules:\n  - {id: a, effect: allow, when: {contry: [DE]}}\n", "unknown_field", 5, 35, "country"),
        (HEAD + "rules:\n  - {id: a, effect: alow}\n", "unknown_word", 5, 21, "allow"),
        (HEAD + "rules:\n  - {id: a, effect: allow, on: [machines]}\n", "unknown_word", 5, 33, "machine"),
        (HEAD + "rules:\n  - {id: a, effect: allow, when: {country: [Germny]}}\n", "unknown_country", 5, 45, "DE"),
        (HEAD + "rules:\n  - {id: a, effect: allow, when: {country: [UK]}}\n", "unknown_country", 5, 45, "GB"),
        (HEAD + "rules:\n  - {id: a, effect: allow, when: {subdivision: [DE-XX]}}\n", "unknown_subdivision", 5, 49, "DE-BY"),
        (HEAD + "groups:\n  a: {members: [b]}\n  b: {members: [a]}\nrules:\n  - {id: a, effect: allow}\n",
         "group_cycle", 5, 17, "take 'b' out"),
        (HEAD + "groups:\n  eu: {members: [DE]}\nrules:\n  - {id: a, effect: allow}\n", "name_taken", 5, 3, "another name"),
        (HEAD + "rules:\n  - id: a\n    effect: allow\n    from: 2026-02-01\n    until: 2026-01-01\n",
         "dates_reversed", 8, 12, "after 2026-02-01"),
        (HEAD + "rules:\n  - {id: a, effect: allow, until: 2026-02-30}\n", "no_such_day", 5, 35, "2026-11-27"),
        (HEAD + "rules:\n  - {id: a, effect: allow, when: {country: [DE]}}\n  - {id: b, effect: deny, when: {country: [eu]}}\n",
         "contradiction", 5, 5, "narrow"),
        (HEAD + "rules:\n  - {id: a, effect: require, when: {country: [DE]}}\n"
         "  - {id: b, effect: require, when: {country: [FR]}}\n",
         "contradiction", 6, 5, "narrow"),
        (HEAD + "rules:\n  - {id: a, effect: allow}\n  - {id: a, effect: deny}\n", "id_twice", 6, 10, "a-2"),
        (HEAD + "rules:\n  - {id: a, effect: allow, if: {launch: [vm]}}\n", "if_without_require", 5, 28, "when"),
        (HEAD + "rules:\n  - {id: a, effect: deny, on: [storage], when: {launch: [vm]}}\n", "machine_only", 5, 27, "on"),
        (HEAD + "rules:\n  - {id: a, effect: deny, when: {country: {not: [gdpr-adequacy]}}}\n",
         "conditional_not", 5, 49, "name the countries"),
        (HEAD + "groups:\n  Core EU: {members: [DE]}\nrules:\n  - {id: a, effect: allow}\n", "wrong_value", 5, 3, "a-z0-9"),
        (HEAD + "version: 2\nrules:\n  - {id: a, effect: allow}\n", "key_twice", 4, 1, "one of the two"),
        ("policy: p\nversion: 1\nrules: [{id: a, effect: allow}]\n", "missing_field", 1, 1, "language"),
        ("a: &x [1]\nb: *x\n", "alias", 1, 4, "write the value out"),
        ("a: [\n", "not_yaml", 2, 1, "indent"),
        ("", "not_one_document", 1, 1, "file of its own"),
        ("[" * 100, "too_deep", 1, 1, "flatten"),
    ],
)  # fmt: skip
def test_a_bad_policy_is_refused_with_line_column_and_a_suggestion(
    text: str, code: str, line: int, column: int, hint: str
) -> None:
    reading = read_document(text)
    assert reading.document is None
    found = {each.code: each for each in reversed(reading.errors)}
    assert code in found, reading.findings
    assert (found[code].line, found[code].column) == (line, column), str(found[code])
    assert hint in (found[code].suggestion or ""), str(found[code])


@given(st.text(alphabet="ab:{}[]-\n *&!|>'\"#,?é\t0", max_size=60))
@settings(max_examples=200)
def test_any_text_at_all_is_read_or_refused_and_never_an_exception(text: str) -> None:
    assert read_document(text).findings


def test_the_published_schema_is_a_json_schema() -> None:
    jsonschema.Draft202012Validator.check_schema(schema())


def test_norway_is_a_country_and_on_is_a_word() -> None:
    with_norway = "  - {id: a, effect: allow, on: [machine], when: {country: [NO]}}\n"
    [clause] = document(with_norway).rules[0].clauses
    assert clause.alternatives[0][0].values == ("NO",)


def test_an_allow_that_takes_any_tier_is_doubted_and_read() -> None:
    reading = read_document(HEAD + "rules:\n  - {id: a, effect: allow, when: {country: [DE]}}\n")
    assert reading.document is not None
    assert [each.code for each in reading.findings] == ["any_tier"]


def test_a_class_other_than_public_needs_an_allow_that_matches() -> None:
    denies = "  - {id: d, effect: deny, when: {market: [vast]}}\n"
    assert outcome(denies, data_class="internal") == "deny"
    assert outcome(denies, data_class="public") == "allow"
    assert outcome(denies + "  - {id: a, effect: allow, when: {market: [gcp]}}\n", data_class="internal") == "deny"
    assert outcome(denies + "  - {id: a, effect: allow, when: {market: [aws]}}\n", data_class="internal") == "allow"


def test_a_requirement_with_a_guard_is_asked_of_what_the_guard_means() -> None:
    rules = (
        "  - {id: a, effect: allow, when: {location_tier: {at_least: claimed}}}\n"
        "  - {id: forgets, effect: require, if: {launch: [token_api]}, when: {data_policy: {retention_days: 0}}}\n"
    )
    assert outcome(rules, PLACE) == "allow"
    endpoint = Facts(**{name: getattr(PLACE, name) for name in PLACE.__struct_fields__} | {"launch": "token_api"})
    assert outcome(rules, endpoint) == "deny"
