"""Our own checker of FOCUS 1.4: row by row, each rule for itself, every breach told. Pure.

The official validator judges some rules by column and lets single rows pass (a wrong ListCost, a ServiceSubcategory that is none,
a date with a space); this one is held to a corpus of single-rule mutations. Cells are the texts of a CSV, None is null.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal, InvalidOperation

from ledger.errors import UnknownUnit
from ledger.focus.commitment_check import commitment_breaches
from ledger.focus.model import COST_AND_USAGE, Column, Dataset, columns, subcategory_parents
from ledger.units import unit

Row = Mapping[str, str | None]
_INSTANT = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z")
_DECIMAL = re.compile(r"-?[0-9]+(\.[0-9]+)?([Ee]-?[0-9]+)?")
_CUSTOM = re.compile(r"x_[A-Z][A-Za-z0-9]*")
_TOLERANCE = Decimal("1e-9")
_PRICED = (
    "SkuId",
    "SkuPriceId",
    "PricingQuantity",
    "PricingUnit",
    "ListUnitPrice",
    "ContractedUnitPrice",
    "PricingCategory",
)
_KEYS = frozenset(
    {
        "CoreCount", "DiskMaxIops", "DiskSpace", "DiskType", "GpuCount", "InstanceType", "InstanceSeries", "MemorySize",
        "ModelDeveloper", "ModelFamily", "ModelId", "ModelVersion", "NetworkMaxIops", "NetworkMaxThroughput",
        "OperatingSystem", "Redundancy", "StorageClass",
    }
)  # fmt: skip
# Each of these is null exactly when the id beside it is.
_FOLLOWS = {
    "RegionName": "RegionId", "ResourceType": "ResourceId", "SubAccountName": "SubAccountId", "SubAccountType": "SubAccountId",
    "CapacityReservationStatus": "CapacityReservationId", "CommitmentDiscountCategory": "CommitmentDiscountId",
    "CommitmentDiscountType": "CommitmentDiscountId", "AllocatedMethodId": "AllocatedResourceId",
}  # fmt: skip
_UNITS = {
    "ConsumedUnit": "ConsumedQuantity", "PricingUnit": "PricingQuantity", "CommitmentDiscountUnit": "CommitmentDiscountQuantity",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class FocusFinding:
    """Row 1 is the first row of data; row 0 is the header."""

    row: int
    column: str
    rule: str
    message: str


def check_header(names: Iterable[str], dataset: Dataset = COST_AND_USAGE) -> Iterator[FocusFinding]:
    """Mandatory columns are there, unknown ones begin with x_ and stand after FOCUS' own, none is there twice."""
    known, told = columns(dataset), list(names)
    for name, column in known.items():
        if column.level == "Mandatory" and name not in told:
            yield FocusFinding(0, name, "missing_column", f"{name} is mandatory")
    custom_began = False
    for at, name in enumerate(told):
        if name in told[:at]:
            yield FocusFinding(0, name, "repeated_column", f"{name} is there twice")
        if name in known:
            if custom_began:
                yield FocusFinding(0, name, "column_order", f"{name} stands after a custom column")
        elif not _CUSTOM.fullmatch(name):
            yield FocusFinding(
                0, name, "unknown_column", f"{name} is no column of {dataset}; custom ones are x_PascalCase"
            )
        else:
            custom_began = True


def check_row(number: int, row: Row, dataset: Dataset = COST_AND_USAGE) -> Iterator[FocusFinding]:
    """Every rule that this row breaks."""
    sound = True
    for name, column in columns(dataset).items():
        if name not in row:
            continue
        for rule, message in _cell(column, row[name]):
            sound = False
            yield FocusFinding(number, name, rule, message)
    across = _ACROSS.get(dataset)
    if sound and across is not None:  # rules across cells need cells that can be read
        for name, rule, message in across(row):
            yield FocusFinding(number, name, rule, message)


def check_rows(rows: Iterable[Row], dataset: Dataset = COST_AND_USAGE) -> list[FocusFinding]:
    """All findings of a table, and that each SkuPriceId has one SKU, each ServiceName one category, each commitment one row."""
    found: list[FocusFinding] = []
    seen: dict[tuple[str, str], str | None] = {}
    for number, row in enumerate(rows, start=1):
        if number == 1:
            found += check_header(row, dataset)
        found += check_row(number, row, dataset)
        commitment = row.get("ContractCommitmentId")
        if commitment and seen.setdefault(("ContractCommitmentId", commitment), str(number)) != str(number):
            found.append(FocusFinding(number, "ContractCommitmentId", "repeated_id", f"{commitment!r} is there twice"))
        for key, value in (
            ("SkuPriceId", "SkuId"),
            ("ServiceName", "ServiceCategory"),
            ("SubAccountId", "SubAccountName"),
        ):
            if row.get(key) and seen.setdefault((key, str(row[key])), row.get(value)) != row.get(value):
                found.append(FocusFinding(number, value, "one_to_one", f"{key} {row[key]!r} has several {value}"))
    return found


def _cell(column: Column, value: str | None) -> Iterator[tuple[str, str]]:
    if value is None:
        if not column.is_nullable:
            yield "null_not_allowed", f"{column.name} is null"
        return
    if value.strip() in ("", "NULL", "null", "N/A", "n/a", "None", "Not Applicable"):
        yield "null_in_words", f"{column.name} {value!r} stands for null; leave the cell empty"
    elif column.kind == "Decimal":
        yield from _decimal(column, value)
    elif column.kind == "Date/Time":
        yield from _instant(column, value)
    elif column.kind == "JSON":
        yield from _json(column, value)
    elif column.allowed and value not in column.allowed:
        yield "value_not_allowed", f"{column.name} {value!r} is none of {', '.join(column.allowed[:6])}"
    elif column.form == "Currency":
        yield from _currency(column, value)
    elif column.name == "ServiceSubcategory" and value not in subcategory_parents():
        yield "value_not_allowed", f"ServiceSubcategory {value!r} is none of FOCUS'"


def _decimal(column: Column, value: str) -> Iterator[tuple[str, str]]:
    if not _DECIMAL.fullmatch(value):
        yield "not_a_decimal", f"{column.name} {value!r}: plain digits, or mEn; no +, no separators"
        return
    number = Decimal(value)
    low = 0 if column.form == "Decimal (non-negative)" else column.low
    if low is not None and number < Decimal(str(low)):
        yield "out_of_range", f"{column.name} {value} is below {low}"
    if column.high is not None and number > Decimal(str(column.high)):
        yield "out_of_range", f"{column.name} {value} is above {column.high}"


def _instant(column: Column, value: str) -> Iterator[tuple[str, str]]:
    try:
        if not _INSTANT.fullmatch(value):
            raise ValueError
        datetime.fromisoformat(value)
    except ValueError:
        yield "not_an_instant", f"{column.name} {value!r}: YYYY-MM-DDTHH:MM:SSZ is meant"


def _json(column: Column, value: str) -> Iterator[tuple[str, str]]:
    try:
        document = json.loads(value)
    except ValueError:
        yield "not_json", f"{column.name} {value[:60]!r} is not JSON"
        return
    if not isinstance(document, dict):
        yield "not_an_object", f"{column.name} is no JSON object"
    elif column.form == "Key-Value" and any(isinstance(each, dict | list) for each in document.values()):
        yield "not_flat", f"{column.name} has nested values"
    elif column.name == "SkuPriceDetails":
        for key in document:
            if key not in _KEYS and not _CUSTOM.fullmatch(key):
                yield (
                    "unknown_property",
                    f"SkuPriceDetails {key!r} is no property of FOCUS; custom ones are x_PascalCase",
                )


def _currency(column: Column, value: str) -> Iterator[tuple[str, str]]:
    try:
        kind = unit(value).kind if value.isupper() else "quantity"
    except UnknownUnit:
        kind = "quantity"
    if kind == "quantity" or (kind == "virtual" and column.name != "PricingCurrency"):
        yield "not_a_currency", f"{column.name} {value!r} is no ISO 4217 currency"


def _across(row: Row) -> Iterator[tuple[str, str, str]]:
    yield from _times(row)
    yield from _nulls_together(row)
    yield from _by_category(row)
    yield from _costs(row)
    yield from _commitments(row)
    parent = subcategory_parents().get(row.get("ServiceSubcategory") or "")
    if parent is not None and parent != row.get("ServiceCategory"):
        yield "ServiceSubcategory", "wrong_parent", f"{row['ServiceSubcategory']} belongs to {parent}"


def _times(row: Row) -> Iterator[tuple[str, str, str]]:
    for kind in ("BillingPeriod", "ChargePeriod"):
        begun, after = row.get(f"{kind}Start"), row.get(f"{kind}End")
        if begun and after and after <= begun:
            yield f"{kind}End", "end_before_start", f"{kind}End {after} is not after {begun}"
    if (row.get("BillingPeriodStart") or "")[8:] not in ("", "01T00:00:00Z"):
        yield "BillingPeriodStart", "not_a_month", "a billing period begins with a month"
    if (row.get("ChargePeriodStart") or "") >= (row.get("BillingPeriodEnd") or "~"):
        yield "ChargePeriodStart", "charged_ahead", "what is charged begins after its billing period"


def _nulls_together(row: Row) -> Iterator[tuple[str, str, str]]:
    for name, of in _FOLLOWS.items():
        if (row.get(name) is None) != (row.get(of) is None):
            yield name, "null_with_its_id", f"{name} is null exactly when {of} is"
    for name, of in _UNITS.items():
        if (row.get(name) is None) != (row.get(of) is None):
            yield name, "unit_with_quantity", f"{name} is null exactly when {of} is"
    if row.get("ResourceName") is not None and row.get("ResourceId") is None:
        yield "ResourceName", "name_without_id", "ResourceName without ResourceId"
    for name in ("SkuPriceDetails", "SkuMeter"):
        if row.get(name) is not None and row.get("SkuPriceId") is None:
            yield name, "without_sku_price", f"{name} without SkuPriceId"
    if row.get("InvoiceDetailId") is not None and row.get("InvoiceId") is None:
        yield "InvoiceDetailId", "detail_without_invoice", "InvoiceDetailId without InvoiceId"


def _by_category(row: Row) -> Iterator[tuple[str, str, str]]:
    category, is_correction = row.get("ChargeCategory"), row.get("ChargeClass") == "Correction"
    if category in ("Usage", "Purchase") and not is_correction:
        for name in _PRICED:
            if row.get(name) is None:
                yield name, "required_for_usage", f"{category} rows have {name}"
    if category == "Tax":
        for name in _PRICED:
            if row.get(name) is not None:
                yield name, "null_for_tax", f"Tax rows have no {name}"
    yield from _of_other_categories(row, category, is_correction)


def _of_other_categories(row: Row, category: str | None, is_correction: bool) -> Iterator[tuple[str, str, str]]:
    if category != "Usage" and row.get("ConsumedQuantity") is not None:
        yield "ConsumedQuantity", "consumed_by_usage_only", f"{category} rows consume nothing"
    if category == "Purchase" and row.get("ChargeFrequency") == "Usage-Based":
        yield "ChargeFrequency", "purchase_usage_based", "a purchase is One-Time or Recurring"
    if category in ("Tax", "Credit") and _number(row, "EffectiveCost") != _number(row, "BilledCost"):
        yield "EffectiveCost", "effective_is_billed", f"of {category} rows, EffectiveCost is BilledCost"
    if category == "Credit" and (_number(row, "BilledCost") or 0) > 0 and not is_correction:
        yield "BilledCost", "credit_positive", "a credit is not a charge"


def _costs(row: Row) -> Iterator[tuple[str, str, str]]:
    quantity = _number(row, "PricingQuantity")
    for cost, price in (("ListCost", "ListUnitPrice"), ("ContractedCost", "ContractedUnitPrice")):
        each, total = _number(row, price), _number(row, cost)
        if row.get("SkuPriceId") is None and each is not None:
            yield price, "price_without_sku", f"{price} without SkuPriceId"
        if None in (quantity, each, total) or quantity is None or each is None or total is None:
            continue
        if abs(quantity * each - total) > _TOLERANCE * max(abs(total), Decimal(1)):
            yield cost, "not_price_times_quantity", f"{cost} {total} is not {each} x {quantity}"
    if row.get("SkuPriceId") is None and quantity is not None:
        yield "PricingQuantity", "quantity_without_sku", "PricingQuantity without SkuPriceId"
    yield from _same_currency(row)


def _same_currency(row: Row) -> Iterator[tuple[str, str, str]]:
    """What is priced and billed in one currency has one price."""
    if row.get("PricingCurrency") != row.get("BillingCurrency"):
        return
    for name in ("EffectiveCost", "ListUnitPrice", "ContractedUnitPrice"):
        other = f"PricingCurrency{name}"
        if other in row and _number(row, other) != _number(row, name):
            yield other, "same_currency", f"{other} differs from {name} in the same currency"


def _applied(row: Row) -> Iterator[tuple[str, str, str]]:
    """The object of contractappliedobject.json: at least one element, each by cost or by quantity and unit."""
    try:
        elements = json.loads(row["ContractApplied"] or "")["Elements"]
        wrong = not elements or any(
            not isinstance(each.get(name), str) for each in elements for name in ("ContractId", "ContractCommitmentId")
        )
        for each in elements:
            cost, quantity, unit = (
                each.get(f"ContractCommitmentApplied{name}") for name in ("Cost", "Quantity", "Unit")
            )
            wrong = wrong or (quantity is None) != (unit is None) or (cost is None) == (quantity is None)
    except (ValueError, KeyError, TypeError, AttributeError):
        wrong = True
    if wrong:
        yield (
            "ContractApplied",
            "wrong_contract_applied",
            "Elements name contract, commitment, and cost or quantity with unit",
        )


def _commitments(row: Row) -> Iterator[tuple[str, str, str]]:
    if row.get("CommitmentDiscountId") is None:
        for name in ("CommitmentDiscountStatus", "CommitmentDiscountQuantity", "CommitmentDiscountName"):
            if row.get(name) is not None:
                yield name, "without_commitment", f"{name} without CommitmentDiscountId"
        return
    if row.get("ContractApplied") is not None:
        yield from _applied(row)
    if row.get("ChargeCategory") == "Usage" and row.get("CommitmentDiscountStatus") is None:
        yield "CommitmentDiscountStatus", "status_required", "usage under a commitment is Used or Unused"
    if row.get("ChargeCategory") != "Usage" and row.get("CommitmentDiscountStatus") is not None:
        yield "CommitmentDiscountStatus", "status_of_usage_only", "only usage is Used or Unused"
    if row.get("CommitmentDiscountStatus") == "Unused" and row.get("ConsumedQuantity") is not None:
        yield "ConsumedQuantity", "unused_consumes", "what is unused consumes nothing"
    if row.get("CommitmentDiscountQuantity") is None and row.get("ChargeClass") is None:
        yield "CommitmentDiscountQuantity", "quantity_required", "what a commitment covers has a quantity"
    if row.get("ChargeCategory") == "Purchase" and _number(row, "EffectiveCost"):
        yield "EffectiveCost", "purchase_covers_later", "a commitment's purchase is used up by later rows"


def _number(row: Row, name: str) -> Decimal | None:
    value = row.get(name)
    try:
        return None if value is None else Decimal(value)
    except InvalidOperation:
        return None


_ACROSS: Mapping[Dataset, Callable[[Row], Iterator[tuple[str, str, str]]]] = {
    COST_AND_USAGE: _across,
    "Contract Commitment": commitment_breaches,
}
