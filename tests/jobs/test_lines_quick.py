"""The quick way accepts exactly what the slow way accepts, and understands the same; the slow way alone words findings."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from jobs import request_keys, request_line
from jobs.line_keys import Layout
from jobs.lines import Validator
from jobs.quick_line import QuickReader
from jobs.request_line import Request, Terms
from jobs.types import Limits, Validation
from tests.support.input_files import check, line, raw

CHAT = "/v1/chat/completions"
TERMS = Terms(limits=Limits(max_depth=8, max_custom_id_chars=32), default_output_tokens=100, reuse=True)


def quickly(row: bytes) -> Request | None:
    return QuickReader(TERMS).read(row, Layout(row, 0, len(row)).keys(0, len(row)))


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


PLAIN = json.loads(line())
chats = st.builds(
    lambda user, extras: PLAIN["body"] | {"messages": [{"role": "user", "content": user}]} | extras,
    st.text(max_size=20) | st.sampled_from(["", ":)", '":', "}\n{", "s" * 2_000]),
    st.dictionaries(
        st.sampled_from(["max_tokens", "n", "seed", "stop", "tools", "metadata", "stream", "x"]), json_values
    )
    | st.just({}),
)
odd_rows = st.sampled_from([b"", b" ", b"{}{}", b"{", b"}", b'{"a":', b"1}", b"\xff", b"}{"]) | st.binary(max_size=9)


@settings(max_examples=150, deadline=None, database=None)
@given(
    rows=st.lists(st.tuples(chats, st.none() | odd_rows, st.sampled_from(["", "", "", "before", "after", "alone"]))),
    ends_with_newline=st.booleans(),
)
@example(rows=[({}, b"{}{}", "alone"), ({}, b"", "alone")], ends_with_newline=True)
@example(rows=[(PLAIN["body"], b"\r", "after")] * 3, ends_with_newline=False)
def test_lines_that_are_read_together_are_read_as_if_each_stood_alone(
    rows: list[tuple[dict[str, Any], bytes | None, str]], *, ends_with_newline: bool
) -> None:
    """The same lines are refused, and the good ones come to the same tokens, whatever stands beside them."""
    texts = [line(0)]
    for number, (body, odd, where) in enumerate(rows, 1):
        good = json.dumps(PLAIN | {"custom_id": f"n{number}", "body": body}).encode()
        put = (odd or b"").replace(b"\n", b"")
        texts.append({"before": put + good, "after": good + put, "alone": put}.get(where, good))
    texts.append(line(len(texts)))
    alone = [slowly(row) for row in texts]
    verdict = read_together(b"\n".join(texts) + b"\n" * ends_with_newline)
    assert {found.line for found in verdict.findings} == {at for at, one in enumerate(alone, 1) if one is None}
    if all(alone):
        good_ones = [one for one in alone if one is not None]
        assert verdict.input_tokens == sum(one.input_tokens for one in good_ones)
        assert verdict.output_tokens == sum(one.output_tokens for one in good_ones)
        assert verdict.repeatable is not None
        assert verdict.repeatable.digests == b"".join(one.digest or b"" for one in good_ones)


def read_together(content: bytes) -> Validation:
    validator = Validator(TERMS, shard_lines=3, shard_bytes=10_000)
    validator.feed(content)
    return validator.finish()


def test_the_same_name_is_found_within_lines_that_are_read_together_and_across_them() -> None:
    rows = [
        line(0),
        *(line(number) for number in range(1, 400)),
        line(7),
        *(line(n) for n in range(400, 800)),
        line(798),
    ]
    verdict = read_together(b"\n".join(rows))
    assert [(found.line, found.code) for found in verdict.findings] == [
        (401, "duplicate_custom_id"),
        (802, "duplicate_custom_id"),
    ]
    assert "line 8;" in verdict.findings[0].message and "line 800;" in verdict.findings[1].message


@pytest.mark.parametrize(
    "bad",
    [
        [line(5) + line(6), b""],  # two objects on two lines, but not one on each
        [line(5) + b" " + line(6), b" "],
        [line(5)[:-1], b"}" + line(6)],
        [b"", line(5) + line(6)],
        [line(5).replace(b", ", b",\n", 1), line(6) + line(7), b""],
    ],
)
def test_objects_are_not_mistaken_for_lines(bad: list[bytes]) -> None:
    verdict = read_together(b"\n".join([line(number) for number in range(100, 300)] + bad + [line(8)]))
    bad_lines = b"\n".join(bad).count(b"\n") + 1
    assert {found.line for found in verdict.findings} <= {*range(201, 201 + bad_lines)}
    assert verdict.findings and verdict.lines == 201 + bad_lines


def test_tools_that_every_line_repeats_are_judged_on_every_line() -> None:
    good = {"tools": [{"type": "function", "function": {"name": "f"}}]}
    bad = {"tools": [{"type": "mcp", "server_url": "http://x"}]}
    rows = [line(number, body=bad if number in (5, 300) else good) for number in range(400)]
    assert [found.line for found in read_together(b"\n".join(rows)).findings] == [6, 301]


@settings(max_examples=200, deadline=None, database=None)
@given(rows=st.lists(st.binary(max_size=40).map(lambda row: row.replace(b"\n", b"")), min_size=1, max_size=5))
@example(rows=[b'":'])
@example(rows=[b'\\":', b'"', b":"])
@example(rows=[b" " * 99 + b":", b'"' + b"\\" * 99 + b'":'])
def test_no_key_that_is_written_is_missed(rows: list[bytes]) -> None:
    """Of every line that is JSON, at least its keys are counted; bytes that are not do no harm."""
    text = b"\n".join(rows)
    layout = Layout(text, 0, len(text))
    begins = [0, *(end + 1 for end in layout.ends)]
    for row, begin, end in zip(text.split(b"\n"), begins, layout.ends, strict=False):
        count = layout.keys(begin, end)
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
    count = Layout(row.encode(), 0, len(row.encode())).keys(0, len(row.encode()))
    assert count >= sum(written) and (not twice or sum(written) > sum(kept))
