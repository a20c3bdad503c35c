"""Moving a team or a project in the budget tree: who leaves a limit behind needs a second person (contract C14).

One person who may move a project could otherwise take it out from under the budgets above it: as good as a raise.
"""

from __future__ import annotations

from dataclasses import dataclass

import structlog
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col
from ulid import ULID

from broker.approvals import Outcome
from broker.budget_tables import BudgetChange, BudgetRow, Team, TeamOfProject
from broker.budgets import house_org, nodes_above
from broker.tables import Approval

log = structlog.get_logger()
KIND = "tree"


class MoveStale(Exception):
    """What was to be moved is not where it was when the move was proposed."""

    code = "move_stale"


@dataclass(frozen=True, slots=True)
class Move:
    """`subject` is `project:NAME`, which goes from one team to another, or `team:NAME`, from one organisation to another; None
    is nowhere."""

    subject: str
    before: str | None
    after: str | None

    @property
    def words(self) -> str:
        return f"{self.subject} from {self.before or 'nowhere'} to {self.after or 'nowhere'}"


async def project_move(session: AsyncSession, project: str, team: str | None) -> Move:
    """Of a project to a team."""
    row = await session.get(TeamOfProject, project, with_for_update=True)
    return Move(f"project:{project}", None if row is None else row.team, team)


async def team_move(session: AsyncSession, team: str, org: str) -> Move:
    """Of a team to an organisation; of one that is new, from nowhere."""
    row = await session.get(Team, team, with_for_update=True)
    return Move(f"team:{team}", None if row is None else row.org, org)


async def limits_left(session: AsyncSession, move: Move) -> tuple[str, ...]:
    """The nodes whose enforced budgets would not hold any more after the move."""
    kind, _, name = move.subject.partition(":")
    if move.before == move.after:
        return ()
    if kind == "team":
        left = set() if move.before is None else {f"org:{move.before}"}
    else:
        after = None if move.after is None else await session.get(Team, move.after)
        # without a team it belongs to the house's own organisation
        stays = {f"org:{await house_org(session)}"} if after is None else {f"org:{after.org}", f"team:{after.name}"}
        left = set(await nodes_above(session, name)) - stays
    query = select(col(BudgetRow.scope)).where(col(BudgetRow.scope).in_(left), col(BudgetRow.mode) == "enforce")
    return tuple(sorted(set(await session.scalars(query))))


async def carry_out(session: AsyncSession, move: Move, now_us: int) -> None:
    """Write the move. What is held stays where it was held."""
    kind, _, name = move.subject.partition(":")
    if kind == "team":
        if move.after is None:
            raise ValueError(f"{move.subject}: a team is of some organisation")
        team = await session.get(Team, name) or Team(name=name, org=move.after, created_us=now_us)
        team.org = move.after
        session.add(team)
    else:
        row = await session.get(TeamOfProject, name)
        if move.after is None:
            if row is not None:
                await session.delete(row)
        else:
            row = row or TeamOfProject(project=name, team=move.after)
            row.team = move.after
            session.add(row)
    await session.flush()


async def propose(session: AsyncSession, move: Move, left: tuple[str, ...], *, by: str, now_us: int) -> Approval:
    """Have the move wait for a second person."""
    approval = Approval(
        id=f"approval_{ULID()}",
        kind=KIND,
        subject=move.subject,
        project="",
        reason=f"{move.words}: the budgets of {', '.join(left)} would not hold for it any more",
        proposer=by,
        created_us=now_us,
    )
    session.add(approval)
    session.add(
        BudgetChange(
            approval=approval.id, budget=move.subject, wanted={"move": {"before": move.before, "after": move.after}}
        )
    )
    await session.flush()
    log.info("approval.proposed", approval=approval.id, move=move.words, proposer=by)
    return approval


async def decide(
    session: AsyncSession, approval: Approval, change: BudgetChange, outcome: Outcome, *, by: str, now_us: int
) -> Move:
    """Carry out or drop what was proposed. The caller has asked for `approvals.objection`, and that nobody decided before.

    Raises MoveStale when it was moved, or where it should go was taken away, meanwhile.
    """
    move = Move(change.budget, change.wanted["move"]["before"], change.wanted["move"]["after"])
    kind, _, name = move.subject.partition(":")
    if outcome == "approved":
        now = await (project_move(session, name, move.after) if kind == "project" else team_move(session, name, "-"))
        if now.before != move.before:
            raise MoveStale(
                f"{move.subject} belongs to {now.before or 'nobody'} now, not to {move.before}; reject {approval.id} and "
                "propose anew"
            )
        await carry_out(session, move, now_us)
    approval.outcome, approval.decided_by, approval.decided_us = outcome, by, now_us
    session.add(approval)
    log.info(f"approval.{outcome}", approval=approval.id, move=move.words, by=by, proposer=approval.proposer)
    return move


async def pending(session: AsyncSession) -> list[Approval]:
    """Moves that wait for a second person, oldest first."""
    query = select(Approval).where(col(Approval.kind) == KIND, col(Approval.outcome).is_(None))
    return list(await session.scalars(query.order_by(col(Approval.id))))
