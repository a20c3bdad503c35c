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
    """A machine that the broker did not record is never found: neither adopted nor released."""
    from broker.control.reconcile import Reconciler
    from markets.sweep import Adopt, Release, Verify

    carry_out = Reconciler._carry_out

    async def blind(self: Any, market: Any, action: Any) -> None:
        if not isinstance(action, Adopt | Release | Verify):
            await carry_out(self, market, action)

    Reconciler._carry_out = blind  # type: ignore[method-assign]


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
