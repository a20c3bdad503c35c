"""Freeze what one plan may depend on: reads the database once, decides nothing."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal
from fractions import Fraction

import msgspec
import structlog
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from broker.budget_batches import ceilings
from broker.budgets import headroom
from broker.compliance.paths import data_paths
from broker.control.alternatives import alternatives
from broker.control.asked_models import models_asked_of, with_model_facts
from broker.control.convert import DEFAULT_BOOT_S, is_known_on, offer_view, throughput_of
from broker.control.failed_starts import HeldBack, held_back
from broker.control.hazards import learned_hazard, seen_pools
from broker.control.lessons import lessons, taught
from broker.control.planned_offers import PlannedOffers, planned_offers
from broker.control.quotas import quotas_left
from broker.control.refused import refusals
from broker.control.token_offers import AT_ONCE, Bought, bought, buys_at, outdated, servable
from broker.costs import BatchCost, batch_costs
from broker.price_ages import default_max_age_s, max_ages_s
from broker.request_times import corrections
from broker.services import Services
from broker.speeds import estimated_speeds, facts_of, too_small
from broker.start_up import StartUps, start_ups
from broker.tables import STOPPED, Measured, Policy, Waiting, Worker
from broker.token_buying import buying, is_bought
from broker.token_costs import buffer_ppm, most_input
from jobs import batches
from jobs.batches import Remaining
from jobs.state import starts_lines
from jobs.tables import Batch
from ledger import positions
from ledger.money import to_nano
from markets import price_book, rentals
from markets.instants import micros
from markets.offer import Offer
from markets.offer_record import offer_from_record
from markets.own_account import holder_of
from markets.price_book import Listed
from markets.price_search import Wanted
from markets.tables import RentalRow
from solver.residency import Facts, PathFacts
from solver.residency import Policy as ResidencyPolicy
from solver.types import SMALL, Budget, Held, OfferView, Progress, Running, Snapshot, Throughput, Work
from solver.variants import faces
from workers.fit import misfit
from workers.profile import ModelProfile

log = structlog.get_logger()
SECOND_US = 1_000_000
# What part of the tokens that a line may write it writes on average, until the batch itself has shown it: chat answers
# end long before max_tokens more often than not. The deadline rows use the full allowance.
TYPICAL_OUTPUT_PERCENT = 60
# Text moves at about so many bytes a token (a million tokens are 4 MB).
BYTES_PER_TOKEN = 4
# Lines after which a batch's own mean is believed.
ENOUGH_LINES = 20
# How far the estimate of its prompts is believed to have been wrong.
LEAST_WRONG, MOST_WRONG = Fraction(1, 4), Fraction(8)
# Below this much measured engine time a speed is noise (one warm-up request), not a fact.
ENOUGH_BUSY_MS = 5_000


@dataclass(frozen=True)
class Frozen:
    """A snapshot and the offers behind its views, by key. `binding` is the scope of the budget that limits a work more than its
    own `max_usd`, by work, or a project more than its grants, by project. `outdated`: executors that buy at another price than
    the endpoint asks now, and why they end."""

    snapshot: Snapshot
    offers: Mapping[str, Offer]
    binding: Mapping[str, str] = field(default_factory=dict)
    outdated: Mapping[str, str] = field(default_factory=dict)


async def freeze(
    session: AsyncSession,
    services: Services,
    *,
    now_us: int,
    extra: Sequence[Work] = (),
    extra_policies: Mapping[str, ResidencyPolicy] | None = None,
    held: Sequence[Held] = (),
) -> Frozen:
    """The queue, the price book, what runs, and the limits, at `now_us`. `extra` are works of a dry run (one that is
    queued too stands instead of itself), `held` the assignments of the plan before."""
    found, binding = await _works(session, services)
    queued, dry = {each.id: each for each in found}, {each.id: each for each in extra}
    works = [*queued.values(), *(each for each in extra if each.id not in queued)]
    works = [_as_queued(dry.get(each.id), each) for each in works]
    open_rentals = await rentals.open_rentals(session)
    of_rentals = {row.offer_key for row in open_rentals}
    planned = await planned_offers(
        session, services, now_us=now_us, of_rentals=of_rentals, projects={each.project for each in works}
    )
    measured = await _measured(session)
    tokens = bought(planned.listed, buying(services.settings), services.models, works, measured)
    works = servable(works, tokens, buying(services.settings))
    served = faces(works)  # by whichever of its profiles each may be served
    listed = [tokens[key].listed if (key := str(each.offer.key)) in tokens else each for each in planned.listed]
    known = await start_ups(session, now_us)
    asked = [services.models[model] for model in sorted({w.model for w in served}) if model in services.models]
    taken = _taken(listed, open_rentals)
    paths: dict[str, tuple[PathFacts, ...]] = {
        launch: data_paths(services.settings, now_us, launch) for launch in {o.offer.launch for o in listed}
    }
    rtt_ms = services.settings.objects.rtt_ms
    views, facts = _views(listed, taken, await held_back(session, now_us), asked, known, planned, paths, rtt_ms, tokens)
    pools = await seen_pools(session, now_us)
    known_of = await lessons(session, now_us)
    views = [
        taught(
            msgspec.structs.replace(view, hazard=learned_hazard(pools, view.key, view.pricing, view.hazard)),
            known_of.get(view.key),
        )
        for view in views
    ]
    policies = await _policies(session, works)
    policies.update(extra_policies or {})
    works = await with_model_facts(session, services, works, policies, now_us)
    budgets, above = await _budgets(session, works, now_us)
    buy = [row for row in open_rentals if is_bought(row) and row.state != "releasing"]
    ends = {row.id: why for row in buy if (why := outdated(row, tokens.get(row.offer_key)))}
    running = await _running(session, services, known, tokens, ends, now_us)
    snapshot = Snapshot(
        now_us=now_us,
        works=tuple(sorted(works, key=lambda work: work.id)),
        offers=tuple(sorted(views, key=lambda view: view.key)),
        quotas=quotas_left(listed, open_rentals),
        running=tuple(sorted(running, key=lambda each: each.rental_id)),
        budgets=budgets,
        policies=policies,
        facts=facts,
        models=await models_asked_of(session, services, works, policies, now_us),
        throughput=(
            *_throughput(services, served, listed, measured, await corrections(session, now_us)),
            *(speed for each in tokens.values() for speed in each.throughput),
        ),
        stop_margin_s=services.settings.control.drain_margin_s,
        held=tuple(held) if len(served) * len(views) > SMALL else (),  # small queues are planned whole each time
        apart=planned.apart,
        fetched_bytes=_fetched(services, served),
        later_starts=False,  # while an offer is in use it is listed as sold out: a start planned for later would never come due
        hold_buffer_ppm=buffer_ppm(services.settings.control.hold_buffer),
        refusals=await refusals(session, services, works, budgets, now_us),
        words=False,  # made when somebody asks, of the snapshot that is stored with the plan
    )
    return Frozen(snapshot, {str(each.offer.key): each.offer for each in listed}, binding | above, ends)


def _as_queued(dry: Work | None, queued: Work) -> Work:
    """The work of a dry run instead of itself as it waits: what budgets of it and its tags leave, and what it has spent, stay."""
    if dry is None:
        return queued
    return msgspec.structs.replace(dry, max_nano=queued.max_nano, progress=queued.progress)


async def listed_offers(
    session: AsyncSession,
    services: Services,
    *,
    now_us: int,
    wanted: Wanted = price_book.ALL,
    key: str | None = None,
    project: str | None = None,
) -> list[Listed]:
    """The price book, judged by each market's own limit of age: what people see is what is planned with. Of projects' own
    accounts there is only what `project` has."""
    found = await price_book.offers(
        session,
        now_us=now_us,
        max_age_s=max_ages_s(services),
        default_max_age_s=default_max_age_s(services),
        wanted=wanted,
        key=key,
    )
    return [each for each in found if holder_of(each.offer.market) in (None, project)]


def max_age_s(services: Services) -> int:
    """Seconds after which a plan's prices are too old to rent by."""
    return default_max_age_s(services)


async def _works(session: AsyncSession, services: Services) -> tuple[list[Work], dict[str, str]]:
    """What is in progress, except batches that are paused or stopped at their limit and batches that nobody can plan; and by
    batch the budget that limits it more than its `max_usd`."""
    active = await batches.active_batches(session, ["in_progress"])
    going = [b for b in active if starts_lines(b.status, b.ending, b.paused_us)]
    out = await stopped(session) | await _without_policy(session, going)
    active = [b for b in going if b.id not in out]
    costs = await batch_costs(session, [b.id for b in active])
    limits = await _ceilings(session, active, costs)
    others = await alternatives(session, services, active)
    works, binding = [], dict[str, str]()
    for batch in active:
        left = await batches.remaining(session, batch.id)
        if left.lines:
            profile = services.models.get(batch.model or "")
            precision = profile.precision if profile else "auto"
            work = work_of(batch, left, precision=precision, spent_nano=costs[batch.id].nano)
            if (limit := limits.get(batch.id)) is not None and (work.max_nano is None or limit[0] < work.max_nano):
                work = msgspec.structs.replace(work, max_nano=limit[0])
                binding[batch.id] = limit[1]
            works.append(msgspec.structs.replace(work, alternatives=others.get(batch.id, ())))
    return works, binding


async def _ceilings(
    session: AsyncSession, active: Sequence[Batch], costs: Mapping[str, BatchCost]
) -> dict[str, tuple[int, str]]:
    """What budgets of batches and of tags let each batch cost in all: as if it were its `max_usd`, on whoever's machine; and
    the tightest one's scope."""
    found: dict[str, tuple[int, str]] = {}
    for project in sorted({batch.project for batch in active}):
        spent = {batch.id: costs[batch.id].nano for batch in active if batch.project == project}
        found |= await ceilings(session, project, spent)
    return found


async def _without_policy(session: AsyncSession, active: Sequence[Batch]) -> set[str]:
    """Batches whose pinned policy is not stored: nobody permits them anything, and they must not stop everybody's plan."""
    wanted = {batch.policy_hash for batch in active}
    known = set(await session.scalars(select(col(Policy.hash)).where(col(Policy.hash).in_(wanted))))
    lost = {batch.id for batch in active if batch.policy_hash not in known}
    if lost:
        log.error("plan.no_policy", batches=sorted(lost))
    return lost


async def stopped(session: AsyncSession) -> frozenset[str]:
    """The batches that were stopped at their `max_usd` (broker/control/ceiling.py)."""
    return frozenset(await session.scalars(select(col(Waiting.batch)).where(col(Waiting.plan) == STOPPED)))


def work_of(batch: Batch, left: Remaining, *, precision: str, spent_nano: int) -> Work:
    """A batch's remaining lines as the planner's work."""
    wishes = batch.wishes or {}
    return Work(
        id=batch.id,
        project=batch.project,
        model=batch.model or "",
        precision=precision,
        endpoint=batch.endpoint,
        lines=left.lines,
        input_tokens=_known_input(batch, left),
        output_tokens_p50=_typical_output(batch, left.lines, left.output_tokens),
        output_tokens_p90=left.output_tokens,
        deadline_us=batch.expires_us,
        max_nano=max_nano(wishes.get("max_usd")),
        max_rtt_ms=wishes.get("max_rtt_ms"),
        max_p95_ms=wishes.get("max_p95_ms"),
        priority=batch.priority,
        policy_hash=batch.policy_hash,
        input_bytes=_known_input(batch, left) * BYTES_PER_TOKEN,
        output_bytes=_typical_output(batch, left.lines, left.output_tokens) * BYTES_PER_TOKEN,
        input_tokens_most=most_input(left.input_bytes),
        progress=Progress(lines_done=batch.completed + batch.failed, spent_nano=spent_nano),
    )


def max_nano(text: str | None) -> int | None:
    """A wish's decimal USD in nano-USD."""

    return None if text is None else to_nano(Decimal(text))


def _known_input(batch: Batch, left: Remaining) -> int:
    """The estimate of what is left, corrected by how far it was wrong for the lines that an engine has read: by characters, other
    languages and code are more tokens than they seem."""
    done, closed = batch.completed + batch.failed - batch.invalid - batch.reused, batch.total - left.lines
    estimated = (batch.input_tokens - left.input_tokens) * done // closed if closed > 0 else 0
    if done < ENOUGH_LINES or estimated <= 0 or batch.used_input_tokens <= 0:
        return left.input_tokens
    wrong = min(max(Fraction(batch.used_input_tokens, estimated), LEAST_WRONG), MOST_WRONG)
    return math.ceil(left.input_tokens * wrong)


def _typical_output(batch: Batch, lines: int, output_tokens: int) -> int:
    done = batch.completed + batch.failed - batch.invalid - batch.reused  # by an engine
    if done >= ENOUGH_LINES:
        return min(output_tokens, -(-batch.used_output_tokens * lines // done))
    return -(-output_tokens * TYPICAL_OUTPUT_PERCENT // 100)


def _views(
    listed: Sequence[Listed],
    taken: Mapping[str, int],
    failing: HeldBack,
    asked: Sequence[ModelProfile],
    known: StartUps,
    planned: PlannedOffers,
    paths: Mapping[str, tuple[PathFacts, ...]],
    rtt_ms: Mapping[str, int],
    tokens: Mapping[str, Bought],
) -> tuple[list[OfferView], dict[str, Facts]]:
    views, facts = [], {}
    for each in listed:
        key, offer = str(each.offer.key), each.offer
        if offer.capacity is not None:
            offer = replace(offer, capacity=max(0, offer.capacity - taken.get(key, 0)))
        # of an offer on which a model cannot run nobody asks how long it would take
        could = [profile for profile in asked if is_known_on(profile, offer)]
        misfits = {profile.id: misfit(profile, offer.accelerator) for profile in could}
        misfits |= {
            profile.id: why
            for profile in asked
            if offer.launch in profile.launches and (why := too_small(profile, offer.accelerator))
        }
        start_up = {profile.id: known.timings(offer, profile) for profile in could if not misfits[profile.id]}
        if (endpoint := tokens.get(key)) is not None:
            start_up, misfits = dict.fromkeys((each.id for each in endpoint.profiles), AT_ONCE), dict(endpoint.unfit)
        view, fact = offer_view(
            offer,
            excluded=each.excluded or failing.everywhere.get(key) or planned.refused.get(offer.market),
            load_s=max((profile.load_s for profile in asked), default=10),
            start_up=start_up,
            unfit={model: why for model, why in misfits.items() if why},
            paths=paths[offer.launch],
            not_for=planned.holders.get(offer.market, ()),
            held_back=failing.of_projects.get(key),
            rtt_ms=rtt_ms,
        )
        if endpoint is not None:
            view = msgspec.structs.replace(view, most_nano_hour=endpoint.most_nano_hour)
        views.append(view)
        facts[view.facts_hash] = fact
    return views, facts


def _taken(listed: Sequence[Listed], open_rentals: Sequence[RentalRow]) -> Counter[str]:
    """How many of each offer we took after its market counted what is free.

    Until the next poll the price book offers them once more; rented again they would fail, and hold the offer back.
    """
    counted_us = {str(each.offer.key): micros(each.offer.observed_at) for each in listed}
    return Counter(
        row.offer_key
        for row in open_rentals
        if row.started_us is None or row.started_us > counted_us.get(row.offer_key, row.started_us)
    )


async def _running(
    session: AsyncSession,
    services: Services,
    known: StartUps,
    tokens: Mapping[str, Bought],
    ends: Collection[str],
    now_us: int,
) -> list[Running]:
    """Rentals that can still take work. One that drains or is being released serves nobody new."""
    rows = await rentals.open_rentals(session)
    workers = {
        w.rental: w for w in await session.scalars(select(Worker).where(col(Worker.rental).in_([r.id for r in rows])))
    }
    return [
        buys_at(row, tokens.get(row.offer_key))
        if is_bought(row)
        else _as_running(row, workers.get(row.id), services, known, now_us)
        for row in rows
        if row.id not in ends and _serves(row, workers.get(row.id))
    ]


def _serves(row: RentalRow, worker: Worker | None) -> bool:
    if row.state == "releasing":
        return False
    return worker is None or (worker.drain_reason is None and worker.state not in ("draining", "gone", "failed"))


def _as_running(row: RentalRow, worker: Worker | None, services: Services, known: StartUps, now_us: int) -> Running:
    ready_in_s = 0
    if worker is None or worker.ready_us is None:
        profile, offer = services.models.get(row.model), offer_from_record(row.facts)
        total = known.timings(offer, profile).total_s if profile else DEFAULT_BOOT_S[offer.launch]
        # always a little sooner than a fresh machine of the same offer, or the plan would swap one for the other
        ready_in_s = max(0, min(total - 1, total - (now_us - row.created_us) // SECOND_US))
    return Running(
        rental_id=row.id,
        offer_key=row.offer_key,
        project=row.project,
        model=row.model,
        precision=row.precision,
        ready_in_s=ready_in_s,
        price_nano_hour=row.price_nano_hour,
    )


def _fetched(services: Services, works: Sequence[Work]) -> dict[str, int]:
    """What a start downloads of the models that wait, where their size is known: the weights are far more than the rest."""
    found = {}
    for model in sorted({work.model for work in works} & services.models.keys()):
        facts = facts_of(services.models[model])
        if facts is not None:
            found[model] = math.ceil(facts.weight_bytes(services.models[model].precision))
    return found


async def _budgets(
    session: AsyncSession, works: Sequence[Work], now_us: int
) -> tuple[tuple[Budget, ...], dict[str, str]]:
    """What each project has left, and the scope of the limit where that, not its grants, is what leaves the least."""
    found, binding = [], dict[str, str]()
    for project in sorted({work.project for work in works}):
        own, above = await positions.remaining(session, project), await headroom(session, project, now_us)
        if above is not None and (own is None or above[0] < own):
            own, binding[project] = above
        if own is not None:
            found.append(Budget(project=project, remaining_nano=max(0, own)))
    return tuple(found), binding


async def _policies(session: AsyncSession, works: Sequence[Work]) -> dict[str, ResidencyPolicy]:
    wanted = {work.policy_hash for work in works}
    rows = await session.scalars(select(Policy).where(col(Policy.hash).in_(wanted)))
    return {row.hash: msgspec.convert(row.body, ResidencyPolicy) for row in rows}


async def _measured(session: AsyncSession) -> dict[tuple[str, str, str], tuple[int, int, float]]:
    """(input tokens, output tokens, busy seconds) by (model, precision, hardware), where there is enough of it."""
    rows = (await session.scalars(select(Measured))).all()
    return {
        (row.model, row.precision, row.accelerator): (
            row.prompt_tokens,
            row.completion_tokens,
            row.busy_ms / 1000,
        )
        for row in rows
        if row.busy_ms >= ENOUGH_BUSY_MS and row.prompt_tokens and row.completion_tokens
    }


def _throughput(
    services: Services,
    works: Sequence[Work],
    listed: Sequence[Listed],
    measured: Mapping[tuple[str, str, str], tuple[int, int, float]],
    slower: Mapping[tuple[str, str, str], float],
) -> tuple[Throughput, ...]:
    """Of every model that is served here what was measured, given or estimated; estimates for what waits only."""
    machines = (each.offer.accelerator for each in listed)
    accelerators = list({(each.name, each.form, each.memory_mib): each for each in machines}.values())
    waiting = {work.model for work in works}
    entries = []
    for name in sorted(services.models):
        profile = services.models[name]
        estimated = estimated_speeds(profile, accelerators, works) if name in waiting else {}
        entries += throughput_of(profile, measured, estimated, slower)
    return tuple(entries)
