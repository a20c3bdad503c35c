"""The validate loop: stream over each new batch's input once, then ask whether any plan could serve it.

A batch that no place may serve, or that its limit cannot pay, fails here with the rules that block it, before anything
is held or spent, unless it asked to wait (`on_infeasible: "queue"`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal

import msgspec
import structlog
from sqlalchemy.ext.asyncio import AsyncSession
from ulid import ULID

from broker.accounts import holders
from broker.api import quote_shapes, shapes
from broker.approvals import approval_of, needed_because, propose, undecided
from broker.compliance.pinning import repin, stored_policy
from broker.compliance.proposals import in_force
from broker.compliance.submission import seal_blocking, seal_store
from broker.control import saving
from broker.control.intake import served_by, validate_batch
from broker.control.own_answers import Decided, Prepared, decide, left_for_workers, look_up, prepare
from broker.control.own_part_maker import OwnPartMaker
from broker.control.quote import quote_batch, quote_row
from broker.control.saving import Price, price_of
from broker.control.snapshot import max_nano
from broker.control.variant_again import VariantAgain
from broker.control.variant_quotes import PASSING, Quoted
from broker.model_revision import revision_of
from broker.project_limits import project_limits
from broker.services import Services
from broker.store_residency import store_facts, store_refusals
from broker.tables import Policy
from broker.token_holds import hold_tokens
from jobs import batches, tag_rows
from jobs.batches import Remaining
from jobs.clock import db_now
from jobs.errors import JobsError, ObjectMissing
from jobs.tables import Batch
from jobs.transitions import locked
from jobs.types import Finding, Validation
from ledger.errors import LimitExceeded
from ledger.money import to_nano
from markets import price_book
from markets.own_account import account_name
from solver.errors import SolverError
from solver.residency import Policy as ResidencyPolicy
from workers.profile import ModelProfile

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Taken:
    """What was decided about a batch that may begin: who serves it for how much, what the broker answers itself, at which
    price its savings count, and which model exactly answers (for reuse, where that is pinned)."""

    quoted: Quoted
    decided: Decided
    price: Price
    revision: str | None


@dataclass
class Validator:
    services: Services
    _again: VariantAgain | None = None

    async def step(self) -> None:
        async with self.services.database.transaction() as session:
            fresh = await batches.active_batches(session, ["validating"])
            proposed = await undecided(session, [batch.id for batch in fresh])
        fresh = [batch for batch in fresh if batch.id not in proposed]
        for batch in fresh:
            try:
                async with self.services.claimed("validate", batch.id) as mine:
                    if mine is not None:
                        await Validator(mine).validate(batch.id)
            except (JobsError, SolverError, OSError) as failure:
                # it stays in `validating` and is tried again; the batches behind it go on
                log.error("batch.validate_failed", batch=batch.id, error=f"{type(failure).__name__}: {failure}")
        if fresh:
            self.services.nudge("plan")
            return
        self._again = self._again or VariantAgain(self.services)
        try:
            await self._again.step()
        except (JobsError, SolverError) as failure:
            # it keeps its profile, and is looked at again later
            log.error("batch.variant_failed", error=f"{type(failure).__name__}: {failure}")

    async def validate(self, batch_id: str) -> None:
        """One batch, unless it was seen to since the list was made."""
        async with self.services.database.transaction() as session:
            batch = await session.get(Batch, batch_id)
            is_proposed = bool(await undecided(session, [batch_id]))
        if batch is not None and batch.status == "validating" and not is_proposed:
            await self._validate(batch)

    async def _validate(self, batch: Batch) -> None:
        try:
            found = await validate_batch(self.services, batch)
        except ObjectMissing as missing:
            await self._fail(batch, [Finding(code="file_gone", message=str(missing), param="input_file_id")], 1)
            return
        wishes = shapes.BatchWishes.model_validate(batch.wishes or {})
        candidates = served_by(self.services, found, wishes)
        findings = [*found.findings, *candidates.findings]
        if findings:
            await self._fail(batch, findings, max(found.findings_total, len(findings)))
            return
        if refused := await self._refused_by_store(batch):
            await self._fail(batch, refused, len(refused))
            return
        taken = await self._decide(batch, found, candidates.profiles)
        blocking = blocking_findings(batch, taken.quoted.explanation)
        if blocking and (unheard := await self._unheard(batch.project)):
            # what these markets have may be what it needs; it waits, and every plan says on what
            log.info("batch.undecided", batch=batch.id, markets=unheard, first=blocking[0].message)
            blocking = []
        if blocking:
            await self._seal_blocking(batch)
            await self._fail(batch, blocking, len(blocking))
            return
        await self._begin(batch, found, taken)

    async def _refused_by_store(self, batch: Batch) -> list[Finding]:
        """Why the batch may not lie where our objects do. Waiting would not move the store: `on_infeasible` changes nothing."""
        async with self.services.database.transaction() as session:
            now_us = await db_now(session)
            stored = await session.get(Policy, batch.policy_hash)
            if stored is None:
                return []  # nobody permits it any place, which the plan will say
            policy = msgspec.convert(stored.body, ResidencyPolicy)
            refusals = store_refusals(policy, store_facts(self.services.settings, now_us), now_us)
            if refusals:
                await seal_store(session, self.services, batch.id, batch.policy_hash, policy, now_us)
        return [Finding(code="infeasible_residency", message=each, param="x_broker.residency") for each in refusals]

    async def _seal_blocking(self, batch: Batch) -> None:
        """Keep what the policy says of the offers of now: one of each first reason stands for all that have it."""
        async with self.services.database.transaction() as session:
            now_us = await db_now(session)
            policy = await stored_policy(session, batch.policy_hash)
            if policy is not None:
                await seal_blocking(session, self.services, batch, policy, now_us)

    async def _decide(self, batch: Batch, found: Validation, profiles: Sequence[ModelProfile]) -> Taken:
        """Which lines the broker answers itself, which profile serves the others, and at what price."""
        decided = await asyncio.to_thread(decide, found)
        left = await asyncio.to_thread(left_for_workers, found, decided)
        quoted = await quote_batch(self.services, batch, left, profiles)
        price, revision = price_of(quoted.explanation.model_dump()), _revision(batch, quoted.profile)
        if revision is not None:
            decided = await look_up(self.services, batch, found, decided, revision)
        if decided.known:
            left = await asyncio.to_thread(left_for_workers, found, decided)
            quoted = await self._quote_the_rest(batch, left, quoted)
        return Taken(quoted, decided, price, revision)

    async def _begin(self, batch: Batch, found: Validation, taken: Taken) -> None:
        """Shards, quote and own parts, at once: whoever sees the batch in progress sees its bad lines answered."""
        maker = OwnPartMaker(self.services.store, batch.input_key, taken.price, self.services.settings.jobs.part_bytes)
        prepared = await prepare(maker, batch, found, taken.decided)
        self.services.failpoints.reached("begin.before_txn")
        try:
            await self._begin_now(batch, found, taken, prepared)
        except LimitExceeded as refused:
            if (batch.wishes or {}).get("on_infeasible") == "queue":
                log.info("batch.over_token_budget", batch=batch.id, error=str(refused))
                return  # it stays in `validating`, and is asked again
            finding = Finding(code="infeasible_budget", message=str(refused), param="x_broker")
            await self._fail(batch, [finding], 1)
            return
        if prepared.parts:
            self.services.nudge("finalise")

    async def _begin_now(self, batch: Batch, found: Validation, taken: Taken, prepared: Prepared) -> None:
        """In one transaction: the tokens that it can use are set aside, or it does not begin. Raises LimitExceeded."""
        quoted = taken.quoted
        async with self.services.database.transaction() as session:
            if await _was_changed(session, batch):
                return
            now_us = await db_now(session)
            if await repin(session, self.services, batch.id, await in_force(session, now_us), now_us):
                return  # approved while it was looked at: the next round looks again
            facts = store_facts(self.services.settings, now_us)
            session.add(quote_row(f"quote_{ULID()}", batch.project, batch.id, quoted.explanation, now_us, facts))
            if not await self._may_begin(session, batch, quoted.explanation, now_us):
                return
            most = found.input_tokens + found.output_tokens
            await hold_tokens(session, batch, most, now_us=now_us, actor="broker.validate")
            begun = await batches.begin(session, batch.id, found, prepared.reserved, model=quoted.profile.id)
            if begun.status == "in_progress":
                begun.revision = taken.revision
                policy = await stored_policy(session, begun.policy_hash)
                if policy is not None:
                    await seal_store(session, self.services, begun.id, begun.policy_hash, policy, now_us)
                tag_rows.record(session, batch.id, found.tags)
                for part in prepared.parts:
                    await saving.commit(session, self.services.secret, batch.project, part)

    async def _may_begin(
        self, session: AsyncSession, batch: Batch, explanation: quote_shapes.Explanation, now_us: int
    ) -> bool:
        """Whether nobody has to approve the batch, or somebody has. If not, it is proposed now and stays as it is."""
        earlier = await approval_of(session, batch.id)
        if earlier is not None:
            return earlier.outcome == "approved"
        limits = await project_limits(session, self.services.settings, batch.project)
        reason = needed_because(
            above_nano=limits.approve_above_nano,
            quote_nano=None if explanation.usd is None else to_nano(Decimal(explanation.usd)),
            max_nano=max_nano((batch.wishes or {}).get("max_usd")),
        )
        if reason is None:
            return True
        await propose(session, batch, reason, now_us)
        return False

    async def _quote_the_rest(self, batch: Batch, left: Remaining, whole: Quoted) -> Quoted:
        """The quote without what is known already, with the same profile; that nothing is left to run needs no plan."""
        if left.lines:
            return await quote_batch(self.services, batch, left, [whole.profile])
        nothing = {"lines": 0, "input_tokens": 0, "output_tokens": 0, "chosen": [], "reasons": [], "relaxations": []}
        told = {**nothing, "feasible": True, "usd": "0", "waiting_on": None}
        return Quoted(whole.profile, whole.explanation.model_copy(update=told))

    async def _unheard(self, project: str) -> list[str]:
        """The markets, own accounts too, of which we do not know what they offer now: not asked yet, or failing."""
        async with self.services.database.transaction() as session:
            polls = {row.market: row for row in await price_book.polls(session)}
            own = await holders(session, list(self.services.accounts.openers))
        heard = {name for name, row in polls.items() if row.ok_us is not None and row.error is None}
        accounts = {account_name(market, project) for market, who in own.items() if project in who}
        return sorted({*self.services.markets, *accounts} - heard)

    async def _fail(self, batch: Batch, findings: list[Finding], total: int) -> None:
        async with self.services.database.transaction() as session:
            if await _was_changed(session, batch):
                return
            await batches.fail(session, batch.id, findings, total)
        log.info("batch.refused", batch=batch.id, findings=total, first=findings[0].code)


async def _was_changed(session: AsyncSession, batch: Batch) -> bool:
    """Whether its limit, priority or deadline was set anew while it was looked at: then the next round looks again."""
    return (await locked(session, batch.id)).version != batch.version


def _revision(batch: Batch, profile: ModelProfile) -> str | None:
    """Which model exactly will answer, for a batch that asked for reuse. None: then only its own repeats are reused."""
    if not (batch.wishes or {}).get("reuse"):
        return None
    revision = revision_of(profile)
    if revision is None:
        log.info("batch.reuse_within_itself", batch=batch.id, model=profile.id, reason="its weights are not pinned")
    return revision


def blocking_findings(batch: Batch, explanation: quote_shapes.Explanation) -> list[Finding]:
    """What makes the batch impossible, as findings; none when it is feasible, may wait, or waits for a passing cause."""
    if explanation.feasible or explanation.waiting_on in PASSING:
        return []
    if (batch.wishes or {}).get("on_infeasible") == "queue":
        return []
    relaxed = [r.message for r in explanation.relaxations]
    return [
        Finding(code=f"infeasible_{explanation.waiting_on or 'capacity'}", message=reason, param="x_broker")
        for reason in [*explanation.reasons, *relaxed] or ["no offer can serve this batch"]
    ]
