"""The commands against a real broker in a process of its own, with sandbox machines, real agents and a scripted engine."""

from __future__ import annotations

import json
from pathlib import Path

import psutil
import pytest

from broker.demo.kill import end_leftovers
from broker.owner import owner
from tests.support.command_line import broker, new_key, offers, prompts, quick, start, stop, submit


def test_serve_says_where_it_is_and_its_key_once_and_ends_cleanly(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    try:
        process, first = start(folder)
        again = broker("serve", "--data", str(folder))
        assert stop(process) == (0, ""), "nothing but the first line goes to standard output"
        process, second = start(folder)
        listed = broker("list", "--data", str(folder), "--json")
        assert stop(process)[0] == 0
    finally:
        end_leftovers(folder)
    assert first.keys() == {"url", "admin_key"}
    assert second.keys() == {"url"}, "the key is shown at the first start only"
    assert json.loads(listed.stdout)["data"] == [], "local commands go on with the key that the first start left"
    assert again.returncode == 1
    assert f"at {first['url']} already serves" in again.stderr
    assert (folder / "admin.key").stat().st_mode & 0o777 == 0o600


def test_a_command_starts_a_broker_and_the_next_one_finds_it(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "broker.toml").write_text('markets = ["local"]\n')
    done = broker("list", "--data", str(folder), "--json")
    assert done.returncode == 0, done.stderr
    live = owner(folder)
    assert live is not None
    embedded = psutil.Process(live.pid)
    try:
        assert broker("doctor", "--data", str(folder)).stdout, "the second command is answered"
        assert owner(folder) == live, "by the broker that the first one started"
    finally:
        embedded.terminate()
    embedded.wait(30)
    assert owner(folder) is None


def test_a_broker_that_cannot_start_says_why(tmp_path: Path) -> None:
    (tmp_path / "broker.toml").write_text('markets = ["mars"]\n')
    done = broker("list", "--data", str(tmp_path))
    assert done.returncode == 1
    assert "mars" in done.stderr
    assert done.stdout == ""


def test_submit_watches_a_batch_to_its_end_and_results_has_each_answer_once(data: Path, tmp_path: Path) -> None:
    file = prompts(tmp_path, *(f"question {number}" for number in range(40)))
    done = broker("submit", file, "--model", "scripted", "--name", "forty", "--data", str(data))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "chosen: sandbox/" in done.stdout, "the plan"
    assert "eligible\t" in done.stdout, "the funnel"
    assert "40/40 lines" in done.stdout, "the live view"
    assert "\x1b" not in done.stdout + done.stderr, "no colour without a terminal"
    batch = json.loads(broker("list", "--data", str(data), "--json").stdout)["data"][0]
    assert batch["metadata"] == {"name": "forty"}
    out = tmp_path / "answers.jsonl"
    saved = broker("results", batch["id"], "-o", str(out), "--data", str(data), "--json")
    assert saved.returncode == 0, saved.stderr
    answers = [json.loads(line) for line in out.read_text().splitlines()]
    assert [answer["custom_id"] for answer in answers] == [f"line-{number}" for number in range(1, 41)]
    piped = broker("results", batch["id"], "--data", str(data))
    assert piped.stdout == out.read_text(), "the same bytes on standard output"
    shown = broker("status", batch["id"], "--data", str(data))
    assert shown.returncode == 0
    assert "completed (ended), 40/40 lines" in shown.stdout
    explained = json.loads(quick("explain", batch["id"], "--data", str(data), "--json").stdout)
    assert sum(step["count"] for step in explained["funnel"]) == explained["offers"] > 0
    held = quick("audit", "where", batch["id"], "--data", str(data)).stdout.splitlines()[-2:]
    assert [line.partition(" with key")[0] for line in held] == ["input: sealed", "parts and results: sealed"]


def test_lines_that_failed_make_exit_code_3_and_come_with_reasons(data: Path, tmp_path: Path) -> None:
    code, document = submit(data, prompts(tmp_path, "fine", "BAD400 please", "fine too"))
    assert code == 3
    errors = tmp_path / "errors.jsonl"
    batch_id = document["batch"]["id"]
    out = str(tmp_path / "answers.jsonl")
    saved = quick("results", batch_id, "-o", out, "--errors", str(errors), "--data", str(data))
    assert saved.returncode == 3
    (failed,) = [json.loads(line) for line in errors.read_text().splitlines()]
    assert failed["custom_id"] == "line-2"
    assert failed["response"]["status_code"] == 400


def test_a_country_where_nothing_is_offered_is_exit_code_7(data: Path, tmp_path: Path) -> None:
    file = prompts(tmp_path, "hello")
    quoted = quick("quote", file, "--model", "scripted", "--residency", "KP", "--data", str(data), "--json")
    assert quoted.returncode == 7
    assert json.loads(quoted.stdout)["waiting_on"] == "residency"
    code, document = submit(data, file, "--residency", "KP")
    assert code == 7
    assert document["batch"]["status"] == "failed"
    assert document["quote"]["feasible"] is False


def test_too_little_money_is_exit_code_6(data: Path, tmp_path: Path) -> None:
    file = prompts(tmp_path, "hello")
    quoted = quick("quote", file, "--model", "scripted", "--max-usd", "0.000000001", "--data", str(data))
    assert quoted.returncode == 6, quoted.stdout
    assert submit(data, file, "--max-usd", "0.000000001")[0] == 6


def test_bad_lines_are_all_named_and_exit_code_3(data: Path, tmp_path: Path) -> None:
    good = {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": {"model": "scripted"}}
    file = tmp_path / "bad.jsonl"
    file.write_text("\n".join([json.dumps(good), "{broken", json.dumps(good | {"method": "GET"})]) + "\n")
    done = quick("submit", str(file), "--data", str(data))
    assert done.returncode == 3, done.stdout + done.stderr
    assert "line 2: " in done.stdout
    assert "line 3: " in done.stdout


def test_a_cancelled_batch_is_exit_code_5_and_keeps_what_it_has(data: Path, tmp_path: Path) -> None:
    file = prompts(tmp_path, *(f"HANG {number}" for number in range(4)))
    code, document = submit(data, file, "--detach")
    assert code == 0
    batch_id = document["batch"]["id"]
    assert quick("results", batch_id, "--data", str(data)).returncode == 1, "under way: nothing to read"
    assert quick("cancel", batch_id, "--data", str(data)).returncode == 0
    watched = quick("status", batch_id, "-w", "--data", str(data))
    assert watched.returncode == 5, watched.stdout + watched.stderr
    assert quick("results", batch_id, "--data", str(data)).returncode == 5
    assert quick("results", batch_id, "--partial", "--data", str(data)).stdout == ""


@pytest.mark.parametrize(
    "command",
    [
        "list",
        "offers",
        "models",
        "doctor",
        "ledger show",
        "offers --country DE",
        "offers --market sandbox",
        "profiles",
        "timings",
    ],
)
def test_every_command_prints_one_json_document_or_tsv(data: Path, command: str) -> None:
    document = quick(*command.split(), "--data", str(data), "--json")
    assert isinstance(json.loads(document.stdout), dict)
    table = quick(*command.split(), "--data", str(data))
    assert table.returncode == document.returncode == 0, table.stdout + table.stderr
    assert "\t" in table.stdout
    assert "\x1b" not in table.stdout


def test_offers_are_sorted_by_price_and_unusable_ones_come_last_with_a_reason(data: Path) -> None:
    found = offers(data)
    usable = [offer for offer in found if not offer["quarantined"]]
    assert found[: len(usable)] == usable
    prices = [float(offer["usd_per_hour"]) for offer in usable]
    assert prices == sorted(prices)
    assert all(offer["reason"] for offer in found[len(usable) :])


def test_the_ledger_is_exported_and_balances(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "ledger.csv"
    assert quick("ledger", "export", "-o", str(out), "--data", str(data)).returncode == 0
    assert out.read_text().startswith("seq,")
    shown = quick("ledger", "show", "--data", str(data))
    assert shown.returncode == 0
    assert "the books balance" in shown.stdout


def test_the_ledger_of_a_batch_is_that_of_its_machines_and_names_its_share(data: Path, tmp_path: Path) -> None:
    code, document = submit(data, prompts(tmp_path, "one", "two"))
    assert code == 0
    batch_id = document["batch"]["id"]
    books = json.loads(quick("ledger", "show", "--batch", batch_id, "--data", str(data), "--json").stdout)
    kinds = {entry["kind"] for entry in books["entries"]}
    assert "hold.open" in kinds
    assert {entry["rental"] for entry in books["entries"]} == set(books["shares"]) != set()
    shown = quick("ledger", "show", "--batch", batch_id, "--data", str(data))
    assert f"is the share of {batch_id}" in shown.stdout


def test_a_server_elsewhere_is_named_by_the_environment(data: Path, tmp_path: Path) -> None:
    live = owner(data)
    assert live is not None
    where = {"BROKER_URL": str(live.url), "BROKER_API_KEY": str(live.key), "BROKER_DATA": str(tmp_path / "unused")}
    assert json.loads(broker("models", "--json", env=where).stdout)["data"]
    assert not (tmp_path / "unused").exists(), "no broker is started beside it"
    refused = broker("models", env=where | {"BROKER_API_KEY": "brk_wrong"})
    assert refused.returncode == 1
    assert refused.stderr.startswith("broker: the broker refused")


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["submit", "none.jsonl"], 2, "no such file"),
        (["submit", __file__, "--within", "soon"], 2, "--within 'soon'"),
        (["submit", __file__, "--max-usd", "much"], 2, "--max-usd 'much'"),
        (["submit", __file__, "--deadline", "2026-11-22T10:00"], 2, "say which zone"),
        (["submit", __file__, "--tag", "team"], 2, "KEY=VALUE"),
        (["results", "batch_1", "--json"], 2, "-o FILE"),
        (["status"], 2, "Missing argument"),
        (["offers", "--url", "http://127.0.0.1:9", "--data", "x"], 2, "name two brokers"),
        (["serve", "--config", "none.toml"], 2, "no such file"),
    ],
)
def test_usage_errors_are_exit_code_2_and_say_what_is_wrong(
    tmp_path: Path, arguments: list[str], code: int, says: str
) -> None:
    done = quick(*arguments, env={"BROKER_DATA": str(tmp_path)})
    assert (done.returncode, done.stdout) == (code, "")
    assert says in done.stderr
    assert not (tmp_path / "broker.log").exists(), "nothing is started for a command that makes no sense"


def test_a_granted_budget_is_shown_with_what_is_held(data: Path) -> None:
    """In a project of its own: a budget would stop the other tests' batches."""
    address = owner(data)
    assert address is not None
    key = new_key(data, "finance", "funded", "finance")
    where = {"BROKER_URL": str(address.url), "BROKER_API_KEY": key, "BROKER_DATA": str(data)}
    granted = json.loads(quick("budget", "grant", "funded", "12.50", "--json", env=where).stdout)
    assert (granted["project"], granted["remaining_usd"], granted["held_usd"]) == ("funded", "12.5", "0")
    shown = quick("budget", "show", env=where).stdout.splitlines()
    assert shown == [
        "project\tremaining\theld\tof it stale\texpired this month",
        "funded\t$12.50\t$0.00\t$0.00\t$0.00",
    ]
    refused = quick("budget", "grant", "default", "1", env=where)
    assert refused.returncode == 1
    assert "project_not_found" in refused.stderr
