"""Our FOCUS checker: sound rows pass, and every mutation that breaks one rule is told, in the row that has it."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from ledger.focus.check import check_header, check_row, check_rows
from ledger.focus.datasets import Term, as_piece, contract_commitments
from ledger.focus.model import columns
from tests.support.month_of_books import START as START_US

Row = dict[str, str | None]
COLUMNS = columns()

USAGE: Row = dict.fromkeys(COLUMNS) | {
    "AvailabilityZone": "eu-west-1a", "BilledCost": "3.7", "BillingAccountId": "aws", "BillingAccountName": "aws",
    "BillingAccountType": "Account", "BillingCurrency": "USD", "BillingPeriodStart": "2026-11-01T00:00:00Z",
    "BillingPeriodEnd": "2026-12-01T00:00:00Z", "ChargeCategory": "Usage", "ChargeDescription": "an hour",
    "ChargeFrequency": "Usage-Based", "ChargePeriodStart": "2026-11-03T00:00:00Z", "ChargePeriodEnd": "2026-11-03T02:00:00Z",
    "ConsumedQuantity": "2.0", "ConsumedUnit": "Hours", "ContractedCost": "3.7", "ContractedUnitPrice": "1.85",
    "EffectiveCost": "3.7", "HostProviderName": "aws", "InvoiceDetailId": "INV-1/Usage", "InvoiceId": "INV-1",
    "InvoiceIssuerName": "aws", "ListCost": "3.7", "ListUnitPrice": "1.85", "PricingCategory": "Dynamic",
    "PricingCurrency": "USD", "PricingCurrencyContractedUnitPrice": "1.85", "PricingCurrencyEffectiveCost": "3.7",
    "PricingCurrencyListUnitPrice": "1.85", "PricingQuantity": "2.0", "PricingUnit": "Hours", "RegionId": "eu-west-1",
    "RegionName": "eu-west-1", "ResourceId": "rental_1", "ResourceName": "rental_1", "ResourceType": "Virtual Machine",
    "ServiceCategory": "Compute", "ServiceName": "aws compute", "ServiceProviderName": "aws",
    "ServiceSubcategory": "Virtual Machines", "SkuId": "p5", "SkuMeter": "Instance-Hours",
    "SkuPriceDetails": '{"InstanceType": "p5", "GpuCount": 8, "x_GpuModel": "H100"}', "SkuPriceId": "p5/spot",
    "SubAccountId": "search", "SubAccountName": "search", "SubAccountType": "Project", "Tags": '{"project": "search"}',
}  # fmt: skip
_UNPRICED: Row = dict.fromkeys(
    ("SkuId", "SkuMeter", "SkuPriceId", "SkuPriceDetails", "PricingQuantity", "PricingUnit", "PricingCategory", "ListUnitPrice",
     "ContractedUnitPrice", "PricingCurrencyListUnitPrice", "PricingCurrencyContractedUnitPrice", "ConsumedQuantity",
     "ConsumedUnit")
)  # fmt: skip
_COST = ("BilledCost", "EffectiveCost", "ListCost", "ContractedCost", "PricingCurrencyEffectiveCost")


def costing(amount: str) -> Row:
    return dict.fromkeys(_COST, amount)


COMMITMENT: Row = {
    "CommitmentDiscountId": "rsv-1", "CommitmentDiscountName": "rsv-1", "CommitmentDiscountCategory": "Usage",
    "CommitmentDiscountType": "Reserved", "CommitmentDiscountQuantity": "2.0", "CommitmentDiscountUnit": "Hours",
}  # fmt: skip
TAX = USAGE | _UNPRICED | costing("1.2") | {"ChargeCategory": "Tax", "ChargeFrequency": "One-Time"}
CREDIT = USAGE | _UNPRICED | costing("-5.0") | {"ChargeCategory": "Credit", "ChargeFrequency": "One-Time"}
ADJUSTMENT = USAGE | _UNPRICED | costing("0.01") | {"ChargeCategory": "Adjustment", "ChargeFrequency": "One-Time"}
CORRECTION = USAGE | _UNPRICED | costing("-3.7") | {"ChargeClass": "Correction"}
PURCHASE = USAGE | COMMITMENT | {
    "ChargeCategory": "Purchase", "ChargeFrequency": "One-Time", "EffectiveCost": "0.0", "PricingCurrencyEffectiveCost": "0.0",
    "ConsumedQuantity": None, "ConsumedUnit": None, "PricingCategory": "Standard",
}  # fmt: skip
APPLIED = (
    '{"Elements":[{"ContractId":"rsv-1","ContractCommitmentId":"rsv-1","ContractCommitmentAppliedQuantity":2.0,'
    '"ContractCommitmentAppliedUnit":"Hours"}]}'
)
USED = USAGE | COMMITMENT | {
    "BilledCost": "0.0", "CommitmentDiscountStatus": "Used", "PricingCategory": "Committed", "ContractApplied": APPLIED,
}  # fmt: skip
UNUSED = USED | {"CommitmentDiscountStatus": "Unused", "ConsumedQuantity": None, "ConsumedUnit": None}
RESERVED = USAGE | {"CapacityReservationId": "cr-1", "CapacityReservationStatus": "Used"}
AKT = USAGE | {
    "PricingCurrency": "AKT", "PricingCurrencyListUnitPrice": "1.5", "PricingCurrencyContractedUnitPrice": "1.5",
    "PricingCurrencyEffectiveCost": "3.0",
}  # fmt: skip
SOUND = {
    "usage": USAGE, "tax": TAX, "credit": CREDIT, "adjustment": ADJUSTMENT, "correction": CORRECTION, "purchase": PURCHASE,
    "used": USED, "unused": UNUSED, "reserved": RESERVED, "akt": AKT,
}  # fmt: skip


def static_mutations() -> Iterator[tuple[str, str, str | None, str]]:
    """One for each static rule of each column: not null, type, allowed values, range."""
    for name, column in COLUMNS.items():
        if not column.is_nullable:
            yield "usage", name, None, "null_not_allowed"
        if column.kind == "Decimal":
            yield "usage", name, "1,5", "not_a_decimal"
            if column.form == "Decimal (non-negative)":
                yield "usage", name, "-1.85", "out_of_range"
        elif column.kind == "Date/Time":
            yield "usage", name, "2026-11-03 00:00:00", "not_an_instant"
        elif column.kind == "JSON":
            yield "usage", name, "{'project': 1}", "not_json"
        elif column.allowed:
            yield "usage", name, "Use", "value_not_allowed"
        else:
            yield "usage", name, "N/A", "null_in_words"


ACROSS: list[tuple[str, str, str | None, str]] = [
    ("used", "ContractApplied", '{"Elements":[]}', "wrong_contract_applied"),
    ("used", "ContractApplied", APPLIED.replace('"ContractId":"rsv-1",', ""), "wrong_contract_applied"),
    (
        "used",
        "ContractApplied",
        APPLIED.replace(',"ContractCommitmentAppliedUnit":"Hours"', ""),
        "wrong_contract_applied",
    ),
    (
        "used",
        "ContractApplied",
        APPLIED.replace('"Hours"', '"Hours","ContractCommitmentAppliedCost":1'),
        "wrong_contract_applied",
    ),
    ("usage", "BilledCost", "+3.7", "not_a_decimal"),
    ("usage", "BilledCost", "1e5x", "not_a_decimal"),
    ("usage", "BilledCost", "NaN", "not_a_decimal"),
    ("usage", "BillingCurrency", "usd", "not_a_currency"),
    ("usage", "BillingCurrency", "AKT", "not_a_currency"),  # bills are in national money
    ("usage", "PricingCurrency", "TOKENS", "not_a_currency"),
    ("usage", "Tags", '["a"]', "not_an_object"),
    ("usage", "Tags", '{"a": {"b": 1}}', "not_flat"),
    ("usage", "SkuPriceDetails", '{"Color": "red"}', "unknown_property"),
    ("usage", "ServiceSubcategory", "GenAI", "value_not_allowed"),
    ("usage", "ServiceSubcategory", "Generative AI", "wrong_parent"),
    ("usage", "ServiceCategory", "Storage", "wrong_parent"),
    ("usage", "ListCost", "3.71", "not_price_times_quantity"),  # the official validator lets it pass
    ("usage", "ContractedCost", "3.6999999", "not_price_times_quantity"),
    ("usage", "PricingQuantity", "3.0", "not_price_times_quantity"),
    ("usage", "PricingCurrencyEffectiveCost", "3.6", "same_currency"),
    ("usage", "PricingCurrencyListUnitPrice", "1.84", "same_currency"),
    ("usage", "ChargePeriodEnd", "2026-11-03T00:00:00Z", "end_before_start"),
    ("usage", "BillingPeriodEnd", "2026-11-01T00:00:00Z", "end_before_start"),
    ("usage", "BillingPeriodStart", "2026-11-02T00:00:00Z", "not_a_month"),
    ("usage", "ChargePeriodStart", "2026-12-01T00:00:00Z", "end_before_start"),
    ("usage", "ChargePeriodStart", "2026-02-30T00:00:00Z", "not_an_instant"),
    ("usage", "RegionName", None, "null_with_its_id"),
    ("usage", "ResourceType", None, "null_with_its_id"),
    ("usage", "SubAccountName", None, "null_with_its_id"),
    ("usage", "SubAccountType", None, "null_with_its_id"),
    ("usage", "ConsumedUnit", None, "unit_with_quantity"),
    ("usage", "PricingUnit", None, "unit_with_quantity"),
    ("usage", "SkuId", None, "required_for_usage"),
    ("usage", "SkuPriceId", None, "required_for_usage"),
    ("usage", "PricingCategory", None, "required_for_usage"),
    ("usage", "ListUnitPrice", None, "required_for_usage"),
    ("usage", "ContractedUnitPrice", None, "required_for_usage"),
    ("usage", "CommitmentDiscountStatus", "Used", "without_commitment"),
    ("usage", "CommitmentDiscountName", "rsv", "without_commitment"),
    ("usage", "InvoiceId", None, "detail_without_invoice"),
    ("usage", "CapacityReservationStatus", "Used", "null_with_its_id"),
    ("tax", "SkuId", "p5", "null_for_tax"),
    ("tax", "PricingCategory", "Standard", "null_for_tax"),
    ("tax", "EffectiveCost", "1.1", "effective_is_billed"),
    ("tax", "ListUnitPrice", "1.85", "price_without_sku"),
    ("credit", "EffectiveCost", "-4.0", "effective_is_billed"),
    ("credit", "BilledCost", "5.0", "credit_positive"),
    ("adjustment", "PricingQuantity", "1.0", "quantity_without_sku"),
    ("correction", "SkuPriceDetails", "{}", "without_sku_price"),
    ("correction", "SkuMeter", "Hours", "without_sku_price"),
    ("purchase", "ChargeFrequency", "Usage-Based", "purchase_usage_based"),
    ("purchase", "EffectiveCost", "3.7", "purchase_covers_later"),
    ("purchase", "CommitmentDiscountStatus", "Used", "status_of_usage_only"),
    ("purchase", "ConsumedQuantity", "2.0", "consumed_by_usage_only"),
    ("used", "CommitmentDiscountStatus", None, "status_required"),
    ("used", "CommitmentDiscountQuantity", None, "quantity_required"),
    ("used", "CommitmentDiscountCategory", None, "null_with_its_id"),
    ("used", "CommitmentDiscountType", None, "null_with_its_id"),
    ("unused", "ConsumedQuantity", "2.0", "unused_consumes"),
    ("reserved", "CapacityReservationStatus", None, "null_with_its_id"),
    ("akt", "PricingCurrency", "USD", "same_currency"),
]
MUTATIONS = [*static_mutations(), *ACROSS]


@pytest.mark.parametrize("name", SOUND)
def test_a_sound_row_has_no_findings(name: str) -> None:
    assert list(check_row(1, SOUND[name])) == []


def test_the_corpus_is_large_enough() -> None:
    assert len({(column, rule) for _, column, _, rule in MUTATIONS}) >= 100


def test_no_mutation_is_missed() -> None:
    missed = [
        (of, column, value, rule)
        for of, column, value, rule in MUTATIONS
        if rule not in {each.rule for each in check_row(1, SOUND[of] | {column: value})}
    ]
    assert missed == []


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        (lambda names: [name for name in names if name != "BilledCost"], "missing_column"),
        (lambda names: [*names, "Colour"], "unknown_column"),
        (lambda names: [*names, "x_lower"], "unknown_column"),
        (lambda names: ["x_Own", *names], "column_order"),
        (lambda names: [*names, "BilledCost"], "repeated_column"),
        (lambda names: [*names, "ProviderName"], "unknown_column"),  # 1.4 dropped it
    ],
)
def test_a_header_that_is_none_is_told(change: object, rule: str) -> None:
    assert list(check_header(COLUMNS)) == []
    assert rule in {each.rule for each in check_header(change(list(COLUMNS)))}  # type: ignore[operator]


def test_rules_over_rows_and_the_row_that_breaks_them() -> None:
    assert check_rows(SOUND.values()) == []
    found = check_rows([USAGE, USAGE, USAGE | {"SkuId": "p4"}])
    assert [(each.row, each.rule) for each in found] == [(3, "one_to_one")]


TERM = Term(
    "rsv-1", "aws", "p5", "USD", 48 * 10**9, 24 * 3600, START_US, START_US + 86_400_000_000, START_US - 5_000_000
)


def commitment_row(term: Term = TERM, now_us: int = START_US + 5_000_000) -> Row:
    piece = as_piece("Contract Commitment", contract_commitments([term], "2026-11", now_us=now_us))
    return {name: column.cells()[0] for name, column in piece.items()}


def commitment_mutations() -> Iterator[tuple[str, str | None, str]]:
    for name, column in columns("Contract Commitment").items():
        if not column.is_nullable:
            yield name, None, "null_not_allowed"
        if column.kind == "Decimal":
            yield name, "1,5", "not_a_decimal"
        elif column.kind == "Date/Time":
            yield name, "2026-11-03 00:00:00", "not_an_instant"
        elif column.allowed:
            yield name, "Use", "value_not_allowed"
    scope = "ContractCommitmentApplicability"
    rule = {"Dimension": "SkuId", "Operator": "In", "Values": ["p5"]}
    for wrong in (
        {"ServiceName": "aws compute"},  # what this project wrote before the schema was read
        {"InclusionOperator": "And"},
        {"InclusionOperator": "And", "Inclusions": []},
        {"InclusionOperator": "Xor", "Inclusions": [rule]},
        {"InclusionOperator": "And", "Inclusions": [{"Dimension": "SkuId"}]},
        {"InclusionOperator": "And", "Inclusions": [rule | {"Dimension": "Colour"}]},
        {"InclusionOperator": "And", "Inclusions": [rule | {"Operator": "Is"}]},
        {"InclusionOperator": "And", "Inclusions": [rule | {"Values": []}]},
        {"IsGlobalScope": True, "Inclusions": [rule], "InclusionOperator": "Or"},
        {"InclusionOperator": "And", "Inclusions": [rule], "Exclusions": [rule]},
    ):
        yield scope, json.dumps(wrong), "wrong_scope"
    yield "ContractCommitmentDiscountPercentage", "1.5", "out_of_range"
    yield "ContractCommitmentLastUpdated", "2026-10-01T00:00:00Z", "updated_before_created"
    yield "ContractCommitmentPeriodEnd", "2026-11-01T00:00:00Z", "end_before_start"
    yield "ContractPeriodEnd", "2026-10-01T00:00:00Z", "end_before_start"
    yield "ContractCommitmentDurationType", "a year", "not_a_duration"
    yield "ContractCommitmentUnit", None, "unit_with_quantity"
    yield "ContractCommitmentQuantity", None, "quantity_required"
    yield "BillingCurrency", None, "currency_with_cost"
    yield "BillingCurrency", "AKT", "not_a_currency"
    yield "PricingCurrencyContractCommitmentCost", "47.0", "same_currency"
    yield "ContractCommitmentPaymentUpfrontPercentage", "0.5", "wrong_upfront"
    yield "ContractCommitmentPaymentInterval", "Monthly", "wrong_interval"


def test_no_mutation_of_a_contract_commitment_is_missed() -> None:
    sound = commitment_row()
    assert check_rows([sound], "Contract Commitment") == []
    missed = [
        (column, value, rule)
        for column, value, rule in commitment_mutations()
        if rule not in {each.rule for each in check_row(1, sound | {column: value}, "Contract Commitment")}
    ]
    assert missed == []
    assert [each.rule for each in check_rows([sound, sound], "Contract Commitment")] == ["repeated_id"]


def test_a_commitment_is_pending_then_active_then_expired_and_leaves_the_month_after_its_end() -> None:
    told = [
        commitment_row(now_us=START_US + days * 86_400_000_000 + 1)["ContractCommitmentLifecycleStatus"]
        for days in (-1, 0, 1)
    ]
    assert told == ["Pending", "Active", "Expired"]
    assert [len(contract_commitments([TERM], month, now_us=START_US)) for month in ("2026-09", "2026-10", "2026-11", "2026-12")] \
        == [0, 1, 1, 0]  # fmt: skip


def test_a_commitment_bought_twice_under_one_id_is_one_and_one_paid_in_a_virtual_currency_has_no_bill() -> None:
    [row] = contract_commitments(
        [TERM, replace(TERM, nano=10**9, end_us=TERM.end_us + 3_600_000_000)], "2026-11", now_us=START_US
    )
    assert (row["ContractCommitmentCost"], row["ContractCommitmentQuantity"]) == (49 * 10**18, 48 * 10**18)
    assert row["ContractCommitmentDurationType"] == "25 Hours"
    akt = commitment_row(replace(TERM, unit="AKT"))
    assert (akt["ContractCommitmentCost"], akt["BillingCurrency"], akt["PricingCurrency"]) == (None, None, "AKT")
    assert check_rows([akt], "Contract Commitment") == []


@pytest.mark.skipif("BROKER_REFERENCE" not in os.environ, reason="needs the official models")
def test_the_applicability_fits_the_official_schema() -> None:
    validator = pytest.importorskip("jsonschema").Draft202012Validator
    folder = Path(os.environ["BROKER_REFERENCE"]) / "data" / "focus" / "json_schemas"
    schema = json.loads((folder / "contractcommitmentapplicabilityobjectschema.json").read_text())
    for term in (TERM, replace(TERM, sku=None)):
        scope = json.loads(commitment_row(term)["ContractCommitmentApplicability"] or "")
        assert list(validator(schema).iter_errors(scope)) == []


@pytest.mark.skipif("BROKER_REFERENCE" not in os.environ, reason="needs the official models")
def test_the_model_is_the_official_one_and_its_examples_pass() -> None:
    reference = Path(os.environ["BROKER_REFERENCE"]) / "data" / "focus"
    official = json.loads((reference / "focus_1_4_model.json").read_text())
    for dataset, document in official["datasets"].items():
        ours = columns(dataset)
        assert list(ours) == list(document["columns"])
        for name, column in document["columns"].items():
            assert (ours[name].kind, ours[name].is_nullable) == (column["data_type"], column["allows_nulls"])
    with (reference / "samples" / "broker_handwritten_focus_1_4.csv").open(newline="") as file:
        rows = [{name: cell or None for name, cell in row.items()} for row in csv.DictReader(file)]
    # prices in another unit than the bill's are of the hand-written AKT row, which says USD for the toolkit's sake
    assert {each.rule for each in check_rows(rows)} <= {"same_currency"}
