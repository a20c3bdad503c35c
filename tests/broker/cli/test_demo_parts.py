"""The demonstration's own judgement: what it may delete, whom it may kill, and when it may say that all is well."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from broker.cli.exits import Failure
from broker.demo.folder import MARK, DemoFolder
from broker.demo.folder import prepare as prepare_for
from broker.demo.kill import TAG, Assassin, end_leftovers, is_halfway, worker_process
from broker.demo.verdict import Verdict, count_answers
from broker.owner import take
from broker.settings import load

SLEEPER = [sys.executable, "-c", "import time; print('up', flush=True); time.sleep(600)"]


def prepare(root: Path) -> DemoFolder:
    return prepare_for(root, "smollm2-135m-instruct", Path("weights.gguf"))


def test_the_settings_of_the_demonstration_are_valid(tmp_path: Path) -> None:
    weights = tmp_path / 'odd "name".gguf'
    folder = prepare_for(tmp_path / "demo", "smollm2-135m-instruct", weights)
    assert load(data=folder.data).models["smollm2-135m-instruct"].weights == str(weights)


def test_a_folder_that_somebody_else_filled_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "thesis.tex").write_text("years of work")
    with pytest.raises(Failure, match="not made by a demonstration"):
        prepare(tmp_path)
    assert (tmp_path / "data" / "thesis.tex").read_text() == "years of work"


def test_a_second_run_starts_anew_and_keeps_what_it_did_not_make(tmp_path: Path) -> None:
    folder = prepare(tmp_path / "demo")
    (folder.data / "broker.db").write_text("old")
    folder.output.write_text("old")
    (folder.root / "notes.txt").write_text("mine")
    prepare(tmp_path / "demo")
    assert sorted(path.name for path in folder.root.iterdir()) == [MARK, "data", "notes.txt", "prompts.jsonl"]
    assert [path.name for path in folder.data.iterdir()] == ["broker.toml"]


def test_a_folder_with_a_live_broker_is_refused(tmp_path: Path) -> None:
    folder = prepare(tmp_path / "demo")
    ownership = take(folder.data)
    with pytest.raises(Failure, match="under way"):
        prepare(tmp_path / "demo")
    ownership.close()


def test_there_are_at_least_sixty_different_prompts(tmp_path: Path) -> None:
    lines = [json.loads(line) for line in prepare(tmp_path / "demo").prompts.read_text().splitlines()]
    assert len({line["custom_id"] for line in lines}) == len(lines) >= 60
    assert len({line["body"]["messages"][0]["content"] for line in lines}) == len(lines)


def halfway(completed: int, total: int = 64) -> dict[str, Any]:
    return {"x_broker": {"counts": {"completed": completed, "total": total}}}


def placement(pid: int, rental: str = "rental_1", **changed: Any) -> dict[str, Any]:
    fields = {"rental": rental, "state": "running", "worker": "ready", "market": "sandbox", "country": "DE"}
    return fields | {"facts": {"pid": str(pid)}} | changed


@pytest.mark.parametrize(("completed", "expected"), [(0, False), (25, False), (26, True), (54, True), (55, False)])
def test_the_kill_comes_when_there_is_something_to_keep_and_something_to_lose(completed: int, expected: bool) -> None:
    assert is_halfway(halfway(completed)) is expected


@contextmanager
def machine(folder: Path, rental: str) -> Iterator[subprocess.Popen[str]]:
    """A process that looks like a rental's worker, running in `folder`."""
    environment = os.environ | {TAG: rental}
    with subprocess.Popen(SLEEPER, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        process.stdout.readline()
        try:
            yield process
        finally:
            process.kill()


def test_only_the_named_rentals_own_process_below_our_folder_is_killed(tmp_path: Path) -> None:
    ours, other = tmp_path / "ours", tmp_path / "other"
    ours.mkdir()
    other.mkdir()
    with machine(ours, "rental_1") as worker, machine(other, "rental_1") as stranger:
        assert worker_process(placement(worker.pid, "rental_2"), ours) is None, "another rental's process"
        assert worker_process(placement(stranger.pid), ours) is None, "a process that is not below our folder"
        assert worker_process(placement(os.getpid()), ours) is None, "a reused pid"
        assert worker_process(placement(worker.pid, worker="starting"), ours) is None, "no lines in flight yet"
        assassin = Assassin(ours)
        assert assassin.look(halfway(10), [placement(worker.pid)]) is None
        said = assassin.look(halfway(30), [placement(stranger.pid), placement(worker.pid)])
        assert said is not None
        assert f"pid {worker.pid}" in said
        assert worker.wait(10) == -signal.SIGKILL
        assert assassin.look(halfway(30), [placement(stranger.pid)]) is None, "one kill is enough"
        assert stranger.poll() is None


def test_leftovers_are_ended_and_strangers_are_not(tmp_path: Path) -> None:
    ours, other = tmp_path / "ours", tmp_path / "other"
    ours.mkdir()
    other.mkdir()
    with machine(ours, "rental_1") as left, machine(other, "rental_2") as stranger:
        assert end_leftovers(ours) == [left.pid]
        assert not psutil.pid_exists(left.pid)
        assert stranger.poll() is None


PROMPTS = ['{"custom_id": "a"}', '{"custom_id": "b"}']


def answer(custom_id: str, text: str = "yes") -> str:
    body = {"choices": [{"message": {"content": text}}]}
    return json.dumps({"custom_id": custom_id, "response": {"status_code": 200, "body": body}})


@pytest.mark.parametrize(
    ("output", "fault"),
    [
        ([answer("a"), answer("b")], None),
        ([answer("a")], "missing"),
        ([answer("a"), answer("b"), answer("a")], "duplicates"),  # the sin of a resumed batch
        ([answer("a"), answer("b"), answer("c")], "foreign"),
        ([answer("a"), answer("b", "  ")], "empty"),  # a worker that answers nothing has not answered
    ],
)
def test_every_answer_must_be_there_once(output: list[str], fault: str | None) -> None:
    answers = count_answers(PROMPTS, output)
    assert answers.once_each is (fault is None)
    if fault:
        assert getattr(answers, fault)


@pytest.mark.parametrize(
    ("changed", "passed"),
    [
        ({}, True),
        ({"failed": 1}, False),
        ({"preemptions": 0}, False),  # nothing was proved
        ({"ledger_balanced": False}, False),
        ({"answers": count_answers(PROMPTS, [answer("a")])}, False),
    ],
)
def test_the_demonstration_passes_only_when_all_of_it_is_so(changed: dict[str, Any], passed: bool) -> None:
    facts: dict[str, Any] = {
        "batch": "batch_1",
        "answers": count_answers(PROMPTS, [answer("a"), answer("b")]),
        "failed": 0,
        "preemptions": 1,
        "cost_usd": "0.001",
        "usd_per_million_tokens": "1",
        "output": "out",
        "ledger_balanced": True,
    }
    assert Verdict(**(facts | changed)).passed is passed
