"""Budgets: what a project may still commit. Without a grant a project has no limit."""

from __future__ import annotations

import hashlib
from decimal import Decimal

import structlog
from pydantic import BaseModel, Field
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col
from ulid import ULID

from broker.api.auth import no_such_project
from broker.api.problems import Problem, bad_request
from broker.api.registry import Call, Route, route
from broker.api.shapes import Own
from broker.control.convert import usd
from broker.hold_expiry import behind_of, expires_us
from broker.tables import Project
from jobs.clock import db_now
from ledger.book import find
from ledger.budgets import grant
from ledger.errors import KeyReused
from ledger.event import Exists, Posted
from ledger.holds import open_holds
from ledger.money import to_nano
from ledger.positions import expired_nano, remaining
from ledger.rules import period_of

log = structlog.get_logger()


class BudgetGrant(Own):
    """More money for a project, on top of what it was granted before."""

    usd: str = Field(pattern=r"^[0-9]{1,9}(\.[0-9]{1,9})?$", description="decimal USD, more than 0")


class Budget(BaseModel):
    """A project's budget. `remaining_usd` null: it never got a grant, so there is no limit."""

    project: str
    remaining_usd: str | None
    held_usd: str = Field(description="set aside for machines that run or start now; not in remaining_usd")
    stale_usd: str = Field(description="what of held_usd nothing is behind any more: it comes back when it expires")
    expired_usd: str = Field(description="what came back this month (UTC) of holds that expired")


class BudgetList(BaseModel):
    object: str = "list"
    data: list[Budget]


async def list_budgets(call: Call) -> BudgetList:
    """What each project may still commit; a key of one project sees its own."""
    async with call.services.database.transaction() as session:
        names = select(col(Project.name)).order_by(col(Project.name))
        if call.caller.project is not None:
            names = names.where(col(Project.name) == call.caller.project)
        return BudgetList(data=[await _budget(session, name) for name in await session.scalars(names)])


async def grant_budget(call: Call, body: BudgetGrant) -> Budget:
    """Grant a project money. The first grant is also its first limit: what it has spent so far counts against it.

    With an `Idempotency-Key` a repeat grants nothing; the same key with another amount is refused.
    """
    nano = to_nano(Decimal(body.usd))
    if nano <= 0:
        raise bad_request("invalid_value", f"usd {body.usd} is not more than 0; a grant adds money", "usd")
    project = call.path("project")
    if call.caller.project not in (None, project):
        raise no_such_project(project)
    async with call.services.database.transaction() as session:
        await _known(session, project)
        posted = await _grant(session, call, project, nano)
        shape = await _budget(session, project)
    log.info("budget.granted", project=project, nano=nano, by=call.caller.key_id, again=isinstance(posted, Exists))
    call.services.nudge("plan")
    return shape


async def _grant(session: AsyncSession, call: Call, project: str, nano: int) -> Posted | Exists:
    """Post the grant; a repeat is the event of the first time, so that the books see the same one."""
    key = call.request.headers.get("Idempotency-Key")
    # hashed: a key is typed by somebody and may be longer than an event's key
    grant_id = f"{project}:{hashlib.sha256(key.encode()).hexdigest()}" if key else f"grant_{ULID()}"
    before = await find(session, f"budget.grant:{grant_id}")
    try:
        return await grant(
            session,
            grant_id=grant_id,
            project=project,
            nano=nano,
            occurred_at_us=before.event.occurred_at_us if before else await db_now(session),
            actor=before.event.actor if before else call.caller.key_id,
        )
    except KeyReused as reused:
        message = f"Idempotency-Key {key!r} granted another amount to {project} before; use a new key for a new grant."
        raise Problem(422, "idempotency_mismatch", message) from reused


async def _known(session: AsyncSession, project: str) -> None:
    if await session.scalar(select(col(Project.id)).where(col(Project.name) == project)) is None:
        raise no_such_project(project)


async def _budget(session: AsyncSession, project: str) -> Budget:
    left = await remaining(session, project)
    held = await open_holds(session, project=project)
    behind = await behind_of(session, held)
    stale = [each for each in held if expires_us(each, behind.get(each.id), 0) is not None]
    return Budget(
        project=project,
        remaining_usd=None if left is None else usd(left),
        held_usd=usd(sum(each.remaining_nano for each in held)),
        stale_usd=usd(sum(each.remaining_nano for each in stale)),
        expired_usd=usd(await expired_nano(session, project, period_of(await db_now(session)))),
    )


ROUTES: tuple[Route, ...] = (
    route("GET", "/v1/budgets", list_budgets, tag="budgets", roles=("finance", "operator", "submitter", "viewer")),
    route("POST", "/v1/budgets/{project}/grants", grant_budget, tag="budgets", roles=("finance",), errors=(422,),
          headers={"Idempotency-Key": "the same key with the same amount grants once"}),
)  # fmt: skip
