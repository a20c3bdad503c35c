"""Request lines: what is sent is what was written."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.fake_broker import request_line
from workers.agent.lines import BadShard, object_members, read_shard, replace_model, with_limit

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


def rows(*lines: object) -> bytes:
    return b"".join(json.dumps(line).encode() + b"\n" for line in lines)


def test_a_body_is_sent_as_the_bytes_that_were_written() -> None:
    body = '{ "model":"m", "temperature": 1.500, "seed": 123456789012345678901234567890,\t"é": "\\u00e9" }'
    row = '{"custom_id": "a", "method": "POST", "body": ' + body + ', "url": "/v1/chat/completions"}\n'
    [line] = read_shard(row.encode(), first_idx=7, lines=1, served_model=None, skip=())
    assert line.body == body.encode()
    assert (line.idx, line.custom_id) == (7, "a")
    [renamed] = read_shard(row.encode(), first_idx=7, lines=1, served_model="other", skip=())
    assert renamed.body == body.replace('"m"', '"other"').encode()


@given(before=st.dictionaries(st.text(), json_values, max_size=5), model=st.text())
def test_only_the_model_changes(before: dict[str, object], model: str) -> None:
    """For every body: the same members in the same order, `model` replaced if it is there."""
    after = json.loads(replace_model(json.dumps(before), model))
    assert list(after) == list(before)
    assert after == {key: model if key == "model" else value for key, value in before.items()}


@given(
    body=st.dictionaries(st.text(), json_values, max_size=4),
    stated=st.dictionaries(st.sampled_from(["max_tokens", "max_completion_tokens"]), st.none() | st.integers(1, 9)),
    indent=st.sampled_from([None, 2]),
)
def test_a_limit_is_added_where_none_is_said_and_nothing_else_changes(
    body: dict[str, object], stated: dict[str, int | None], indent: int | None
) -> None:
    """Where tokens are bought an answer may be as long as was held for it. `null` says no limit."""
    body = {key: value for key, value in body.items() if not key.startswith("max_")} | stated
    sent = json.loads(with_limit(json.dumps(body, indent=indent), "max_tokens", 256))
    is_said = any(value is not None for value in stated.values())
    assert sent == (body if is_said else body | {"max_tokens": 256})


def test_lines_of_a_shard_are_sent_with_the_limit_that_was_held_for_them() -> None:
    content = rows(request_line("open", "x", max_tokens=None), request_line("said", "x", max_tokens=7))
    found = read_shard(content, first_idx=0, lines=2, served_model=None, skip=(), unstated=("max_tokens", 256))
    assert {line.custom_id: json.loads(line.body)["max_tokens"] for line in found} == {"open": 256, "said": 7}


@given(value=st.dictionaries(st.text(), json_values, max_size=6), indent=st.sampled_from([None, 0, 2]))
def test_members_are_found_where_they_stand(value: dict[str, object], indent: int | None) -> None:
    """Cutting each value out of the text and parsing it alone gives the object again, however it is laid out."""
    text = json.dumps(value, indent=indent)
    found = {member.key: json.loads(text[member.start : member.stop]) for member in object_members(text)}
    assert found == value


def test_the_longest_line_goes_first() -> None:
    content = rows(
        request_line("short", "x", max_tokens=1),
        request_line("long answer", "x", max_tokens=100),
        request_line("long prompt", "x" * 500, max_tokens=1),
        request_line("new style", "x", max_completion_tokens=50),
    )
    lines = read_shard(content, first_idx=0, lines=4, served_model=None, skip=())
    assert [line.custom_id for line in lines] == ["long answer", "new style", "long prompt", "short"]


def test_what_stands_beside_the_body_is_not_sent() -> None:
    tagged = request_line("a", "x") | {"x_broker": {"tags": {"agent": "planner"}}}
    [line] = read_shard(rows(tagged), first_idx=0, lines=1, served_model=None, skip=())
    assert b"planner" not in line.body


def test_done_lines_are_skipped_and_numbers_are_those_of_the_input_file() -> None:
    content = rows(*(request_line(f"c-{n}", "x") for n in range(5)))
    lines = read_shard(content, first_idx=100, lines=5, served_model=None, skip={101, 104})
    assert sorted(line.idx for line in lines) == [100, 102, 103]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (rows(request_line("a", "x")), "holds? 1 lines, the lease says 2"),
        (rows(request_line("a", "x")) + b"[]\n", "line 12 of the input is not a JSON object"),
        (rows(request_line("a", "x"), {"custom_id": "b"}), "line 12 of the input has no"),
        (rows(request_line("a", "x"), {"custom_id": 3, "body": {}}), "line 12 of the input has no"),
        (rows(request_line("a", "x")) + b'{"body": {} "x"}\n', "line 12 of the input is not a JSON object"),
        (rows(request_line("a", "x")) + b"[" * 200_000 + b"\n", "line 12 of the input"),
        (rows(request_line("a", "x")) + b'{"a":' * 200_000 + b"\n", "line 12 of the input"),
        (rows(request_line("a", "x")) + b"\xff\xfe\n", "line 12 of the input is not UTF-8"),
        (rows(request_line("a", "x")) + b"\n", "line 12 of the input is not a JSON object"),  # blank, yet to be done
        (rows(request_line("a", "x"), request_line("b", "x")) + b"\n", "hold 3 lines, the lease says 2"),
    ],
)
def test_a_shard_that_is_not_what_was_promised_is_refused(content: bytes, said: str) -> None:
    with pytest.raises(BadShard, match=said):
        read_shard(content, first_idx=10, lines=2, served_model=None, skip=())


GARBAGE = [b"", b" \t\r", b"\xff\xfe\x00", b"[" * 100_000, b'{"custom_id": 7}', b"\xe2\x80"]


@pytest.mark.parametrize("last", [b"", b"\n"])
@pytest.mark.parametrize("garbage", GARBAGE)
def test_a_line_that_is_skipped_may_be_anything(garbage: bytes, last: bytes) -> None:
    content = rows(request_line("a", "x")) + garbage + b"\n" + rows(request_line("b", "y")) + garbage + last
    if not garbage and not last:
        content += b"\n"  # a blank line is there only by its newline
    lines = read_shard(content, first_idx=10, lines=4, served_model=None, skip={11, 13})
    assert sorted((line.idx, line.custom_id) for line in lines) == [(10, "a"), (12, "b")]


def test_windows_line_ends_do_no_harm() -> None:
    content = rows(request_line("a", "x"), request_line("b", "y")).replace(b"\n", b"\r\n")
    assert len(read_shard(content, first_idx=0, lines=2, served_model=None, skip=())) == 2
