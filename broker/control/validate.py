"""The validate loop: stream over each new batch's input once, then ask whether any plan could serve it.

A batch that no place may serve, or that its limit cannot pay, fails here with the rules that block it, before anything
is held or spent, unless it asked to wait (`on_infeasible: "queue"`).
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal

import structlog
from sqlalchemy.ext.asyncio import AsyncSession
from ulid import ULID

from broker.api import shapes
from broker.approvals import approval_of, needed_because, propose, undecided
from broker.control.intake import served_by, validate_file
from broker.control.quote import quote_batch, quote_row
from broker.control.snapshot import max_nano
from broker.control.variant_quotes import PASSING
from broker.project_limits import project_limits
from broker.services import Services
from jobs import batches
from jobs.clock import db_now
from jobs.errors import JobsError, ObjectMissing
from jobs.tables import Batch
from jobs.types import Finding
from ledger.money import to_nano
from markets import price_book
from solver.errors import SolverError

log = structlog.get_logger()


@dataclass
class Validator:
    services: Services

    async def step(self) -> None:
        async with self.services.database.transaction() as session:
            fresh = await batches.active_batches(session, ["validating"])
            proposed = await undecided(session, [batch.id for batch in fresh])
        fresh = [batch for batch in fresh if batch.id not in proposed]
        for batch in fresh:
            try:
                await self._validate(batch)
            except (JobsError, SolverError, OSError) as failure:
                # it stays in `validating` and is tried again; the batches behind it go on
                log.error("batch.validate_failed", batch=batch.id, error=f"{type(failure).__name__}: {failure}")
        if fresh:
            self.services.nudge("plan")

    async def _validate(self, batch: Batch) -> None:
        try:
            found = await validate_file(self.services, batch.project, batch.input_key, batch.endpoint)
        except ObjectMissing as missing:
            await self._fail(batch, [Finding(code="file_gone", message=str(missing), param="input_file_id")], 1)
            return
        wishes = shapes.BatchWishes.model_validate(batch.wishes or {})
        candidates = served_by(self.services, found, wishes)
        findings = [*found.findings, *candidates.findings]
        if findings:
            await self._fail(batch, findings, max(found.findings_total, len(findings)))
            return
        best = await quote_batch(self.services, batch, found, candidates.profiles)
        blocking = blocking_findings(batch, best.explanation)
        if blocking and (unheard := await self._unheard()):
            # what these markets have may be what it needs; it waits, and every plan says on what
            log.info("batch.undecided", batch=batch.id, markets=unheard, first=blocking[0].message)
            blocking = []
        if blocking:
            await self._fail(batch, blocking, len(blocking))
            return
        async with self.services.database.transaction() as session:
            if await _was_changed(session, batch):
                return
            now_us = await db_now(session)
            session.add(quote_row(f"quote_{ULID()}", batch.project, batch.id, best.explanation, now_us))
            if not await self._may_begin(session, batch, best.explanation, now_us):
                return
            await batches.begin(session, batch.id, found, model=best.profile.id)

    async def _may_begin(
        self, session: AsyncSession, batch: Batch, explanation: shapes.Explanation, now_us: int
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

    async def _unheard(self) -> list[str]:
        """The markets of which we do not know what they offer now: not asked yet, or the latest answer was a failure."""
        async with self.services.database.transaction() as session:
            polls = {row.market: row for row in await price_book.polls(session)}
        heard = {name for name, row in polls.items() if row.ok_us is not None and row.error is None}
        return sorted(set(self.services.markets) - heard)

    async def _fail(self, batch: Batch, findings: list[Finding], total: int) -> None:
        async with self.services.database.transaction() as session:
            if await _was_changed(session, batch):
                return
            await batches.fail(session, batch.id, findings, total)
        log.info("batch.refused", batch=batch.id, findings=total, first=findings[0].code)


async def _was_changed(session: AsyncSession, batch: Batch) -> bool:
    """Whether its limit, priority or deadline was set anew while it was looked at: then the next round looks again."""
    return (await batches.get(session, batch.project, batch.id)).version != batch.version


def blocking_findings(batch: Batch, explanation: shapes.Explanation) -> list[Finding]:
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
