"""The budget tree: which nodes a placement counts against, what counts against a node, and whether it may be made.

`admit` is asked in the transaction that opens the hold, after the ledger's head was locked: planners queue there, so what was
read cannot change before the hold is in the books. (LiteLLM #34732 read, then spent.)
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import structlog
from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from broker.budget_tables import BudgetRow, Team, TeamOfProject
from broker.costs import batch_costs
from jobs.tables import Batch
from jobs.types import TERMINAL
from ledger import limits
from ledger.book import lock
from ledger.breaker import State, Use, refusal
from ledger.errors import LimitExceeded
from ledger.event import UNIT_USD
from ledger.holds import open_hold, open_holds
from ledger.money import in_units
from ledger.rules import period_of
from ledger.units import MTOKEN, NANO_PER_TOKEN
from markets import rentals
from markets.tables import RentalRow

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
    """The organisation and the team of a project, as the books name them; none for a project of nobody."""
    query = (
        select(col(Team.name), col(Team.org))
        .join(TeamOfProject, col(TeamOfProject.team) == col(Team.name))
        .where(col(TeamOfProject.project) == project)
    )
    row = (await session.execute(query)).one_or_none()
    return () if row is None else (f"org:{row.org}", f"team:{row.name}")


async def budgets_of(session: AsyncSession, project: str, batches: Collection[str], unit: str) -> list[BudgetRow]:
    """The budgets that a placement for these batches counts against, the highest first."""
    scopes = [
        *await nodes_above(session, project),
        f"project:{project}",
        *(f"batch:{each}" for each in sorted(batches)),
    ]
    scopes += await _tags_of(session, project, batches)
    query = select(BudgetRow).where(col(BudgetRow.scope).in_(scopes), col(BudgetRow.unit) == unit)
    rows = (await session.scalars(query.execution_options(populate_existing=True))).all()
    return sorted(rows, key=lambda row: scopes.index(row.scope))


async def admit(session: AsyncSession, placement: Placement, *, now_us: int) -> tuple[str, ...]:
    """The scopes for the hold. Raises LimitExceeded naming the node whose budget, breaker or hourly limit refuses it."""
    await lock(session)
    for row in await budgets_of(session, placement.project, placement.batches, placement.unit):
        why = await _refused(session, row, placement, now_us)
        if why is None:
            continue
        log.warning("budget.refused", budget=row.id, project=placement.project, reason=why, mode=row.mode)
        if row.mode == "enforce":
            raise LimitExceeded(f"budget of {row.scope} {why}; {in_units(placement.nano, row.unit)} were asked for")
    return await nodes_above(session, placement.project)


async def hold_tokens(session: AsyncSession, batch: Batch, tokens: int, *, now_us: int, actor: str) -> None:
    """Set the most tokens that a batch can use aside, where a budget in tokens is about it. Raises LimitExceeded."""
    if tokens <= 0 or not await budgets_of(session, batch.project, [batch.id], MTOKEN):
        return
    placement = Placement(batch.project, (batch.id,), tokens * NANO_PER_TOKEN, unit=MTOKEN)
    scopes = await admit(session, placement, now_us=now_us)
    await open_hold(
        session,
        hold_id=f"tokens:{batch.id}",
        nano=placement.nano,
        project=batch.project,
        batch=batch.id,
        rental=None,
        offer_key=None,
        occurred_at_us=now_us,
        actor=actor,
        scopes=scopes,
        unit=MTOKEN,
    )


async def use_of(session: AsyncSession, row: BudgetRow, now_us: int) -> Use:
    """What counts against a budget now."""
    kind = row.scope.partition(":")[0]
    if kind in ("batch", "tag"):
        batches = await _batches_in(session, row)
        booked = await _booked_for(session, row, batches)
        return Use(booked, await _held_for(session, row, batches), row.limit_nano)
    found = await limits.uses(session, row.scope, row.unit)
    booked = found.get("all" if row.window == "total" else period_of(now_us), 0)
    return Use(booked, found.get("held", 0), row.limit_nano)


async def headroom(session: AsyncSession, project: str, now_us: int) -> int | None:
    """Nano-USD that the nodes at and above a project leave it; None without a budget that is enforced."""
    left: list[int] = []
    for row in await budgets_of(session, project, (), UNIT_USD):
        if row.mode == "enforce":
            use = await use_of(session, row, now_us)
            is_shut = row.state in ("open", "throttled")
            left.append(0 if is_shut else max(0, use.limit_nano - use.committed_nano))
    return min(left, default=None)


async def projects_in(session: AsyncSession, row: BudgetRow) -> list[str]:
    """The projects that a budget is about."""
    kind, _, name = row.scope.partition(":")
    if kind in ("project", "batch", "tag"):
        return [row.project or name]
    query = select(col(TeamOfProject.project)).join(Team, col(Team.name) == col(TeamOfProject.team))
    query = query.where((col(Team.org) if kind == "org" else col(Team.name)) == name)
    return list(await session.scalars(query.order_by(col(TeamOfProject.project))))


async def rentals_in(session: AsyncSession, row: BudgetRow) -> list[RentalRow]:
    """The open rentals that count against a budget. Of a batch's or a tag's, those that serve nobody else."""
    projects = set(await projects_in(session, row))
    mine = [each for each in await rentals.open_rentals(session) if each.project in projects]
    if row.scope.partition(":")[0] not in ("batch", "tag"):
        return mine
    batches = set(await _batches_in(session, row))
    return [each for each in mine if each.purpose.get("batches") and batches.issuperset(each.purpose["batches"])]


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


async def _refused(session: AsyncSession, row: BudgetRow, placement: Placement, now_us: int) -> str | None:
    use = await use_of(session, row, now_us)
    why = refusal(state_of(row), use, asked_nano=placement.nano, is_running=placement.is_running)
    if why is not None:
        left = max(0, use.limit_nano - use.committed_nano)
        return why.format(left=in_units(left, row.unit), limit=in_units(use.limit_nano, row.unit), percent=use.percent)
    if row.per_hour_nano is None or placement.price_nano_hour == 0:
        return None
    running = sum(each.price_nano_hour for each in await rentals_in(session, row))
    if running + placement.price_nano_hour > row.per_hour_nano:
        return (
            f"allows {in_units(row.per_hour_nano, row.unit)} an hour, {in_units(running, row.unit)} an hour run already and "
            f"this machine costs {in_units(placement.price_nano_hour, row.unit)}"
        )
    return None


async def _tags_of(session: AsyncSession, project: str, batches: Collection[str]) -> list[str]:
    query = select(col(Batch.wishes)).where(col(Batch.id).in_(batches))
    tags = {
        f"tag:{project}/{key}={value}"
        for wishes in await session.scalars(query)
        for key, value in ((wishes or {}).get("tags") or {}).items()
    }
    return sorted(tags)


async def _batches_in(session: AsyncSession, row: BudgetRow) -> list[str]:
    kind, _, name = row.scope.partition(":")
    if kind == "batch":
        return [name]
    project, _, tag = name.partition("/")
    key, _, value = tag.partition("=")
    query = select(col(Batch.id), col(Batch.wishes)).where(col(Batch.project) == project)
    found = (await session.execute(query)).all()
    return [batch for batch, wishes in found if ((wishes or {}).get("tags") or {}).get(key) == value]


async def _booked_for(session: AsyncSession, row: BudgetRow, batches: Sequence[str]) -> int:
    if row.unit == UNIT_USD:
        return sum(cost.nano for cost in (await batch_costs(session, batches)).values())
    query = select(func.sum(col(Batch.used_input_tokens) + col(Batch.used_output_tokens)))
    query = query.where(col(Batch.id).in_(batches), col(Batch.status).in_(TERMINAL))
    return int((await session.execute(query)).scalar_one() or 0) * NANO_PER_TOKEN


async def _held_for(session: AsyncSession, row: BudgetRow, batches: Sequence[str]) -> int:
    """What open holds set aside for machines that serve any of the batches: all of it, for any of them may use it."""
    wanted = set(batches)
    if row.unit != UNIT_USD:
        held = await open_holds(session, project=row.project, unit=row.unit)
        return sum(each.remaining_nano + each.drawn_nano for each in held if each.batch in wanted)
    held = await open_holds(session, project=row.project)
    ids = [each.rental for each in held if each.rental is not None]
    query = select(RentalRow).where(col(RentalRow.id).in_(ids))
    serving = {each.id for each in await session.scalars(query) if wanted.intersection(each.purpose.get("batches", ()))}
    return sum(each.remaining_nano for each in held if each.rental in serving)
