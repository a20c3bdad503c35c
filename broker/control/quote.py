"""A dry run: what a batch would cost, where it would run and when it would end; nothing is created or held."""

from __future__ import annotations

from decimal import Decimal

import msgspec
from sqlalchemy.ext.asyncio import AsyncSession
from ulid import ULID

from broker.api import shapes
from broker.control.explain import explain
from broker.control.intake import model_findings, validate_file
from broker.control.snapshot import SECOND_US, TYPICAL_OUTPUT_PERCENT, freeze, max_nano, work_of
from broker.services import Services
from broker.tables import Project, Quote
from jobs import files
from jobs.batches import Remaining
from jobs.clock import db_now
from jobs.errors import BadBatch
from jobs.tables import Batch
from jobs.types import Validation
from jobs.window import expires_us
from ledger.money import to_nano
from solver.residency import INTERNAL, Policy, compile_countries, digest
from solver.types import Work

# How long the prices behind a quote may be taken for today's.
QUOTE_TTL_S = 900


async def quote(
    services: Services,
    *,
    project: str,
    file_id: str,
    endpoint: str | None,
    window: str,
    wishes: shapes.BatchWishes | None,
) -> shapes.Quote:
    """Plan the file as if it were a batch created now, beside all that is queued.

    Raises JobsError subclasses for a bad file, window or line (the first finding in the message), UnknownCountry for a
    bad residency list.
    """
    async with services.database.transaction() as session:
        file = await files.get(session, project, file_id)
        policy = await policy_for(session, project, wishes)
        now_us = await db_now(session)
    found = await validate_file(services, file.object_key, endpoint)
    findings = [*found.findings, *model_findings(services, found)]
    if findings or found.model is None or found.endpoint is None:
        first = findings[0] if findings else None
        where = f"line {first.line}: " if first and first.line else ""
        raise BadBatch(
            f"{where}{first.message if first else 'no model'} ({len(findings)} findings in all)", param="input_file_id"
        )
    asked = wishes or shapes.BatchWishes()
    work = Work(
        id="quote",
        project=project,
        model=found.model,
        precision=services.models[found.model].precision,
        endpoint=found.endpoint,
        lines=found.lines,
        input_tokens=found.input_tokens,
        output_tokens_p50=-(-found.output_tokens * TYPICAL_OUTPUT_PERCENT // 100),
        output_tokens_p90=found.output_tokens,
        deadline_us=expires_us(now_us, window, None if asked.deadline is None else asked.deadline * SECOND_US),
        max_nano=max_nano(asked.max_usd),
        priority=asked.priority,
        policy_hash=digest(policy),
    )
    explanation = await dry_run(services, work, {work.policy_hash: policy})
    answer = shapes.Quote(
        **explanation.model_dump(),
        id=f"quote_{ULID()}",
        model=found.model,
        endpoint=found.endpoint,
        expires_at=now_us // SECOND_US + QUOTE_TTL_S,
    )
    async with services.database.transaction() as session:
        session.add(quote_row(answer.id, project, None, explanation, now_us))
    return answer


async def quote_batch(services: Services, batch: Batch, found: Validation) -> shapes.Explanation:
    """The same for a batch that was just validated and has no shards yet."""
    left = Remaining(lines=found.lines, input_tokens=found.input_tokens, output_tokens=found.output_tokens)
    work = work_of(batch, left, precision=services.models[found.model or ""].precision, spent_nano=0)
    return await dry_run(services, msgspec.structs.replace(work, model=found.model or ""), {})


async def dry_run(services: Services, work: Work, policies: dict[str, Policy]) -> shapes.Explanation:
    """The plan for `work` beside everything that is queued and runs, told as an explanation."""
    async with services.database.transaction() as session:
        frozen = await freeze(session, services, now_us=await db_now(session), extra=[work], extra_policies=policies)
    plan = await services.solver.solve(frozen.snapshot)
    return explain(work.id, frozen.snapshot, plan, plan_id=None, planned_us=frozen.snapshot.now_us)


async def policy_for(session: AsyncSession, project: str, wishes: shapes.BatchWishes | None) -> Policy:
    """The batch's own countries, else the project's policy, else class `internal`. Raises UnknownCountry."""
    if wishes and wishes.residency:
        return compile_countries(wishes.residency)
    row = await session.get(Project, project)
    if row is not None and row.policy is not None:
        return msgspec.convert(row.policy, Policy)
    return INTERNAL


def quote_row(quote_id: str, project: str, batch_id: str | None, explanation: shapes.Explanation, now_us: int) -> Quote:
    """What was promised, for comparison with what became of it."""
    return Quote(
        id=quote_id,
        project=project,
        batch=batch_id,
        created_us=now_us,
        cost_nano=None if explanation.usd is None else to_nano(Decimal(explanation.usd)),
        end_us=None if explanation.end is None else explanation.end * SECOND_US,
        body=explanation.model_dump(mode="json"),
    )
