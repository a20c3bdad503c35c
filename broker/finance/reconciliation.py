"""Importing a provider's invoice: matched to the accruals of its month, posted once, all of it or nothing.

What is explained innocently is booked as variance at once; the rest lies in suspense, one exception each, until a named
person decides. The books then owe exactly what the provider asks for.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Literal

import structlog
from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col
from ulid import ULID

from broker.finance.accrued import Subjects, subjects_of
from broker.finance.tables import InvoiceException, InvoiceRow
from ledger import accounts, book
from ledger.errors import NoRate
from ledger.event import Dims, Event, Facts, Line
from ledger.focus.table import period_bounds
from ledger.rates import rate_at
from ledger.reconcile.bill import BadBill, Bill
from ledger.reconcile.match import Accrued, Paid, Reconciliation, Variance, reconcile
from ledger.standing import closed_periods
from markets.history import DAY_US
from markets.instants import moment
from markets.tables import RentalRow

log = structlog.get_logger()
Decision = Literal["accept", "dispute"]


class InvoiceRefused(Exception):
    """The invoice was not imported, nothing was posted: why, and what to do."""

    code = "invoice_refused"


class RateTooOld(InvoiceRefused):
    """The newest rate of the bill's currency is older than rates may be when the bill was due."""

    code = "invoice_rate_too_old"


class ExceptionUnknown(Exception):
    """There is no such exception in the queue."""

    code = "exception_not_found"


class ExceptionDecided(Exception):
    """Somebody decided on this exception before."""

    code = "exception_decided"


@dataclass(frozen=True, slots=True)
class Imported:
    """What came of an invoice. `id` is "" for a trial run, which posts nothing."""

    id: str
    bill: Bill
    result: Reconciliation
    exceptions: tuple[InvoiceException, ...]


@dataclass(frozen=True, slots=True)
class Asked:
    """An invoice, and all that matching it needs of the books: read at one moment, without keeping anybody from writing to them.

    What is accrued afterwards stays accrued. `earlier` are the invoices of the provider's month that were imported by then.
    """

    bill: Bill
    digest: str
    rate: Decimal
    accrued: Mapping[str, Accrued]
    names: Mapping[str, str]
    before: Mapping[str, Paid]
    earlier: frozenset[str]

    def matched(self) -> Reconciliation:
        """Pure, and slow for a bill of many lines: not for the event loop, and not under the head of the books."""
        return reconcile(self.bill, self.accrued, names=self.names, rate=self.rate, paid_before=self.before)


async def ask(
    session: AsyncSession, bill: Bill, text: bytes, *, rate: Decimal | None = None, now_us: int, most_days: int
) -> Asked:
    """Read the books for an invoice. A rate of the books may be `most_days` old at the month's end (or now, before that).

    Raises InvoiceRefused (imported before, closed month, no rate; RateTooOld).
    """
    digest = hashlib.sha256(text).hexdigest()
    await _refuse(session, bill, digest)
    known = await _rate(session, bill, rate, now_us, most_days)
    subjects = await subjects_of(session, bill.provider, bill.period)
    earlier = (await session.scalars(_earlier(bill))).all()
    before = _paid([json.loads(row.body) for row in earlier], subjects)
    return Asked(bill, digest, known, subjects.accrued, subjects.names, before, frozenset(row.id for row in earlier))


async def import_invoice(
    session: AsyncSession, asked: Asked, result: Reconciliation, *, now_us: int, by: str, is_trial: bool = False
) -> Imported:
    """Post what was matched (`asked.matched()`), in the caller's transaction.

    Raises InvoiceRefused (imported before, closed month; another invoice of the month came in between).
    """
    bill = asked.bill
    if is_trial:
        return Imported("", bill, result, ())
    await book.lock(session)
    await _refuse(session, bill, asked.digest)
    if frozenset(row.id for row in await session.scalars(_earlier(bill))) != asked.earlier:
        raise InvoiceRefused(
            f"another invoice of {bill.provider} for {bill.period} was imported in the same moment; nothing was posted: import "
            "this one again"
        )
    invoice_id = f"invoice_{ULID()}"
    row = InvoiceRow(
        id=invoice_id, provider=bill.provider, number=bill.number, period=bill.period, sha256=asked.digest, form=bill.form,
        currency=bill.currency, total_nano=result.billed_nano, body=_body(result), imported_us=now_us, imported_by=by,
    )  # fmt: skip
    session.add(row)
    at_us = min(now_us, period_bounds(bill.period)[1] * 1_000_000 - 1)
    await book.post_many(
        session, [(event, now_us) for event in _events(invoice_id, bill, result, occurred_at_us=at_us, by=by)]
    )
    exceptions = tuple(_exception(invoice_id, bill.provider, each) for each in _waiting(result))
    session.add_all(exceptions)
    await session.flush()
    log.info(
        "invoice.imported",
        invoice=invoice_id,
        provider=bill.provider,
        nano=result.billed_nano,
        exceptions=len(exceptions),
    )
    return Imported(invoice_id, bill, result, exceptions)


def _earlier(bill: Bill) -> Any:
    return select(InvoiceRow).where(col(InvoiceRow.provider) == bill.provider, col(InvoiceRow.period) == bill.period)


async def _refuse(session: AsyncSession, bill: Bill, digest: str) -> None:
    await _refuse_repeats(session, bill, digest)
    if bill.period in await closed_periods(session):
        raise InvoiceRefused(
            f"month {bill.period} is closed; what comes late is charged to the open month: import it with --period of that one"
        )


async def _refuse_repeats(session: AsyncSession, bill: Bill, digest: str) -> None:
    before = select(InvoiceRow).where(
        col(InvoiceRow.provider) == bill.provider,
        (col(InvoiceRow.sha256) == digest) | (col(InvoiceRow.number) == bill.number),
    )
    if (found := await session.scalar(before)) is not None:
        what = "this file" if found.sha256 == digest else f"invoice {bill.number}"
        raise InvoiceRefused(f"{what} of {bill.provider} was imported before, as {found.id} by {found.imported_by}")


async def _rate(session: AsyncSession, bill: Bill, told: Decimal | None, now_us: int, most_days: int) -> Decimal:
    """USD for one of the bill's currency: what was told, else the newest that the books know for the month's end. One of months
    ago would book the move of the currency as what the provider charged too much."""
    if bill.currency == "USD":
        return Decimal(1)
    if told is not None:
        return told
    until = min(period_bounds(bill.period)[1] * 1_000_000 - 1, now_us)
    try:
        found = await rate_at(session, bill.currency, at_us=until)
    except NoRate as unknown:
        raise InvoiceRefused(
            f"the bill is in {bill.currency} and no rate to USD is known for {bill.period}; give --rate"
        ) from unknown
    age_days = until // DAY_US - found.at_us // DAY_US
    if age_days > most_days:
        raise RateTooOld(
            f"the newest rate of {bill.currency} to USD for {bill.period} is {found.rate:f} of {moment(found.at_us).date()} "
            f"({found.source}), {age_days} days before {moment(until).date()}; {most_days} are the most allowed "
            "(prices.fx_max_age_days): give the rate of those days (`broker ledger rates add`) or --rate"
        )
    return found.rate


def _paid(bodies: Sequence[Mapping[str, Any]], subjects: Subjects) -> dict[str, Paid]:
    """What earlier invoices of the month paid for, by subject. Invoices from before `paid` was kept paid for all of it."""
    found: dict[str, Paid] = {}
    for body in bodies:
        if "paid" not in body:
            for rental in body["matched"]:
                whole = subjects.accrued.get(rental)
                found[rental] = Paid(0, 0) if whole is None else Paid(whole.nano, whole.quantity)
            continue
        for told, (nano, quantity) in body["paid"].items():
            subject = subjects.names.get(told.lower(), told)  # an executor's of before its model was the subject
            earlier = found.get(subject, Paid(0, 0))
            found[subject] = Paid(earlier.nano + nano, earlier.quantity + quantity)
    return found


def _body(result: Reconciliation) -> bytes:
    return json.dumps(
        {
            "matched": list(result.matched),
            "paid": {subject: [each.nano, each.quantity] for subject, each in result.paid.items()},
            "not_billed": [each.subject for each in result.not_billed],
            "variances": [variance_document(each) for each in result.variances],
        }
    ).encode()


def variance_document(each: Variance) -> dict[str, str | int | None]:
    """A variance as JSON."""
    return {
        "subject": each.subject,
        "project": each.project,
        "code": each.code,
        "billed_nano": each.billed_nano,
        "accrued_nano": each.accrued_nano,
        "time_nano": each.time_nano,
        "price_nano": each.price_nano,
        "rest_nano": each.rest_nano,
        "explanation": each.explanation,
    }


def _waiting(result: Reconciliation) -> list[Variance]:
    return [each for each in result.variances if each.nano and not each.is_innocent]


def _events(invoice: str, bill: Bill, result: Reconciliation, *, occurred_at_us: int, by: str) -> list[Event]:
    """One that matches, and one for each innocent variance; what waits stays in suspense. Pure."""
    market = accounts.component(bill.provider)
    suspense = f"Assets:Suspense:{market}"
    difference = result.billed_nano - result.accrued_nano
    moves = (
        (accounts.accrued(bill.provider), result.accrued_nano),
        (suspense, difference),
        (f"Liabilities:Payable:{market}", -result.billed_nano),
    )
    lines = tuple(Line(account=account, nano=nano) for account, nano in moves if nano)
    events = []
    if lines:
        events.append(
            Event(
                key=f"invoice.match:{invoice}:0",
                kind="invoice.match",
                occurred_at_us=occurred_at_us,
                actor=by,
                dims=Dims(),
                lines=lines,
                facts=Facts(market=bill.provider, invoice=invoice),
            )
        )
    events += [
        Event(
            key=f"back:{rental}:settled:{invoice}", kind="refund.received", occurred_at_us=occurred_at_us, actor=by,
            dims=Dims(rental=rental),
            lines=(Line(account=accounts.accrued(bill.provider), nano=nano),
                   Line(account=f"Assets:Receivable:{market}", nano=-nano)),
            facts=Facts(market=bill.provider, invoice=invoice, reason="not_charged"),
        )
        for rental, nano in sorted(result.refunds.items())
    ]  # fmt: skip
    events += [
        variance_event(f"invoice.variance:{invoice}:{number}", bill.provider, invoice, each.code, each.nano, each.project,
                       each.rental if each.accrued_nano else None, occurred_at_us=occurred_at_us, by=by)
        for number, each in enumerate(result.variances)
        if each.nano and each.is_innocent
    ]  # fmt: skip
    return events


def variance_event(
    key: str, provider: str, invoice: str, code: str, nano: int, project: str | None, rental: str | None, *,
    occurred_at_us: int, by: str,
) -> Event:  # fmt: skip
    """A variance leaves suspense and becomes a cost (of the rental, where it is one's)."""
    market = accounts.component(provider)
    return Event(
        key=key, kind="invoice.variance", occurred_at_us=occurred_at_us, actor=by,
        dims=Dims(project=project, rental=rental),
        lines=(
            Line(account=f"Expenses:Variance:{market}", nano=nano), Line(account=f"Assets:Suspense:{market}", nano=-nano),
        ),
        facts=Facts(market=provider, invoice=invoice, reason=code),
    )  # fmt: skip


def _exception(invoice: str, provider: str, each: Variance) -> InvoiceException:
    return InvoiceException(
        id=f"exception_{ULID()}", invoice=invoice, provider=provider, subject=each.subject, code=each.code, nano=each.nano,
        explanation=each.explanation, state="open",
    )  # fmt: skip


async def exceptions(session: AsyncSession, *, state: str | None = None) -> Sequence[InvoiceException]:
    """The queue, oldest first."""
    query = select(InvoiceException).order_by(col(InvoiceException.id))
    return list(await session.scalars(query if state is None else query.where(col(InvoiceException.state) == state)))


async def decide(
    session: AsyncSession, exception_id: str, decision: Decision, *, reason: str, by: str, now_us: int
) -> InvoiceException:
    """A named person decides: accepted, it is a cost; disputed, it stays in suspense until the provider answers, and may be
    accepted later.

    Raises ExceptionUnknown, ExceptionDecided; InvoiceRefused when who imported the invoice would decide alone (four eyes).
    """
    query = select(InvoiceException).where(col(InvoiceException.id) == exception_id).with_for_update()
    found: InvoiceException | None = await session.scalar(query)
    if found is None:
        raise ExceptionUnknown(f"there is no exception {exception_id!r}; `broker ledger exceptions list` has them")
    if found.state == "accepted" or (found.state, decision) == ("disputed", "dispute"):
        raise ExceptionDecided(f"{exception_id} was {found.state} by {found.decided_by}: {found.decision}")
    invoice = await session.get(InvoiceRow, found.invoice)
    if invoice is not None and invoice.imported_by == by:
        raise InvoiceRefused(f"{by} imported {invoice.number}; another person decides on what it left unexplained")
    found.state = "accepted" if decision == "accept" else "disputed"
    found.decided_by, found.decided_us, found.decision = by, now_us, reason
    if decision == "accept":
        rental = await session.scalar(select(RentalRow).where(col(RentalRow.id) == found.subject))
        project, rental_id = (_project(invoice, found.subject), None) if rental is None else (rental.project, rental.id)
        event = variance_event(
            f"invoice.variance:{found.id}", found.provider, found.invoice, found.code, found.nano, project, rental_id,
            occurred_at_us=now_us, by=by,
        )  # fmt: skip
        await book.post(session, event, recorded_at_us=now_us)
    await session.flush()
    log.info("invoice.decided", exception=exception_id, state=found.state, by=by)
    return found


def _project(invoice: InvoiceRow | None, subject: str) -> str | None:
    """Whose a model of an endpoint was, where it was one project's."""
    variances = [] if invoice is None else json.loads(invoice.body)["variances"]
    return next((each["project"] for each in variances if each["subject"] == subject), None)


async def open_exceptions(session: AsyncSession) -> int:
    """How many wait for a person: they keep the month from being closed."""
    query = select(func.count()).select_from(InvoiceException).where(col(InvoiceException.state) == "open")
    return int(await session.scalar(query) or 0)


__all__ = [
    "Asked",
    "BadBill",
    "Imported",
    "InvoiceRefused",
    "RateTooOld",
    "ask",
    "decide",
    "exceptions",
    "import_invoice",
]
