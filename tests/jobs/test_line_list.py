"""Looking for a line by its custom_id goes through the input once, a shard at a time."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from jobs.line_list import list_lines
from tests.jobs.conftest import Room


async def test_a_search_reads_each_shard_once_and_the_parts_of_the_one_where_the_line_is(
    room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch_id = await room.batch(9, shard_lines=3)
    await room.answer_all(batch_id)
    batch = await room.get(batch_id)
    read = list[tuple[str, int, int | None]]()
    stream = room.store.stream

    def streamed(key: str, start: int = 0, stop: int | None = None) -> AsyncIterator[bytes]:
        read.append((key, start, stop))
        return stream(key, start, stop)

    monkeypatch.setattr(room.store, "stream", streamed)
    found, has_more = await list_lines(room.store, room.database.transaction, batch, custom_id="id-4")
    assert ([(line.idx, line.custom_id, line.status) for line in found], has_more) == (
        [(4, "id-4", "completed")],
        False,
    )
    slices = [(start, stop) for key, start, stop in read if key == batch.input_key]
    assert len(set(slices)) == 3 and (0, None) not in slices, "a shard at a time"
    assert len(slices) == 4, "the shard where it is, once more for its page"
    assert len(read) - len(slices) == 1, "one part"
