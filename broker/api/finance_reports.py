"""Spend, reports and anomalies over HTTP. Reports are the same sections as JSON, CSV or HTML."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Literal

from aiohttp import web
from pydantic import BaseModel, ConfigDict, Field

from broker.api import shapes
from broker.api.ledger_exports import PERIOD, seen_project
from broker.api.problems import bad_request, conflict, not_found
from broker.api.registry import Call, Route, route
from broker.control.convert import usd
from broker.finance import policy_costs, review
from broker.finance.anomaly_watch import anomalies, labels, shown
from broker.finance.open_positions import positions
from broker.finance.report import Report, as_csv, as_html
from broker.finance.spend import DAY_US, UnknownKey, cells, check_keys, facts_of, grouped, usd_sums
from broker.finance.tables import AnomalyLabel
from jobs.clock import db_now
from ledger.errors import LotsExhausted
from ledger.focus.table import period_bounds

DAY = r"^[0-9]{4}-(0[1-9]|1[0-2])-(0[1-9]|[12][0-9]|3[01])$"
LATEST_US = 253_402_300_799_000_000


class SpendQuery(shapes.Own):
    """By what, of which time. A key of one project sees that project."""

    model_config = ConfigDict(extra="forbid")

    by: str = Field(
        default="project", max_length=400,
        description="project, provider, model, pricing, region, category, rental, batch, day, month, tag:NAME; or several",
    )  # fmt: skip
    period: str | None = Field(default=None, pattern=PERIOD, description="a UTC month; all time without it")
    project: str | None = Field(default=None, max_length=64)


class SpendRow(BaseModel):
    """The values in the order of `by`; `-` is what has none."""

    values: list[str]
    usd: str


class Spend(BaseModel):
    """Dearest first; the rows sum to `usd`, exactly."""

    object: Literal["spend"] = "spend"
    by: list[str]
    period: str | None
    data: list[SpendRow]
    usd: str


class ReportQuery(shapes.Own):
    model_config = ConfigDict(extra="forbid")

    form: Literal["json", "csv", "html"] = "json"
    project: str | None = Field(default=None, max_length=64)


class WeeklyQuery(ReportQuery):
    """`until` is the day after the week; the last Monday without it."""

    until: str | None = Field(default=None, pattern=DAY)


class ChargebackQuery(ReportQuery):
    period: str = Field(pattern=PERIOD, description="a UTC month")


class PoliciesQuery(ReportQuery):
    period: str | None = Field(default=None, pattern=PERIOD, description="a UTC month; this one without it")


class PositionsQuery(shapes.Own):
    """`at`: the last UTC day that counts; until now without it."""

    model_config = ConfigDict(extra="forbid")

    form: Literal["json", "csv", "html"] = "json"
    at: str | None = Field(default=None, pattern=DAY)


class SectionShape(BaseModel):
    title: str
    columns: list[str]
    rows: list[list[str]]
    note: str


class ReportShape(BaseModel):
    object: Literal["report"] = "report"
    title: str
    facts: dict[str, str]
    sections: list[SectionShape]


class AnomalyQuery(shapes.Own):
    """Of which UTC day; the last whole one without it."""

    model_config = ConfigDict(extra="forbid")

    day: str | None = Field(default=None, pattern=DAY)
    project: str | None = Field(default=None, max_length=64)


class AnomalyPart(BaseModel):
    name: str
    usd: str


class AnomalyShape(BaseModel):
    """`low_usd` to `high_usd` is what would have been ordinary; structural rules expect nothing."""

    id: str
    scope: str
    rule: str
    at_us: int
    actual_usd: str
    expected_usd: str
    low_usd: str
    high_usd: str
    score: str
    message: str
    contributors: list[AnomalyPart]
    label: str | None
    labelled_by: str | None


class AnomalyList(BaseModel):
    object: Literal["list"] = "list"
    day: str
    data: list[AnomalyShape]


class LabelBody(shapes.Own):
    """`true`: it was one. `false`: a false alarm. `planned`: we knew."""

    label: Literal["true", "false", "planned"]
    note: str = Field(default="", max_length=500)


class LabelShape(BaseModel):
    object: Literal["ledger.anomaly_label"] = "ledger.anomaly_label"
    id: str
    label: str
    note: str
    labelled_by: str


async def spend(call: Call, query: SpendQuery) -> Spend:
    """What was spent, by project, provider, model, day, batch, tag or several of them. The rows sum to the books."""
    keys = [key.strip() for key in query.by.split(",")]
    try:
        check_keys(keys)
    except UnknownKey as unknown:
        raise bad_request(unknown.code, str(unknown), "by") from unknown
    since, until = (0, LATEST_US) if query.period is None else _micros(query.period)
    project = seen_project(call, query.project)
    async with call.services.database.transaction() as session:
        found = await cells(session, since_us=since, until_us=until, project=project)
        facts = await facts_of(session, found, keys)
    sums = grouped(found, facts, keys)
    return Spend(
        by=keys,
        period=query.period,
        data=[SpendRow(values=list(values), usd=usd(nano)) for values, nano in usd_sums(sums)],
        usd=usd(sum(sums.values())),
    )


async def weekly(call: Call, query: WeeklyQuery) -> web.StreamResponse:
    """The weekly spend review: movers split exactly, budgets against forecast, anomalies, waste, holds, recommendations."""
    project = seen_project(call, query.project)
    async with call.services.database.transaction() as session:
        now_us = await db_now(session)
        until = _last_monday(now_us) if query.until is None else _day_us(query.until, "until")
        found = await review.weekly(session, until_us=until, now_us=now_us, project=project)
    return _answer(found, query.form, "weekly-review")


async def chargeback(call: Call, query: ChargebackQuery) -> web.StreamResponse:
    """A month's chargeback statement by project; it sums to the books, and in cents to the rounded whole."""
    project = seen_project(call, query.project)
    async with call.services.database.transaction() as session:
        found = await review.chargeback(session, period=query.period, project=project)
    return _answer(found, query.form, f"chargeback-{query.period}")


async def policies(call: Call, query: PoliciesQuery) -> web.StreamResponse:
    """What residency policies cost in a month, by policy and project: the books' spend, and the estimated part by the policy."""
    project = seen_project(call, query.project)
    async with call.services.database.transaction() as session:
        period = query.period or policy_costs.month_of(await db_now(session))
        found = await policy_costs.monthly(session, period=period, project=project)
    return _answer(found, query.form, f"policies-{period}")


async def open_positions(call: Call, query: PositionsQuery) -> web.StreamResponse:
    """What is held and owed in other currencies and coins, by lot and account, at a day's rates, with unrealised gains."""
    if call.caller.project is not None:
        raise conflict("all_projects_only", "Currencies are the whole house's; this key is of one project.")
    async with call.services.database.transaction() as session:
        now_us = await db_now(session)
        until_us = now_us + 1 if query.at is None else min(now_us + 1, _day_us(query.at, "at") + DAY_US)
        try:
            found = await positions(session, until_us=until_us)
        except LotsExhausted as earlier:
            raise conflict(earlier.code, f"Before that time more was spent than bought: {earlier}", "at") from earlier
    return _answer(found, query.form, "open-positions")


def _answer(report: Report, form: str, name: str) -> web.Response:
    if form == "html":
        # a page of ours that loads nothing and runs nothing
        headers = {"Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'"}
        return web.Response(text=as_html(report), content_type="text/html", charset="utf-8", headers=headers)
    if form == "csv":
        headers = {"Content-Disposition": f'attachment; filename="{name}.csv"'}
        return web.Response(text=as_csv(report), content_type="text/csv", charset="utf-8", headers=headers)
    shape = ReportShape(
        title=report.title,
        facts=dict(report.facts),
        sections=[
            SectionShape(
                title=each.title, columns=list(each.columns), rows=[list(row) for row in each.rows], note=each.note
            )
            for each in report.sections
        ],
    )
    return web.Response(text=shape.model_dump_json(), content_type="application/json")


async def list_anomalies(call: Call, query: AnomalyQuery) -> AnomalyList:
    """What was out of the ordinary on a day: who contributed, what would have been ordinary, what people said of it."""
    project = seen_project(call, query.project)
    async with call.services.database.transaction() as session:
        now_us = await db_now(session)
        day_us = (now_us // DAY_US - 1) * DAY_US if query.day is None else _day_us(query.day, "day")
        found = await anomalies(session, day_us=day_us, now_us=now_us, project=project)
        told = await labels(session, [each.id for each in found])
    day = datetime.fromtimestamp(day_us // 1_000_000, UTC).strftime("%Y-%m-%d")
    return AnomalyList(
        day=day, data=[AnomalyShape.model_validate(_plain(shown(each, told.get(each.id)))) for each in found]
    )


def _plain(document: Mapping[str, object]) -> dict[str, Any]:
    return dict(document)


async def label_anomaly(call: Call, body: LabelBody) -> LabelShape:
    """Say what an anomaly was: true, false, or planned. It can be said anew, by keys of all projects: a label has no project."""
    name = call.path("anomaly_id")
    if call.caller.project is not None:
        raise conflict("all_projects_only", "Anomalies are labelled for all projects; this key is of one.")
    if not name.startswith("anomaly_"):
        raise not_found(
            "anomaly_not_found", f"{name!r} is no id of an anomaly; `broker ledger anomalies list` has them."
        )
    async with call.services.database.transaction() as session:
        row = AnomalyLabel(
            id=name, label=body.label, note=body.note, labelled_us=await db_now(session), labelled_by=call.caller.name
        )
        await session.merge(row)
    return LabelShape(id=name, label=body.label, note=body.note, labelled_by=call.caller.name)


def _micros(period: str) -> tuple[int, int]:
    begun, after = period_bounds(period)
    return begun * 1_000_000, after * 1_000_000


def _day_us(text: str, name: str) -> int:
    try:
        return int(datetime.strptime(text, "%Y-%m-%d").replace(tzinfo=UTC).timestamp()) * 1_000_000
    except ValueError as wrong:
        raise bad_request("invalid_value", f"{name} {text!r} is no day of the calendar", name) from wrong


def _last_monday(now_us: int) -> int:
    """The newest Monday, 00:00 UTC: 1970-01-05 was one."""
    week = 7 * DAY_US
    return (now_us - 4 * DAY_US) // week * week + 4 * DAY_US


FORMS = ("application/json", "text/csv", "text/html")
ROUTES: tuple[Route, ...] = (
    route("GET", "/v1/spend", spend, tag="finance", roles=("finance",)),
    route("GET", "/v1/reports/weekly", weekly, tag="finance", roles=("finance",), produces=FORMS),
    route("GET", "/v1/reports/chargeback", chargeback, tag="finance", roles=("finance",), produces=FORMS),
    route(
        "GET",
        "/v1/reports/policies",
        policies,
        tag="finance",
        roles=("finance", "compliance"),
        produces=FORMS,
    ),
    route(
        "GET", "/v1/reports/positions", open_positions, tag="finance", roles=("finance",), produces=FORMS, errors=(422,)
    ),
    route("GET", "/v1/ledger/anomalies", list_anomalies, tag="finance", roles=("finance",)),
    route(
        "PUT",
        "/v1/ledger/anomalies/{anomaly_id}/label",
        label_anomaly,
        tag="finance",
        roles=("finance",),
        errors=(422,),
    ),
)
