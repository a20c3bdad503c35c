"""The budget tree's teams over HTTP: who belongs to whom, and moves that wait for a second person."""

from __future__ import annotations

import re

import structlog
from pydantic import BaseModel, Field
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from broker import tree_moves
from broker.api.problems import bad_request, conflict, forbidden, not_found
from broker.api.registry import Call, Route, route
from broker.api.shapes import Own
from broker.approvals import Outcome, objection
from broker.budget_tables import BudgetChange, Team, TeamOfProject
from broker.compliance.lifecycle import Standing
from broker.compliance.pinning import holding
from broker.compliance.proposals import in_force
from broker.tables import Approval, Project
from broker.tree_moves import Move, project_move, team_move
from jobs.clock import MICROSECONDS, db_now

log = structlog.get_logger()
_NAME = r"^[a-z0-9][a-z0-9-]{0,63}$"


class TeamPut(Own):
    org: str = Field(pattern=_NAME)


class TeamShape(BaseModel):
    """A team of an organisation, and its projects."""

    name: str
    org: str
    projects: list[str]
    approval: str | None = Field(
        default=None,
        description="set when it moves only once another principal has approved it: a limit is left behind",
    )


class TeamList(BaseModel):
    object: str = "list"
    data: list[TeamShape]


class TeamMember(Own):
    team: str | None = Field(description="null: the project belongs to nobody")


class TeamOfProjectShape(BaseModel):
    """The team that a project belongs to now, null for nobody."""

    team: str | None
    approval: str | None = Field(
        default=None,
        description="set when it moves only once another principal has approved it: a limit is left behind",
    )


class TreeMove(BaseModel):
    """A move in the tree that waits for a second person, or that was decided: `outcome` is approved or rejected."""

    id: str
    subject: str = Field(description="`team:NAME` or `project:NAME`")
    reason: str
    proposer: str
    created_at: int
    outcome: str | None


class TreeMoveList(BaseModel):
    object: str = "list"
    data: list[TreeMove]


async def list_teams(call: Call) -> TeamList:
    """The tree: teams by organisation, with their projects. A key of one project sees its own project's team alone."""
    own = call.caller.project
    async with call.services.database.transaction() as session:
        teams = (await session.scalars(select(Team).order_by(col(Team.org), col(Team.name)))).all()
        shapes = [await _team(session, team) for team in teams]
    if own is not None:
        shapes = [each.model_copy(update={"projects": [own]}) for each in shapes if own in each.projects]
    return TeamList(data=shapes)


async def put_team(call: Call, body: TeamPut) -> TeamShape:
    """Make a team of an organisation, or move it to another. Holds that are open count where they were opened.

    Where a limit would be left behind, the move waits for another principal's approval.
    """
    _require_all(call)
    name = call.path("team")
    if not re.fullmatch(_NAME, name):
        raise bad_request("invalid_value", f"team {name!r} is not a name: small letters, digits and -", "team")
    async with call.services.database.transaction() as session:
        approval = await _move(session, call, await team_move(session, name, body.org))
        return (await _team(session, await session.get_one(Team, name))).model_copy(update={"approval": approval})


async def put_team_of_project(call: Call, body: TeamMember) -> TeamOfProjectShape:
    """Say which team a project belongs to. Machines that run now count where they were rented.

    Where a limit would be left behind, the move waits for another principal's approval.
    """
    _require_all(call)
    name = call.path("project")
    async with call.services.database.transaction() as session:
        if await session.get(Project, name) is None:
            raise not_found("project_not_found", f"No project {name!r}; it is made with its first key.")
        if body.team is not None and await session.get(Team, body.team) is None:
            raise not_found("team_not_found", f"No team {body.team!r}; make it with `broker budget team`.")
        approval = await _move(session, call, await project_move(session, name, body.team))
        row = await session.get(TeamOfProject, name)
    log.info("project.team", project=name, team=body.team, by=call.caller.key_id, approval=approval)
    return TeamOfProjectShape(team=None if row is None else row.team, approval=approval)


async def list_moves(call: Call) -> TreeMoveList:
    """Moves of teams and projects that wait for a second person."""
    _require_all(call)
    async with call.services.database.transaction() as session:
        return TreeMoveList(data=[_moved(each) for each in await tree_moves.pending(session)])


async def approve_move(call: Call) -> TreeMove:
    """Carry a move out. Whoever proposed it cannot, with whatever key."""
    return await _decide(call, "approved")


async def reject_move(call: Call) -> TreeMove:
    """Drop a move. Whoever proposed it cannot, with whatever key."""
    return await _decide(call, "rejected")


async def _move(session: AsyncSession, call: Call, move: Move) -> str | None:
    """Carry it out, or the approval that it waits for."""
    now_us = await db_now(session)
    if left := await tree_moves.limits_left(session, move):
        return (await tree_moves.propose(session, move, left, by=call.caller.name, now_us=now_us)).id
    before = await in_force(session, now_us)
    await tree_moves.carry_out(session, move, now_us)
    await _require_same_policies(session, call, before, now_us)
    return None


async def _decide(call: Call, outcome: Outcome) -> TreeMove:
    _require_all(call)
    name = call.path("approval")
    async with call.services.database.transaction() as session:
        approval = await session.get(Approval, name, with_for_update=True)
        change = await session.get(BudgetChange, name)
        if approval is None or change is None or approval.kind != tree_moves.KIND:
            raise not_found("approval_not_found", f"No move in the tree waits as {name!r}.")
        if approval.outcome is not None:
            raise bad_request("already_decided", f"{name} was {approval.outcome} by {approval.decided_by}.", "approval")
        if against := objection(approver=call.caller.name, proposer=approval.proposer):
            raise forbidden("four_eyes", against)
        now_us = await db_now(session)
        before = await in_force(session, now_us)
        try:
            await tree_moves.decide(session, approval, change, outcome, by=call.caller.name, now_us=now_us)
        except tree_moves.MoveStale as stale:
            raise conflict(stale.code, str(stale), "approval") from stale
        await _require_same_policies(session, call, before, now_us)
        shape = _moved(approval)
    call.services.nudge("plan")
    return shape


def _moved(approval: Approval) -> TreeMove:
    return TreeMove(
        id=approval.id,
        subject=approval.subject,
        reason=approval.reason,
        proposer=approval.proposer,
        created_at=approval.created_us // MICROSECONDS,
        outcome=approval.outcome,
    )


async def _require_same_policies(session: AsyncSession, call: Call, before: Standing, now_us: int) -> None:
    """A project is not taken out from under its policies by one person who moves its team."""
    await session.flush()
    after = await in_force(session, now_us)
    settings = call.services.settings
    for project in sorted(before.nodes.keys() | after.nodes.keys()):
        if holding(before, settings, project) != holding(after, settings, project):
            raise conflict(
                "policies_would_change",
                f"Other residency policies or waivers would hold for project {project!r}. Its place in the tree is for two "
                f"people of compliance to change: `broker policy project {project} --node …`.",
            )


def _require_all(call: Call) -> None:
    if call.caller.project is not None:
        raise not_found("team_not_found", "Teams and organisations are for keys of all projects.")


async def _team(session: AsyncSession, team: Team) -> TeamShape:
    query = select(col(TeamOfProject.project)).where(col(TeamOfProject.team) == team.name)
    projects = list(await session.scalars(query.order_by(col(TeamOfProject.project))))
    return TeamShape(name=team.name, org=team.org, projects=projects)


ROUTES: tuple[Route, ...] = (
    route("GET", "/v1/teams", list_teams, tag="budgets", roles=("finance", "operator", "viewer")),
    route("PUT", "/v1/teams/{team}", put_team, tag="budgets", roles=("finance", "operator"), errors=(422,)),
    route("PUT", "/v1/teams/projects/{project}", put_team_of_project, tag="budgets", roles=("finance", "operator"),
          errors=(422,)),
    route("GET", "/v1/teams/moves", list_moves, tag="budgets", roles=("finance", "operator")),
    route("POST", "/v1/teams/moves/{approval}/approve", approve_move, tag="budgets", roles=("finance",), errors=(422,)),
    route("POST", "/v1/teams/moves/{approval}/reject", reject_move, tag="budgets", roles=("finance",)),
)  # fmt: skip
