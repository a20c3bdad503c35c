"""The lines that a batch ended without answering, by name: kept when it ends, because its input may be deleted then.

Answered lines are named in their parts. For a shard with lines that expired or were cancelled, the finaliser writes one
small object: a JSON list of their custom_ids in the order of the lines, null where one could not be read.
"""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Sequence

import msgspec

from jobs import ranges
from jobs.errors import ObjectMissing
from jobs.final_plan import FinalPlan, FinalShard
from jobs.keys import undone_key
from jobs.objects import ObjectStore
from jobs.part_objects import custom_ids

_names = msgspec.json.Decoder(list[str | None])


async def keep(store: ObjectStore, plan: FinalPlan) -> None:
    """Write the names of all undone lines, from the input. Doing it again changes nothing.

    Raises ObjectMissing and ObjectCorrupt when the input is damaged, ObjectExists when another content has the name.
    """
    for shard in plan.shards:
        if not shard.undone:
            continue
        found = await custom_ids(store, plan.input_key, shard)
        content = msgspec.json.encode([found[idx] for idx in ranges.lines_of(shard.undone)])

        async def once(content: bytes = content) -> AsyncIterator[bytes]:
            yield content

        await store.put_same(_key(plan.project, plan.batch_id, shard), once)


async def names(
    store: ObjectStore, project: str, batch_id: str, input_key: str, shard: FinalShard
) -> dict[int, str | None]:
    """The custom_id of each undone line of a shard of a batch that has ended, or is about to.

    Batches that ended before names were kept are read from their input; when that is gone as well, nobody knows the
    names, and they are None. Raises ObjectCorrupt when the input is another one than was validated.
    """
    idxs = list(ranges.lines_of(shard.undone))
    try:
        return dict(zip(idxs, _names.decode(await store.get(_key(project, batch_id, shard))), strict=True))
    except ObjectMissing:
        return await _names_in_input(store, input_key, shard, idxs)


async def _names_in_input(
    store: ObjectStore, input_key: str, shard: FinalShard, idxs: Sequence[int]
) -> dict[int, str | None]:
    try:
        found = await custom_ids(store, input_key, shard)
    except ObjectMissing:
        return dict.fromkeys(idxs)
    return {idx: found[idx] for idx in idxs}


def _key(project: str, batch_id: str, shard: FinalShard) -> str:
    which = hashlib.sha256(f"{shard.sha256} {list(shard.undone)}".encode()).hexdigest()
    return undone_key(project, batch_id, shard.id, which)
