"""What a batch's lines cost by machine, by model, or by the value of a tag. The rows always sum to the batch's cost.

`placement` and `model` are reserved words. `tag:NAME` is the tag NAME whatever it is called; any other word is a tag, too.
"""

from __future__ import annotations

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from broker.costs import batch_costs
from broker.tag_costs import UNTAGGED, ValueCost, costs_by_tag
from jobs.tables import Batch, Part

TAG = "tag:"


async def grouped_costs(session: AsyncSession, batch: Batch, by: str) -> list[ValueCost]:
    """One entry a value, by value. `-` are lines that have none: without the tag, without an answer, or not validated."""
    match by:
        case "placement":
            return await _by_placement(session, batch)
        case "model":
            return await _by_model(session, batch)
    return await costs_by_tag(session, batch, by.removeprefix(TAG))


async def _by_placement(session: AsyncSession, batch: Batch) -> list[ValueCost]:
    """Each rental with the lines that it answered and its share of the cost, which it may have without any; `broker` are
    lines that needed no engine, `-` those without an answer."""
    counted = (
        select(
            col(Part.placement_id),
            func.sum(col(Part.completed)),
            func.sum(col(Part.failed)),
            func.sum(col(Part.prompt_tokens)),
            func.sum(col(Part.completion_tokens)),
        )
        .where(col(Part.batch_id) == batch.id, col(Part.counted).is_(True))
        .group_by(col(Part.placement_id))
    )
    found: dict[str, ValueCost] = {}
    for rental, completed, failed, prompt, completion in (await session.execute(counted)).all():
        done, refused = int(completed), int(failed)
        found[rental] = ValueCost(rental, done + refused, done, refused, int(prompt), int(completion))
    for rental, (_, nano) in (await batch_costs(session, [batch.id]))[batch.id].by_rental.items():
        found.setdefault(rental, ValueCost(rental)).nano += nano
    if without := batch.total - sum(row.lines for row in found.values()):
        found[UNTAGGED] = ValueCost(UNTAGGED, without)
    return sorted(found.values(), key=lambda each: each.value)


async def _by_model(session: AsyncSession, batch: Batch) -> list[ValueCost]:
    """One row: a batch has one model, the profile that serves it (of several that were asked for, the chosen one)."""
    cost = (await batch_costs(session, [batch.id]))[batch.id]
    if batch.total == 0 and cost.nano == 0:
        return []
    row = ValueCost(
        batch.model or UNTAGGED,
        lines=batch.total,
        completed=batch.completed,
        failed=batch.failed,
        input_tokens=batch.used_input_tokens,
        output_tokens=batch.used_output_tokens,
        nano=cost.nano,
    )
    return [row]
