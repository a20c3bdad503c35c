"""What an engine's answer means for a line."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest

from tests.support.fake_broker import schema_errors
from workers.agent.answers import Again, Fault, Finished, Misconfigured, Usage, dead_letter, judge, seconds_until
from workers.agent.lines import Line


def line(**changes: Any) -> Line:
    return Line(**({"idx": 3, "custom_id": 'c"3', "body": b'{"prompt": "abcdefgh"}', "max_tokens": 8} | changes))


def record_of(finished: object) -> dict[str, Any]:
    assert isinstance(finished, Finished), finished
    record: dict[str, Any] = json.loads(finished.record)
    assert finished.record.count(b"\n") == 1, "a record is one line"
    assert schema_errors("part.line", record) == []
    return record


@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [
        (200, b'{"choices": []}', "completed"),
        (400, b'{"error": {}}', "failed"),  # the line's own fault, for good
        (413, b"too large", "failed"),  # no JSON, but no doubt either
        (422, b"{}", "failed"),
        (404, b"{}", "failed"),  # the model or route that the line asks for is not there
        (501, b"{}", "failed"),  # not built into this engine
        (429, b"", Again),  # busy: not run
        (503, b"", Again),  # loading, overloaded
        (425, b"", Again),
        (500, b"{}", Fault),
        (502, b"<html>", Fault),
        (504, b"", Fault),
        (408, b"", Fault),
        (200, b"", Fault),  # an answer that says nothing
        (200, b"[1]", Fault),
        (200, b'{"a": NaN}', Fault),  # not JSON: it would make the output unreadable
        (200, b'{"a": "\xff"}', Fault),
        (200, b'{"a":' * 100_000, Fault),  # bottomless nesting
        (302, b"", Fault),
        (401, b"", Misconfigured),  # our key, not the line
        (403, b"", Misconfigured),
    ],
)
def test_answers_are_sorted(status: int, body: bytes, expected: object) -> None:
    verdict = judge(line(), status, body, None)
    assert (verdict.status if isinstance(verdict, Finished) else type(verdict)) == expected


def test_the_engines_answer_is_kept_to_the_byte() -> None:
    body = b' {"choices": [{"text": "\xc3\xa9"}], "n": 1.50} '
    finished = judge(line(), 200, body, "req-9")
    record = record_of(finished)
    assert isinstance(finished, Finished)
    assert body.strip() in finished.record
    assert record["line"]["custom_id"] == 'c"3'
    assert record["line"]["response"]["request_id"] == "req-9"
    assert (record["idx"], record["line"]["error"]) == (3, None)


def test_an_answer_over_several_lines_becomes_one() -> None:
    record = record_of(judge(line(), 200, b'{\n "choices": [],\r\n "x": "a\\nb"\n}', None))
    assert record["line"]["response"]["body"] == {"choices": [], "x": "a\nb"}
    assert record["line"]["response"]["request_id"].startswith("req_")


def test_a_refusal_that_is_not_json_is_kept_as_text() -> None:
    record = record_of(judge(line(), 413, b"too \xff large\n", None))
    assert record["status"] == "failed"
    assert record["line"]["response"]["body"].startswith("too ")


@pytest.mark.parametrize(
    ("answer", "usage"),
    [
        (
            {"usage": {"prompt_tokens": 5, "completion_tokens": 7, "prompt_tokens_details": {"cached_tokens": 4}}},
            Usage(5, 7, 4),
        ),
        (
            {"usage": {"input_tokens": 5, "output_tokens": 7, "input_tokens_details": {"cached_tokens": 1}}},
            Usage(5, 7, 1),
        ),
        # vLLM and OpenAI say in the details what was thought before the answer, SGLang beside the counts
        (
            {
                "usage": {
                    "prompt_tokens": 5,
                    "completion_tokens": 7,
                    "completion_tokens_details": {"reasoning_tokens": 6},
                }
            },
            Usage(5, 7, 0, reasoning_tokens=6),
        ),
        (
            {"usage": {"input_tokens": 5, "output_tokens": 7, "output_tokens_details": {"reasoning_tokens": 2}}},
            Usage(5, 7, 0, reasoning_tokens=2),
        ),
        (
            {
                "usage": {
                    "prompt_tokens": 5,
                    "completion_tokens": 7,
                    "reasoning_tokens": 9,
                    "completion_tokens_details": None,
                }
            },
            Usage(5, 7, 0, reasoning_tokens=7),  # never more than was written
        ),
        ({"usage": {"prompt_tokens": 5, "total_tokens": 5}}, Usage(5, 0, 0)),  # embeddings
        ({"usage": {"prompt_tokens": 5, "prompt_tokens_details": None}}, Usage(5, 0, 0)),
        # more cached than there was cannot be
        ({"usage": {"prompt_tokens": 5, "prompt_tokens_details": {"cached_tokens": 9}}}, Usage(5, 0, 5)),
        # no usage, or none that counts: characters / 4, rounded up, and marked
        ({"choices": [{"message": {"content": "12345"}}]}, Usage(6, 2, 0, estimated=True)),
        ({"usage": {"prompt_tokens": -1}, "choices": [{"text": "1234"}]}, Usage(6, 1, 0, estimated=True)),
        ({"usage": None, "output": [{"content": [{"text": "12345678"}]}]}, Usage(6, 2, 0, estimated=True)),
    ],
)
def test_tokens_are_the_engines_or_a_marked_estimate(answer: dict[str, Any], usage: Usage) -> None:
    finished = judge(line(), 200, json.dumps(answer).encode(), None)
    assert isinstance(finished, Finished)
    assert finished.usage == usage


def test_a_dead_letter_says_what_happened_last() -> None:
    record = record_of(dead_letter(line(attempts=3, last_fault=("timeout", "no answer within 5 s"))))
    assert record["line"]["error"]["code"] == "timeout"
    assert "3 attempts" in record["line"]["error"]["message"]
    assert record["line"]["response"] is None


def test_an_engines_wish_to_be_left_alone_is_heard() -> None:
    assert judge(line(), 429, b"", None, 7.0) == Again("the engine answered 429: ", 7.0)


def test_an_endpoint_that_repeats_the_refused_key_does_not_show_it_to_anyone() -> None:
    verdict = judge(line(), 401, b'{"error": "wrong key sk-of-the-house"}', None, is_endpoint=True)
    assert verdict == Misconfigured("the engine answered 401")


@pytest.mark.parametrize(
    ("told", "seconds"),
    [
        ("30", 30.0),
        ("Sat, 28 Nov 2026 08:01:30 GMT", 90.0),
        ("Sat, 28 Nov 2026 07:00:00 GMT", 0.0),
        ("Sat, 28 Nov 2026 08:01:30 +9999", None),
        ("Sat, 28 Nov 2026 08:01:30 +99999999999999999999", None),  # OverflowError ended the executor
        ("soon", None),
    ],
)
def test_what_retry_after_asks_for_is_read_or_counts_as_nothing(told: str, seconds: float | None) -> None:
    assert seconds_until(told, datetime(2026, 11, 28, 8, 0, tzinfo=UTC)) == seconds
