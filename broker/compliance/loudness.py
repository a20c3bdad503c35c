"""Everybody hears of a broken glass: webhooks of every project that it opens something for, beside the log and the metrics."""

from __future__ import annotations

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from broker.budget_tables import Team, TeamOfProject
from broker.compliance.tables import Proposal
from broker.tables import Project
from jobs import ids
from jobs.tables import OutboxEvent
from solver.residency.effective import concerns

EVENT = "compliance.break_glass"


async def tell_of_break_glass(session: AsyncSession, proposal: Proposal, state: str, now_us: int) -> None:
    """An event for each project concerned, in the caller's transaction: proposed, approved, active, rejected, withdrawn.
    Its payload holds ids, names of policies and numbers; the reason that a person gave stays with the proposal."""
    newest = select(func.coalesce(func.max(col(OutboxEvent.number)), 0)).where(col(OutboxEvent.batch_id) == proposal.id)
    number = int((await session.execute(newest)).scalar_one())
    for project in await _concerned(session, str(proposal.body["projects"])):
        number += 1
        session.add(
            OutboxEvent(
                id=ids.event_id(),
                number=number,
                kind=EVENT,
                batch_id=proposal.id,
                project=project,
                payload={
                    "proposal": proposal.id,
                    "policy": proposal.subject,
                    "projects": proposal.body["projects"],
                    "hours": int(proposal.body["for_us"]) // 3_600_000_000,
                    "state": state,
                },
                created_us=now_us,
            )
        )
    await session.flush()


async def _concerned(session: AsyncSession, pattern: str) -> list[str]:
    query = (
        select(col(Project.id), col(Team.org), col(Team.name))
        .join(TeamOfProject, col(TeamOfProject.project) == col(Project.id), isouter=True)
        .join(Team, col(Team.name) == col(TeamOfProject.team), isouter=True)
        .order_by(col(Project.id))
    )
    found = (await session.execute(query)).all()
    return [
        project
        for project, org, team in found
        if concerns(pattern, project if team is None else f"{org}/{team}/{project}")
    ]
