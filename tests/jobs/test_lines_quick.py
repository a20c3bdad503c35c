"""The quick way accepts exactly what the slow way accepts, and understands the same; the slow way alone words findings."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from jobs import request_keys, request_line
from jobs.line_keys import line_ends, written_keys
from jobs.quick_line import QuickReader
from jobs.request_line import Request, Terms
from jobs.types import Limits
from tests.support.input_files import check, line, raw

CHAT = "/v1/chat/completions"
TERMS = Terms(limits=Limits(max_depth=8, max_custom_id_chars=32), default_output_tokens=100, reuse=True)


def quickly(row: bytes) -> Request | None:
    [keys] = written_keys(row, line_ends(row)) or [0]
    return QuickReader(TERMS).read(row, keys)


def slowly(row: bytes) -> Request | None:
    found = request_line.check(row.removesuffix(b"\r"), TERMS)
    return found if isinstance(found, Request) else None


def system(text: str) -> dict[str, Any]:
    return {"messages": [{"role": "system", "content": text}, {"role": "user", "content": 'hi\n"there": ü😀'}]}


GOOD = [
    line(),
    line() + b"\r",
    line(body={"n": 2, "max_tokens": 5, "stream": False, "temperature": 0}),
    line(body={"max_completion_tokens": None, "max_tokens": 5}),
    line(body={"max_completion_tokens": 7, "max_tokens": 5, "n": None}),
    line(body=system("s" * 2_000)),
    line(body=system("short")),
    line(body={"tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]}),
    line(body={"response_format": {"type": "json_schema", "json_schema": {"schema": {"a": [{"b": 1}]}}}}),
    line(body={"chat_template_kwargs": {"enable_thinking": False}, "logit_bias": {"5": -1}}),
    line(body={"messages": [{"role": "assistant", "content": None, "tool_calls": []}]}),
    line(body={"messages": [{"role": "user", "content": [{"type": "text", "text": "hi"}]}]}),
    line(url="/v1/completions", body={"prompt": ["a", "b"]}),
    line(url="/v1/embeddings"),
    line(url="/v1/responses", body={"instructions": "x" * 600}),
    line(x_broker={"tags": {"agent": "a"}}),
    line(priority="high"),
    line().replace(b'": ', b'" : '),  # white space before colons
    raw(b'"metadata": {"a"' + b" " * 40 + b': "far apart"}'),
    json.dumps(json.loads(line(body=system('quotes " and \\": colons \\\\": in it'))), ensure_ascii=False).encode(),
    raw(rb'"metadata": {"ends in \\": "1", "\\\\\"": "2"}'),
]


@pytest.mark.parametrize("row", GOOD)
def test_what_is_good_is_read_quickly_and_understood_alike(row: bytes) -> None:
    assert quickly(row) is not None
    assert quickly(row) == slowly(row)


DOUBTFUL = [
    (raw(b'"user": ":)"'), True),  # a string that begins with a colon might be a key: the slow way looks closer
    (raw(b'"user": "   : x"'), True),
    (raw(b'"user": "x' + b" " * 40 + b': x"'), True),  # too far to look back
    (raw(b'"seed": 1, "seed": 2'), False),
    (raw(b'"seed" : 1, "seed"\t: 2'), False),
    (raw(b'"metadata": {"a": "1", "a": "2"}'), False),
    (raw(rb'"metadata": {"\\": "1", "\\": "2"}'), False),
    (raw(rb'"metadata": {"a": "1", "\u0061": "2"}'), False),  # the same key, written differently
    (line().replace(b'"content"', b'"role": "user", "content"'), False),
    (line().replace(b'"custom_id"', b'"custom_id": "x", "custom_id"'), False),
    (line().replace(b'"body"', b'"body": {}, "body"'), False),
    (line().replace(b", ", b",\r", 1), False),  # a carriage return between tokens
    (line().replace(b", ", b",\r\r", 1), False),
    (line() + b"\r\r", False),
    (raw(b'"user": "\xff"'), False),
    (raw(b'"unknown": "\xff"'), False),  # in what the quick way skips
    (raw(b'"unknown": {"a": ":"}'), False),
    (raw(b'"metadata": ' + b'{"a":' * 7 + b"1" + b"}" * 7), False),  # too deep by one
    (raw(b'"temperature": 1e999'), False),
    (line(body={"n": 0}), False),
    (line(body={"n": True}), False),
    (line(body={"max_tokens": 10**9}), False),
    (line(body={"stream": True}), False),
    (line(body={"model": ""}), False),
    (line(body={"messages": []}), False),
    (line(custom_id=""), False),
    (line(custom_id="x" * 33), False),
    (line(custom_id="a\0"), False),
    (line(method="GET"), False),
    (line(url="/v1/x"), False),
    (line(body={"chat_template": "x"}), False),
    (line(body={"messages": [{"role": "user", "content": "x", "url": "http://x"}]}), False),
]


@pytest.mark.parametrize(("row", "is_good"), DOUBTFUL)
async def test_what_is_doubtful_is_left_to_the_slow_way(row: bytes, is_good: bool) -> None:
    assert quickly(row) is None
    assert (slowly(row) is not None) == is_good
    verdict = await check(line(1) + b"\n" + row, limits=TERMS.limits, size=10_000, shard_lines=9)
    assert (verdict.findings == ()) == is_good


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["data:,", ":", '":']),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4) | st.just("url"), inner, max_size=3)
    ),
    max_leaves=8,
)
bodies = st.dictionaries(
    st.sampled_from(sorted(request_keys.ALLOWED[CHAT])) | st.text(max_size=3), json_values, max_size=4
)
messages = st.lists(
    st.fixed_dictionaries({"role": st.just("user"), "content": st.text(max_size=20) | json_values})
    | st.dictionaries(st.sampled_from(["role", "content", "name", "url"]), st.text(max_size=5), max_size=3),
    max_size=3,
)


@settings(max_examples=300, deadline=None, database=None)
@given(
    body=bodies,
    given_messages=st.none() | messages,
    changes=st.dictionaries(
        st.sampled_from(["custom_id", "url", "method", "x_broker", "other"]), json_values, max_size=2
    ),
    ascii_only=st.booleans(),
    separators=st.sampled_from([(", ", ": "), (",", ":"), (" ,", " :"), (",\t", "\r: ")]),
    cut=st.none() | st.tuples(st.integers(0, 400), st.integers(0, 3), st.binary(max_size=2)),
)
@example(body={"seed": 1}, given_messages=None, changes={}, ascii_only=True, separators=(",", ":"), cut=None)
def test_the_quick_way_accepts_only_what_the_slow_way_accepts(
    *,
    body: dict[str, Any],
    given_messages: list[Any] | None,
    changes: dict[str, Any],
    ascii_only: bool,
    separators: tuple[str, str],
    cut: tuple[int, int, bytes] | None,
) -> None:
    """Whatever a line holds, however it is laid out, and wherever bytes of it are replaced: quick means the same."""
    body |= {} if given_messages is None else {"messages": given_messages}
    request = json.loads(line(body=body)) | changes
    row = json.dumps(request, ensure_ascii=ascii_only, separators=separators).encode("utf-8", "surrogatepass")
    if cut is not None:
        at, dropped, put = cut
        row = row[:at] + put.replace(b"\n", b"") + row[at + dropped :]
    quick = quickly(row)
    assert quick is None or quick == slowly(row)


@settings(max_examples=200, deadline=None, database=None)
@given(rows=st.lists(st.binary(max_size=40).map(lambda row: row.replace(b"\n", b"")), min_size=1, max_size=5))
@example(rows=[b'":'])
@example(rows=[b'\\":', b'"', b":"])
@example(rows=[b" " * 99 + b":", b'"' + b"\\" * 99 + b'":'])
def test_no_key_that_is_written_is_missed(rows: list[bytes]) -> None:
    """Of every line that is JSON, at least its keys are counted; bytes that are not do no harm."""
    text = b"\n".join(rows)
    ends = line_ends(text)
    counts = written_keys(text, ends)
    assert len(counts) == len(ends)
    for row, count in zip(text.split(b"\n"), counts, strict=False):
        try:
            pairs: list[int] = []
            json.loads(row, object_pairs_hook=lambda found, pairs=pairs: pairs.append(len(found)))
        except ValueError:
            continue
        assert count >= sum(pairs)


@settings(max_examples=200, deadline=None, database=None)
@given(value=json_values, twice=st.booleans())
def test_keys_of_json_are_counted_however_often_they_are_written(value: Any, twice: bool) -> None:
    """`{"k": value, "k": value}` writes its keys twice over; a count of the keys that a parser keeps is lower."""
    text = json.dumps(value)
    row = f'{{"k": {text}' + (f', "k": {text}}}' if twice else "}")
    kept: list[int] = []
    written: list[int] = []
    json.loads(row, object_pairs_hook=lambda found: (written.append(len(found)), kept.append(len(dict(found)))))
    [count] = written_keys(row.encode(), line_ends(row.encode()))
    assert count >= sum(written) and (not twice or sum(written) > sum(kept))
