"""Doing a batch's lines again, and what lines cost by their tags."""

from __future__ import annotations

import json
from decimal import Decimal
from pathlib import Path
from typing import Any

from tests.support.command_line import prompts, quick, submit


def at(data: Path, *arguments: str, code: int = 0) -> Any:
    done = quick(*arguments, "--data", str(data), "--json")
    assert done.returncode == code, done.stderr
    return json.loads(done.stdout)


def test_a_retry_does_the_failed_lines_again_on_the_old_terms_but_for_those_that_are_named(
    data: Path, tmp_path: Path
) -> None:
    file = prompts(tmp_path, "fine", "BAD400 a", "BAD400 b")
    _, document = submit(data, file, "--max-usd", "0.5", "--priority", "3", "--tag", "run=1")
    first = document["batch"]
    told = quick("retry", first["id"], "--priority", "5", "--data", str(data))
    assert told.returncode == 3, "they fail again"
    assert "does 2 failed lines again" in told.stdout
    (again,) = [each for each in at(data, "list")["data"] if each["x_broker"]["retry_of"] == first["id"]]
    ours = again["x_broker"]
    assert (ours["counts"]["total"], ours["max_usd"], ours["priority"]) == (2, "0.5", 5)
    assert ours["tags"] == {"run": "1"}
    failed = at(data, "lines", again["id"], "--status", "failed")["data"]
    assert [each["custom_id"] for each in failed] == ["line-2", "line-3"], "their own ids"


def test_a_batch_without_failed_lines_has_nothing_to_do_again(data: Path, tmp_path: Path) -> None:
    _, document = submit(data, prompts(tmp_path, "fine"))
    done = quick("retry", document["batch"]["id"], "--data", str(data))
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("the broker refused")


def test_costs_by_tag_sum_to_the_cost_and_tags_are_erased(data: Path, tmp_path: Path) -> None:
    file = tmp_path / "tagged.jsonl"
    rows = [("planner", 2), ("writer", 1)]
    body = {"model": "scripted", "messages": [{"role": "user", "content": "hello"}]}
    with file.open("w") as out:
        for agent, count in rows:
            for number in range(count):
                line = {"custom_id": f"{agent}-{number}", "method": "POST", "url": "/v1/chat/completions", "body": body}
                out.write(json.dumps(line | {"x_broker": {"tags": {"agent": agent}}}) + "\n")
    done = quick("submit", str(file), "--data", str(data), "--json")
    assert done.returncode == 0, done.stderr
    batch_id = json.loads(done.stdout)["batch"]["id"]
    costs = at(data, "costs", batch_id, "--by", "agent")
    assert {each["value"]: each["lines"] for each in costs["data"]} == dict(rows)
    assert sum(Decimal(each["usd"]) for each in costs["data"]) == Decimal(costs["usd"])
    table = quick("costs", batch_id, "--by", "agent", "--data", str(data)).stdout
    assert table.startswith("agent\tlines\tcompleted\t")
    for by in ("placement", "model"):
        told = at(data, "costs", batch_id, "--by", by)
        assert sum(each["lines"] for each in told["data"]) == 3, by
        assert sum(Decimal(each["usd"]) for each in told["data"]) == Decimal(told["usd"]), by
    assert "tags of" in quick("tags", "erase", batch_id, "--data", str(data)).stdout
    assert [each["value"] for each in at(data, "costs", batch_id, "--by", "agent")["data"]] == ["-"]
    assert quick("costs", batch_id, "--by", "agent", "--since", "1", "--data", str(data)).returncode == 2
    assert at(data, "costs", "--by", "run", "--since", "2026-01-01T00:00:00Z")["batches"] > 0


def test_bad_lines_are_left_out_and_told_apart(data: Path, tmp_path: Path) -> None:
    file = tmp_path / "mixed.jsonl"
    body = {"model": "scripted", "messages": [{"role": "user", "content": "hello"}]}
    good = {"custom_id": "good", "method": "POST", "url": "/v1/chat/completions", "body": body}
    file.write_text("{broken\n" + json.dumps(good) + "\n")
    done = quick("submit", str(file), "--skip-invalid", "--data", str(data), "--json")
    assert done.returncode == 3, done.stderr
    batch_id = json.loads(done.stdout)["batch"]["id"]
    shown = quick("status", batch_id, "--data", str(data)).stdout
    assert "1 invalid lines were left out" in shown
    (invalid,) = at(data, "lines", batch_id, "--status", "invalid")["data"]
    assert invalid["line"] == 1


def test_repeats_are_answered_without_running(data: Path, tmp_path: Path) -> None:
    file = tmp_path / "repeats.jsonl"
    body = {"model": "scripted", "temperature": 0, "messages": [{"role": "user", "content": "same"}]}
    with file.open("w") as out:
        for number in range(3):
            line = {"custom_id": str(number), "method": "POST", "url": "/v1/chat/completions", "body": body}
            out.write(json.dumps(line) + "\n")
    done = quick("submit", str(file), "--reuse", "--data", str(data), "--json")
    assert done.returncode == 0, done.stderr
    batch_id = json.loads(done.stdout)["batch"]["id"]
    assert "2 lines were answered without running" in quick("status", batch_id, "--data", str(data)).stdout
