"""A dry run: what a batch would cost, where it would run and when it would end; nothing is created or held."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from decimal import Decimal

import msgspec
from ulid import ULID

from broker.api import quote_shapes, shapes
from broker.compliance.paths import data_paths
from broker.compliance.pinning import policy_for
from broker.control import token_market
from broker.control.convert import usd
from broker.control.explain import saving_shape
from broker.control.intake import served_by, validate_file
from broker.control.own_answers import decide, left_for_workers
from broker.control.snapshot import BYTES_PER_TOKEN, SECOND_US, TYPICAL_OUTPUT_PERCENT, listed_offers, max_nano, work_of
from broker.control.variant_quotes import Quoted, dry_run, quote_variants
from broker.price_list import compared, price_list
from broker.services import Services
from broker.store_residency import store_facts, store_refusals
from broker.tables import Quote
from broker.token_costs import most_input
from broker.token_sample import sample
from jobs import files
from jobs.batches import Remaining
from jobs.clock import db_now
from jobs.errors import BadBatch
from jobs.tables import Batch
from jobs.window import expires_us
from ledger.money import to_nano
from markets import history
from markets.instants import micros
from markets.price_search import Wanted
from solver.residency import Facts, Policy, digest
from solver.savings import savings
from solver.types import Work
from solver.when import Held, begin_later
from workers.profile import ModelProfile

# How long the prices behind a quote may be taken for today's.
QUOTE_TTL_S = 900
# How much of a price's history is looked at for a better hour.
HISTORY_US = 14 * 86_400 * SECOND_US


async def quote(
    services: Services,
    *,
    project: str,
    file_id: str,
    endpoint: str | None,
    window: str,
    wishes: shapes.BatchWishes | None,
) -> quote_shapes.Quote:
    """Plan the file as if it were a batch created now, beside all that is queued.

    Raises JobsError subclasses for a bad file, window or line (the first finding in the message), UnknownCountry for a
    bad residency list.
    """
    async with services.database.transaction() as session:
        file = await files.get(session, project, file_id, param="input_file_id")
        policy = await policy_for(session, services.settings, project, wishes)
        now_us = await db_now(session)
    asked = wishes or shapes.BatchWishes()
    found = await validate_file(
        services, project, file.object_key, endpoint, skip_invalid=asked.skip_invalid, reuse=asked.reuse
    )
    candidates = served_by(services, found, wishes)
    findings = [*found.findings, *candidates.findings]
    if findings or found.model is None or found.endpoint is None:
        first = findings[0] if findings else None
        where = f"line {first.line}: " if first and first.line else ""
        raise BadBatch(
            f"{where}{first.message if first else 'no model'} ({len(findings)} findings in all)", param="input_file_id"
        )
    left = left_for_workers(found, decide(found))
    sampled = await sample(services.store, file.object_key, found.shards, found.endpoint, candidates.profiles)
    if sampled is not None:
        left = msgspec.structs.replace(left, input_tokens=sampled.of(left.input_tokens))
    base = Work(
        id="quote",
        project=project,
        model="",
        precision="",
        endpoint=found.endpoint,
        lines=left.lines,
        input_tokens=left.input_tokens,
        output_tokens_p50=-(-left.output_tokens * TYPICAL_OUTPUT_PERCENT // 100),
        output_tokens_p90=left.output_tokens,
        deadline_us=expires_us(now_us, window, None if asked.deadline is None else asked.deadline * SECOND_US),
        max_nano=max_nano(asked.max_usd),
        max_rtt_ms=asked.max_rtt_ms,
        max_p95_ms=asked.max_p95_ms,
        priority=asked.priority,
        policy_hash=digest(policy),
        input_tokens_most=most_input(left.input_bytes),
        input_bytes=left.input_tokens * BYTES_PER_TOKEN,
        output_bytes=-(-left.output_tokens * TYPICAL_OUTPUT_PERCENT // 100) * BYTES_PER_TOKEN,
    )
    best = await quote_variants(
        services, candidates.profiles, lambda each: _with_profile(base, each), {base.policy_hash: policy}
    )
    explanation = best.explanation
    if refusals := store_refusals(policy, store_facts(services.settings, now_us), now_us):
        told = {
            "feasible": False,
            "waiting_on": "residency",
            "reasons": refusals,
            "chosen": [],
            "usd": None,
            "end": None,
        }
        explanation = explanation.model_copy(update=told)
    elif explanation.feasible and best.dry is not None:
        # tenths of a second at 2,000 offers: not on the event loop
        cheaper = await asyncio.to_thread(savings, best.dry.snapshot, best.dry.plan, base.id)
        explanation = explanation.model_copy(update={"savings": [saving_shape(each) for each in cheaper]})
    async with services.database.transaction() as session:
        timed = Wanted(accelerators={name for each in candidates.profiles for name in each.tokens_per_s})
        listed = await price_list(session, services, now_us=now_us, wanted=timed, project=base.project)
    others = compared(listed, candidates.profiles, input_tokens=left.input_tokens, output_tokens=base.output_tokens_p50)
    chosen = _with_profile(base, best.profile)
    async with services.database.transaction() as session:
        book = await listed_offers(session, services, now_us=now_us, wanted=Wanted(pricing="token"))
    names = {found.model, best.profile.public_name, best.profile.weights or found.model}
    paths = data_paths(services.settings, now_us, "token_api")
    bought = token_market.beside(book, names, chosen, policy, now_us, paths)
    advice, advice_reason = token_market.advise(explanation.usd, bought)
    answer = quote_shapes.Quote(
        **explanation.model_dump(),
        usd_per_million_tokens=_per_million(explanation, chosen),
        p90=await _outlook(services, chosen, explanation, {base.policy_hash: policy}),
        token_market=bought,
        advice=advice,
        advice_reason=advice_reason,
        later=await _later(services, base, explanation, now_us),
        id=f"quote_{ULID()}",
        model=found.model,
        served_model=best.profile.id,
        tokens_by="estimate" if sampled is None else "tokenizer",
        sampled_lines=0 if sampled is None else sampled.lines,
        endpoint=found.endpoint,
        expires_at=now_us // SECOND_US + QUOTE_TTL_S,
        elsewhere=[
            quote_shapes.Elsewhere(
                offer_key=str(each.offer.key),
                usd=shapes.plain(each.usd),
                usd_per_million_tokens=shapes.plain(each.usd_per_million),
                as_of=micros(each.offer.observed_at) // SECOND_US,
                source=each.offer.source,
            )
            for each in others
        ],
    )
    async with services.database.transaction() as session:
        session.add(quote_row(answer.id, project, None, explanation, now_us))
    return answer


async def _later(
    services: Services, work: Work, planned: quote_shapes.Explanation, now_us: int
) -> quote_shapes.BeginLater | None:
    """Whether the chosen machine was cheaper at a later hour of past days, while the deadline leaves room. Only where one machine
    does all the work: several begin and end apart."""
    if len(planned.chosen) != 1 or planned.end is None or planned.usd is None:
        return None
    key = planned.chosen[0].offer_key
    async with services.database.transaction() as session:
        told = await history.changes(session, key, from_us=now_us - HISTORY_US, to_us=now_us)
    record = [
        Held(each.from_us, each.to_us, each.change.price_nano_hour if history.is_rentable(each.change) else None)
        for each in history.spans(told, now_us - HISTORY_US, now_us)
    ]
    run_us = planned.end * SECOND_US - now_us
    # answers may be twice as long as expected, and the machine may be lost once
    found = begin_later(now_us, work.deadline_us, run_us, 3 * run_us, record)
    if found is None:
        return None
    saved = to_nano(Decimal(planned.usd)) * round(found.saving * 1_000_000) // 1_000_000
    return quote_shapes.BeginLater(
        begin=found.begin_us // SECOND_US, saves_usd=usd(saved), sure=f"{found.sure:.3f}", days=found.days
    )


async def _outlook(
    services: Services, work: Work, expected: quote_shapes.Explanation, policies: Mapping[str, Policy]
) -> quote_shapes.Outlook | None:
    """The plan made once more, for answers that are as long as they may be."""
    if not expected.feasible:
        return None
    longest = max(work.output_tokens_p50, work.output_tokens_p90)
    planned = await dry_run(services, msgspec.structs.replace(work, output_tokens_p50=longest), policies)
    return quote_shapes.Outlook(output_tokens=longest, feasible=planned.feasible, usd=planned.usd, end=planned.end)


def _per_million(explanation: quote_shapes.Explanation, work: Work) -> str | None:
    tokens = work.input_tokens + work.output_tokens_p50
    return (
        None if explanation.usd is None or not tokens else usd(to_nano(Decimal(explanation.usd)) * 1_000_000 // tokens)
    )


async def quote_batch(services: Services, batch: Batch, left: Remaining, profiles: Sequence[ModelProfile]) -> Quoted:
    """The same for a batch that was just validated and has no shards yet: the profile that shall serve it, and why. `left`
    is what of it workers are to do."""
    base = work_of(batch, left, precision="", spent_nano=0)
    return await quote_variants(services, profiles, lambda each: _with_profile(base, each), {})


def _with_profile(work: Work, profile: ModelProfile) -> Work:
    return msgspec.structs.replace(work, model=profile.id, precision=profile.precision)


def quote_row(
    quote_id: str,
    project: str,
    batch_id: str | None,
    explanation: quote_shapes.Explanation,
    now_us: int,
    store: Facts | None = None,
) -> Quote:
    """What was promised, for comparison with what became of it; `store` is what was known then of where its data lies."""
    return Quote(
        id=quote_id,
        project=project,
        batch=batch_id,
        created_us=now_us,
        cost_nano=None if explanation.usd is None else to_nano(Decimal(explanation.usd)),
        end_us=None if explanation.end is None else explanation.end * SECOND_US,
        body=explanation.model_dump(mode="json") | ({} if store is None else {"store": msgspec.to_builtins(store)}),
    )
