"""The budget tree's limits over HTTP: what counts against them, and raises that wait for a second person."""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Annotated, Literal

import structlog
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from broker.api.problems import bad_request, conflict, forbidden, not_found
from broker.api.registry import Call, Route, route
from broker.api.shapes import Own
from broker.approvals import Outcome, objection
from broker.budget_changes import KIND, ChangeStale, Wanted, decide, pending, put
from broker.budget_tables import BudgetAlert, BudgetChange, BudgetRow, Team
from broker.budgets import use_of
from broker.control.convert import usd
from broker.tables import Approval, Project
from jobs.clock import MICROSECONDS, db_now
from jobs.tables import Batch
from ledger.event import UNIT_USD
from ledger.money import to_nano
from ledger.units import MTOKEN, NANO_PER_TOKEN

log = structlog.get_logger()
_USD = r"^[0-9]{1,9}(\.[0-9]{1,9})?$"
_NAME = r"^[a-z0-9][a-z0-9-]{0,63}$"
# As HTML's own input of type email has it: no spaces, no line breaks, no names beside the address.
_EMAIL = r"^[A-Za-z0-9.!#$%&'*+/=?^_`{|}~-]+@[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?$"
_SCOPE = re.compile(
    r"(?P<kind>org|team|project|batch|tag):"
    r"(?P<name>(?P<project>[A-Za-z0-9][A-Za-z0-9_.-]{0,63})(?:/(?P<key>[^=/]{1,64})=(?P<value>.{1,200}))?)"
)


class BudgetLimitPut(Own):
    """A limit for a node of the tree, in USD or in tokens (one of the two)."""

    model_config = ConfigDict(extra="forbid")

    scope: str = Field(
        max_length=400, description="`org:NAME`, `team:NAME`, `project:NAME`, `batch:ID` or `tag:PROJECT/KEY=VALUE`"
    )
    usd: str | None = Field(default=None, pattern=_USD, description="decimal USD")
    tokens: int | None = Field(default=None, ge=0, le=9 * 10**15, description="input and output tokens together")
    per_hour_usd: str | None = Field(default=None, pattern=_USD, description="what its machines may cost an hour")
    window: Literal["month", "total"] = Field(default="total", description="batches and tags have `total`")
    mode: Literal["enforce", "alert_only"] = Field(
        default="enforce", description="alert_only refuses and stops nothing"
    )
    emails: list[Annotated[str, Field(pattern=_EMAIL, max_length=254)]] = Field(
        default=[], max_length=20, description="whom to mail at 50, 80 and 100 %"
    )


class BudgetLimit(BaseModel):
    """A budget of a node, with what counts against it now. Amounts are decimal USD, or tokens.

    `state` is the breaker's: closed, throttled (nothing new starts), open (what runs commits and stops), half_open.
    """

    id: str
    scope: str
    unit: Literal["USD", "tokens"]
    window: str
    mode: str
    limit: str
    booked: str
    held: str
    percent: int
    per_hour_usd: str | None
    state: str
    state_since: int
    emails: list[str]
    told: list[int] = Field(description="the thresholds that were told of, of the newest window")


class BudgetLimitSet(BaseModel):
    """`approval` is set when the change widens the budget: it holds once another principal has approved it."""

    budget: BudgetLimit
    approval: str | None


class BudgetLimitList(BaseModel):
    object: str = "list"
    data: list[BudgetLimit]


class BudgetChangeShape(BaseModel):
    """A change that waits for a second person."""

    id: str
    budget: str
    reason: str
    proposer: str
    created_at: int


class BudgetChangeList(BaseModel):
    object: str = "list"
    data: list[BudgetChangeShape]


async def list_limits(call: Call) -> BudgetLimitList:
    """All budgets of the tree; a key of one project sees those of its own project, batches and tags."""
    async with call.services.database.transaction() as session:
        now_us = await db_now(session)
        query = select(BudgetRow).order_by(col(BudgetRow.scope), col(BudgetRow.unit))
        if call.caller.project is not None:
            query = query.where(col(BudgetRow.project) == call.caller.project)
        return BudgetLimitList(data=[await _shape(session, row, now_us) for row in await session.scalars(query)])


async def put_limit(call: Call, body: BudgetLimitPut) -> BudgetLimitSet:
    """Set a node's limit. What narrows it holds at once; what widens it waits for another principal's approval.

    Holds and the running month count from the first moment: also what was spent before the limit was set.
    """
    unit, nano = _amount(body)
    async with call.services.database.transaction() as session:
        project = await _project_of(session, call, body)
        now_us = await db_now(session)
        row, approval = await put(
            session,
            scope=body.scope,
            unit=unit,
            project=project,
            wanted=Wanted(
                limit_nano=nano,
                per_hour_nano=None if body.per_hour_usd is None else to_nano(Decimal(body.per_hour_usd)),
                mode=body.mode,
                window=body.window,
                emails=tuple(body.emails),
            ),
            by=call.caller.name,
            now_us=now_us,
        )
        shape = await _shape(session, row, now_us)
    call.services.nudge("budget")
    call.services.nudge("plan")
    return BudgetLimitSet(budget=shape, approval=None if approval is None else approval.id)


async def list_changes(call: Call) -> BudgetChangeList:
    """What waits for a second person."""
    own = call.caller.project
    async with call.services.database.transaction() as session:
        found = await pending(session)
    return BudgetChangeList(
        data=[
            BudgetChangeShape(
                id=approval.id,
                budget=change.budget,
                reason=approval.reason,
                proposer=approval.proposer,
                created_at=approval.created_us // MICROSECONDS,
            )
            for approval, change in found
            if own in (None, approval.project)
        ]
    )


async def approve_change(call: Call) -> BudgetLimit:
    """Let a change hold. Whoever proposed it cannot, with whatever key."""
    return await _decide(call, "approved")


async def reject_change(call: Call) -> BudgetLimit:
    """Drop a change. Whoever proposed it cannot, with whatever key."""
    return await _decide(call, "rejected")


def _amount(body: BudgetLimitPut) -> tuple[str, int]:
    if (body.usd is None) == (body.tokens is None):
        raise bad_request(
            "invalid_value", "Give one of usd and tokens; a budget of the other is one of its own.", "usd"
        )
    if body.tokens is not None:
        if body.per_hour_usd is not None:
            raise bad_request("invalid_value", "per_hour_usd belongs to a budget in usd.", "per_hour_usd")
        return MTOKEN, body.tokens * NANO_PER_TOKEN
    return UNIT_USD, to_nano(Decimal(body.usd or "0"))


async def _project_of(session: AsyncSession, call: Call, body: BudgetLimitPut) -> str | None:
    """Whose budget it is: None for teams and organisations. Who may not know of the node is told that it is not there."""
    match = _SCOPE.fullmatch(body.scope)
    if match is None or (match["kind"] == "tag") != (match["key"] is not None):
        raise bad_request(
            "invalid_value",
            f"scope {body.scope!r} is none of org:NAME, team:NAME, project:NAME, batch:ID, tag:PROJECT/KEY=VALUE",
            "scope",
        )
    kind, name = match["kind"], match["project"]
    if kind in ("batch", "tag") and body.window != "total":
        raise bad_request("invalid_value", f"a {kind} has one budget for its whole life: window total", "window")
    unknown = not_found("scope_not_found", f"There is no {kind} {name!r}.")
    if kind in ("org", "team"):
        column = col(Team.org) if kind == "org" else col(Team.name)
        is_there = (await session.execute(select(col(Team.name)).where(column == name).limit(1))).first() is not None
        if call.caller.project is not None or not is_there:
            raise unknown
        return None
    project: str | None = name
    if kind == "batch":
        project = await session.scalar(select(col(Batch.project)).where(col(Batch.id) == name))
    if project is None or await session.get(Project, project) is None or call.caller.project not in (None, project):
        raise unknown
    return project


async def _decide(call: Call, outcome: Outcome) -> BudgetLimit:
    name = call.path("approval")
    async with call.services.database.transaction() as session:
        approval = await session.get(Approval, name, with_for_update=True)
        change = await session.get(BudgetChange, name)
        is_mine = approval is not None and call.caller.project in (None, approval.project)
        if approval is None or change is None or approval.kind != KIND or not is_mine:
            raise not_found("approval_not_found", f"No change of a budget waits as {name!r}.")
        if approval.outcome is not None:
            raise bad_request("already_decided", f"{name} was {approval.outcome} by {approval.decided_by}.", "approval")
        if against := objection(approver=call.caller.name, proposer=approval.proposer):
            raise forbidden("four_eyes", against)
        now_us = await db_now(session)
        try:
            row = await decide(session, approval, change, outcome, by=call.caller.name, now_us=now_us)
        except ChangeStale as stale:
            raise conflict(stale.code, str(stale), "approval") from stale
        shape = await _shape(session, row, now_us)
    call.services.nudge("budget")
    call.services.nudge("plan")
    return shape


async def _shape(session: AsyncSession, row: BudgetRow, now_us: int) -> BudgetLimit:
    use = await use_of(session, row, now_us)
    alerts = select(BudgetAlert).where(col(BudgetAlert.budget) == row.id).order_by(col(BudgetAlert.period).desc())
    told = (await session.scalars(alerts)).all()
    newest = told[0].period if told else None
    return BudgetLimit(
        id=row.id,
        scope=row.scope,
        unit="USD" if row.unit == UNIT_USD else "tokens",
        window=row.window,
        mode=row.mode,
        limit=_told(use.limit_nano, row.unit),
        booked=_told(use.booked_nano, row.unit),
        held=_told(use.held_nano, row.unit),
        percent=use.percent,
        per_hour_usd=None if row.per_hour_nano is None else usd(row.per_hour_nano),
        state=row.state,
        state_since=row.state_us // MICROSECONDS,
        emails=list(row.emails),
        told=sorted(each.threshold for each in told if each.period == newest),
    )


def _told(nano: int, unit: str) -> str:
    return usd(nano) if unit == UNIT_USD else str(nano // NANO_PER_TOKEN)


ROUTES: tuple[Route, ...] = (
    route("GET", "/v1/budgets/limits", list_limits, tag="budgets", roles=("finance", "operator", "submitter", "viewer")),
    route("PUT", "/v1/budgets/limits", put_limit, tag="budgets", roles=("finance",), errors=(404,)),
    route("GET", "/v1/budgets/changes", list_changes, tag="budgets", roles=("finance",)),
    route("POST", "/v1/budgets/changes/{approval}/approve", approve_change, tag="budgets", roles=("finance",)),
    route("POST", "/v1/budgets/changes/{approval}/reject", reject_change, tag="budgets", roles=("finance",)),
)  # fmt: skip
