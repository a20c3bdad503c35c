"""`submit`: what it shows first, whom it asks, and what is left when the answer is no."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.command_line import Terminal, client, prompts, quick, submit

QUESTION = "Submit it? [y/N]"


def at(data: Path) -> tuple[str, ...]:
    return ("--model", "scripted", "--data", str(data))


def left(data: Path) -> tuple[set[str], set[str]]:
    """The input files and batches that the broker has."""
    openai = client(data)
    return {file.id for file in openai.files.list()}, {batch.id for batch in openai.batches.list()}


@pytest.mark.parametrize("command", [("quote",), ("submit", "--dry-run")])
def test_a_dry_run_is_a_quote_and_leaves_nothing(data: Path, tmp_path: Path, command: tuple[str, ...]) -> None:
    before = left(data)
    done = quick(*command, prompts(tmp_path, "hello"), *at(data), "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["object"] == "quote"
    assert left(data) == before
    for code, wish in ((6, ("--max-usd", "0.000000001")), (7, ("--residency", "KP"))):
        assert quick(*command, prompts(tmp_path, "hello"), *at(data), *wish).returncode == code
    assert left(data) == before


@pytest.mark.parametrize("answer", ["\n", "n\n", "\x04"])  # Enter is no; so is Ctrl-D
def test_on_a_terminal_the_plan_is_shown_and_no_means_that_nothing_is_left(
    data: Path, tmp_path: Path, answer: str
) -> None:
    before = left(data)
    terminal = Terminal("submit", prompts(tmp_path, "hello"), *at(data))
    terminal.reads(QUESTION)
    assert "plan for 1 lines" in terminal.shown
    assert "chosen: sandbox/" in terminal.shown
    terminal.types(answer)
    assert terminal.ended() == 1
    assert "nothing was submitted" in terminal.shown
    assert left(data) == before


def test_yes_on_a_terminal_submits_and_watches(data: Path, tmp_path: Path) -> None:
    terminal = Terminal("submit", prompts(tmp_path, "hello"), *at(data))
    terminal.reads(QUESTION)
    terminal.types("y\n")
    assert terminal.ended() == 0, terminal.shown
    assert "1/1 lines" in terminal.shown


def test_somebody_who_said_yes_beforehand_is_not_asked(data: Path, tmp_path: Path) -> None:
    terminal = Terminal("submit", prompts(tmp_path, "hello"), *at(data), "--yes", "--detach")
    assert terminal.ended() == 0, terminal.shown
    assert "[y/N]" not in terminal.shown
    assert "watch it with: broker status batch_" in terminal.shown


def test_json_never_asks(data: Path, tmp_path: Path) -> None:
    terminal = Terminal("submit", prompts(tmp_path, "hello"), *at(data), "--json", "--detach")
    assert terminal.ended() == 0, terminal.shown
    assert "[y/N]" not in terminal.shown


def test_ctrl_c_while_watching_leaves_the_batch_running(data: Path, tmp_path: Path) -> None:
    terminal = Terminal("submit", prompts(tmp_path, "HANG"), *at(data), "--yes")
    terminal.reads(" created from prompts.txt")
    batch_id = next(word for word in terminal.shown.split() if word.startswith("batch_"))
    terminal.interrupt()
    assert terminal.ended() == 130
    assert f"come back with: broker status {batch_id} -w" in terminal.shown
    assert "Traceback" not in terminal.shown
    assert client(data).batches.retrieve(batch_id).status in ("validating", "in_progress")
    client(data).batches.cancel(batch_id)


def test_a_batch_is_of_the_project_that_the_command_names(data: Path, tmp_path: Path) -> None:
    code, document = submit(data, prompts(tmp_path, "hello"), "--project", "default", "--detach")
    assert (code, document["batch"]["x_broker"]["project"]) == (0, "default")
    unknown = quick("list", "--data", str(data), "--project", "nobodys")
    assert unknown.returncode == 1
    assert "No project 'nobodys'" in unknown.stderr
