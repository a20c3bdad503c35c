"""The three smaller datasets of FOCUS 1.4: Billing Period, Invoice Detail, Contract Commitment. Pure.

Invoice Detail is made of what the books say was matched to an invoice, not of the rows of Cost and Usage: that the two
agree is then a fact and no tautology.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from ledger.focus.columns import SCALE, Decimals, FocusColumn, Instants, Texts
from ledger.focus.model import Dataset, columns
from ledger.focus.table import period_bounds
from ledger.units import unit

_NANO_TO_SCALE = 10**9
_SECOND_US = 1_000_000
Row = Mapping[str, str | int | None]


@dataclass(frozen=True, slots=True)
class InvoiceLine:
    """What an invoice charges under one ChargeCategory, nano-USD."""

    invoice: str
    issuer: str
    category: str
    nano: int
    issued_us: int


@dataclass(frozen=True, slots=True)
class Term:
    """A commitment that was bought from `provider`: `nano` of `unit`, all paid at once, for `seconds` of machines (of `sku`
    where that is known) between two times."""

    id: str
    provider: str
    sku: str | None
    unit: str
    nano: int
    seconds: int
    start_us: int
    end_us: int
    bought_us: int


def billing_periods(issuers: Iterable[str], period: str, *, closed_us: int | None, now_us: int) -> list[Row]:
    """One row an issuer; Closed when the books of the month are."""
    begun, after = period_bounds(period)
    return [
        {
            "BillingPeriodCreated": begun,
            "BillingPeriodEnd": after,
            "BillingPeriodLastUpdated": max(begun, (now_us if closed_us is None else closed_us) // 1_000_000),
            "BillingPeriodStart": begun,
            "BillingPeriodStatus": "Open" if closed_us is None else "Closed",
            "InvoiceIssuerName": issuer,
        }
        for issuer in sorted(set(issuers))
    ]


def invoice_details(lines: Sequence[InvoiceLine], period: str) -> list[Row]:
    """One row for each category of each invoice."""
    begun, after = period_bounds(period)
    return [
        {
            "BilledCost": each.nano * _NANO_TO_SCALE,
            "BillingAccountId": each.issuer,
            "BillingCurrency": "USD",
            "BillingPeriodEnd": after,
            "BillingPeriodStart": begun,
            "ChargeCategory": each.category,
            "InvoiceDetailCreated": each.issued_us // 1_000_000,
            "InvoiceDetailDescription": f"{each.category} of invoice {each.invoice}",
            "InvoiceDetailGrain": json.dumps({"x_ChargeCategory": each.category}),
            "InvoiceDetailId": f"{each.invoice}/{each.category}",
            "InvoiceDetailLastUpdated": each.issued_us // 1_000_000,
            "InvoiceId": each.invoice,
            "InvoiceIssueDate": each.issued_us // 1_000_000,
            "InvoiceIssueStatus": "Issued",
            "InvoiceIssuerName": each.issuer,
            "PaymentCurrency": "USD",
            "PaymentCurrencyBilledCost": each.nano * _NANO_TO_SCALE,
            "PaymentCurrencyInvoiceDetailId": f"{each.invoice}/{each.category}",
            "PaymentTerms": "Not stated",
            "ReferenceInvoiceId": each.invoice,
        }
        for each in lines
    ]


def contract_commitments(terms: Iterable[Term], period: str, *, now_us: int) -> list[Row]:
    """One row for each commitment that was bought before the month was over and has not ended before it. What was bought
    twice under one id is one commitment: FOCUS' ids are unique."""
    begun, after = period_bounds(period)
    return [
        _commitment_row(each, now_us)
        for each in sorted(_joined(terms), key=lambda each: (each.id, each.unit))
        if each.bought_us < after * _SECOND_US and each.end_us > begun * _SECOND_US
    ]


def _joined(terms: Iterable[Term]) -> Iterable[Term]:
    known: dict[tuple[str, str], Term] = {}
    for each in terms:
        first = known.get((each.id, each.unit))
        known[each.id, each.unit] = (
            each
            if first is None
            else replace(
                first,
                nano=first.nano + each.nano,
                seconds=first.seconds + each.seconds,
                start_us=min(first.start_us, each.start_us),
                end_us=max(first.end_us, each.end_us),
            )
        )
    return known.values()


def _commitment_row(each: Term, now_us: int) -> Row:
    start, end = each.start_us // _SECOND_US, max(each.end_us // _SECOND_US, each.start_us // _SECOND_US + 1)
    created, now = each.bought_us // _SECOND_US, now_us // _SECOND_US
    status, since = ("Pending", created) if now < start else ("Active", start) if now < end else ("Expired", end)
    cost = each.nano * _NANO_TO_SCALE
    is_billed = unit(each.unit).kind == "fiat"  # bills are in national money, prices may be in AKT
    return {
        "BillingCurrency": each.unit if is_billed else None,
        "ContractCommitmentApplicability": json.dumps(_applicability(each)),
        "ContractCommitmentBenefitCategory": "Discount",
        "ContractCommitmentCategory": "Usage",
        "ContractCommitmentCost": cost if is_billed else None,
        "ContractCommitmentCreated": created,
        "ContractCommitmentDescription": f"{each.sku or 'machines'} at {each.provider}, paid ahead",
        "ContractCommitmentDurationType": _duration(end - start),
        "ContractCommitmentFulfillmentInterval": "Full Period",
        "ContractCommitmentId": each.id,
        "ContractCommitmentLastUpdated": max(created, since),
        "ContractCommitmentLifecycleStatus": status,
        "ContractCommitmentModel": "Continuous",
        "ContractCommitmentOfferCategory": "Public",
        "ContractCommitmentPaymentInterval": "One-Time",
        "ContractCommitmentPaymentModel": "All Upfront",
        "ContractCommitmentPaymentUpfrontPercentage": 10**SCALE,
        "ContractCommitmentPeriodEnd": end,
        "ContractCommitmentPeriodStart": start,
        "ContractCommitmentQuantity": each.seconds * 10**SCALE // 3600,
        "ContractCommitmentType": "Reserved",
        "ContractCommitmentUnit": "Hours",
        "ContractId": each.id,
        "ContractPeriodEnd": end,
        "ContractPeriodStart": start,
        "InvoiceIssuerName": each.provider,
        "PricingCurrency": each.unit,
        "PricingCurrencyContractCommitmentCost": cost,
        "ServiceProviderName": each.provider,
    }


def _applicability(each: Term) -> dict[str, object]:
    """FOCUS' schema of what a commitment may cover: columns of Cost and Usage and their values."""
    rules = [("ServiceProviderName", each.provider), *((("SkuId", each.sku),) if each.sku else ())]
    return {
        "InclusionOperator": "And",
        "Inclusions": [{"Dimension": name, "Operator": "In", "Values": [value]} for name, value in rules],
    }


def _duration(seconds: int) -> str:
    """In the largest unit that it is a whole number of, as FOCUS recommends; what is none is rounded up to minutes.

    >>> _duration(365 * 86_400), _duration(3_600), _duration(90)
    ('365 Days', '1 Hour', '2 Minutes')
    """
    sizes = (("Day", 86_400), ("Hour", 3_600))
    name, size = next((each for each in sizes if seconds % each[1] == 0), ("Minute", 60))
    count = -(-seconds // size)
    return f"{count} {name}{'s' if count > 1 else ''}"


def as_piece(dataset: Dataset, rows: Sequence[Row]) -> dict[str, FocusColumn]:
    """Rows as columns; Decimals are at scale 18, instants in seconds."""
    found: dict[str, FocusColumn] = {}
    for name, column in columns(dataset).items():
        cells = [row.get(name) for row in rows]
        if column.kind == "Decimal":
            found[name] = Decimals([cell if isinstance(cell, int) else None for cell in cells])
        elif column.kind == "Date/Time" and None not in cells:
            found[name] = Instants([int(cell) for cell in cells if cell is not None])
        else:
            found[name] = Texts([None if cell is None else str(cell) for cell in cells])
    return found
