"""The plan over HTTP: what the planner would do now, and in another world."""

from __future__ import annotations

from decimal import Decimal
from typing import Any, Literal

import msgspec
from pydantic import BaseModel, ConfigDict, Field

from broker.api.problems import bad_request
from broker.api.registry import Call, Route, route
from broker.control.convert import usd
from broker.control.what_if import ask
from solver.errors import BadSnapshot, UnknownCountry
from solver.types import Plan
from solver.what_if import WhatIf


class PlanQuestion(BaseModel):
    """What is different in the world of the question; nothing: the plan of now. `*` names all works or offers."""

    model_config = ConfigDict(extra="forbid")

    without: list[str] = Field(
        default_factory=list, description="markets, or beginnings of offer keys, that are gone, with what runs there"
    )
    price_factor: dict[str, str] = Field(
        default_factory=dict, description="market or offer → decimal, of prices by the hour or of tokens"
    )
    later_hours: dict[str, float] = Field(default_factory=dict, description="batch → hours, negative is sooner")
    max_usd: dict[str, str | None] = Field(default_factory=dict, description="batch → limit, null for none")
    countries: dict[str, list[str]] = Field(default_factory=dict, description="batch → codes and groups")
    rtt_ms: dict[str, int] = Field(
        default_factory=dict, description="market or offer → milliseconds to the data and back"
    )
    max_rtt_ms: dict[str, int | None] = Field(
        default_factory=dict, description="batch → milliseconds to its data and back at most, null for any"
    )
    policies: dict[str, str] = Field(
        default_factory=dict, description="batch → a policy document (YAML) instead of its own"
    )


class PlanSummary(BaseModel):
    """A plan in short."""

    stage: str
    usd: str
    bound_usd: str = Field(description="no plan for this queue can cost less")
    starts: int
    keeps: int
    drains: int
    waiting: int = Field(description="works that are not wholly placed")


class ScarcePool(BaseModel):
    """An offer of which one instance more would make the plan cheaper, or serve more of the queue."""

    offer_key: str
    saves_usd: str
    served: str = Field(description="batches that would have a place besides, decimal")
    until: int | None = Field(description="until when the plan uses what there is; null: there is none")
    message: str


class PlanAnswer(BaseModel):
    """The plan in the solver's published schema (contract C4), and in short; `today` is the plan without the question. `scarce`:
    without a question, what the plan lacks, each found by planning with one instance more; of large queues estimated from what
    the works there would pay more at their next best."""

    object: Literal["plan"] = "plan"
    summary: PlanSummary
    today: PlanSummary | None
    plan: dict[str, Any]
    scarce: list[ScarcePool] = Field(default_factory=list)


async def create_plan(call: Call, body: PlanQuestion) -> PlanAnswer:
    """Plan the queue as it is now, or as a question would have it; nothing is rented or changed."""
    asked = body.model_dump(exclude_defaults=True)
    try:
        question = msgspec.convert(asked, WhatIf) if asked else None
        answer = await ask(call.services, question)
    except (BadSnapshot, UnknownCountry) as wrong:
        raise bad_request(wrong.code, str(wrong), None) from wrong
    return PlanAnswer(
        summary=_summary(answer.plan),
        today=None if answer.today is None else _summary(answer.today),
        plan=msgspec.to_builtins(answer.plan),
        scarce=[
            ScarcePool(
                offer_key=each.offer_key,
                saves_usd=usd(each.saves_nano),
                served=format(Decimal(each.served_ppm).scaleb(-6).normalize(), "f"),
                until=None if each.until_us is None else each.until_us // 1_000_000,
                message=each.message,
            )
            for each in answer.scarce
        ],
    )


def _summary(plan: Plan) -> PlanSummary:
    return PlanSummary(
        stage=plan.stage,
        usd=usd(plan.cost_nano),
        bound_usd=usd(plan.bound_nano),
        starts=sum(start.count for start in plan.starts),
        keeps=len(plan.keeps),
        drains=len(plan.drains),
        waiting=len(plan.unplaced),
    )


ROUTES: tuple[Route, ...] = (
    route("POST", "/v1/plan", create_plan, tag="plan", roles=("operator",), of_house=True, is_body_optional=True),
)
