"""Validation of input files: every bad line is found, said where and how to mend; good ones become shards."""

from __future__ import annotations

import gzip
import hashlib
import json
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.types import Limits
from tests.support.input_files import LIMITS, check, line, raw


async def test_a_good_file_is_cut_into_shards_that_cover_it() -> None:
    lines = [line(n) + b"\n" for n in range(10)]
    content = b"".join(lines)
    verdict = await check(content)
    assert (verdict.findings, verdict.lines, verdict.model) == ((), 10, "tiny")
    assert [(shard.index, shard.first_idx, shard.lines) for shard in verdict.shards] == [
        (0, 0, 4),
        (1, 4, 4),
        (2, 8, 2),
    ]
    for shard in verdict.shards:
        piece = content[shard.start : shard.stop]
        assert piece == b"".join(lines[shard.first_idx : shard.first_idx + shard.lines])
        assert hashlib.sha256(piece).hexdigest() == shard.sha256
    assert sum(shard.output_tokens for shard in verdict.shards) == verdict.output_tokens == 1_000


async def test_a_shard_is_full_at_its_bytes_and_a_longer_line_is_a_shard_of_its_own() -> None:
    long = line(1, body={"user": "x" * 500})
    verdict = await check(b"\n".join([line(0), long, line(2), line(3)]), shard_bytes=300)
    assert [shard.lines for shard in verdict.shards] == [1, 1, 2]


TOLERATED = [
    (line() + b"\n", 0, None),  # the plain case
    (line(), 0, None),  # no newline at the end
    (line() + b"\r\n", 0, None),  # written on Windows
    (b"\xef\xbb\xbf" + line() + b"\n", 3, None),  # Notepad's byte order mark: no shard contains it
    (line() + b"\n\n \n\t\r\n", 0, len(line()) + 1),  # blank lines at the end: editors add them
    (line(body={"stream": False, "n": 16, "max_tokens": 131_072}) + b"\n", 0, None),  # the bounds themselves
    (line(custom_id="ü" * 32) + b"\n", 0, None),  # 32 characters, 64 bytes
    (raw(rb'"user": "\ud83d\ude00"') + b"\n", 0, None),  # both halves of a character, escaped
    (raw(rb'"user": "\u0000"') + b"\n", 0, None),  # an escaped NUL is JSON
    (raw(b'"user": "' + b"[" * 50 + b'"') + b"\n", 0, None),  # brackets in a string are not nesting
    (raw('"user": "\u2028\x85"'.encode()) + b"\n", 0, None),  # line ends for Python's splitlines, not for JSONL
    (raw(b'"seed": 123456789012345678901234567890') + b"\n", 0, None),  # the engine will say what it thinks of it
    (line(priority="high") + b"\n", 0, None),  # OpenAI ignores fields it does not know
]


@pytest.mark.parametrize(("content", "start", "stop"), TOLERATED)
@pytest.mark.parametrize("size", [1, 3, 10_000])
async def test_what_is_harmless_is_tolerated(content: bytes, start: int, stop: int | None, size: int) -> None:
    verdict = await check(content, size=size)
    assert verdict.findings == ()
    (shard,) = verdict.shards
    assert (shard.start, shard.stop) == (start, len(content) if stop is None else stop)


REFUSED = [
    # the file
    (b"", "empty_file", None, None),
    (b"\n\n", "empty_file", None, None),
    (b"\xef\xbb\xbf", "empty_file", None, None),  # nothing but a byte order mark
    (gzip.compress(line()), "compressed_file", None, None),  # never decompressed: 300 kB may be 300 MB
    (b"\x28\xb5\x2f\xfd....", "compressed_file", None, None),
    (b"PK\x03\x04......", "compressed_file", None, None),
    (line().decode().encode("utf-16"), "invalid_encoding", None, None),
    (b"[\n" + line(0) + b",\n" + line(1) + b"\n]\n", "array_file", None, None),  # one finding, not one a line
    (b"[" + line(0) + b", " + line(1) + b"]", "array_file", None, None),
    (b"\n \n[" + line(0) + b"]", "array_file", None, None),
    (b"[" + b",".join(line(n) for n in range(40)), "array_file", None, None),
    (json.dumps(json.loads(line()), indent=2).encode(), "invalid_json_line", None, None),  # pretty-printed
    # JSON
    (b"not json", "invalid_json_line", 1, None),
    (b"[1]", "invalid_json_line", 1, None),  # JSON, not an object
    (b"null", "invalid_json_line", 1, None),
    (line() + b"}", "invalid_json_line", 1, None),
    (line()[:-1], "invalid_json_line", 1, None),  # cut off
    (line(0) + b"\n\n" + line(1), "invalid_json_line", 2, None),  # a blank line in the middle
    (line().replace(b"hi", b"h\0i"), "invalid_json_line", 1, None),
    (line().replace(b"hi", b"h\x01i"), "invalid_json_line", 1, None),  # control characters must be escaped
    (line().replace(b"hi", b"h\xffi"), "invalid_json_line", 1, None),  # Latin-1
    (line().replace(b"hi", b"\xed\xa0\x80"), "invalid_json_line", 1, None),  # a surrogate as UTF-8 (CESU)
    (line().replace(b", ", b",\r", 1), "invalid_json_line", 1, None),  # old Mac line ends would join lines
    (raw(rb'"user": "\ud800"'), "invalid_json_line", 1, None),  # half a character
    (raw(b'"temperature": NaN'), "invalid_json_line", 1, None),
    (raw(b'"temperature": -Infinity'), "invalid_json_line", 1, None),
    (raw(b'"temperature": 1e999'), "invalid_json_line", 1, None),  # infinity by another name
    (raw(b'"seed": 01'), "invalid_json_line", 1, None),  # octal in some languages
    (raw(b'"model": "other"'), "invalid_json_line", 1, None),  # the same key twice: which one did they mean?
    (raw(b'"x": {"a": 1, "a": 2}'), "invalid_json_line", 1, None),  # … at any depth
    (raw(b'"x": ' + b"[" * 9 + b"]" * 9), "invalid_json_line", 1, None),
    (raw(b'"x": ' + b"[" * 400), "invalid_json_line", 1, None),  # found without recursing into it
    (line(body={"user": "x" * 2_000}), "line_too_long", 1, None),
    # the request
    (line(drop="custom_id"), "missing_required_parameter", 1, "custom_id"),
    (line(custom_id=7), "invalid_parameter", 1, "custom_id"),
    (line(custom_id=""), "invalid_parameter", 1, "custom_id"),
    (line(custom_id="x" * 33), "invalid_custom_id", 1, "custom_id"),
    (line(custom_id="a\0b"), "invalid_custom_id", 1, "custom_id"),
    (line(0) + b"\n" + line(0), "duplicate_custom_id", 2, "custom_id"),
    (line(drop="method"), "missing_required_parameter", 1, "method"),
    (line(method="GET"), "invalid_method", 1, "method"),
    (line(drop="url"), "missing_required_parameter", 1, "url"),
    (line(url="/v1/moderations"), "invalid_url", 1, "url"),
    (line(url="https://evil.example/v1/chat/completions"), "invalid_url", 1, "url"),
    (line(url=["/v1/chat/completions"]), "invalid_url", 1, "url"),
    (line(0) + b"\n" + line(1, url="/v1/completions", body={"prompt": "p"}), "invalid_url", 2, "url"),
    (line(drop="body"), "missing_required_parameter", 1, "body"),
    (line(body=None).replace(b'"body": {', b'"body": "x", "rest": {'), "invalid_parameter", 1, "body"),
    (line(body={"model": ""}), "invalid_parameter", 1, "body.model"),
    (line(body={"model": 3}), "invalid_parameter", 1, "body.model"),
    (line(0) + b"\n" + line(1, body={"model": "big"}), "mismatched_model", 2, "body.model"),
    (line(body={"messages": []}), "invalid_parameter", 1, "body.messages"),
    (line(body={"messages": "hi"}), "invalid_parameter", 1, "body.messages"),
    (line(body={"messages": ["hi"]}), "invalid_parameter", 1, "body.messages"),
    (line(url="/v1/completions", drop="body.prompt"), "missing_required_parameter", 1, "body.prompt"),
    (line(url="/v1/completions", body={"prompt": [{"prompt_string": "hi"}]}), "invalid_parameter", 1, "body.prompt"),
    (line(url="/v1/completions", body={"prompt": ["a", 1]}), "invalid_parameter", 1, "body.prompt"),
    (line(url="/v1/responses", body={"input": ["hi"]}), "invalid_parameter", 1, "body.input"),
    (line(url="/v1/embeddings", body={"input": ""}), "invalid_parameter", 1, "body.input"),
    (line(body={"stream": True}), "invalid_parameter", 1, "body.stream"),
    (line(body={"n": 0}), "invalid_parameter", 1, "body.n"),
    (line(body={"n": 17}), "invalid_parameter", 1, "body.n"),  # the engine would allow 16384 copies
    (line(body={"n": True}), "invalid_parameter", 1, "body.n"),  # true is an int in Python
    (line(body={"max_tokens": 131_073}), "invalid_parameter", 1, "body.max_tokens"),
    (line(body={"max_completion_tokens": -1}), "invalid_parameter", 1, "body.max_completion_tokens"),
    (line(body={"max_tokens": "8"}), "invalid_parameter", 1, "body.max_tokens"),
    (line(body={"best_of": 17}, url="/v1/completions"), "invalid_parameter", 1, "body.best_of"),
]


@pytest.mark.parametrize(("content", "code", "at", "param"), REFUSED)
@pytest.mark.parametrize("size", [1, 10_000])
async def test_what_is_wrong_is_named_with_its_line(
    content: bytes, code: str, at: int | None, param: str | None, size: int
) -> None:
    verdict = await check(content, size=size)
    assert [(found.code, found.line, found.param) for found in verdict.findings] == [(code, at, param)]
    assert verdict.shards == ()


async def test_a_number_of_thousands_of_digits_is_a_finding_not_a_crash() -> None:
    verdict = await check(raw(b'"seed": ' + b"9" * 5_000), limits=Limits())
    assert [found.code for found in verdict.findings] == ["invalid_json_line"]


async def test_of_a_line_for_another_endpoint_its_url_is_told_and_not_what_that_endpoint_would_say() -> None:
    verdict = await check(line(0).replace(b"chat/completions", b"embeddings"), endpoint="/v1/chat/completions")
    assert [(found.code, found.param) for found in verdict.findings] == [("invalid_url", "url")]
    assert "the batch's endpoint is /v1/chat/completions" in verdict.findings[0].message


async def test_every_problem_of_every_line_is_found() -> None:
    bad = line(1, drop="custom_id", method="PUT", body={"stream": True})
    verdict = await check(b"\n".join([line(0), bad, b"{", line(3), line(0)]))
    assert [(found.line, found.code) for found in verdict.findings] == [
        (2, "missing_required_parameter"),
        (2, "invalid_method"),
        (2, "invalid_parameter"),
        (3, "invalid_json_line"),
        (5, "duplicate_custom_id"),
    ]
    assert verdict.findings[-1].message == 'custom_id "id-0" was already used on line 1; make each custom_id unique'


HEAVY = [
    b"[" * 40 + b'"' + rb"\"" * 400_000 + b"[" * 40,  # a string that never ends, with a quote wherever one might begin
    b'{"custom_id": "' + rb"\"" * 400_000,
    b'{"a": "' + b"\\" * 900_000 + b'": 1}',
    b'{"a"' + b" " * 900_000 + b": 1}",
    b'{"a": "' + b":" * 900_000 + b'"}',
    b'{"a":' * 150_000,
]


@pytest.mark.parametrize("content", HEAVY)
async def test_a_line_made_to_be_slow_is_read_in_no_time(content: bytes) -> None:
    """Read in the square of its length, any of these would take hours: the runner's own limit fails the test."""
    verdict = await check(content, limits=Limits(), size=1 << 20)
    assert verdict.findings_total > 0


async def test_a_line_of_unknown_keys_is_not_a_finding_each() -> None:
    verdict = await check(line(body={f"k{n}": n for n in range(60)}), limits=Limits())
    assert (verdict.findings_total, verdict.findings[0].code) == (20, "unsupported_parameter")


async def test_findings_beyond_the_limit_are_counted() -> None:
    verdict = await check(b"x\n" * 15, limits=msgspec.structs.replace(LIMITS, max_findings=4))
    assert (len(verdict.findings), verdict.findings_total) == (4, 15)


async def test_a_limit_is_named_when_it_is_passed() -> None:
    many = await check(b"\n".join(line(n) for n in range(21)))
    assert [(found.code, "max_lines" in found.message) for found in many.findings] == [("too_many_lines", True)]
    large = await check(
        b"\n".join(line(n) for n in range(5)), limits=msgspec.structs.replace(LIMITS, max_file_bytes=500)
    )
    assert [(found.code, "max_file_bytes" in found.message) for found in large.findings] == [("file_too_large", True)]


async def test_a_full_file_with_a_blank_last_line_is_within_its_limit() -> None:
    assert (await check(b"\n".join(line(n) for n in range(20)) + b"\n\n")).findings == ()


async def test_a_file_of_newlines_ends_early() -> None:
    verdict = await check(b"\n" * 10_000, size=10_000)
    assert [found.code for found in verdict.findings] == ["too_many_lines"]


async def test_lines_after_one_that_is_too_long_are_still_checked() -> None:
    content = line(0) + b"\n" + b"x" * 5_000 + b"\n" + line(1, method="GET") + b"\n"
    verdict = await check(content)
    assert [(found.line, found.code) for found in verdict.findings] == [(2, "line_too_long"), (3, "invalid_method")]


async def test_the_batch_s_endpoint_binds_every_line() -> None:
    verdict = await check(line(), endpoint="/v1/completions")
    assert [(found.code, found.line) for found in verdict.findings] == [("invalid_url", 1)]
    assert "batch's endpoint" in verdict.findings[0].message


TOKENS = [
    ({"max_tokens": 10}, 1 + 4, 10),  # "user" + "hi" are 6 characters: 2 tokens; 4 for the message
    ({"max_tokens": 10, "n": 3}, 5, 30),  # three answers
    ({"max_tokens": 10, "max_completion_tokens": 7}, 5, 7),  # the newer name wins
    ({}, 5, 100),  # the default
    ({"messages": [{"role": "user", "content": "x" * 400}]}, 101 + 4, 100),
]


@pytest.mark.parametrize(("body", "input_tokens", "output_tokens"), TOKENS)
async def test_tokens_are_estimated(body: dict[str, Any], input_tokens: int, output_tokens: int) -> None:
    verdict = await check(line(body=body))
    assert abs(verdict.input_tokens - input_tokens) <= 1
    assert verdict.output_tokens == output_tokens


@settings(max_examples=60, deadline=None, database=None)
@given(
    count=st.integers(1, 12),
    ending=st.sampled_from([b"\n", b"\r\n"]),
    last=st.booleans(),
    bom=st.booleans(),
    text=st.text(max_size=20),
    size=st.integers(1, 300),
    shard_lines=st.integers(1, 5),
)
async def test_shards_partition_the_lines_however_the_file_arrives(
    *, count: int, ending: bytes, last: bool, bom: bool, text: str, size: int, shard_lines: int
) -> None:
    """The concatenated shards are the file (without its byte order mark), whatever the chunks and line ends."""
    body = ending.join(line(n, body={"user": text}) for n in range(count)) + (ending if last else b"")
    content = (b"\xef\xbb\xbf" if bom else b"") + body
    verdict = await check(content, size=size, shard_lines=shard_lines)
    assert verdict.findings == ()
    assert b"".join(content[shard.start : shard.stop] for shard in verdict.shards) == body
    assert [shard.first_idx for shard in verdict.shards] == list(range(0, count, shard_lines))
    assert sum(shard.lines for shard in verdict.shards) == verdict.lines == count


@settings(max_examples=150, deadline=None, database=None)
@given(content=st.binary(max_size=60), size=st.integers(1, 60))
async def test_no_bytes_crash_the_validator(content: bytes, size: int) -> None:
    """Any bytes give a verdict, and none of these is a good file."""
    assert (await check(content, size=size)).findings_total > 0
