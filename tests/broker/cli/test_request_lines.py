"""What `submit` makes of a file before a broker sees it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from broker.cli.exits import USAGE, Failure
from broker.cli.request_lines import batch_input

LINE = {"custom_id": "a", "method": "POST", "url": "/v1/completions", "body": {"model": "m", "prompt": "Hi"}}


def made(file: Path, **options: Any) -> list[dict[str, Any]]:
    with batch_input(file, **({"model": None, "endpoint": None, "max_tokens": None} | options)) as given:
        return [json.loads(line) for line in given.file.read_text().splitlines()]


def test_a_batch_file_is_uploaded_as_it_is_with_the_endpoint_of_its_lines(tmp_path: Path) -> None:
    file = tmp_path / "batch.jsonl"
    file.write_text(json.dumps(LINE) + "\n")
    with batch_input(file, model=None, endpoint=None, max_tokens=None) as given:
        assert given.file == file
        assert given.endpoint == "/v1/completions"


def test_plain_prompts_become_requests_to_the_model(tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text('Why is the sky blue?\n\nSay "hé" twice.\n')
    first, second = made(file, model="m", max_tokens=9)
    assert first["custom_id"] == "line-1"
    assert second["custom_id"] == "line-3", "numbered as in the file, so that a person finds the line again"
    assert second["url"] == "/v1/chat/completions"
    assert second["body"] == {
        "model": "m",
        "messages": [{"role": "user", "content": 'Say "hé" twice.'}],
        "max_tokens": 9,
    }


def test_prompt_objects_keep_their_custom_id_and_suit_the_endpoint(tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"custom_id": "x", "prompt": "Hello"}\n')
    (request,) = made(file, model="m", endpoint="/v1/completions")
    assert (request["custom_id"], request["body"]) == ("x", {"model": "m", "prompt": "Hello"})


def test_model_replaces_the_model_of_a_batch_file_and_nothing_else(tmp_path: Path) -> None:
    file = tmp_path / "batch.jsonl"
    file.write_text(json.dumps(LINE) + "\n")
    (request,) = made(file, model="other")
    assert request == LINE | {"body": {"model": "other", "prompt": "Hi"}}


@pytest.mark.parametrize(
    ("text", "model", "says"),
    [
        ("just words\n", None, "--model"),  # no batch file, and nothing said what to make of it
        ('{"text": "x"}\n', "m", "line 1 has neither"),  # an object that holds no prompt would be sent as its own JSON
        ('"hi"\n{"prompt": 7}\n', "m", "line 2 has neither"),  # a prompt must be text
        (b"ok\n\xff\xfe\n", "m", "line 2 is not UTF-8"),  # bytes of another encoding would arrive as other words
    ],
)
def test_a_file_that_cannot_be_understood_is_refused_by_line(
    tmp_path: Path, text: str | bytes, model: str | None, says: str
) -> None:
    file = tmp_path / "in"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(Failure, match=says) as refused:
        made(file, model=model)
    assert refused.value.code == USAGE


def test_a_missing_file_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(Failure, match="no such file") as refused:
        made(tmp_path / "none.jsonl")
    assert refused.value.code == USAGE
