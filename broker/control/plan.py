"""The plan loop: freeze, solve, check with other code, and write what follows in one transaction.

What it writes are assignments, waiting reasons, intents and their holds. Renting itself is the place loop's, which finds
the intents in the database: a crash between the two leaves intents, and intents are found again.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal
from typing import Any

import msgspec
import structlog
from sqlalchemy import delete, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col
from ulid import ULID

from broker.budget_batches import Early
from broker.budgets import HourExceeded, Over, Placement, admit, early_for, why_refused, within_own_limits
from broker.compliance.decisions import seal_planned
from broker.compliance.pinning import Repinner
from broker.control.alternatives import Changes
from broker.control.avoided import baselines
from broker.control.besides import agreed, set_aside_nano
from broker.control.ceiling import going_on
from broker.control.checked import checked_plan
from broker.control.draining import drain_all
from broker.control.later import LATER, later_of, postponed
from broker.control.planned_offers import reasons_with_apart
from broker.control.policy_price import Kept, priced_policies
from broker.control.snapshot import Frozen, freeze
from broker.services import Services
from broker.settings import ControlSettings
from broker.tables import STOPPED, Assignment, PlanRow, Waiting, Worker
from broker.token_costs import most_of_work
from jobs.clock import db_now
from ledger.errors import HoldExceeded
from ledger.holds import open_hold
from ledger.money import cost_of_seconds, to_nano
from markets import price_book, rentals
from markets.offer import Offer, TokenPrice
from markets.tables import RentalRow
from solver import types
from solver.held import held_of
from solver.latency import slow_down
from solver.schedule import Pool
from solver.types import Held, Plan, Snapshot, Start, Work
from solver.variants import as_run
from solver.view import View, pool_of

log = structlog.get_logger()
SECOND_US = PPM = 1_000_000
ACTOR = "broker.plan"
# Every so many plans, a large queue is planned from nothing: small moves never find what a new program would.
ANEW = 20


@dataclass
class _Acted:
    """What followed from a plan: how many machines are to be rented, and by batch and offer what is held for and what no budget
    covers; by offer what an hour of it counts for limits of dollars an hour."""

    plan_id: str
    started: int = 0
    paid: set[tuple[str, str]] = field(default_factory=set)
    refused: dict[tuple[str, str], Over] = field(default_factory=dict)
    price_nano_hour: dict[str, int] = field(default_factory=dict)


@dataclass
class Planner:
    """The plan step. `last` is the digest of the decisions acted on, so that an unchanged plan
    is not stored again every few seconds."""

    services: Services
    last: bytes = b""
    last_id: str = ""
    repinner: Repinner | None = None
    plan: Plan | None = None
    plans: int = 0

    def _held(self) -> tuple[Held, ...]:
        """What the plan before assigned, for the next to go on from; now and then nothing, so that it is planned anew."""
        if self.plan is None or self.plans % ANEW == 0:
            return ()
        return held_of(self.plan)

    async def step(self) -> None:
        self.repinner = self.repinner or Repinner(self.services)
        await self.repinner.step()  # what is in force is what is planned by
        async with self.services.database.transaction() as session:
            frozen = await freeze(session, self.services, now_us=await db_now(session), held=self._held())
        if not frozen.snapshot.works and not frozen.snapshot.running:
            return
        plan = await checked_plan(self.services, frozen.snapshot)
        if plan is None:
            return
        waits = self.plan.later if self.plan else ()
        snapshot, plan = await postponed(self.services, frozen.snapshot, plan, waits)
        frozen = replace(frozen, snapshot=snapshot)
        policies = await priced_policies(self.services, snapshot, plan)
        async with self.services.database.transaction() as session:
            acted = await self._act(session, frozen, plan, policies)
        self._remember(acted, frozen.snapshot.now_us)
        plan_id = acted.plan_id
        if acted.refused:
            # behind the books no rows of batches are locked (broker/lock_order.py)
            async with self.services.database.transaction() as session:
                now_us = await db_now(session)
                for (batch, _), over in sorted(acted.refused.items(), key=lambda each: each[0]):
                    await _wait(session, batch, plan_id, "budget", [f"budget: {over.why}"], [], now_us)
        # only now: a plan whose transaction was rolled back was never acted on
        self.last, self.last_id = _decisions(plan), plan_id
        self.plan, self.plans = plan, self.plans + 1
        if acted.started:
            # the crash between intent and create (peers leaked machines here): the place loop finds the intents again
            self.services.failpoints.reached("place.after_intent")
            self.services.nudge("place")

    def _remember(self, acted: _Acted, now_us: int) -> None:
        """What was refused is not tried again at once, and the next plan, which is made now, tries the next best instead. It was
        planned and refused for ever, with a machine beside it that would have done."""
        for batch, offer_key in acted.paid:
            self.services.refusals.held(batch, offer_key)
        for (batch, offer_key), over in acted.refused.items():
            # what is as dear passes the same limit: each dearer offer had a plan and a refusal of its own, 30 in a row
            dear = acted.price_nano_hour[offer_key] if over.is_hourly else None
            self.services.refusals.note(batch, offer_key, over.why, now_us, from_nano_hour=dear)
        if acted.refused:
            self.services.nudge("plan")

    async def _act(self, session: AsyncSession, frozen: Frozen, plan: Plan, policies: Mapping[Start, Kept]) -> _Acted:
        """Write what follows from the plan for the works that still go on: solving takes time, and a batch may have been
        cancelled or stopped meanwhile."""
        now_us = await db_now(session)
        open_ = await going_on(session, [w.id for w in frozen.snapshot.works])
        changes = await Changes.of(session, self.services, frozen.snapshot, plan, open_)
        going = changes.going
        plan_id = await self._store(session, frozen, plan, now_us)
        frozen = replace(frozen, snapshot=as_run(frozen.snapshot, plan))
        await _assign(session, plan, frozen, going, plan_id, now_us, kept=open_ - going)
        await _drain(session, self.services, plan, frozen.outdated, now_us)
        acted = _Acted(plan_id)
        due = [each for each in plan.starts if each.from_us <= now_us]  # later ones when their time has come
        pools = [[work for work in _served(frozen.snapshot, plan, start) if work in going] for start in due]
        early = await early_for(session, [(start.project, pool) for start, pool in zip(due, pools, strict=True)])
        for start, served in zip(due, pools, strict=True):
            paid = set[str]()
            for _ in range(start.count if served else 0):
                covered, over = await self._covered(session, frozen, start, served, now_us, early)
                try:
                    if covered:
                        priced = policies.get(start, [])
                        await self._intend(session, frozen, start, covered, plan_id, now_us, early, priced)
                        acted.started += 1
                        paid.update(covered)
                except HoldExceeded as refusal:
                    asked, _ = self._asked(frozen, start, covered, now_us)
                    _, own = await within_own_limits(session, asked, now_us, early)
                    # one batch's own limit holds none of the others back
                    over |= own or dict.fromkeys(covered, Over(str(refusal), isinstance(refusal, HourExceeded)))
                for why in dict.fromkeys(each.why for each in over.values()):
                    log.warning("place.over_budget", project=start.project, offer=start.offer_key, error=why)
                acted.refused |= {(batch, start.offer_key): why for batch, why in over.items() if batch not in paid}
            acted.price_nano_hour[start.offer_key] = _hour_nano(frozen.offers[start.offer_key])
            acted.paid |= {(batch, start.offer_key) for batch in paid}
        kept = _kept(frozen.snapshot, plan)
        await changes.take(session, kept | {batch for batch, _ in acted.paid})
        return acted

    async def _covered(
        self, session: AsyncSession, frozen: Frozen, start: Start, served: list[str], now_us: int, early: Early
    ) -> tuple[list[str], dict[str, Over]]:
        """Those of `served` that one intent is for, and why the others are not paid: where tokens are bought, the longest run of
        them, in the plan's order, whose worst case the budgets cover. One that is too much must not starve the others."""
        offer = frozen.offers[start.offer_key]
        if offer.per_million is None:
            return served, {}
        left, refused = list(served), dict[str, Over]()
        while left:
            most, least, tried, why = len(left), 0, len(left), Over("")
            while least < most:
                nano = self._bought_nano(frozen, offer.per_million, left[:tried])
                asked = Placement(start.project, tuple(left[:tried]), nano, price_nano_hour=_hour_nano(offer))
                over = await why_refused(session, asked, now_us=now_us, early=early)
                if over is None:
                    least = tried
                else:
                    most, why = tried - 1, over
                tried = (least + most + 1) // 2
            if least:
                return left[:least], refused | dict.fromkeys(left[least:], why)
            refused[left.pop(0)] = why
        return [], refused

    def _bought_nano(self, frozen: Frozen, price: TokenPrice, served: Collection[str]) -> int:
        """The worst case of what is bought for these."""
        buffer = self.services.settings.control.hold_buffer
        works = [work for work in frozen.snapshot.works if work.id in served]
        return max(1, sum(most_of_work(price, work, buffer) for work in works))

    async def _store(self, session: AsyncSession, frozen: Frozen, plan: Plan, now_us: int) -> str:
        if _decisions(plan) == self.last and await self._is_kept(session):
            return self.last_id
        row = PlanRow(
            id=f"plan_{ULID()}",
            created_us=now_us,
            snapshot_sha256=plan.snapshot_sha256,
            snapshot=types.encode(frozen.snapshot),
            plan=types.encode(plan),
        )
        session.add(row)
        await session.flush()
        log.info(
            "plan.made",
            plan=row.id,
            stage=plan.stage,
            starts=sum(start.count for start in plan.starts),
            keeps=len(plan.keeps),
            drains=len(plan.drains),
            unplaced=len(plan.unplaced),
            cost_nano=plan.cost_nano,
        )
        return row.id

    async def _is_kept(self, session: AsyncSession) -> bool:
        """Whether the last plan is still stored: the plans of others may have outnumbered it while this broker did not lead."""
        return await session.scalar(select(col(PlanRow.id)).where(col(PlanRow.id) == self.last_id)) is not None

    async def _intend(
        self,
        session: AsyncSession,
        frozen: Frozen,
        start: Start,
        served: list[str],
        plan_id: str,
        now_us: int,
        early: Early,
        policies: Kept,
    ) -> None:
        """One intent with its hold. Raises HoldExceeded when the budget does not cover it."""
        offer = frozen.offers[start.offer_key]
        rental_id = f"rental_{ULID()}"
        asked, besides = self._asked(frozen, start, served, now_us)
        nano = asked.nano
        scopes = await admit(session, asked, now_us=now_us, early=early)
        await open_hold(
            session,
            hold_id=rental_id,
            nano=nano,
            scopes=scopes,
            project=start.project,
            batch=None,
            rental=rental_id,
            offer_key=start.offer_key,
            occurred_at_us=now_us,
            actor=ACTOR,
        )
        await rentals.record_intent(
            session,
            rental_id=rental_id,
            offer=offer,
            project=start.project,
            model=start.model,
            precision=start.precision,
            purpose={
                "batches": served,
                "plan": plan_id,
                "hold_nano": nano,
                **({"besides": besides} if besides else {}),
                **({"policies": policies} if policies else {}),
                **await self._baselines(session, offer, start),
            },
            now_us=now_us,
        )
        await seal_planned(session, self.services.secret, frozen.snapshot, start.offer_key, rental_id, served)

    def _asked(self, frozen: Frozen, start: Start, served: list[str], now_us: int) -> tuple[Placement, dict[str, int]]:
        """What one intent asks of the budgets, and the terms of what it costs besides its time."""
        offer = frozen.offers[start.offer_key]
        besides = agreed(offer, frozen.snapshot, start, served)
        if offer.per_million is not None:
            nano = self._bought_nano(frozen, offer.per_million, served)
        else:
            nano = hold_nano(offer, start, self.services.settings.control, now_us, set_aside_nano(besides))
        return Placement(start.project, tuple(served), nano, price_nano_hour=_hour_nano(offer)), besides

    async def _baselines(self, session: AsyncSession, offer: Offer, start: Start) -> dict[str, Any]:
        """Of all markets, those that are not rented at too: the plan has not looked at them."""
        profile = self.services.models.get(start.model)
        model = (profile and profile.serves) or start.model
        return baselines(offer, await price_book.alternatives(session, offer.accelerator.name, model), model)


def _kept(snapshot: Snapshot, plan: Plan) -> frozenset[str]:
    """The works that the plan puts on machines that are there."""
    works = {work.id: work for work in snapshot.works}
    kept = {
        (each.offer_key, Pool(each.project, each.model, each.precision))
        for each in snapshot.running
        if each.rental_id in plan.keeps
    }
    return frozenset(
        each.work_id for each in plan.assignments if (each.offer_key, pool_of(works[each.work_id])) in kept
    )


def hold_nano(offer: Offer, start: Start, control: ControlSettings, now_us: int, besides_nano: int = 0) -> int:
    """Upper bound of what one instance of `start` costs until its expected end, with the buffer, in whole increments, and
    `besides_nano` for what of its deposit is not returned and for what it moves.

    What passes unseen is part of it: a hold that must be extended at once would be refused at once, and the machine
    rented for nothing.
    """
    if offer.price is None:
        raise ValueError(f"offer {offer.key} has no price; it must not have been planned with")
    expected_s = max(1, -(-(start.until_us - now_us) // SECOND_US))
    seconds = int(expected_s * control.hold_buffer) + control.unseen_s + offer.granularity_s
    seconds = max(offer.minimum_s, -(-seconds // offer.granularity_s) * offer.granularity_s)
    return max(1, cost_of_seconds(to_nano(offer.price), seconds) + besides_nano)


def _hour_nano(offer: Offer) -> int:
    return to_nano(offer.price or Decimal(0))


def _served(snapshot: Snapshot, plan: Plan, start: Start) -> list[str]:
    """The works that the plan puts on this offer and that belong to the pool of `start`, in order."""
    pool = {
        w.id
        for w in snapshot.works
        if (w.project, w.model, w.precision) == (start.project, start.model, start.precision)
    }
    mine = [a for a in plan.assignments if a.offer_key == start.offer_key and a.work_id in pool]
    return [a.work_id for a in sorted(mine, key=lambda a: a.order)]


def _decisions(plan: Plan) -> bytes:
    """What of a plan leads to action or is shown as a reason; expected times move with every tick and do not count."""
    return msgspec.json.encode(
        {
            "starts": [(s.offer_key, s.project, s.model, s.precision, s.count) for s in plan.starts],
            "keeps": plan.keeps,
            "drains": plan.drains,
            "assignments": [(a.work_id, a.offer_key, a.order, a.concurrency) for a in plan.assignments],
            "later": [(each.offer_key, each.project, each.model, each.begin_us) for each in plan.later],
            "unplaced": [(u.work_id, u.waiting_on) for u in plan.unplaced],
            "variants": [(each.work_id, each.model, each.precision) for each in plan.variants],
        }
    )


async def _assign(
    session: AsyncSession,
    plan: Plan,
    frozen: Frozen,
    going: Collection[str],
    plan_id: str,
    now_us: int,
    *,
    kept: Collection[str] = (),
) -> None:
    """The newest plan's word replaces the last one's for every work that it mentions; ended batches keep theirs. Of `kept` it
    says nothing that holds any more: until the next plan they wait as before."""
    mentioned = {a.work_id for a in plan.assignments} | {u.work_id for u in plan.unplaced}
    # Of those that still go on: a batch that ended while this was solved would lose its explanation.
    await session.execute(delete(Assignment).where(col(Assignment.batch).in_(mentioned.intersection(going))))
    paced = _paces(frozen.snapshot, [each for each in plan.assignments if each.concurrency is not None])
    for a in (each for each in plan.assignments if each.work_id in going):
        session.add(
            Assignment(
                batch=a.work_id,
                offer_key=a.offer_key,
                plan=plan_id,
                rank=a.order,
                cost_nano=a.cost_nano,
                end_us=a.end_us,
                **paced.get((a.work_id, a.offer_key), {}),
            )
        )
    before = {row.batch: row for row in await session.scalars(select(Waiting))}
    waiting = {u.work_id: u for u in plan.unplaced if u.work_id in going}
    later = {
        batch: those
        for batch, those in later_of(frozen.snapshot, plan).items()
        if batch in going and batch not in waiting
    }
    for batch, row in before.items():
        if batch not in waiting and row.plan != STOPPED and batch not in later and batch not in kept:
            await session.delete(row)
    projects = {work.id: work.project for work in frozen.snapshot.works}
    for batch, unplaced in waiting.items():
        relaxations = [msgspec.to_builtins(r) for r in unplaced.relaxations]
        waiting_on, budget = named_budget(unplaced.waiting_on, frozen.binding, batch, projects[batch])
        reasons = [*budget, *reasons_with_apart(unplaced.reasons, frozen.snapshot.apart)]
        await _wait(session, batch, plan_id, waiting_on, reasons, relaxations, now_us)
    for batch, those in later.items():
        await _wait(session, batch, plan_id, LATER, [each.sentence for each in those], [], now_us)


def _paces(snapshot: Snapshot, planned: Sequence[types.Assignment]) -> dict[tuple[str, str], dict[str, int]]:
    """By batch and offer, of batches with a p95 to keep: how many of its requests may be at once, and what that comes to."""
    if not planned:
        return {}
    view, works = View(snapshot), {work.id: work for work in snapshot.works}
    return {(each.work_id, each.offer_key): _pace(view, works[each.work_id], each) for each in planned}


def _pace(view: View, work: Work, planned: types.Assignment) -> dict[str, int]:
    offer = view.offers[planned.offer_key]
    full = view.full_rate(work, offer)
    if planned.concurrency is None or planned.p95_ms is None or full is None:
        return {}
    slowed = slow_down(work, full, planned.concurrency)
    return {
        "concurrency": planned.concurrency,
        "p95_ms": max(1, round(planned.p95_ms / full.slower)),
        "slowed_ppm": max(PPM, round(slowed * PPM)),
    }


def named_budget(waiting_on: str, binding: Mapping[str, str], batch: str, project: str) -> tuple[str, list[str]]:
    """What a batch waits on, and which budget it is. Pure: the planner knows of no budgets but what they leave.

    >>> named_budget("price_ceiling", {"b": "tag:p/team=x"}, "b", "p")
    ('budget', ['budget: tag:p/team=x is what limits it (`broker budget limits`)'])
    >>> named_budget("price_ceiling", {"p": "team:ml"}, "b", "p"), named_budget("budget", {}, "b", "p")
    (('price_ceiling', []), ('budget', []))
    """
    scope = binding.get({"price_ceiling": batch, "budget": project}.get(waiting_on, ""))
    if scope is None:
        return waiting_on, []
    return "budget", [f"budget: {scope} is what limits it (`broker budget limits`)"]


async def _wait(
    session: AsyncSession,
    batch: str,
    plan_id: str,
    waiting_on: str,
    reasons: list[str],
    relaxations: list[dict[str, Any]],
    now_us: int,
) -> None:
    """Say why a batch waits; the same cause goes on since when it began."""
    before = await session.get(Waiting, batch)
    since_us = before.since_us if before is not None and before.waiting_on == waiting_on else now_us
    await session.merge(
        Waiting(
            batch=batch,
            plan=plan_id,
            waiting_on=waiting_on,
            reasons=reasons,
            relaxations=relaxations,
            since_us=since_us,
        )
    )


async def _drain(
    session: AsyncSession, services: Services, plan: Plan, outdated: Mapping[str, str], now_us: int
) -> None:
    """Ask the workers of rentals that the plan no longer needs to finish; they stay warm for a moment, since work that
    comes right after would pay the start-up again. `outdated` ones at once."""
    idle_us = round(services.settings.control.idle_release_s * SECOND_US)
    followed = {each.awaits for each in plan.later if each.kind == "free"}
    due = []
    for rental_id in plan.drains:
        row, worker = await session.get(RentalRow, rental_id), await session.get(Worker, rental_id)
        is_wanted = row is not None and row.offer_key in followed  # other work waits for the machine to be free
        idle_from_us = (worker.work_us or worker.ready_us or row.created_us) if worker and row else 0
        if row is None or (not is_wanted and idle_from_us + idle_us > now_us):
            continue
        due.append(rental_id)
    await drain_all(session, dict.fromkeys(due, "the plan no longer needs it") | dict(outdated), now_us)
