"""The three smaller datasets of FOCUS 1.4: Billing Period, Invoice Detail, Contract Commitment. Pure.

Invoice Detail is made of what the books say was matched to an invoice, not of the rows of Cost and Usage: that the two
agree is then a fact and no tautology.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from ledger.focus.model import Dataset, columns
from ledger.focus.table import Decimals, FocusColumn, Instants, Texts, period_bounds

_NANO_TO_SCALE = 10**9
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
class Commitment:
    """A commitment that was bought: `nano` for `hours` of `sku` between two times."""

    id: str
    market: str
    sku: str
    nano: int
    hours: int
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


def contract_commitments(bought: Sequence[Commitment]) -> list[Row]:
    """One row a commitment: hours of a machine, all paid upfront."""
    return [
        {
            "BillingCurrency": "USD",
            "ContractCommitmentApplicability": json.dumps({"ServiceName": f"{each.market} compute", "SkuId": each.sku}),
            "ContractCommitmentBenefitCategory": "Discount",
            "ContractCommitmentCategory": "Usage",
            "ContractCommitmentCost": each.nano * _NANO_TO_SCALE,
            "ContractCommitmentCreated": each.bought_us // 1_000_000,
            "ContractCommitmentDescription": f"{each.hours} hours of {each.sku}",
            "ContractCommitmentDurationType": "Fixed",
            "ContractCommitmentFulfillmentInterval": "Full Period",
            "ContractCommitmentId": each.id,
            "ContractCommitmentLastUpdated": each.bought_us // 1_000_000,
            "ContractCommitmentLifecycleStatus": "Active",
            "ContractCommitmentModel": "Continuous",
            "ContractCommitmentOfferCategory": "Public",
            "ContractCommitmentPaymentInterval": "One-Time",
            "ContractCommitmentPaymentModel": "All Upfront",
            "ContractCommitmentPeriodEnd": each.end_us // 1_000_000,
            "ContractCommitmentPeriodStart": each.start_us // 1_000_000,
            "ContractCommitmentQuantity": each.hours * 10**18,
            "ContractCommitmentType": "Reserved",
            "ContractCommitmentUnit": "Hours",
            "ContractId": each.id,
            "ContractPeriodEnd": each.end_us // 1_000_000,
            "ContractPeriodStart": each.start_us // 1_000_000,
            "InvoiceIssuerName": each.market,
            "PricingCurrency": "USD",
            "PricingCurrencyContractCommitmentCost": each.nano * _NANO_TO_SCALE,
            "ServiceProviderName": each.market,
        }
        for each in bought
    ]


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
