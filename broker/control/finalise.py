"""The finalise loop: let time close batches, compose what is closed outside of any transaction, then say so in one."""

from __future__ import annotations

from dataclasses import dataclass

import structlog

from broker.control.answer import Answerer
from broker.control.saving import take_back_withdrawn
from broker.project_limits import project_limits
from broker.services import Services
from jobs import batches, results, views
from jobs.errors import JobsError
from jobs.part_rows import PartRows
from jobs.types import TERMINAL

log = structlog.get_logger()


@dataclass
class Finaliser:
    services: Services

    async def step(self) -> None:
        async with self.services.claimed("finalise", "closing") as mine:
            if mine is not None:
                await Finaliser(mine)._close()
        async with self.services.database.transaction() as session:
            closed = await batches.closed_batches(session)
        for batch_id in closed:
            async with self.services.claimed("finalise", batch_id) as mine:
                if mine is not None:
                    await Finaliser(mine)._finish(batch_id)
        if closed:
            self.services.nudge("plan")

    async def _close(self) -> None:
        """Let time close what is over: cheap, and one broker does it for all."""
        repeated = await self._answer_repeats()
        async with self.services.database.transaction() as session:
            grace_s = self.services.settings.control.cancel_grace_s
            await batches.advance(session, cancel_grace_s=grace_s, repeated=repeated)

    async def _answer_repeats(self) -> set[str]:
        """The drained batches whose ready repeats are answered now. One where that fails is tried again until its grace is
        over; one that is cancelled or drained later than this look has its turn at the next step."""
        async with self.services.database.transaction() as session:
            drained = await batches.drained_batches(session)
        answerer = Answerer(self.services)
        return {batch.id for batch in drained if await answerer.settle(batch)}

    async def _finish(self, batch_id: str) -> None:
        """Compose and end one batch. Its trouble (a damaged part, counts that disagree) is logged and stays visible in
        its status; the other batches go on."""
        try:
            async with self.services.database.transaction() as session:
                plan = await results.load_final_plan(session, batch_id)
            if plan is None:
                return  # it moved on since the list was made
            self.services.failpoints.reached("finalise")
            rows = PartRows(self.services.database.transaction, plan)
            composed = await results.compose(self.services.store, plan, rows)
            self.services.failpoints.reached("finalise.before_txn")
            async with self.services.database.transaction() as session:
                limits = await project_limits(session, self.services.settings, plan.project)
                lifetime_s = limits.results_lifetime_s or None
                batch = await results.finish(session, batch_id, composed, lifetime_s=lifetime_s)
                if composed.damaged:
                    await take_back_withdrawn(session, batch)
            if batch.status in TERMINAL:
                await views.drop_views(self.services.store, batch.project, batch_id)
        except JobsError as failure:
            log.error("batch.finalise_failed", batch=batch_id, code=failure.code, error=str(failure))
            return
        except OSError as failure:
            log.error("batch.finalise_failed", batch=batch_id, code="storage", error=str(failure))
            return
        self.services.nudge("answer" if composed.damaged else "remember")
        log.info("batch.ended", batch=batch_id, status=batch.status, completed=batch.completed, failed=batch.failed)
