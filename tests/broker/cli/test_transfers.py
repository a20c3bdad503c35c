"""Large files up and down, over connections that break."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from broker.cli.input_upload import PART_BYTES
from broker.owner import owner
from tests.support.command_line import broker, client, new_key, prompts, quick, submit
from tests.support.torn_proxy import torn_proxy

LINE_BYTES = 900_000


@pytest.fixture
def url(data: Path) -> str:
    live = owner(data)
    assert live is not None and live.url is not None
    return live.url


@pytest.fixture
def env(data: Path) -> dict[str, str]:
    live = owner(data)
    assert live is not None
    return {"BROKER_API_KEY": str(live.key)}


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A batch file of a little more than a part."""
    file = tmp_path_factory.mktemp("large") / "large.jsonl"
    with file.open("w") as out:
        for number in range(PART_BYTES // LINE_BYTES + 2):
            body: dict[str, Any] = {"model": "scripted", "max_tokens": 1}
            body["messages"] = [{"role": "user", "content": "x" * LINE_BYTES}]
            line = {"custom_id": str(number), "method": "POST", "url": "/v1/chat/completions", "body": body}
            out.write(json.dumps(line) + "\n")
    yield file
    file.unlink()


def test_a_file_larger_than_a_part_goes_up_in_parts_and_a_torn_connection_costs_one(
    data: Path, url: str, env: dict[str, str], large: Path
) -> None:
    with torn_proxy(url, [5_000_000, 3_000_000], upwards=True) as proxy:
        done = broker(
            "submit", str(large), "--url", proxy.url, "--detach", "--json", "--max-usd", "0.000000001", env=env
        )
    assert proxy.torn == 2, "the connections were torn"
    assert done.returncode == 0, done.stderr
    (batch,) = [json.loads(done.stdout)["batch"]]
    assert client(data).files.retrieve(batch["input_file_id"]).bytes == large.stat().st_size
    assert client(data).files.content(batch["input_file_id"]).read() == large.read_bytes()


def test_a_file_above_the_limit_of_one_request_goes_up_in_parts(data: Path, url: str, tmp_path: Path) -> None:
    key = new_key(data, "capped", "capped", "submitter")
    limited = quick("projects", "set", "capped", "--limit", "max_file_bytes=100000", "--data", str(data))
    assert limited.returncode == 0, limited.stderr
    file = prompts(tmp_path, *(f"question {number} " + "word " * 1000 for number in range(600)))
    env = {"BROKER_URL": url, "BROKER_API_KEY": key}
    done = broker("quote", file, "--model", "scripted", "--json", env=env)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["lines"] == 600


@pytest.fixture(scope="module")
def answered(data: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A batch whose answers are some hundred kB."""
    file = prompts(tmp_path_factory.mktemp("answered"), *(f"LONG {number} " + "word " * 400 for number in range(60)))
    code, document = submit(data, file)
    assert code == 0
    return str(document["batch"]["id"])


def test_a_torn_download_goes_on_where_it_broke(
    data: Path, url: str, env: dict[str, str], answered: str, tmp_path: Path
) -> None:
    whole = quick("results", answered, "--data", str(data)).stdout
    assert whole.count("\n") == 60
    out = tmp_path / "answers.jsonl"
    size = len(whole.encode())
    # the batch itself is asked for first, on the connection that is torn
    with torn_proxy(url, [size // 2, size // 3], upwards=False) as proxy:
        done = broker("results", answered, "-o", str(out), "--url", proxy.url, env=env)
    assert done.returncode == 0, done.stderr
    assert proxy.torn == 2, "the connections were torn"
    assert out.read_text() == whole
    assert [file.name for file in tmp_path.iterdir()] == ["answers.jsonl"], "nothing is left beside it"


def test_a_download_that_never_ends_leaves_no_half_file_and_is_taken_up_by_the_next_command(
    data: Path, url: str, env: dict[str, str], answered: str, tmp_path: Path
) -> None:
    whole = quick("results", answered, "--data", str(data)).stdout
    out = tmp_path / "answers.jsonl"
    cuts = [len(whole) // 2] + [0] * 20
    with torn_proxy(url, cuts, upwards=False) as proxy:
        gone = broker("results", answered, "-o", str(out), "--url", proxy.url, env=env)
    assert gone.returncode == 1
    assert "no answer" in gone.stderr or "broke off" in gone.stderr
    (half,) = tmp_path.iterdir()
    assert half.name.startswith(".answers.jsonl.") and half.name.endswith(".part")
    half.write_bytes(half.read_bytes()[:-1] + b"?")  # to see that its bytes are not fetched again
    assert quick("results", answered, "-o", str(out), "--data", str(data)).returncode == 0
    assert [file.name for file in tmp_path.iterdir()] == ["answers.jsonl"]
    assert sum(a != b for a, b in zip(out.read_text(), whole, strict=True)) == 1


def test_half_a_file_of_another_state_is_not_mixed_with_this_one(data: Path, answered: str, tmp_path: Path) -> None:
    out = tmp_path / "answers.jsonl"
    (tmp_path / f".answers.jsonl.{'0' * 64}.part").write_text("something else\n")
    assert quick("results", answered, "-o", str(out), "--data", str(data)).returncode == 0
    assert out.read_text() == quick("results", answered, "--data", str(data)).stdout
    assert [file.name for file in tmp_path.iterdir()] == ["answers.jsonl"]
