"""The broker with one safety check taken out: `mutant.py fence+disjoint|sweeper|hold serve …`.

Only chaos starts it, to prove that it would notice. The product itself has no such switch.
"""

from __future__ import annotations

import sys
from typing import Any


def _no_fence_no_disjoint() -> None:
    """Every part counts, whoever sends it and whatever it answers; the finaliser believes the counts."""
    from jobs import commits

    commits.fence_problem = lambda situation, asked: None
    commits.overlap_problem = lambda situation, asked: None


def _no_sweeper() -> None:
    """Nothing is looked for by its tag: a machine whose creation was not recorded is taken never to have existed."""
    from broker.control.reconcile import Reconciler
    from jobs.clock import db_now
    from markets import rentals
    from markets.sweep import MarkEnded, Seen

    carry_out, let_go = Reconciler._carry_out, Reconciler._let_go

    async def recorded(self: Any, rental_id: str) -> bool:
        async with self.services.database.transaction() as session:
            return (await rentals.get(session, rental_id)).started_us is not None

    async def blind(self: Any, market: Any, action: Any) -> None:
        if isinstance(action, Seen | MarkEnded) and await recorded(self, action.rental.tag):
            await carry_out(self, market, action)

    async def forgetful(self: Any, market: Any, rental_id: str) -> None:
        if await recorded(self, rental_id):
            await let_go(self, market, rental_id)
            return
        async with self.services.database.transaction() as session:
            await rentals.failed(session, rental_id, error="not recorded", now_us=await db_now(session))

    Reconciler._carry_out = blind  # type: ignore[method-assign]
    Reconciler._let_go = forgetful  # type: ignore[method-assign]


def _no_hold() -> None:
    """Money is spent without having been set aside."""
    from broker.control import plan

    async def nothing(session: Any, **_: Any) -> None:
        return None

    plan.open_hold = nothing  # type: ignore[assignment]


MUTATIONS = {"fence+disjoint": _no_fence_no_disjoint, "sweeper": _no_sweeper, "hold": _no_hold}

if __name__ == "__main__":
    MUTATIONS[sys.argv.pop(1)]()
    from broker.cli.main import run

    run()
