"""Costs by machine, by model, or by agent, task and whatever else lines are tagged with; and forgetting the tags."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

from sqlalchemy import select
from sqlmodel import col

from broker.api.batches import READERS
from broker.api.cost_shapes import (
    CostQuery,
    CostRow,
    Costs,
    ProjectCostQuery,
    TagsErased,
    TokenClasses,
    UnitCosts,
)
from broker.api.problems import bad_request
from broker.api.registry import Call, Route, route
from broker.control.convert import usd
from broker.grouped_costs import grouped_costs
from broker.tag_costs import ValueCost, joined
from broker.unit_economics import avoided_by, economics_of
from jobs import batches, tag_rows
from jobs.clock import MICROSECONDS
from jobs.tables import Batch

MOST_BATCHES = 1_000


async def batch_costs(call: Call, query: CostQuery) -> Costs:
    """What a batch's lines cost so far by the machine that answered them, by model, or by the value of a tag.

    A line's own tag counts before the batch's. The rows sum to the cost of the batch, to the last digit.
    """
    async with call.services.database.transaction() as session:
        batch = await batches.get(session, call.project, call.path("batch_id"))
        rows = await grouped_costs(session, batch, query.by)
    return _shape(query.by, rows, batch=batch.id, count=1)


async def batch_unit_costs(call: Call) -> UnitCosts:
    """What a million tokens, a request and a useful response of a batch did cost so far, and how busy its machines were."""
    async with call.services.database.transaction() as session:
        batch = await batches.get(session, call.project, call.path("batch_id"))
        found = await economics_of(session, batch)
        avoided = await avoided_by(session, batch.project)
    units = found.units

    def told(nano: int | None) -> str | None:
        return None if nano is None else usd(nano)

    return UnitCosts(
        batch=batch.id,
        usd=usd(found.nano),
        tokens=TokenClasses(**asdict(found.tokens)),
        requests=found.requests,
        useful=found.useful,
        usd_per_million_output_tokens=told(units.per_million_output),
        usd_per_million_tokens=told(units.per_million_total),
        usd_per_request=told(units.per_request),
        usd_per_useful_response=told(units.per_useful_response),
        usd_per_busy_hour=told(units.per_busy_hour),
        billed_seconds=found.billed_ms / 1000,
        busy_seconds=found.busy_ms / 1000,
        retried_seconds=found.retried_ms / 1000,
        saved_usd=usd(found.saved_nano),
        avoided_usd={name: usd(nano) for name, nano in sorted(avoided.items())},
    )


async def project_costs(call: Call, query: ProjectCostQuery) -> Costs:
    """What the project's batches of a time cost so far by machine, by model, or by the value of a tag."""
    wanted = select(Batch).where(
        col(Batch.project) == call.project, col(Batch.created_us) >= query.since * MICROSECONDS
    )
    if query.until is not None:
        wanted = wanted.where(col(Batch.created_us) < query.until * MICROSECONDS)
    async with call.services.database.transaction() as session:
        found = (await session.scalars(wanted.order_by(col(Batch.id)).limit(MOST_BATCHES + 1))).all()
    if len(found) > MOST_BATCHES:
        message = (
            f"More than {MOST_BATCHES} batches were created in this time; ask for a shorter one by since and until."
        )
        raise bad_request("too_many_batches", message, "since")
    parts = []
    for batch in found:  # a transaction each: many batches must not keep writers waiting
        async with call.services.database.transaction() as session:
            parts.append(await grouped_costs(session, batch, query.by))
    return _shape(query.by, joined(parts), batch=None, count=len(found))


async def erase_tags(call: Call) -> TagsErased:
    """Forget the tags of a batch and of its lines.

    Counts, tokens and cost stay; they are then shown as untagged. The uploaded file still says what was uploaded: delete it
    with `DELETE /v1/files/{file_id}`.
    """
    async with call.services.database.transaction() as session:
        batch = await batches.get(session, call.project, call.path("batch_id"))
        await tag_rows.erase(session, batch.id)
    return TagsErased(id=batch.id)


def _shape(by: str, rows: Sequence[ValueCost], *, batch: str | None, count: int) -> Costs:
    return Costs(
        by=by,
        batch=batch,
        batches=count,
        data=[
            CostRow(
                value=row.value,
                lines=row.lines,
                completed=row.completed,
                failed=row.failed,
                input_tokens=row.input_tokens,
                output_tokens=row.output_tokens,
                usd=usd(row.nano),
            )
            for row in rows
        ],
        usd=usd(sum(row.nano for row in rows)),
    )


ROUTES: tuple[Route, ...] = (
    route("GET", "/v1/batches/{batch_id}/costs", batch_costs, tag="costs", roles=READERS),
    route("GET", "/v1/batches/{batch_id}/unit-costs", batch_unit_costs, tag="costs", roles=READERS),
    route("GET", "/v1/costs", project_costs, tag="costs", roles=READERS),
    route("DELETE", "/v1/batches/{batch_id}/tags", erase_tags, tag="costs", roles=("submitter", "compliance"), errors=(422,)),
)  # fmt: skip
