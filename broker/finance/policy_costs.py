"""What residency policies cost: the books' spend under each, and the part of it that the same work would not have cost without.

Spend is the books', to the nano. The part is of when each machine was decided on (`broker/control/policy_price.py`): a small
queue was planned again without the policy, of a large one it is an estimate, and told apart. Nothing is relaxed by asking.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from sqlalchemy.ext.asyncio import AsyncSession

from broker.control.convert import usd
from broker.finance.report import Report, Section
from broker.finance.spend import NONE, Cell, Facts, cells, facts_of
from ledger.allot import allot
from ledger.focus.table import period_bounds
from ledger.money import div_half_even

MILLION = 1_000_000
COLUMNS = (
    "policy",
    "project",
    "spent under it USD",
    "of it by the policy USD",
    "part",
    "not estimated USD",
    "estimated USD",
)
NOTE = (
    "of when each machine was decided on: the queue planned again without the policy; of large queues estimated from what full "
    "offers are worth (`estimated`); compliance decides"
)


@dataclass(slots=True)
class PolicyCost:
    """Nano-USD under one policy: all of it, what of it the policy cost, how much of that is no more than an estimate, and of how
    much it is not known."""

    nano: int = 0
    premium_nano: int = 0
    unknown_nano: int = 0
    estimated_nano: int = 0


def policy_costs(found: Sequence[Cell], facts: Facts) -> dict[tuple[str, str], PolicyCost]:
    """By (policy, project). The spend sums to all of `found`, exactly; what no policy is known of (a machine of an earlier
    release, an entry without a machine) is under `-`. Pure."""
    costs: dict[tuple[str, str], PolicyCost] = defaultdict(PolicyCost)
    for cell in found:
        row = facts.rentals.get(cell.rental or "")
        shares = row.purpose.get("policies", []) if row is not None else []
        project = cell.project or NONE
        if not shares:
            none = costs[NONE, project]
            none.nano += cell.nano
            none.unknown_nano += cell.nano
            continue
        sign = 1 if cell.nano >= 0 else -1
        for share, part in zip(shares, allot(abs(cell.nano), [each["of_ppm"] for each in shares]), strict=True):
            cost, nano = costs[share["policy"], project], sign * part
            cost.nano += nano
            if share["premium_ppm"] is None:
                cost.unknown_nano += nano
            else:
                premium = div_half_even(nano * share["premium_ppm"], MILLION)
                cost.premium_nano += premium
                cost.estimated_nano += 0 if share.get("by") == "solved" else premium
    return dict(costs)


def section(costs: Mapping[tuple[str, str], PolicyCost], title: str = "Residency policies") -> Section:
    """The dearest policy first."""
    ordered = sorted(costs.items(), key=lambda each: (-each[1].premium_nano, -each[1].nano, each[0]))
    rows = [
        (
            policy,
            project,
            usd(cost.nano),
            *_part(cost, is_known=policy != NONE),
            usd(cost.unknown_nano),
            usd(cost.estimated_nano) if policy != NONE else NONE,
        )
        for (policy, project), cost in ordered
    ]
    return Section(title, COLUMNS, rows, NOTE if rows else "nothing was spent")


def _part(cost: PolicyCost, *, is_known: bool) -> tuple[str, str]:
    if not is_known:
        return NONE, NONE
    return usd(cost.premium_nano), f"{cost.premium_nano * 1000 // cost.nano / 10:.1f} %" if cost.nano > 0 else NONE


async def of_period(
    session: AsyncSession, *, period: str, project: str | None = None
) -> dict[tuple[str, str], PolicyCost]:
    """Of a UTC month, by (policy, project)."""
    first, after = (each * MILLION for each in period_bounds(period))
    found = await cells(session, since_us=first, until_us=after, project=project)
    return policy_costs(found, await facts_of(session, found, ("rental",)))


async def monthly(session: AsyncSession, *, period: str, project: str | None = None) -> Report:
    """A month's report: what each policy cost each project."""
    costs = await of_period(session, period=period, project=project)
    facts = [
        ("month", f"{period} (UTC)"),
        ("spent USD", usd(sum(each.nano for each in costs.values()))),
        ("of it by policies USD", usd(sum(each.premium_nano for each in costs.values()))),
        ("of that estimated USD", usd(sum(each.estimated_nano for each in costs.values()))),
    ]
    return Report("What residency policies cost", facts, [section(costs)])


def month_of(now_us: int) -> str:
    """The UTC month of a moment.

    >>> month_of(0)
    '1970-01'
    """
    return datetime.fromtimestamp(now_us // MILLION, UTC).strftime("%Y-%m")
