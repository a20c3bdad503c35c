"""Garbage: only what no row needs, and that no transaction can come to need, is called unneeded."""

from __future__ import annotations

from typing import Any

import pytest

from jobs import files, garbage
from jobs.keys import name_of, part_key, view_key
from jobs.tables import AnswerRow
from tests.support.object_stores import keys_of

CRASHED = "acme/files/file-01M8F2WAHQJXA4ZM4WDYHMVAXZ"


async def unneeded(room: Any) -> set[str]:
    keys = sorted(await keys_of(room.store))
    async with room.database.transaction() as session:
        return set(await garbage.unneeded(session, keys))


async def delete(room: Any, *file_ids: str | None) -> None:
    async with room.database.transaction() as session:
        for file_id in file_ids:
            if file_id is not None:
                await files.delete(session, "acme", file_id)


async def ended_batch(room: Any) -> tuple[str, str]:
    """A batch of three lines that has ended, and the key of a part of it that was never committed."""
    batch_id = await room.batch(3)
    lease = await room.lease(batch_id)
    orphan = part_key("acme", batch_id, lease.shard_id, epoch=lease.epoch, seq=77, sha256="0" * 64)
    await room.store.put(orphan, b"uploaded, and its worker was killed")
    await room.commit(lease, [0, 1, 2])
    await room.finalise(batch_id)
    return batch_id, orphan


async def test_nothing_of_an_open_batch_is_garbage_not_even_a_part_without_a_row(room: Any) -> None:
    """Its worker may commit it at this very moment."""
    batch_id = await room.batch(3)
    lease = await room.lease(batch_id)
    await room.part(lease, [0])
    await room.commit(lease, [1])
    await room.store.put(view_key("acme", batch_id, "output", "input", "0" * 64), b"")
    assert await unneeded(room) == set()


async def test_a_part_without_a_row_is_garbage_once_its_batch_has_ended(room: Any) -> None:
    _, orphan = await ended_batch(room)
    assert await unneeded(room) == {orphan}


async def test_parts_serve_the_results_and_go_with_them(room: Any) -> None:
    batch_id, orphan = await ended_batch(room)
    batch = await room.get(batch_id)
    await delete(room, batch.output_file_id, batch.error_file_id)
    left = await unneeded(room)
    assert {name.kind for key in left if (name := name_of(key))} == {"parts", "results"}
    assert orphan in left
    assert len(left) == 3, "the committed part, the other one, and the output whose deletion a crash cut off"


async def test_a_remembered_answer_keeps_its_part(room: Any) -> None:
    batch_id, orphan = await ended_batch(room)
    [committed] = [key for key in await keys_of(room.store) if "/parts/" in key and key != orphan]
    async with room.database.transaction() as session:
        session.add(
            AnswerRow(
                project="acme", request_sha256="r", batch_id=batch_id, part_key=committed, part_sha256="0", idx=0,
                prompt_tokens=1, completion_tokens=1, created_us=1,
            )
        )  # fmt: skip
    batch = await room.get(batch_id)
    await delete(room, batch.output_file_id, batch.error_file_id)
    assert committed not in await unneeded(room)


async def test_an_input_goes_when_it_is_deleted_or_never_got_its_row(room: Any) -> None:
    kept, deleted = await room.upload(b"{}\n"), await room.upload(b"{}\n")
    await delete(room, deleted.id)
    await room.store.put(CRASHED, b"")
    assert await unneeded(room) == {deleted.object_key, CRASHED}
    assert kept.object_key in await keys_of(room.store)


@pytest.mark.parametrize(
    "key",
    [
        "somebody/else.txt",
        ".incoming/01M8",
        "acme/batch_of_another_broker/parts/s/0-0-0.jsonl.gz",
        "acme/batch_of_another_broker/results/output-0.jsonl",
        "acme/uploads/upload_unknown/part",
    ],
)
async def test_what_we_do_not_know_is_not_ours_to_judge(room: Any, key: str) -> None:
    await room.store.put(key, b"")
    assert await unneeded(room) == set()
