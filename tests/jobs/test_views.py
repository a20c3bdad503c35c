"""Results so far: a view shows one state of the batch, whatever happens while it is composed, and is cleared away."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from copy import copy
from typing import Any

import msgspec
import pytest

from jobs import batches, views
from jobs.composer import Composer
from jobs.errors import BadTransition, ObjectCorrupt
from jobs.final_plan import FinalPlan, load_plan
from jobs.objects import ObjectStore, Stored
from jobs.part_rows import PartRows


async def view(room: Any, batch_id: str, kind: str = "output", order: str = "input") -> list[str]:
    """The custom_ids of a view that is composed now."""
    made = await views.compose_view(room.store, room.database.transaction, batch_id, kind, order)
    return (
        [json.loads(line)["custom_id"] for line in (await room.store.get(made.key)).splitlines()] if made.lines else []
    )


async def kept(room: Any, batch_id: str) -> list[str]:
    return [key async for key in room.store.keys(f"acme/{batch_id}/views")]


async def plan_so_far(room: Any, batch_id: str, order: str) -> FinalPlan:
    async with room.database.transaction() as session:
        batch = await batches.get(session, "acme", batch_id)
        return await load_plan(session, batch, ending=None, line_order=order)


async def composed(room: Any, plan: FinalPlan) -> list[str]:
    composer = Composer(room.store, plan, PartRows(room.database.transaction, plan))
    content = b"".join([chunk async for chunk in composer.output()])
    return [json.loads(line)["custom_id"] for line in content.splitlines()]


@pytest.mark.parametrize("order", ["input", "completion"])
async def test_what_is_committed_while_a_view_is_composed_is_not_in_it(room: Any, order: str) -> None:
    batch_id = await room.batch(6)
    lease = await room.lease(batch_id)
    await room.commit(lease, [0])
    plan = await plan_so_far(room, batch_id, order)
    await room.commit(lease, [1, 2])
    await room.commit(await room.lease(batch_id), [3])
    assert await composed(room, plan) == ["id-0"]


@pytest.mark.parametrize("order", ["input", "completion"])
async def test_a_part_that_is_withdrawn_while_a_view_is_composed_spoils_it(room: Any, order: str) -> None:
    batch_id = await room.batch(3)
    asked = await room.part(await room.lease(batch_id), [0, 1, 2])
    await room.send(asked)
    plan = await plan_so_far(room, batch_id, order)
    await room.store.delete(asked.key)
    await room.finish(batch_id, await room.compose(batch_id))
    with pytest.raises(BadTransition, match="changed while it was composed"):
        await composed(room, plan)


async def test_a_damaged_part_of_a_running_batch_is_left_out_of_its_view(room: Any) -> None:
    batch_id = await room.batch(6)
    first = await room.part(await room.lease(batch_id), [0, 1])
    await room.send(first)
    await room.commit(await room.lease(batch_id), [3, 4])
    await room.store.delete(first.key)
    assert await view(room, batch_id) == ["id-3", "id-4"]


async def test_a_damaged_part_of_an_ended_batch_is_an_error(room: Any) -> None:
    batch_id = await room.batch(3)
    asked = await room.part(await room.lease(batch_id), [0, 1, 2])
    await room.send(asked)
    await room.finalise(batch_id)
    await room.store.delete(asked.key)
    with pytest.raises(ObjectCorrupt, match="missing"):
        await view(room, batch_id, order="completion")


async def test_an_ended_batch_is_composed_anew_without_its_input(room: Any) -> None:
    """Undone lines included: their names were kept when it ended."""
    batch_id = await room.batch(6, shard_lines=4)
    await room.commit(await room.lease(batch_id), [2, 0], failed=[2])
    await room.cancel(batch_id)
    room.clock(61)
    await room.advance()
    await room.finalise(batch_id)
    await room.store.delete((await room.get(batch_id)).input_key)
    assert await view(room, batch_id, order="completion") == ["id-0"]
    assert await view(room, batch_id, "errors", "completion") == ["id-2", "id-1", "id-3", "id-4", "id-5"]


async def test_more_shards_at_a_time_than_are_remembered_are_verified_all_the_same(
    room: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jobs.composer.REMEMBERED_SHARDS", 2)
    batch_id = await room.batch(10, shard_lines=2, line_order="completion")
    held = [await room.lease(batch_id) for _ in range(5)]
    for offset in (1, 0):
        for lease in held:
            await room.commit(lease, [lease.first_idx + offset])
    batch = await room.finalise(batch_id)
    found = [line["custom_id"] for line in await room.read(batch.output_file_id)]
    assert found == [f"id-{n}" for n in (1, 3, 5, 7, 9, 0, 2, 4, 6, 8)]


class Interrupted(ObjectStore):
    """A store in which something happens just before a view is written."""

    meanwhile: Callable[[], Awaitable[object]]

    async def put_same(self, key: str, chunks: Any) -> Stored:
        await self.meanwhile()
        return await super().put_same(key, chunks)


async def test_a_view_that_is_written_just_when_its_batch_ends_is_removed(room: Any) -> None:
    batch_id = await room.batch(3)
    lease = await room.lease(batch_id)
    await room.commit(lease, [0])
    store = copy(room.store)
    store.__class__ = Interrupted

    async def end() -> None:
        await room.commit(lease, [1, 2])
        await room.finalise(batch_id)
        await views.drop_views(room.store, "acme", batch_id)

    store.meanwhile = end
    await views.compose_view(store, room.database.transaction, batch_id, "output", "input")
    assert await kept(room, batch_id) == []


async def test_a_view_s_name_changes_with_the_lines_of_its_kind_alone(room: Any) -> None:
    batch_id = await room.batch(3)
    lease = await room.lease(batch_id)
    await room.commit(lease, [0])
    before = await room.get(batch_id)
    await room.commit(lease, [1], failed=[1])
    after = await room.get(batch_id)
    assert views.view_of(before, "output", "input") == views.view_of(after, "output", "input")
    assert views.view_of(before, "errors", "input") != views.view_of(after, "errors", "input")


async def test_a_plan_does_not_grow_with_its_parts(room: Any) -> None:
    """A million lines in small parts must not need the memory of all their rows."""
    few, many = await room.batch(12, shard_lines=12), await room.batch(12, shard_lines=12)
    await room.answer_all(few)
    lease = await room.lease(many)
    for line in range(12):
        await room.commit(lease, [line])
    sizes = [len(msgspec.json.encode(await room.plan(each))) for each in (few, many)]
    assert sizes[0] == sizes[1]
