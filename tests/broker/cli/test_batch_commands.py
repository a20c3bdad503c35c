"""What can be asked of a batch and done to it, command by command, against a real broker."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest

from broker.api.result_shapes import LineStatus
from broker.cli import lines
from broker.owner import owner
from tests.support.command_line import Terminal, client, prompts, quick, submit, until
from tests.support.torn_proxy import torn_proxy


@pytest.fixture(scope="module")
def mixed(data: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A batch that has ended, with two answers and a failed line between them."""
    code, document = submit(data, prompts(tmp_path_factory.mktemp("mixed"), "fine", "BAD400 please", "fine too"))
    assert code == 3
    return str(document["batch"]["id"])


@pytest.fixture
def hanging(data: Path, tmp_path: Path) -> Iterator[str]:
    """A batch that runs, with two answers, and two lines that never get one."""
    code, document = submit(data, prompts(tmp_path, "one", "HANG", "two", "HANG again"), "--detach")
    assert code == 0
    batch_id = str(document["batch"]["id"])
    yield batch_id
    client(data).batches.cancel(batch_id)


def at(data: Path, *arguments: str) -> Any:
    """The JSON document of a command that must succeed."""
    done = quick(*arguments, "--data", str(data), "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_batch_is_paused_and_resumed(data: Path, hanging: str) -> None:
    paused = quick("pause", hanging, "--data", str(data))
    assert paused.returncode == 0 and f"{hanging}: paused, " in paused.stdout
    assert " (paused), " in quick("status", hanging, "--data", str(data)).stdout
    assert at(data, "resume", hanging)["x_broker"]["paused"] is False


def test_the_terms_of_a_batch_are_changed_and_only_those_that_were_named(data: Path, hanging: str) -> None:
    changed = at(data, "change", hanging, "--max-usd", "5", "--priority", "7")
    assert (changed["x_broker"]["max_usd"], changed["x_broker"]["priority"]) == ("5", 7)
    unlimited = quick("change", hanging, "--max-usd", "none", "--data", str(data))
    assert "limit none, priority 7, " in unlimited.stdout
    deadline = changed["created_at"] + 3600
    assert at(data, "change", hanging, "--deadline", str(deadline))["expires_at"] == deadline


def test_partial_results_of_a_running_batch_are_read_and_none_without_asking(
    data: Path, hanging: str, tmp_path: Path
) -> None:
    out = tmp_path / "so-far.jsonl"

    def read() -> int:
        return int(at(data, "results", hanging, "--partial", "-o", str(out))["output_lines"])

    until(lambda: read() == 2, "the two answers are committed")
    assert {json.loads(line)["custom_id"] for line in out.read_text().splitlines()} == {"line-1", "line-3"}
    whole = quick("results", hanging, "--data", str(data))
    assert whole.returncode == 1
    assert "take what there is with --partial" in whole.stderr


def test_results_come_in_the_order_that_is_asked_for(data: Path, mixed: str) -> None:
    for order in ("input", "completion"):
        done = quick("results", mixed, "--order", order, "--data", str(data))
        assert {json.loads(line)["custom_id"] for line in done.stdout.splitlines()} == {"line-1", "line-3"}
    assert done.returncode == 3


def test_lines_say_what_became_of_each(data: Path, mixed: str) -> None:
    (failed,) = at(data, "lines", mixed, "--status", "failed")["data"]
    assert (failed["line"], failed["custom_id"], failed["status_code"]) == (2, "line-2", 400)
    shown = quick("lines", mixed, "--limit", "2", "--data", str(data))
    assert [row.split("\t")[0] for row in shown.stdout.splitlines()] == ["line", "1", "2"]
    assert "go on with --after 2" in shown.stderr
    assert [each["line"] for each in at(data, "lines", mixed, "--after", "2")["data"]] == [3]
    assert at(data, "lines", mixed, "--id", failed["custom_id"])["data"] == [failed]
    assert at(data, "lines", mixed, "--id", "nobody")["data"] == []


def test_shards_say_how_far_each_is(data: Path, mixed: str) -> None:
    (shard,) = at(data, "shards", mixed)["data"]
    assert (shard["first_line"], shard["lines"], shard["done"], shard["state"]) == (1, 3, 3, "done")
    assert quick("shards", mixed, "--data", str(data)).stdout.splitlines()[1].startswith("0\t1\t3\t3\tdone\t")


def test_events_are_a_table_or_json_lines(data: Path, mixed: str) -> None:
    told = [json.loads(line) for line in quick("events", mixed, "--data", str(data), "--json").stdout.splitlines()]
    assert [each["x_broker"]["number"] for each in told] == list(range(1, len(told) + 1))
    assert told[-1]["type"] == "batch.completed"
    rows = [row.split("\t") for row in quick("events", mixed, "--data", str(data)).stdout.splitlines()]
    assert rows[0][:3] == ["number", "at", "event"]
    assert [row[2] for row in rows[1:]] == [each["type"] for each in told]


def test_followed_events_go_on_after_a_torn_connection_and_end_with_the_batch(data: Path, mixed: str) -> None:
    live = owner(data)
    assert live is not None and live.url is not None
    with torn_proxy(live.url, [900, 900], upwards=False) as proxy:
        done = quick("events", mixed, "-f", "--json", "--url", proxy.url, "--key", str(live.key))
    assert proxy.torn == 2, "the connections were torn"
    assert done.returncode == 3, "some lines failed"
    numbers = [json.loads(line)["x_broker"]["number"] for line in done.stdout.splitlines()]
    assert numbers == list(range(1, len(numbers) + 1)), "each event once, in order"
    assert json.loads(done.stdout.splitlines()[-1])["type"] == "batch.completed"


def test_the_words_of_the_api_are_those_of_the_options() -> None:
    assert get_args(lines.LineStatus) == get_args(LineStatus)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("change", "batch_1"), "nothing to change was named"),
        (("change", "batch_1", "--max-usd", "much"), "--max-usd 'much'"),
        (("projects", "set", "p"), "nothing to set was named"),
        (("projects", "set", "p", "--limit", "max_lines=many"), "want a whole number"),
    ],
)
def test_what_makes_no_sense_is_usage(tmp_path: Path, arguments: tuple[str, ...], says: str) -> None:
    done = quick(*arguments, "--data", str(tmp_path / "none"))
    assert (done.returncode, done.stdout) == (2, "")
    assert says in done.stderr
    assert not (tmp_path / "none").exists(), "nothing is started for a command that makes no sense"


def test_batches_are_listed_by_what_they_are(data: Path, mixed: str, hanging: str) -> None:
    quick("pause", hanging, "--data", str(data))
    assert hanging in {each["id"] for each in at(data, "list", "--status", "paused")["data"]}
    done = {each["id"] for each in at(data, "list", "--status", "completed", "--limit", "1000")["data"]}
    assert mixed in done and hanging not in done
    assert at(data, "list", "--tag", "team=nobody")["data"] == []


def test_ctrl_c_in_status_stops_the_watching_and_says_how_to_come_back(data: Path, hanging: str) -> None:
    terminal = Terminal("status", hanging, "-w", "--data", str(data))
    terminal.reads("/4 lines")
    terminal.interrupt()
    assert terminal.ended() == 130
    assert f"come back with: broker status {hanging} -w" in terminal.shown
    assert at(data, "status", hanging)["batch"]["status"] in ("validating", "in_progress")
