"""Charges as the columns of Cost and Usage, in pieces of some ten thousand rows.

Columns, not rows: of 75 columns a dozen differ from row to row, all others are the subject's. What is constant is
written once for each subject and counted off by its number, which is what makes a million rows cheap. Decimals are
integers at scale 18 until they are written, so that no cell is ever rounded by a float.
"""

from __future__ import annotations

import gc
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from itertools import islice
from typing import Literal

from ledger.focus.charge import Charge, Subject
from ledger.focus.columns import (
    NANO_TO_SCALE,
    Coded,
    CodedDecimals,
    Decimals,
    FocusColumn,
    Instants,
    Texts,
    decimal_text,
)
from ledger.focus.model import SINCE_1_3, Version, columns_of
from ledger.focus.prices import of_quantity, prices_of, quantity_of

Mode = Literal["passthrough", "chargeback"]
PIECE = 32_768

BROKER = "broker"
CUSTOM = ("x_BatchId", "x_EventKind", "x_LedgerTransactionId", "x_Model", "x_RentalId")
_CATEGORY = {
    "on_demand": "Standard", "spot": "Dynamic", "bid": "Dynamic", "reserved": "Committed", "token": "Standard",
}  # fmt: skip
_RESOURCE = {"vm": "Virtual Machine", "container": "Container", "kubernetes": "Pod", "process": "Process"}


def period_bounds(period: str) -> tuple[int, int]:
    """First second of the month and of the next. Raises ValueError when `period` is not YYYY-MM.

    >>> period_bounds("2026-12")[1] - period_bounds("2026-12")[0] == 31 * 86400
    True
    """
    begun = datetime.strptime(period, "%Y-%m").replace(tzinfo=UTC)
    after = begun.replace(year=begun.year + begun.month // 12, month=begun.month % 12 + 1)
    return int(begun.timestamp()), int(after.timestamp())


def header(version: Version) -> tuple[str, ...]:
    """All columns in the order in which they are written: FOCUS' own, then ours."""
    return (*columns_of(version), *CUSTOM)


def pieces(
    charges: Iterable[Charge], subjects: Sequence[Subject], *, period: str, mode: Mode, version: Version
) -> Iterator[dict[str, FocusColumn]]:
    """The table, piece by piece. `subjects` may grow while `charges` are read."""
    waiting = iter(charges)
    about: list[Mapping[str, str | None]] = []
    while True:
        with _no_collecting():
            piece = list(islice(waiting, PIECE))
            if not piece:
                return
            about += [_subject_cells(subject, mode) for subject in subjects[len(about) :]]
            made = _piece(piece, subjects, about, period=period, mode=mode, version=version)
        yield made


@contextmanager
def _no_collecting() -> Iterator[None]:
    """A piece is some hundred thousand tuples without a ring among them; to look for rings in them took a third of an export's
    time. For the moment of one piece alone: the whole process goes without. It is on afterwards, whatever it was: a thread that
    found it off within another's block would leave it off for good."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def _piece(
    charges: Sequence[Charge],
    subjects: Sequence[Subject],
    about: Sequence[Mapping[str, str | None]],
    *,
    period: str,
    mode: Mode,
    version: Version,
) -> dict[str, FocusColumn]:
    columns = Charge._make(zip(*charges, strict=True))  # turned: a tuple of each field, in a hundredth of the time
    found = {**_of_subjects(charges, columns, about), **_of_charges(charges, columns, subjects, period)}
    if any(columns.commitment):  # type: ignore[arg-type]
        found |= _commitments(charges, [quantity_of(charge) for charge in charges])
        found["PricingCategory"] = _pricing_categories(charges, subjects)
    if mode == "chargeback":  # the provider's invoice is not the one that an inner customer gets
        found["InvoiceId"] = found["InvoiceDetailId"] = _same(None, len(charges))
    if version == "1.2":
        found["ProviderName"] = found["InvoiceIssuerName"]
        found["PublisherName"] = found["HostProviderName"] if mode == "passthrough" else found["InvoiceIssuerName"]
        for name in SINCE_1_3:
            found.pop(name, None)
    nothing = _same(None, len(charges))
    return {name: found.get(name, nothing) for name in header(version)}


def _same(value: str | None, count: int) -> Coded:
    return Coded([value], [0] * count)


def _of_subjects(
    charges: Sequence[Charge], columns: Charge, about: Sequence[Mapping[str, str | None]]
) -> dict[str, FocusColumn]:
    """What hangs on the subject, and on whether the row is priced by a SKU at all."""
    codes: Sequence[int] = columns.subject  # type: ignore[assignment]
    # Without a metered quantity there is no SKU price, and then none of these may be given.
    is_timed = None not in columns.seconds  # type: ignore[operator]
    priced = codes if is_timed else [charge.subject if charge.is_metered else -1 for charge in charges]
    made: dict[str, FocusColumn] = {name: Coded([cells[name] for cells in about], codes) for name in _SUBJECT_COLUMNS}
    made |= {
        name: Coded([*(cells[name] for cells in about), None], priced) for name in _PRICED_COLUMNS
    }  # -1 is the last
    return made


_SUBJECT_COLUMNS = (
    "AvailabilityZone", "BillingAccountId", "BillingAccountName", "HostProviderName", "InvoiceIssuerName", "RegionId",
    "RegionName", "ResourceId", "ResourceName", "ResourceType", "ServiceCategory", "ServiceName", "ServiceProviderName",
    "ServiceSubcategory", "SubAccountId", "SubAccountName", "SubAccountType", "Tags", "x_Model", "x_RentalId",
)  # fmt: skip
_PRICED_COLUMNS = ("PricingCategory", "SkuId", "SkuMeter", "SkuPriceDetails", "SkuPriceId")


def _subject_cells(subject: Subject, mode: Mode) -> Mapping[str, str | None]:
    """The texts of one subject. In chargeback the broker is who serves and bills, and the market is the host."""
    provider = subject.market if mode == "passthrough" else BROKER
    is_token = subject.pricing == "token"
    # one ServiceName has exactly one ServiceCategory
    service = f"{provider} tokens" if is_token else f"{provider} compute"
    sku = subject.sku or subject.market
    return {
        "AvailabilityZone": subject.zone,
        "BillingAccountId": provider,
        "BillingAccountName": provider,
        "HostProviderName": (subject.host or subject.market) if mode == "passthrough" else subject.market,
        "InvoiceIssuerName": provider,
        "RegionId": subject.region,
        "RegionName": subject.region,
        "ResourceId": subject.rental,
        "ResourceName": subject.rental,
        "ResourceType": _RESOURCE.get(subject.launch, "Endpoint") if subject.rental else None,
        "ServiceCategory": "AI and Machine Learning" if is_token else "Compute",
        "ServiceName": service,
        "ServiceProviderName": provider,
        "ServiceSubcategory": "Generative AI" if is_token else "Virtual Machines",
        "SubAccountId": subject.project,
        "SubAccountName": subject.project,
        "SubAccountType": "Project" if subject.project else None,
        "Tags": json.dumps({"project": subject.project, **subject.tags})
        if subject.project
        else json.dumps(dict(subject.tags)),
        "x_Model": subject.model,
        "x_RentalId": subject.rental,
        "PricingCategory": _CATEGORY[subject.pricing],
        "SkuId": sku,
        "SkuMeter": "Tokens" if is_token else "Instance-Hours",
        "SkuPriceDetails": json.dumps(_details(subject)),
        # stable over time: what is bought and how, never what it costs
        "SkuPriceId": f"{sku}/{subject.region or '-'}/{subject.pricing}",
    }


def _details(subject: Subject) -> dict[str, str | int]:
    """Per one PricingUnit, which is the hour of the whole machine. Never prices, dates, currencies."""
    found: dict[str, str | int] = {"InstanceType": subject.sku or subject.market}
    if subject.accelerators:
        found |= {
            "GpuCount": subject.accelerators,
            "x_GpuModel": subject.accelerator or "",
            "x_GpuMemoryMib": subject.memory_mib,
        }
    return found


def _of_charges(
    charges: Sequence[Charge], columns: Charge, subjects: Sequence[Subject], period: str
) -> dict[str, FocusColumn]:
    count = len(charges)
    begun, after = period_bounds(period)
    # columns that are the same are one object: it is written out once
    used = [nano * NANO_TO_SCALE for nano in columns.effective_nano]  # type: ignore[attr-defined]
    effective = Decimals(used)
    is_same = columns.effective_nano == columns.billed_nano
    billed_cost = effective if is_same else Decimals([nano * NANO_TO_SCALE for nano in columns.billed_nano])  # type: ignore[attr-defined]
    prices = prices_of(charges, columns, subjects)
    quantities, unit_prices, list_prices = prices.quantities, prices.unit_prices, prices.list_prices
    is_all_used = set(columns.category) == {"Usage"} and "Unused" not in columns.status  # type: ignore[operator]
    consumed = quantities if is_all_used else Decimals(_consumed(charges, quantities.values))
    categories = ("Usage", "Purchase", "Credit", "Adjustment")
    numbers = {category: number for number, category in enumerate(categories)}
    begins = [us // 1_000_000 for us in columns.start_us]  # type: ignore[attr-defined]
    ends = [us // 1_000_000 for us in columns.end_us]  # type: ignore[attr-defined]
    units = _units(charges, columns, quantities)
    return {
        "BilledCost": billed_cost,
        "BillingAccountType": _same("Account", count),
        "BillingCurrency": _same("USD", count),
        "BillingPeriodEnd": Instants([after] * count),
        "BillingPeriodStart": Instants([begun] * count),
        "ChargeCategory": Coded(categories, list(map(numbers.__getitem__, columns.category))),
        "ChargeClass": Coded([None, "Correction"], list(map(int, columns.is_correction))),  # type: ignore[call-overload]
        "ChargeDescription": _described(columns, subjects),
        "ChargeFrequency": Coded(["Usage-Based", "One-Time"], [int(each != "Usage") for each in columns.category]),
        "ChargePeriodEnd": Instants([max(end, begin + 1) for begin, end in zip(begins, ends, strict=True)]),
        "ChargePeriodStart": Instants(begins),
        "ConsumedQuantity": consumed,
        "ConsumedUnit": units if consumed is quantities else _units(charges, columns, consumed),
        "ContractedCost": prices.contracted,
        "ContractedUnitPrice": unit_prices,
        "EffectiveCost": effective,
        "InvoiceDetailId": _coded(
            [f"{charge.invoice}/{charge.category}" if charge.invoice else None for charge in charges]
        )
        if any(columns.invoice)  # type: ignore[arg-type]
        else _same(None, count),
        "InvoiceId": _coded(columns.invoice),  # type: ignore[arg-type]
        "ListCost": prices.listed,
        "ListUnitPrice": list_prices,
        "PricingCurrency": _same("USD", count),
        "PricingCurrencyContractedUnitPrice": unit_prices,
        "PricingCurrencyEffectiveCost": effective,
        "PricingCurrencyListUnitPrice": list_prices,
        "PricingQuantity": quantities,
        "PricingUnit": units,
        "x_BatchId": _coded(columns.batch),  # type: ignore[arg-type]
        "x_EventKind": _coded(columns.kind),
        "x_LedgerTransactionId": Texts(columns.entry_id),
        **(
            _foreign(charges, unit_prices.values, list_prices.values, used)
            if any(columns.foreign)  # type: ignore[arg-type]
            else {}
        ),
    }


def _coded(values: Sequence[str | None]) -> Coded:
    """Few texts that recur."""
    distinct = list(dict.fromkeys(values))
    numbers = {value: number for number, value in enumerate(distinct)}
    return Coded(distinct, list(map(numbers.__getitem__, values)))


def _described(columns: Charge, subjects: Sequence[Subject]) -> Coded:
    names = [subject.rental or "" for subject in subjects]
    pairs = list(zip(columns.kind, columns.subject, strict=True))  # type: ignore[call-overload]
    distinct = list(dict.fromkeys(pairs))
    numbers = {pair: number for number, pair in enumerate(distinct)}
    texts = [f"{kind} {names[subject]}".rstrip() for kind, subject in distinct]
    return Coded(texts, list(map(numbers.__getitem__, pairs)))


def _units(charges: Sequence[Charge], columns: Charge, quantities: Decimals | CodedDecimals) -> Coded:
    distinct = quantities.distinct if isinstance(quantities, CodedDecimals) else quantities.values
    if None not in distinct and len(set(columns.unit)) == 1:
        return _same(charges[0].unit, len(charges))
    return _coded(
        [None if quantity is None else charge.unit for charge, quantity in zip(charges, quantities.values, strict=True)]
    )


def _consumed(charges: Sequence[Charge], quantities: Sequence[int | None]) -> list[int | None]:
    return [
        quantity if charge.category == "Usage" and charge.status != "Unused" else None
        for quantity, charge in zip(quantities, charges, strict=True)
    ]


def _foreign(
    charges: Sequence[Charge], prices: Sequence[int | None], lists: Sequence[int | None], used: Sequence[int]
) -> dict[str, FocusColumn]:
    """What was priced in another currency than it is billed in: an Akash lease in AKT."""
    costs = [
        charge.foreign_nano * NANO_TO_SCALE if charge.foreign else cost
        for charge, cost in zip(charges, used, strict=True)
    ]

    def told(own: Sequence[int | None]) -> Decimals:
        return Decimals(
            [
                price if charge.foreign is None else of_quantity(charge, abs(charge.foreign_nano))
                for charge, price in zip(charges, own, strict=True)
            ]
        )

    return {
        "PricingCurrency": _coded([charge.foreign or "USD" for charge in charges]),
        "PricingCurrencyContractedUnitPrice": told(prices),
        "PricingCurrencyEffectiveCost": Decimals(costs),
        "PricingCurrencyListUnitPrice": told(lists),
    }


def _commitments(charges: Sequence[Charge], quantities: Sequence[int | None]) -> dict[str, FocusColumn]:
    """What was bought ahead, and the hours that it covered or did not."""
    of = [charge.commitment is not None for charge in charges]
    ids = _coded([charge.commitment for charge in charges])
    return {
        "CommitmentDiscountCategory": Coded([None, "Usage"], of),
        "CommitmentDiscountId": ids,
        "CommitmentDiscountName": ids,
        "CommitmentDiscountQuantity": Decimals(
            [each if is_of else None for each, is_of in zip(quantities, of, strict=True)]
        ),
        "CommitmentDiscountStatus": _coded([charge.status for charge in charges]),
        "CommitmentDiscountType": Coded([None, "Reserved"], of),
        "CommitmentDiscountUnit": Coded([None, "Hours"], of),
        "ContractApplied": _coded([_applied(*each) for each in zip(charges, quantities, strict=True)]),
    }


def _applied(charge: Charge, quantity: int | None) -> str | None:
    """Which commitment a charge uses up, and how much of it: a commitment is to hours, so never by cost. Its purchase is none.

    The ids are those of Contract Commitment, where contract and commitment are one.
    """
    if charge.commitment is None or charge.status is None or quantity is None:
        return None
    name = json.dumps(charge.commitment)
    return (
        f'{{"Elements":[{{"ContractId":{name},"ContractCommitmentId":{name},'
        f'"ContractCommitmentAppliedQuantity":{decimal_text(quantity)},"ContractCommitmentAppliedUnit":"Hours"}}]}}'
    )


def _pricing_categories(charges: Sequence[Charge], subjects: Sequence[Subject]) -> Coded:
    """Buying a commitment is Standard, what it covers is Committed, everything else is priced as its offer."""
    return _coded(
        [
            None if not charge.is_metered
            else "Committed" if charge.status
            else "Standard" if charge.commitment
            else _CATEGORY[subjects[charge.subject].pricing]
            for charge in charges
        ]
    )  # fmt: skip
