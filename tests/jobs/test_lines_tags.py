"""Lines' own tags, and which lines may be answered from memory."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from tests.support.input_files import LIMITS, check, line


def tagged(n: int, **tags: Any) -> bytes:
    return line(n, x_broker={"tags": tags})


async def test_tags_are_ranges_of_lines() -> None:
    content = b"\n".join([tagged(0, agent="a"), tagged(1, agent="a", task="t"), line(2), tagged(3, agent="a")])
    assert (await check(content)).tags == {("agent", "a"): ((0, 2), (3, 4)), ("task", "t"): ((1, 2),)}


WRONG_TAGS = [
    ({"tags": {"a": 1}}, "x_broker.tags"),
    ({"tags": {"a": ""}}, "x_broker.tags"),
    ({"tags": {"": "v"}}, "x_broker.tags"),
    ({"tags": {"k" * 65: "v"}}, "x_broker.tags"),
    ({"tags": {"k": "v" * 257}}, "x_broker.tags"),
    ({"tags": {"k": "a\0b"}}, "x_broker.tags"),
    ({"tags": {str(n): "v" for n in range(9)}}, "x_broker.tags"),
    ({"tags": ["agent"]}, "x_broker.tags"),
    ({"tag": {"a": "b"}}, "x_broker.tag"),  # a slip of the pen must not lose the tags
    ([], "x_broker"),
    (None, "x_broker"),
]


@pytest.mark.parametrize(("x_broker", "param"), WRONG_TAGS)
async def test_wrong_tags_are_named(x_broker: object, param: str) -> None:
    verdict = await check(line(0) + b"\n" + line(1, x_broker=x_broker))
    assert [(found.code, found.line, found.param) for found in verdict.findings] == [("invalid_parameter", 2, param)]


async def test_the_longest_tags_are_allowed() -> None:
    tags = {f"{n}".rjust(64, "k"): "v" * 16 for n in range(8)}
    assert len((await check(tagged(0, **tags))).tags) == 8


async def test_a_file_has_a_bounded_number_of_different_tags() -> None:
    limits = msgspec.structs.replace(LIMITS, max_tag_values=3)
    content = b"\n".join(tagged(n, task=str(n)) for n in range(4))
    assert [(found.code, found.line) for found in (await check(content, limits=limits)).findings] == [
        ("too_many_tags", None)
    ]
    assert len((await check(content.rsplit(b"\n", 1)[0], limits=limits)).tags) == 3


async def test_the_same_request_written_differently_has_the_same_digest() -> None:
    zero: dict[str, Any] = {"temperature": 0, "seed": 1}
    reordered = json.dumps(
        {
            "body": {"seed": 1, "messages": [{"content": "hi", "role": "user"}], "temperature": 0, "model": "tiny"},
            "url": "/v1/chat/completions",
            "method": "POST",
            "custom_id": "other",
        },
        indent=None,
        separators=(" ,  ", ":"),
    ).encode()
    content = b"\n".join([line(0, body=zero), reordered, line(2), line(3, body=zero | {"seed": 2})])
    found = (await check(content, reuse=True)).repeatable
    assert found is not None
    assert list(found.idx) == [0, 1, 3]
    assert found.digest(0) == found.digest(1) != found.digest(2)


REPEATABLE = [
    ({"temperature": 0}, True),
    ({"temperature": 0.0}, True),
    ({"temperature": 0, "n": 1}, True),
    ({"temperature": 0, "n": 2}, False),  # several answers: which one is the answer?
    ({}, False),  # engines default to 1
    ({"temperature": None}, False),
    ({"temperature": False}, False),  # not a number, although equal to 0 in Python
    ({"temperature": 0.01}, False),
]


@pytest.mark.parametrize(("body", "is_repeatable"), REPEATABLE)
async def test_only_what_states_temperature_zero_is_repeatable(body: dict[str, Any], is_repeatable: bool) -> None:
    content = line(0) + b"\n" + line(1, body=body)
    found = (await check(content, reuse=True, skip_invalid=True)).repeatable
    assert found is not None
    assert list(found.idx) == [1] * is_repeatable


async def test_embeddings_are_repeatable_and_nothing_is_unless_asked() -> None:
    content = line(0, url="/v1/embeddings", body={"input": "x"})
    found = (await check(content, reuse=True)).repeatable
    assert found is not None and list(found.idx) == [0]
    assert (await check(content)).repeatable is None
