"""Prompts counted by the model's own tokenizer where it is at hand, and by what an engine has read since."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from broker.control.snapshot import work_of
from broker.token_sample import counter_of, measured
from jobs.batches import Remaining
from jobs.tables import Batch
from workers.profile import ModelProfile

CHAT = "/v1/chat/completions"


def of_letters(folder: Path) -> str:
    """A tokenizer that makes a token of each letter: four times what characters / 4 says."""
    letters = {chr(code): code for code in range(32, 127)}
    tokenizer = Tokenizer(models.WordLevel(letters, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.save(str(folder / "tokenizer.json"))
    return str(folder)


def lines(*texts: str) -> bytes:
    bodies = [{"messages": [{"role": "user", "content": text}]} for text in texts]
    return b"".join(json.dumps({"custom_id": str(n), "body": body}).encode() + b"\n" for n, body in enumerate(bodies))


def test_the_tokenizer_of_the_weights_counts_and_a_line_that_is_cut_off_does_not(tmp_path: Path) -> None:
    count = counter_of(ModelProfile(id="m", engine="vllm", weights=of_letters(tmp_path)))
    assert count is not None
    found = measured([lines("x" * 400) + b'{"custom_id": "1", "body": {"mess'], CHAT, count)
    # `user` and the 400 letters, and four tokens for the message's frame
    assert found is not None
    assert (found.lines, found.estimated, found.counted) == (1, 105, 408)
    assert found.of(1_050) == 4_080


@pytest.mark.parametrize("weights", [None, "some/name-on-the-hub", "/nowhere/at/all"])
def test_without_a_tokenizer_the_estimate_stands(weights: str | None) -> None:
    assert counter_of(ModelProfile(id="m", engine="vllm", weights=weights)) is None


def test_a_tokenizer_that_cannot_be_read_is_none(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text('{"model": 5}')
    assert counter_of(ModelProfile(id="m", engine="vllm", weights=str(tmp_path))) is None


def batch(**fields: Any) -> Batch:
    known = {"id": "b", "project": "p", "endpoint": CHAT, "policy_hash": "h", "expires_us": 1, "priority": 0}
    counts = {"total": 100, "completed": 0, "failed": 0, "invalid": 0, "reused": 0, "input_tokens": 10_000}
    return Batch(**known, **(counts | {"used_input_tokens": 0, "used_output_tokens": 0} | fields))


@pytest.mark.parametrize(
    ("done", "used", "expected"),
    [
        (0, 0, 10_000),  # nothing read yet
        (10, 5_000, 9_000),  # too few lines to believe
        (50, 10_000, 10_000),  # twice what was estimated for half of them
        (50, 5_000_000, 40_000),  # eight times is the most that is believed
    ],
)
def test_the_estimate_of_the_rest_follows_what_was_read(done: int, used: int, expected: int) -> None:
    left = Remaining(lines=100 - done, input_tokens=100 * (100 - done), output_tokens=0)
    work = work_of(batch(completed=done, used_input_tokens=used), left, precision="auto", spent_nano=0)
    assert work.input_tokens == expected
