"""`skip_invalid`: bad lines keep their numbers and lie in shards, good ones run; what spoils the whole file still does."""

from __future__ import annotations

import hashlib

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.types import InvalidLine, Validation
from tests.support.input_files import LIMITS, check, line
from workers.agent.lines import read_shard

BAD = [
    (b"{", "invalid_json_line", None),
    (b"", "invalid_json_line", None),  # blank, with good lines after it
    (b"\xff\xfe\x00", "invalid_json_line", None),
    (line(1)[:-1], "invalid_json_line", "id-1"),  # cut off, but the name can be read
    (line(1, body={"n": 0}), "invalid_parameter", "id-1"),
    (line(1, custom_id="a\0b"), "invalid_custom_id", None),
    (line(0), "duplicate_custom_id", "id-0"),
    (line(1, body={"model": "big"}), "mismatched_model", "id-1"),
    (line(1, body={"user": "x" * 1_000}), "line_too_long", "id-1"),
    (line(1, body={"user": "x" * 1_500_000}), "line_too_long", "id-1"),  # too long to be held as a whole
]


@pytest.mark.parametrize(("bad", "code", "name"), BAD)
@pytest.mark.parametrize("size", [7, 3_000_000])
async def test_a_bad_line_is_no_finding_and_keeps_its_number(
    bad: bytes, code: str, name: str | None, size: int
) -> None:
    content = b"\n".join([line(0), bad, line(2)])
    limits = msgspec.structs.replace(LIMITS, max_file_bytes=2_000_000)
    verdict = await check(content, skip_invalid=True, size=max(size, len(content) // 40), limits=limits)
    assert (verdict.findings, verdict.lines) == ((), 3)
    [found] = verdict.invalid
    assert (found.idx, found.code, found.custom_id) == (1, code, name)
    assert_shards_hold(content, verdict)
    assert names_sent(content, verdict) == ["id-0", "id-2"]


def names_sent(content: bytes, verdict: Validation) -> list[str]:
    """The custom_ids that the agent reads out of the shards, when the bad lines are done."""
    bad = {found.idx for found in verdict.invalid}
    sent = []
    for shard in verdict.shards:
        piece = content[shard.start : shard.stop]
        read = read_shard(piece, first_idx=shard.first_idx, lines=shard.lines, served_model=None, skip=bad)
        sent += [one.custom_id for one in sorted(read, key=lambda one: one.idx)]
    return sent


def assert_shards_hold(content: bytes, verdict: Validation) -> None:
    assert b"".join(content[shard.start : shard.stop] for shard in verdict.shards) == content
    assert sum(shard.lines for shard in verdict.shards) == verdict.lines
    for shard in verdict.shards:
        assert hashlib.sha256(content[shard.start : shard.stop]).hexdigest() == shard.sha256


async def test_a_line_that_is_too_long_has_a_shard_of_its_own() -> None:
    content = b"\n".join([line(0), line(1, body={"user": "x" * 1_000}), line(2), line(3)])
    verdict = await check(content, skip_invalid=True)
    assert [shard.lines for shard in verdict.shards] == [1, 1, 2]


async def test_every_problem_of_a_bad_line_is_told() -> None:
    verdict = await check(line(0) + b"\n" + line(1, method="GET", body={"stream": True}), skip_invalid=True)
    [found] = verdict.invalid
    assert "method" in found.message and "stream" in found.message


async def test_a_bad_line_does_not_choose_the_model_of_the_others() -> None:
    elsewhere = line(0, url="/v1/embeddings", body={"model": "embedder"})
    verdict = await check(b"\n".join([elsewhere, line(1), line(2)]), skip_invalid=True, endpoint="/v1/chat/completions")
    assert [(found.idx, found.code) for found in verdict.invalid] == [(0, "invalid_url")]
    assert verdict.model == "tiny"


async def test_a_file_without_a_good_line_is_refused_and_says_why() -> None:
    verdict = await check(b"{\n[]\n", skip_invalid=True)
    assert [(found.code, found.line) for found in verdict.findings] == [("invalid_json_line", None)]
    verdict = await check(b"x\n[]\n", skip_invalid=True)
    assert [(found.code, found.line) for found in verdict.findings] == [
        ("no_valid_line", None),
        ("invalid_json_line", 1),
        ("invalid_json_line", 2),
    ]
    assert (verdict.invalid, verdict.shards) == ((), ())


async def test_too_many_bad_lines_are_one_finding() -> None:
    limits = msgspec.structs.replace(LIMITS, max_invalid=3)
    verdict = await check(line(0) + b"\nx" * 4, skip_invalid=True, limits=limits)
    assert [found.code for found in verdict.findings] == ["too_many_invalid_lines"]
    assert "max_invalid" in verdict.findings[0].message
    assert (await check(line(0) + b"\nx" * 3, skip_invalid=True, limits=limits)).findings == ()


async def test_what_spoils_the_whole_file_stays_a_finding() -> None:
    verdict = await check(b"\n".join(line(n) for n in range(21)), skip_invalid=True)
    assert [found.code for found in verdict.findings] == ["too_many_lines"]


rows = st.lists(
    st.one_of(
        st.binary(max_size=30).map(lambda junk: junk.replace(b"\n", b"")),
        st.sampled_from([b"", b" ", b"\r", b"x" * 1_100, line(0)]),
        st.integers(1, 500).map(line),
    ),
    min_size=1,
    max_size=10,
)


@settings(max_examples=150, deadline=None, database=None)
@given(rows=rows, size=st.integers(1, 400), last=st.sampled_from([b"", b"\n"]))
async def test_whatever_the_lines_are_the_agent_reads_the_good_ones(rows: list[bytes], size: int, last: bytes) -> None:
    """Shards tile the file up to its blank end; each line is good or bad; the agent finds exactly the good ones."""
    content = line(999) + b"\n" + b"\n".join(rows) + last
    verdict = await check(content, skip_invalid=True, size=size)
    assert verdict.findings == ()
    filled = len(content.rstrip(b" \t\r\n"))
    end = content.find(b"\n", filled) + 1 or len(content)
    assert_shards_hold(content[:end], verdict)
    assert len(names_sent(content, verdict)) == verdict.lines - len(verdict.invalid)


def test_an_invalid_line_is_small_on_the_wire() -> None:
    found = InvalidLine(idx=4, custom_id=None, code="c", message="m")
    assert msgspec.json.encode(found) == b'[4,null,"c","m"]'
