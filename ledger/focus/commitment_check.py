"""The rules across the cells of a Contract Commitment of FOCUS 1.4. Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from decimal import Decimal
from typing import Any

from ledger.focus.model import columns

Row = Mapping[str, str | None]
Breach = tuple[str, str, str]
_DURATION = re.compile(r"[1-9][0-9]* (Minute|Hour|Day|Week|Month|Quarter|Year)s?")
_CUSTOM = re.compile(r"x_[A-Z][A-Za-z0-9]*")
_SCOPE = frozenset(
    {
        "IsGlobalScope", "IsComplexScope", "Applicability", "InclusionOperator", "Inclusions", "ExclusionOperator",
        "Exclusions",
    }
)  # fmt: skip
_OPERATORS = frozenset(
    {
        "In", "NotIn", "StartsWith", "NotStartsWith", "Contains", "NotContains", "EndsWith", "Exists", "DoesNotExist",
    }
)  # fmt: skip


def commitment_breaches(row: Row) -> Iterator[Breach]:
    """(column, rule, message) of every rule across cells that this row breaks; each cell by itself can be read."""
    created, updated = row.get("ContractCommitmentCreated"), row.get("ContractCommitmentLastUpdated")
    if created and updated and updated < created:
        yield "ContractCommitmentLastUpdated", "updated_before_created", f"{updated} is before {created}"
    for kind in ("ContractCommitmentPeriod", "ContractPeriod"):
        begun, after = row.get(f"{kind}Start"), row.get(f"{kind}End")
        if begun and after and after <= begun:
            yield f"{kind}End", "end_before_start", f"{kind}End {after} is not after {begun}"
    if not _DURATION.fullmatch(row.get("ContractCommitmentDurationType") or ""):
        yield (
            "ContractCommitmentDurationType",
            "not_a_duration",
            "a whole number and a unit are meant: 1 Year, 36 Months",
        )
    yield from _amounts_of_commitment(row)
    yield from _upfront(row)
    for message in _scope_problems(json.loads(row.get("ContractCommitmentApplicability") or "{}")):
        yield "ContractCommitmentApplicability", "wrong_scope", message


def _amounts_of_commitment(row: Row) -> Iterator[Breach]:
    quantity, kind = row.get("ContractCommitmentQuantity"), row.get("ContractCommitmentCategory")
    if (quantity is None) != (row.get("ContractCommitmentUnit") is None):
        yield "ContractCommitmentUnit", "unit_with_quantity", "the unit is null exactly when the quantity is"
    if kind == "Usage" and quantity is None:
        yield "ContractCommitmentQuantity", "quantity_required", "a commitment to usage says how much"
    cost, currency = row.get("ContractCommitmentCost"), row.get("BillingCurrency")
    if (cost is None) != (currency is None):
        yield "BillingCurrency", "currency_with_cost", "BillingCurrency is null exactly when ContractCommitmentCost is"
    priced = row.get("PricingCurrencyContractCommitmentCost")
    if kind == "Spend" and cost is None and priced is None:
        yield "ContractCommitmentCost", "cost_required", "a commitment to spend says how much"
    is_same = currency is not None and currency == row.get("PricingCurrency")
    if is_same and priced is not None and cost is not None and Decimal(priced) != Decimal(cost):
        yield "PricingCurrencyContractCommitmentCost", "same_currency", "it differs from the cost in the same currency"


def _upfront(row: Row) -> Iterator[Breach]:
    told, model = row.get("ContractCommitmentPaymentUpfrontPercentage"), row.get("ContractCommitmentPaymentModel")
    share = None if told is None else Decimal(told)
    fits = {"All Upfront": share == 1, "No Upfront": share == 0, "Partial Upfront": share is not None and 0 < share < 1}
    if share is not None and not fits.get(model or "", True):
        yield "ContractCommitmentPaymentUpfrontPercentage", "wrong_upfront", f"{share} upfront is not {model}"
    if model == "All Upfront" and row.get("ContractCommitmentPaymentInterval") != "One-Time":
        yield "ContractCommitmentPaymentInterval", "wrong_interval", "what is paid upfront is paid One-Time"


def _scope_problems(scope: Mapping[str, Any]) -> Iterator[str]:
    """FOCUS' JSON schema of the applicability, as far as a scope that names columns goes."""
    is_named = not (scope.get("IsGlobalScope") or scope.get("IsComplexScope"))
    for key in scope:
        if key not in _SCOPE and not _CUSTOM.fullmatch(key):
            yield f"{key!r} is no property of an applicability; custom ones are x_PascalCase"
    if is_named or scope.get("Inclusions"):
        yield from _rule_problems(scope, "Inclusion")
        if not is_named:
            yield "a global or complex scope has no Inclusions"
    if "Exclusions" in scope:
        yield from _rule_problems(scope, "Exclusion")


def _rule_problems(scope: Mapping[str, Any], kind: str) -> Iterator[str]:
    rules = scope.get(f"{kind}s")
    if scope.get(f"{kind}Operator") not in ("And", "Or"):
        yield f"{kind}Operator {scope.get(f'{kind}Operator')!r} is neither And nor Or"
    if not isinstance(rules, list) or not rules:
        yield f"{kind}s are a list of at least one rule"
        return
    for rule in rules:
        if not isinstance(rule, dict) or not {"Dimension", "Operator", "Values"} <= rule.keys():
            yield f"a rule of {kind}s has Dimension, Operator and Values"
        elif rule["Dimension"] not in columns() and not _CUSTOM.fullmatch(str(rule["Dimension"])):
            yield f"Dimension {rule['Dimension']!r} is no column of Cost and Usage"
        elif rule["Operator"] not in _OPERATORS:
            yield f"Operator {rule['Operator']!r} is none of FOCUS'"
        elif not (isinstance(rule["Values"], list) and rule["Values"]):
            yield "Values are a list of at least one text"
