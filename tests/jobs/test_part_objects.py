"""Reading parts back: a worker's answers are held against the input; the broker's own may be about unreadable lines."""

from __future__ import annotations

import gzip
import hashlib
import json
from typing import Any

import msgspec
import pytest

from jobs.final_plan import OWN_PLACEMENT, FinalPart, FinalShard
from jobs.objects import ObjectStore
from jobs.part_objects import AskedIds, Damaged, custom_ids, read_part

# valid; broken JSON; bad UTF-8; blank; custom_id is no text; with \r\n; without a newline at the end
INPUT = (
    b'{"custom_id": "a"}\n{"custom_id": "b\n{"custom_id": "\xff"}\n\n'
    b'{"custom_id": 7}\n{"custom_id": "f"}\r\n{"custom_id": "g"}'
)
SHARD = FinalShard(
    id="s",
    number=0,
    first_idx=10,
    lines=7,
    start=0,
    stop=len(INPUT),
    sha256=hashlib.sha256(INPUT).hexdigest(),
    done=(),
    failed=0,
)


@pytest.fixture
async def store(tmp_path: Any) -> ObjectStore:
    store = ObjectStore.local(tmp_path / "objects")
    await store.put("in", INPUT)
    return store


async def test_a_line_that_cannot_be_read_has_no_custom_id_and_the_others_keep_theirs(store: ObjectStore) -> None:
    found = await custom_ids(store, "in", SHARD)
    assert found == {10: "a", 11: None, 12: None, 13: None, 14: None, 15: "f", 16: "g"}


async def test_a_line_that_is_too_long_to_be_a_request_does_not_shift_the_others(
    store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jobs.part_objects.MAX_INPUT_LINE_BYTES", 1 << 20)
    content = b'{"custom_id": "a"}\n' + b"x" * (5 << 20) + b'\n{"custom_id": "c"}\n'
    await store.put("long", content)
    sha256 = hashlib.sha256(content).hexdigest()
    shard = msgspec.structs.replace(SHARD, lines=3, stop=len(content), sha256=sha256)
    assert await custom_ids(store, "long", shard) == {10: "a", 11: None, 12: "c"}


async def asked(store: ObjectStore) -> AskedIds:
    return AskedIds.of(SHARD.first_idx, await custom_ids(store, "in", SHARD))


async def part(store: ObjectStore, placement: str, idx: int, custom_id: str | None) -> FinalPart:
    error = {"code": "invalid_json_line", "message": "not valid JSON", "line": idx + 1}
    line = {"idx": idx, "status": "failed", "line": {"custom_id": custom_id, "response": None, "error": error}}
    content = gzip.compress(json.dumps(line).encode())
    stored = await store.put(f"part-{placement}-{idx}", content)
    return FinalPart(
        shard_number=0,
        shard_id="s",
        epoch=0,
        seq=0,
        placement_id=placement,
        key=stored.key,
        size=stored.size,
        sha256=stored.sha256,
        lines=((idx, idx + 1),),
        failed=((idx, idx + 1),),
    )


@pytest.mark.parametrize(("idx", "custom_id"), [(11, None), (11, "b"), (10, "a"), (10, None)])
async def test_the_broker_may_answer_a_line_whose_custom_id_it_or_we_cannot_read(
    store: ObjectStore, idx: int, custom_id: str | None
) -> None:
    (line,) = await read_part(store, await part(store, OWN_PLACEMENT, idx, custom_id), await asked(store))
    assert (line.line.custom_id, line.line.error and line.line.error.line) == (custom_id, idx + 1)


@pytest.mark.parametrize(
    ("placement", "idx", "custom_id"),
    [
        ("rental_1", 11, None),  # a worker is never given such a line, so it cannot have answered it
        ("rental_1", 10, None),
        ("rental_1", 11, "b"),
        (OWN_PLACEMENT, 10, "f"),  # another line's: also the broker may not mix up lines
    ],
)
async def test_any_other_custom_id_than_the_inputs_is_damage(
    store: ObjectStore, placement: str, idx: int, custom_id: str | None
) -> None:
    with pytest.raises(Damaged, match="another custom_id"):
        await read_part(store, await part(store, placement, idx, custom_id), await asked(store))
