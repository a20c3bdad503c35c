"""Invoices over HTTP: import and reconcile, the queue of what they left unexplained, and people's decisions."""

from __future__ import annotations

import asyncio
from decimal import Decimal
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import select
from sqlmodel import col

from broker.api import shapes
from broker.api.ledger_exports import PERIOD
from broker.api.problems import Problem, bad_request, conflict, not_found
from broker.api.registry import Call, Route, route
from broker.control.convert import usd
from broker.database import as_of_now
from broker.finance import reconciliation
from broker.finance.reconciliation import ExceptionDecided, ExceptionUnknown, Imported, InvoiceRefused
from broker.finance.tables import InvoiceException, InvoiceRow
from jobs.clock import db_now
from ledger.reconcile.bill import BadBill
from ledger.reconcile.match import Variance
from ledger.reconcile.read import Form, read_bill

MOST_BYTES = 256 << 20


class InvoiceQuery(shapes.Own):
    """What the body is. The body is the file itself."""

    model_config = ConfigDict(extra="forbid")

    provider: str = Field(pattern=r"^[a-z0-9][a-z0-9.-]{0,63}$", description="the market's name, such as aws")
    form: Form = "focus"
    period: str | None = Field(
        default=None, pattern=PERIOD, description="needed where the lines do not say which month"
    )
    number: str | None = Field(
        default=None, min_length=1, max_length=200, description="the invoice's number, where the file holds several"
    )
    rate: str | None = Field(
        default=None, pattern=r"^[0-9]{1,9}(\.[0-9]{1,18})?$", description="USD for one of the bill's currency"
    )
    columns: str | None = Field(default=None, max_length=4000, description="form csv: JSON, which column means what")
    trial: bool = Field(default=False, description="match and tell, post nothing")


class VarianceShape(BaseModel):
    """`usd` = billed − accrued = `time_usd` + `price_usd` + `rest_usd`, exactly."""

    subject: str
    code: str
    usd: str
    billed_usd: str
    accrued_usd: str
    time_usd: str
    price_usd: str
    rest_usd: str
    explanation: str


class ExceptionShape(BaseModel):
    """What an invoice charges and nothing explains innocently: `open` until a named person decides."""

    object: Literal["ledger.exception"] = "ledger.exception"
    id: str
    invoice: str
    provider: str
    subject: str
    code: str
    usd: str
    explanation: str
    state: str
    decided_by: str | None
    decision: str | None


class ReconciliationShape(BaseModel):
    """An invoice against the books: billed = accrued + the sum of the variances, to the nano."""

    object: Literal["ledger.reconciliation"] = "ledger.reconciliation"
    id: str | None = Field(description="null for a trial")
    provider: str
    number: str
    period: str
    currency: str
    billed_usd: str
    accrued_usd: str
    matched: int
    variances: list[VarianceShape]
    not_billed: list[str] = Field(
        description="rentals (of an endpoint: its models) that were accrued and that no line pays for"
    )
    exceptions: list[ExceptionShape]


class InvoiceShape(BaseModel):
    object: Literal["ledger.invoice"] = "ledger.invoice"
    id: str
    provider: str
    number: str
    period: str
    currency: str
    total_usd: str
    sha256: str
    imported_by: str


class InvoiceList(BaseModel):
    object: Literal["list"] = "list"
    data: list[InvoiceShape]


class ExceptionQuery(shapes.Own):
    model_config = ConfigDict(extra="forbid")

    state: Literal["open", "accepted", "disputed"] | None = None


class ExceptionList(BaseModel):
    object: Literal["list"] = "list"
    data: list[ExceptionShape]


class DecisionBody(shapes.Own):
    """`accept`: we pay it, and it is a cost. `dispute`: it stays in suspense until the provider answers."""

    decision: Literal["accept", "dispute"]
    reason: str = Field(min_length=3, max_length=500)


async def import_invoice(call: Call, query: InvoiceQuery) -> ReconciliationShape:
    """Import a provider's invoice: match it to what was accrued, explain every difference, post it once.

    A file that cannot be read, is of a closed month, in a currency without a rate, or was imported before is refused, and
    nothing is posted.
    """
    _all_projects(call)
    text = await _body(call)
    columns = query.columns.encode() if query.columns else None
    try:
        bill = await asyncio.to_thread(
            read_bill, text, provider=query.provider, form=query.form, period=query.period, columns=columns,
            number=query.number,
        )  # fmt: skip
        async with call.services.database.transaction() as session:
            await as_of_now(session)
            asked = await reconciliation.ask(
                session,
                bill,
                # a file of several is imported once for each of them
                text if query.number is None else text + b"\n" + query.number.encode(),
                rate=Decimal(query.rate) if query.rate else None,
                now_us=await db_now(session),
                most_days=call.services.settings.prices.fx_max_age_days,
            )
        result = await asyncio.to_thread(asked.matched)
        async with call.services.database.transaction() as session:
            found = await reconciliation.import_invoice(
                session, asked, result, now_us=await db_now(session), by=call.caller.name, is_trial=query.trial
            )
            return _shape(found)
    except BadBill as wrong:
        raise bad_request(wrong.code, str(wrong)) from wrong
    except InvoiceRefused as refused:
        raise conflict(refused.code, str(refused)) from refused


async def _body(call: Call) -> bytes:
    parts, size = [], 0
    async for chunk in call.request.content.iter_chunked(1 << 20):
        size += len(chunk)
        if size > MOST_BYTES:
            raise Problem(413, "invoice_too_large", f"An invoice may have {MOST_BYTES} bytes; split it by account.")
        parts.append(chunk)
    return b"".join(parts)


def _all_projects(call: Call) -> None:
    if call.caller.project is not None:
        raise conflict("all_projects_only", "An invoice is of all projects; this key is of one.")


async def list_invoices(call: Call) -> InvoiceList:
    """The invoices that were imported, newest first."""
    _all_projects(call)
    async with call.services.database.transaction() as session:
        rows = list(await session.scalars(select(InvoiceRow).order_by(col(InvoiceRow.imported_us).desc()).limit(1000)))
    return InvoiceList(
        data=[
            InvoiceShape(
                id=row.id, provider=row.provider, number=row.number, period=row.period, currency=row.currency,
                total_usd=usd(row.total_nano), sha256=row.sha256, imported_by=row.imported_by,
            )
            for row in rows
        ]
    )  # fmt: skip


async def list_exceptions(call: Call, query: ExceptionQuery) -> ExceptionList:
    """What invoices charge and nothing explains: the queue, oldest first."""
    _all_projects(call)
    async with call.services.database.transaction() as session:
        found = await reconciliation.exceptions(session, state=query.state)
    return ExceptionList(data=[_exception(each) for each in found])


async def decide_exception(call: Call, body: DecisionBody) -> ExceptionShape:
    """Decide on an exception, as the person that the key is of. Who imported the invoice cannot decide on it."""
    _all_projects(call)
    try:
        async with call.services.database.transaction() as session:
            found = await reconciliation.decide(
                session, call.path("exception_id"), body.decision, reason=body.reason, by=call.caller.name,
                now_us=await db_now(session),
            )  # fmt: skip
            return _exception(found)
    except ExceptionUnknown as unknown:
        raise not_found(unknown.code, str(unknown)) from unknown
    except (ExceptionDecided, InvoiceRefused) as refused:
        raise conflict(refused.code, str(refused)) from refused


def _shape(found: Imported) -> ReconciliationShape:
    result, bill = found.result, found.bill
    return ReconciliationShape(
        id=found.id or None,
        provider=bill.provider,
        number=bill.number,
        period=bill.period,
        currency=bill.currency,
        billed_usd=usd(result.billed_nano),
        accrued_usd=usd(result.accrued_nano),
        matched=len(result.matched),
        variances=[_variance(each) for each in result.variances if each.nano],
        not_billed=[each.subject for each in result.not_billed],
        exceptions=[_exception(each) for each in found.exceptions],
    )


def _variance(each: Variance) -> VarianceShape:
    return VarianceShape(
        subject=each.subject, code=each.code, usd=usd(each.nano), billed_usd=usd(each.billed_nano),
        accrued_usd=usd(each.accrued_nano), time_usd=usd(each.time_nano), price_usd=usd(each.price_nano),
        rest_usd=usd(each.rest_nano), explanation=each.explanation,
    )  # fmt: skip


def _exception(each: InvoiceException) -> ExceptionShape:
    return ExceptionShape(
        id=each.id, invoice=each.invoice, provider=each.provider, subject=each.subject, code=each.code, usd=usd(each.nano),
        explanation=each.explanation, state=each.state, decided_by=each.decided_by, decision=each.decision,
    )  # fmt: skip


ROUTES: tuple[Route, ...] = (
    route("POST", "/v1/ledger/invoices", import_invoice, tag="ledger", roles=("finance",),
          consumes="application/octet-stream", errors=(422,)),
    route("GET", "/v1/ledger/invoices", list_invoices, tag="ledger", roles=("finance",), errors=(422,)),
    route("GET", "/v1/ledger/exceptions", list_exceptions, tag="ledger", roles=("finance",), errors=(422,)),
    route("POST", "/v1/ledger/exceptions/{exception_id}/decision", decide_exception, tag="ledger", roles=("finance",),
          errors=(422,)),
)  # fmt: skip
