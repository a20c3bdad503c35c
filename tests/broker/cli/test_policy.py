"""`policy validate` and `policy test` as a compliance officer uses them."""

from __future__ import annotations

import json
from pathlib import Path

from broker.cli.exits import ERROR, USAGE
from tests.support.command_line import quick

POLICIES = Path(__file__).parents[3] / "policies"
OFFERS = [
    {"key": "neo/de/-/a/h100/8/on_demand", "country": "DE", "location_tier": "named_datacenter", "launch": "vm",
     "confidentiality": "at_rest", "location_evidence": ["region_table: x"], "operator_jurisdictions": ["DE"]},
    {"key": "neo/us/-/a/h100/8/on_demand", "country": "US", "location_tier": "named_datacenter", "launch": "vm",
     "confidentiality": "at_rest", "location_evidence": ["region_table: x"]},
    {"key": "vast/-/-/7/h100/1/spot", "country": "DE", "location_tier": "claimed", "launch": "container"},
]  # fmt: skip


def test_a_policy_that_is_wrong_is_told_where_and_how_to_mend_it(tmp_path: Path) -> None:
    file = tmp_path / "p.yaml"
    file.write_text("language: 1\npolicy: p\nversion: 1\nrules:\n  - {id: a, effect: allow, when: {contry: [DE]}}\n")
    told = quick("policy", "validate", str(file))
    assert told.returncode == ERROR
    assert f"{file}:5:35: error: unknown field 'contry' [unknown_field]\n    did you mean country?" in told.stdout
    found = json.loads(quick("policy", "validate", str(file), "--json").stdout)
    assert found["valid"] is False
    assert (found["findings"][0]["line"], found["findings"][0]["column"]) == (5, 35)


def test_each_offer_of_a_file_gets_its_outcome_its_reasons_and_its_evidence(tmp_path: Path) -> None:
    for written in (json.dumps({"data": OFFERS}), json.dumps(OFFERS), "\n".join(map(json.dumps, OFFERS))):
        (tmp_path / "offers.json").write_text(written)
        file, offers = str(POLICIES / "eu-only.yaml"), str(tmp_path / "offers.json")
        told = quick("policy", "test", file, "--offers", offers, "--class", "personal", "--json")
        assert told.returncode == 0, told.stderr
        answer = json.loads(told.stdout)
        assert [each["outcome"] for each in answer["data"]] == ["allow", "deny", "deny"]
        assert all(
            each["reasons"] and set(each) == {"key", "outcome", "reasons", "evidence"} for each in answer["data"]
        )
        assert answer["data"][2]["reasons"][0]["code"] == "unknown"
        assert answer["summary"] == {"offers": 3, "allowed": 1, "denied_by": {"country": 2}}


def test_what_is_no_policy_no_class_or_no_file_is_a_usage_error(tmp_path: Path) -> None:
    policy, offers = str(POLICIES / "eu-only.yaml"), tmp_path / "offers.json"
    offers.write_text("[1]")
    assert quick("policy", "validate", str(tmp_path / "none.yaml")).returncode == USAGE
    assert quick("policy", "test", policy, "--offers", str(offers)).returncode == USAGE
    offers.write_text("[]")
    told = quick("policy", "test", policy, "--offers", str(offers), "--class", "perzonal")
    assert told.returncode == USAGE and "personal" in told.stderr
