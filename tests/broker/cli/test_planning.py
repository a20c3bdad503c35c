"""`solve` on a file and `plan` against a broker."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.solver_world import world
from broker.demo.kill import end_leftovers
from solver.types import encode
from tests.support.command_line import quick, start, stop


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("plan")
    try:
        process, _ = start(folder)
        yield folder
        stop(process)
    finally:
        end_leftovers(folder)


def test_solve_plans_a_file_and_checks_the_plan(tmp_path: Path) -> None:
    file = tmp_path / "snapshot.json"
    file.write_bytes(encode(world(90, 40)))
    done = quick("solve", str(file), "--json")
    assert done.returncode == 0, done.stderr
    plan = json.loads(done.stdout)
    assert plan["violations"] == []
    assert plan["starts"]
    assert 0 < plan["bound_nano"] <= plan["cost_nano"]
    assert "offer\tmodel" in quick("solve", str(file), "--stage", "greedy").stdout


def test_solve_names_the_field_that_is_wrong(tmp_path: Path) -> None:
    file = tmp_path / "snapshot.json"
    body = json.loads(encode(world(3, 3)))
    file.write_text(json.dumps({**body, "now_us": "noon"}))
    wrong = quick("solve", str(file))
    assert wrong.returncode == 1
    assert "$.now_us" in wrong.stderr
    file.write_text(json.dumps({**body, "policies": {}}))
    assert "does not hold" in quick("solve", str(file)).stderr
    assert quick("solve", str(tmp_path / "none.json")).returncode == 2


def test_plan_tells_what_would_be_done_now_and_in_another_world(served: Path, tmp_path: Path) -> None:
    now = quick("plan", "--data", str(served), "--json")
    assert now.returncode == 0, now.stderr
    answer = json.loads(now.stdout)
    assert (answer["object"], answer["today"], answer["summary"]["starts"]) == ("plan", None, 0)
    question = tmp_path / "question.json"
    question.write_text(json.dumps({"later_hours": {"batch_nobody": 2}}))
    refused = quick("plan", "--what-if", str(question), "--data", str(served))
    assert refused.returncode != 0
    assert "batch_nobody" in refused.stderr
    question.write_text(json.dumps({"price_factor": {"*": 2}}))  # as people write it; on the wire it is text
    asked = json.loads(quick("plan", "--what-if", str(question), "--data", str(served), "--json").stdout)
    assert asked["today"]["starts"] == 0


def test_a_policy_is_asked_about_by_its_file_and_a_wrong_one_is_named(served: Path, tmp_path: Path) -> None:
    question, policy = tmp_path / "question.json", tmp_path / "eu.yaml"
    policy.write_text(
        "language: 1\npolicy: eu\nversion: 1\nrules:\n"
        "  - {id: a, effect: allow, when: {country: [DE], location_tier: [named_datacenter]}}\n"
    )
    question.write_text(json.dumps({"policies": {"*": "eu.yaml"}, "max_rtt_ms": {"*": 20}}))
    asked = quick("plan", "--what-if", str(question), "--data", str(served), "--json")
    assert asked.returncode == 0, asked.stderr
    assert json.loads(asked.stdout)["today"]["waiting"] == 0
    policy.write_text("language: 1\npolicy: eu\nversion: 1\nrules:\n  - {id: a, effekt: allow}\n")
    wrong = quick("plan", "--what-if", str(question), "--data", str(served))
    assert wrong.returncode != 0 and "rules lacks 'effect'" in wrong.stderr and "Traceback" not in wrong.stderr
    for text, said in (
        ('{"policies": {"*": "none.yaml"}}', "none.yaml cannot be read"),
        ('{"policies": ["eu.yaml"]}', "policies is no object"),
        ("[]", "holds no JSON object"),
        ("{", "is not JSON"),
    ):
        question.write_text(text)
        refused = quick("plan", "--what-if", str(question), "--data", str(served))
        assert refused.returncode == 2 and said in refused.stderr
