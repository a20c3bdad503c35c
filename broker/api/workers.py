"""What an operator may do to a worker: cut it off."""

from __future__ import annotations

from typing import Literal

import structlog
from pydantic import BaseModel

from broker.api.problems import not_found
from broker.api.registry import Call, Route, route
from broker.authority import revoke
from broker.worker_sessions import locked_worker
from jobs import leases
from jobs.clock import db_now
from markets.tables import RentalRow

log = structlog.get_logger()


class WorkerRevoked(BaseModel):
    """Its tokens and certificates are worth nothing from now on, and its machine is given back."""

    rental: str
    object: Literal["worker.revoked"] = "worker.revoked"


async def revoke_worker(call: Call) -> WorkerRevoked:
    """Cut a worker off: its tokens, certificates and leases end now, and its machine is given back. What it committed stays.

    Twice is once.
    """
    rental_id = call.path("rental")
    async with call.services.database.transaction() as session:
        await leases.lock_held(session, placement_id=rental_id)
        worker, now_us = await locked_worker(session, rental_id), await db_now(session)
        rental = await session.get(RentalRow, rental_id)
        if worker is None or rental is None or call.caller.project not in (None, rental.project):
            raise not_found("rental_not_found", f"No rental {rental_id!r} with a worker is known here.")
        await revoke(session, rental_id, f"by {call.caller.name}", now_us)
        worker.session += 1
        if worker.state not in ("gone", "failed"):
            worker.state, worker.gone_us, worker.error = "failed", now_us, f"revoked by {call.caller.name}"
        session.add(worker)
        freed = await leases.revoke(session, placement_id=rental_id, blame=False)
    log.warning("worker.revoked", rental=rental_id, by=call.caller.key_id, leases=freed)
    call.services.nudge("reconcile")
    return WorkerRevoked(rental=rental_id)


ROUTES: tuple[Route, ...] = (
    route("POST", "/v1/admin/workers/{rental}/revoke", revoke_worker, tag="admin", roles=("operator",)),
)
