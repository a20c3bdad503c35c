"""The budget tree: which nodes a placement counts against, what counts against a node, and whether it may be made.

`admit` is asked in the transaction that opens the hold, after the ledger's head was locked: planners queue there, so what was
read cannot change before the hold is in the books. (LiteLLM #34732 read, then spent.) What a tag's batches ever cost is added up
before the lock (`budget_batches.Early`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import structlog
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from broker.budget_batches import (
    Early,
    batches_in,
    booked_early,
    booked_for,
    booked_since,
    held_for,
    is_of_batches,
    served_by,
    tags_of,
)
from broker.budget_tables import BudgetRow, Team, TeamOfProject
from broker.tables import Project
from ledger import limits, positions
from ledger.book import lock
from ledger.breaker import State, Use, refusal
from ledger.errors import LimitExceeded
from ledger.event import UNIT_USD
from ledger.money import in_units
from ledger.rules import period_of
from ledger.units import MTOKEN
from markets import rentals
from markets.tables import RentalRow


class HourExceeded(LimitExceeded):
    """What runs and this machine together cost more an hour than a node of the budget tree allows."""


@dataclass(frozen=True, slots=True)
class Over:
    """Why nothing is held for a placement. `is_hourly`: by a limit of dollars an hour, whatever it would cost in all."""

    why: str
    is_hourly: bool = False


log = structlog.get_logger()
UNITS = (UNIT_USD, MTOKEN)


@dataclass(frozen=True, slots=True)
class Placement:
    """What is to be admitted: up to `nano` of `unit` for these batches of a project, on a machine of so much an hour, which runs
    already when its hold is extended."""

    project: str
    batches: tuple[str, ...]
    nano: int
    unit: str = UNIT_USD
    price_nano_hour: int = 0
    is_running: bool = False


async def nodes_above(session: AsyncSession, project: str) -> tuple[str, ...]:
    """The organisation and the team of a project, as the books name them. One without a team is the house's own."""
    query = (
        select(col(Team.name), col(Team.org))
        .join(TeamOfProject, col(TeamOfProject.team) == col(Team.name))
        .where(col(TeamOfProject.project) == project)
    )
    row = (await session.execute(query)).one_or_none()
    if row is not None:
        return f"org:{row.org}", f"team:{row.name}"
    org = await house_org(session)
    return () if org is None else (f"org:{org}",)


async def house_org(session: AsyncSession) -> str | None:
    """The organisation that projects without a team belong to: that of the oldest team; None: there is no team.

    A limit of the organisation would otherwise not hold for a project that nobody has put in a team yet. Who moves that team away
    from a limit needs a second person, as for all teams (broker/tree_moves.py).
    """
    oldest = select(col(Team.org)).order_by(col(Team.created_us), col(Team.name)).limit(1)
    org: str | None = await session.scalar(oldest)
    return org


async def budgets_of(session: AsyncSession, project: str, batches: Collection[str], unit: str) -> list[BudgetRow]:
    """The budgets that a placement for these batches counts against, the highest first."""
    scopes = [
        *await nodes_above(session, project),
        f"project:{project}",
        *(f"batch:{each}" for each in sorted(batches)),
    ]
    scopes += await tags_of(session, project, batches)
    query = select(BudgetRow).where(col(BudgetRow.scope).in_(scopes), col(BudgetRow.unit) == unit)
    rows = (await session.scalars(query.execution_options(populate_existing=True))).all()
    return sorted(rows, key=lambda row: scopes.index(row.scope))


async def early_for(session: AsyncSession, placements: Collection[tuple[str, Collection[str]]]) -> Early:
    """What `admit` adds up beforehand, for (project, batches): for who admits several times in one transaction."""
    rows: dict[str, BudgetRow] = {}
    for project, batches in placements:
        rows.update({row.id: row for row in await budgets_of(session, project, batches, UNIT_USD)})
    return await booked_early(session, rows.values())


async def admit(
    session: AsyncSession, placement: Placement, *, now_us: int, early: Early | None = None
) -> tuple[str, ...]:
    """The scopes for the hold. Raises LimitExceeded naming the node whose budget, breaker or hourly limit refuses it.

    The head of the books is locked afterwards; `early` is of before.
    """
    if early is None:
        rows = await budgets_of(session, placement.project, placement.batches, placement.unit)
        early = await booked_early(session, rows)
    await lock(session)
    for row in await budgets_of(session, placement.project, placement.batches, placement.unit):
        why = await _refused(session, row, placement, now_us, early)
        if why is None:
            continue
        log.warning("budget.refused", budget=row.id, project=placement.project, reason=why.why, mode=row.mode)
        if row.mode == "enforce":
            raise (HourExceeded if why.is_hourly else LimitExceeded)(_told(row, why, placement))
    return await nodes_above(session, placement.project)


async def why_refused(
    session: AsyncSession, placement: Placement, *, now_us: int, early: Early | None = None
) -> Over | None:
    """Why a hold for this placement would not be opened or extended, by a budget or by the project's grants; None: it would.
    The head of the books is locked afterwards, so that it stays true."""
    try:
        await admit(session, placement, now_us=now_us, early=early)
    except LimitExceeded as over:
        return Over(str(over), isinstance(over, HourExceeded))
    left = await positions.remaining(session, placement.project, unit=placement.unit)
    if left is None or placement.nano <= left:
        return None
    return Over(
        f"project {placement.project} has {in_units(max(0, left), placement.unit)} left; "
        f"{in_units(placement.nano, placement.unit)} were asked for"
    )


async def within_own_limits(
    session: AsyncSession, placement: Placement, now_us: int, early: Early | None = None
) -> tuple[tuple[str, ...], dict[str, Over]]:
    """Those of the placement's batches that no budget of their own or of their tags refuses, and why the others are."""
    refused: dict[str, Over] = {}
    for batch in placement.batches:
        for row in await budgets_of(session, placement.project, [batch], placement.unit):
            if not is_of_batches(row) or row.mode != "enforce":
                continue
            if why := await _refused(session, row, placement, now_us, early):
                refused[batch] = Over(_told(row, why, placement), why.is_hourly)
                break
    return tuple(batch for batch in placement.batches if batch not in refused), refused


async def use_of(session: AsyncSession, row: BudgetRow, now_us: int, early: Early | None = None) -> Use:
    """What counts against a budget now. `early`: what was added up beforehand."""
    if is_of_batches(row):
        batches = await batches_in(session, row)
        if early is not None and row.id in early.booked:
            booked = early.booked[row.id] + await booked_since(session, row, early.seq)
        else:
            booked = await booked_for(session, row, batches)
        held = await held_for(session, row, batches)
        return Use(booked, held.within(row.limit_nano - booked), row.limit_nano)
    found = await limits.uses(session, row.scope, row.unit)
    booked = found.get("all" if row.window == "total" else period_of(now_us), 0)
    return Use(booked, found.get("held", 0), row.limit_nano)


async def headroom(session: AsyncSession, project: str, now_us: int) -> tuple[int, str] | None:
    """Nano-USD that the nodes at and above a project leave it, and the scope of the tightest; None without a budget that is
    enforced."""
    left: list[tuple[int, str]] = []
    for row in await budgets_of(session, project, (), UNIT_USD):
        if row.mode == "enforce":
            use = await use_of(session, row, now_us)
            is_shut = row.state in ("open", "throttled")
            left.append((0 if is_shut else max(0, use.limit_nano - use.committed_nano), row.scope))
    return min(left, default=None)


async def hours_left(session: AsyncSession, batches: Mapping[str, str]) -> dict[str, int]:
    """By batch (given with its project) the nano-USD an hour that may run for it beside what runs; none where no limit says."""
    if not batches:
        return {}
    query = select(BudgetRow).where(
        col(BudgetRow.unit) == UNIT_USD, col(BudgetRow.mode) == "enforce", col(BudgetRow.per_hour_nano).is_not(None)
    )
    found: dict[str, int] = {}
    for row in await session.scalars(query.order_by(col(BudgetRow.id))):
        left = (row.per_hour_nano or 0) - sum(each.price_nano_hour for each in await rentals_counted(session, row))
        if is_of_batches(row):
            mine = batches.keys() & set(await batches_in(session, row))
        else:
            projects = set(await projects_in(session, row))
            mine = {batch for batch, project in batches.items() if project in projects}
        found |= {batch: min(left, found.get(batch, left)) for batch in mine}
    return found


async def projects_in(session: AsyncSession, row: BudgetRow) -> list[str]:
    """The projects that a budget is about."""
    kind, _, name = row.scope.partition(":")
    if kind in ("project", "batch", "tag"):
        return [row.project or name]
    query = select(col(TeamOfProject.project)).join(Team, col(Team.name) == col(TeamOfProject.team))
    query = query.where((col(Team.org) if kind == "org" else col(Team.name)) == name)
    found = set(await session.scalars(query))
    if kind == "org" and await house_org(session) == name:
        in_teams = select(col(TeamOfProject.project)).join(Team, col(Team.name) == col(TeamOfProject.team))
        found.update(await session.scalars(select(col(Project.id)).where(col(Project.id).not_in(in_teams))))
    return sorted(found)


async def rentals_in(session: AsyncSession, row: BudgetRow) -> list[RentalRow]:
    """The open rentals that a budget may stop. Of a batch's or a tag's, those that serve nobody else now."""
    mine = await _rentals_near(session, row)
    if not is_of_batches(row):
        return mine
    batches = set(await batches_in(session, row))
    served = await served_by(session, mine)
    return [each for each in mine if served[each.id] and batches.issuperset(served[each.id])]


async def rentals_counted(session: AsyncSession, row: BudgetRow) -> list[RentalRow]:
    """The open rentals that count against a limit per hour. Of a batch's or a tag's, those that serve any of its batches:
    two limits may count one machine, and none is passed by sharing."""
    mine = await _rentals_near(session, row)
    if not is_of_batches(row):
        return mine
    batches = set(await batches_in(session, row))
    served = await served_by(session, mine)
    return [each for each in mine if batches.intersection(served[each.id])]


async def _rentals_near(session: AsyncSession, row: BudgetRow) -> list[RentalRow]:
    projects = set(await projects_in(session, row))
    return [each for each in await rentals.open_rentals(session) if each.project in projects]


def account_name(scope: str) -> str:
    """What stands for a scope in the books: what a person typed as a tag does not."""
    if not scope.startswith("tag:"):
        return scope
    return f"tag-{hashlib.sha256(scope.encode()).hexdigest()[:16]}"


def state_of(row: BudgetRow) -> State:
    """The breaker's state. Raises ValueError for a row that somebody else wrote."""
    if row.state not in ("closed", "throttled", "open", "half_open"):
        raise ValueError(f"budget {row.id} is in state {row.state!r}")
    return row.state  # type: ignore[return-value]


def _told(row: BudgetRow, why: Over, placement: Placement) -> str:
    return f"budget of {row.scope} {why.why}; {in_units(placement.nano, row.unit)} were asked for"


async def _refused(
    session: AsyncSession, row: BudgetRow, placement: Placement, now_us: int, early: Early | None
) -> Over | None:
    use = await use_of(session, row, now_us, early)
    why = refusal(state_of(row), use, asked_nano=placement.nano, is_running=placement.is_running)
    if why is not None:
        left = max(0, use.limit_nano - use.committed_nano)
        limit = in_units(use.limit_nano, row.unit)
        return Over(why.format(left=in_units(left, row.unit), limit=limit, percent=use.percent))
    if row.per_hour_nano is None or placement.price_nano_hour == 0:
        return None
    running = sum(each.price_nano_hour for each in await rentals_counted(session, row))
    if running + placement.price_nano_hour > row.per_hour_nano:
        return Over(
            f"allows {in_units(row.per_hour_nano, row.unit)} an hour, {in_units(running, row.unit)} an hour run already and "
            f"this machine costs {in_units(placement.price_nano_hour, row.unit)}",
            is_hourly=True,
        )
    return None
