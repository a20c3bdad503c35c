"""What each machine's residency policies cost, estimated when it is decided to rent it and kept with its intent.

Kept then, for prices move and plans are forgotten: what a policy cost in a month is what was booked for machines times these
parts (`broker/finance/policy_costs.py`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from solver.policy_cost import PolicyShare, policy_shares
from solver.types import Plan, Snapshot, Start

Kept = list[dict[str, Any]]


async def priced_policies(snapshot: Snapshot, plan: Plan) -> Mapping[Start, Kept]:
    """What the intents of the plan's due starts keep: `policy, hash, of_ppm, premium_ppm, instead`."""
    due = [each for each in plan.starts if each.from_us <= snapshot.now_us]
    if not due:
        return {}
    # a tenth of a second at 2,000 offers: not on the event loop
    found = await asyncio.to_thread(policy_shares, snapshot, plan, due)
    return {start: [_kept(each) for each in shares] for start, shares in found.items()}


def _kept(share: PolicyShare) -> dict[str, Any]:
    return {
        "policy": share.policy,
        "hash": share.policy_hash,
        "of_ppm": share.of_ppm,
        "premium_ppm": share.premium_ppm,
        "instead": share.instead_key,
    }
