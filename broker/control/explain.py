"""What people are told about a plan: chosen, rejected and why, for a batch that runs or a dry run."""

from __future__ import annotations

import asyncio
from decimal import Decimal

import msgspec
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from broker.api import quote_shapes, shapes
from broker.approvals import approval_of
from broker.control.alternatives import as_quoted, compared
from broker.control.convert import usd
from broker.control.later import later_of
from broker.control.planned_offers import reasons_with_apart, with_apart
from broker.finance.policy_costs import month_of, of_period
from broker.tables import STOPPED, Assignment, PlanRow, Policy, Quote, Waiting
from jobs.clock import db_now
from jobs.tables import Batch
from solver.explain import usd as in_words
from solver.savings import Saving, savings
from solver.told import told
from solver.types import Assignment as PlannedShare
from solver.types import Choice, Later, Plan, Relaxation, Snapshot, Work
from solver.variants import as_run

SECOND_US = 1_000_000


async def explanation(session: AsyncSession, batch_id: str) -> quote_shapes.Explanation:
    """The newest plan's word on the batch, with the profiles that were quoted before it began. Before any plan mentions it,
    an explanation that says just that."""
    told = await _word(session, batch_id)
    first = select(Quote).where(col(Quote.batch) == batch_id).order_by(col(Quote.created_us)).limit(1)
    quote = await session.scalar(first)
    quoted = (
        [quote_shapes.VariantQuote.model_validate(each) for each in quote.body.get("variants", ())] if quote else []
    )
    variants = as_quoted(told.variants, quoted) or quoted
    return told.model_copy(update={"variants": variants, "policy_month": await _policy_month(session, batch_id)})


async def _policy_month(session: AsyncSession, batch_id: str) -> quote_shapes.PolicyMonth | None:
    batch = await session.get_one(Batch, batch_id)
    policy = await session.get(Policy, batch.policy_hash)
    if policy is None:
        return None
    name, period = policy.body["name"], month_of(await db_now(session))
    costs = await of_period(session, period=period, project=batch.project)
    cost = costs.get((name, batch.project))
    if cost is None or cost.nano <= 0:
        return None
    spent, own = usd(cost.nano), usd(cost.premium_nano)
    how = "planned again without it"
    if cost.estimated_nano:
        how = (
            "estimated"
            if cost.estimated_nano >= cost.premium_nano
            else f"{in_words(cost.estimated_nano)} of that estimated"
        )
    return quote_shapes.PolicyMonth(
        policy=name,
        period=period,
        usd=own,
        of_usd=spent,
        not_estimated_usd=usd(cost.unknown_nano),
        estimated_usd=usd(cost.estimated_nano),
        sentence=f"policy {name} costs {batch.project} about {in_words(cost.premium_nano)} of {in_words(cost.nano)} spent under "
        f"it in {period}, {how} (`broker reports policies`); compliance decides",
    )


async def _word(session: AsyncSession, batch_id: str) -> quote_shapes.Explanation:
    batch = await session.get_one(Batch, batch_id)
    approval = await approval_of(session, batch_id)
    if approval is not None and approval.outcome is None and batch.status == "validating":
        unplanned = _unplanned(batch.total, batch.input_tokens, batch.output_tokens, [approval.reason])
        return unplanned.model_copy(update={"waiting_on": "approval"})
    stopped = await session.get(Waiting, batch_id)
    if stopped is not None and stopped.plan == STOPPED:
        unplanned = _unplanned(batch.total, batch.input_tokens, batch.output_tokens, list(stopped.reasons))
        return unplanned.model_copy(update={"waiting_on": stopped.waiting_on})
    row = await _newest_plan(session, batch_id)
    if row is None:
        was_planned = await session.scalar(
            select(col(Assignment.plan)).where(col(Assignment.batch) == batch_id).limit(1)
        )
        why = "no plan has looked at this batch yet"
        if was_planned or stopped is not None:
            why = "its last plan is not kept any more: the batch has ended (settings: control.keep_plans)"
        reasons = [f"{e['code']}: {e['message']}" for e in batch.errors or []] or [why]
        return _unplanned(batch.total, batch.input_tokens, batch.output_tokens, reasons)
    snapshot = msgspec.json.decode(row.snapshot, type=Snapshot)
    plan = msgspec.json.decode(row.plan, type=Plan)
    told = explain(batch_id, snapshot, plan, plan_id=row.id, planned_us=row.created_us)
    if not told.feasible:
        return told
    # a tenth of a second at 2,000 offers: not on the event loop
    found = await asyncio.to_thread(savings, snapshot, plan, batch_id)
    return told.model_copy(update={"savings": [saving_shape(each) for each in found]})


async def _newest_plan(session: AsyncSession, batch_id: str) -> PlanRow | None:
    named = select(col(Assignment.plan)).where(col(Assignment.batch) == batch_id)
    waiting = select(col(Waiting.plan)).where(col(Waiting.batch) == batch_id)
    query = (
        select(PlanRow)
        .where(col(PlanRow.id).in_(named) | col(PlanRow.id).in_(waiting))
        .order_by(col(PlanRow.created_us).desc())
        .limit(1)
    )
    found: PlanRow | None = await session.scalar(query)
    return found


def explain(
    work_id: str, snapshot: Snapshot, plan: Plan, *, plan_id: str | None, planned_us: int | None
) -> quote_shapes.Explanation:
    """One work's part of a plan in words and numbers for people. Raises KeyError when the snapshot has no such work."""
    snapshot = as_run(snapshot, plan)
    work = {w.id: w for w in snapshot.works}[work_id]
    shares = sorted((a for a in plan.assignments if a.work_id == work_id), key=lambda a: a.order)
    funnel, choice = told(snapshot, plan, work_id)
    choices = {choice.offer_key: choice} if choice else {}
    unplaced = next((u for u in plan.unplaced if u.work_id == work_id), None)
    return quote_shapes.Explanation(
        feasible=bool(shares),
        plan=plan_id,
        planned_at=None if planned_us is None else planned_us // SECOND_US,
        lines=work.lines,
        input_tokens=work.input_tokens,
        output_tokens=work.output_tokens_p50,
        offers=len(snapshot.offers) + sum(each.count for each in snapshot.apart),
        funnel=[
            quote_shapes.FunnelStep(rule=r.rule, count=r.count, example=r.example)
            for r in with_apart(funnel, snapshot.apart)
        ],
        chosen=[_chosen(share, choices.get(share.offer_key), work) for share in shares],
        begins=[_begins(each) for each in later_of(snapshot, plan).get(work_id, ())],
        usd=usd(sum(share.cost_nano for share in shares)) if shares else None,
        end=max((share.end_us for share in shares), default=0) // SECOND_US or None,
        waiting_on=unplaced.waiting_on if unplaced else None,
        reasons=reasons_with_apart(unplaced.reasons, snapshot.apart) if unplaced else [],
        relaxations=[relaxation_shape(r) for r in unplaced.relaxations] if unplaced else [],
        variants=[each for one in plan.variants if one.work_id == work_id for each in compared(one)],
    )


def saving_shape(saving: Saving) -> quote_shapes.Saving:
    return quote_shapes.Saving(
        field=saving.field,
        needed=saving.needed,
        offer_key=saving.offer_key,
        saves_usd=usd(saving.saves_nano),
        message=saving.message,
    )


def _begins(later: Later) -> quote_shapes.Begins:
    return quote_shapes.Begins(
        offer_key=later.offer_key,
        begin=later.begin_us // SECOND_US,
        why=later.kind,
        awaits=later.awaits,
        saving=format(Decimal(later.saving_ppm).scaleb(-6).normalize(), "f"),
        sentence=later.sentence,
    )


def _chosen(share: PlannedShare, choice: Choice | None, work: Work) -> quote_shapes.Chosen:
    tokens = work.input_tokens + work.output_tokens_p50
    mine = tokens * share.share_ppm // 1_000_000
    per_million = share.cost_nano * 1_000_000 // mine if mine else 0
    best = choice.next_best_nano_per_million if choice else None
    return quote_shapes.Chosen(
        offer_key=share.offer_key,
        share=format(Decimal(share.share_ppm).scaleb(-6).normalize(), "f"),
        usd=usd(share.cost_nano),
        end=share.end_us // SECOND_US,
        usd_per_million_tokens=usd(choice.usd_nano_per_million if choice else per_million),
        next_best=choice.next_best_key if choice else None,
        next_best_usd_per_million_tokens=None if best is None else usd(best),
        cheaper_excluded=list(choice.cheaper_excluded) if choice else [],
        sentence=choice.sentence if choice else "",
        concurrency=share.concurrency,
        p95_ms=share.p95_ms,
    )


def relaxation_shape(relaxation: Relaxation) -> shapes.Relaxation:
    return shapes.Relaxation(
        field=relaxation.field,
        current=relaxation.current,
        needed=relaxation.needed,
        offer_key=relaxation.offer_key,
        usd=usd(relaxation.cost_nano),
        message=relaxation.message,
    )


def _unplanned(lines: int, input_tokens: int, output_tokens: int, reasons: list[str]) -> quote_shapes.Explanation:
    return quote_shapes.Explanation(
        feasible=False,
        plan=None,
        planned_at=None,
        lines=lines,
        input_tokens=input_tokens,
        output_tokens=output_tokens,
        offers=0,
        funnel=[],
        chosen=[],
        usd=None,
        end=None,
        waiting_on=None,
        reasons=reasons,
        relaxations=[],
    )
