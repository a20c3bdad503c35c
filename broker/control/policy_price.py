"""What each machine's residency policies cost, found when it is decided to rent it and kept with its intent.

Kept then, for prices move and plans are forgotten: what a policy cost in a month is what was booked for machines times these
parts (`broker/finance/policy_costs.py`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import structlog

from broker.services import Services
from solver.errors import SolverError
from solver.policy_cost import PolicyShare, asked, policy_shares
from solver.types import Plan, Snapshot, Start

log = structlog.get_logger()
Kept = list[dict[str, Any]]


async def priced_policies(services: Services, snapshot: Snapshot, plan: Plan) -> Mapping[Start, Kept]:
    """What the intents of the plan's due starts keep: `policy, hash, of_ppm, premium_ppm, instead, by`."""
    due = [each for each in plan.starts if each.from_us <= snapshot.now_us]
    if not due:
        return {}
    # tenths of a second at 2,000 offers: not on the event loop
    solved = await _solved(services, await asyncio.to_thread(asked, snapshot, plan, due))
    found = await asyncio.to_thread(policy_shares, snapshot, plan, due, solved)
    return {start: [_kept(each) for each in shares] for start, shares in found.items()}


async def _solved(services: Services, snapshots: Mapping[str, Snapshot]) -> dict[str, Plan]:
    """The plan of each, by the process that solves; those that could not be are estimated, and no machine waits for more."""
    found: dict[str, Plan] = {}
    for policy_hash, snapshot in snapshots.items():
        try:
            found[policy_hash] = await services.solver.solve(snapshot)
        except SolverError as failure:
            log.error("policy_price.not_solved", policy=policy_hash, error=str(failure))
            break
        if found[policy_hash].stopped_by == "clock":
            break
    return found


def _kept(share: PolicyShare) -> dict[str, Any]:
    return {
        "policy": share.policy,
        "hash": share.policy_hash,
        "of_ppm": share.of_ppm,
        "premium_ppm": share.premium_ppm,
        "instead": share.instead_key,
        "by": share.by,
    }
