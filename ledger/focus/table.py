"""Charges as the columns of Cost and Usage, in pieces of some ten thousand rows.

Columns, not rows: of 75 columns a dozen differ from row to row, all others are the subject's. What is constant is
written once for each subject and counted off by its number, which is what makes a million rows cheap. Decimals are
integers at scale 18 until they are written, so that no cell is ever rounded by a float.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice
from typing import Literal

from ledger.focus.charge import Charge, Subject
from ledger.focus.model import SINCE_1_3, Version, columns_of
from ledger.money import div_half_even

Mode = Literal["passthrough", "chargeback"]
SCALE = 18
_NANO_TO_SCALE: int = 10 ** (SCALE - 9)
_UNIT: int = 10**SCALE
PIECE = 32_768

BROKER = "broker"
CUSTOM = ("x_BatchId", "x_EventKind", "x_LedgerTransactionId", "x_Model", "x_RentalId")
_CATEGORY = {
    "on_demand": "Standard", "spot": "Dynamic", "bid": "Dynamic", "reserved": "Committed", "token": "Standard",
}  # fmt: skip
_RESOURCE = {"vm": "Virtual Machine", "container": "Container", "kubernetes": "Pod", "process": "Process"}


@dataclass(frozen=True, slots=True)
class Coded:
    """Texts by number: cell `n` is `values[codes[n]]`; None is null."""

    values: Sequence[str | None]
    codes: Sequence[int]

    def __len__(self) -> int:
        return len(self.codes)

    def cells(self) -> list[str | None]:
        values = self.values
        return [values[code] for code in self.codes]


@dataclass(frozen=True, slots=True)
class Texts:
    """One text a row; None is null."""

    values: Sequence[str | None]

    def __len__(self) -> int:
        return len(self.values)

    def cells(self) -> list[str | None]:
        return list(self.values)


@dataclass(frozen=True, slots=True)
class Decimals:
    """Integers of 1e-18; None is null."""

    values: Sequence[int | None]

    def __len__(self) -> int:
        return len(self.values)

    def cells(self) -> list[str | None]:
        return [None if value is None else decimal_text(value) for value in self.values]


@dataclass(frozen=True, slots=True)
class Instants:
    """Whole seconds since 1970, UTC."""

    values: Sequence[int]

    def __len__(self) -> int:
        return len(self.values)

    def cells(self) -> list[str | None]:
        known: dict[int, str] = {}
        return [known.get(value) or known.setdefault(value, instant_text(value)) for value in self.values]


FocusColumn = Coded | Texts | Decimals | Instants


def decimal_text(value: int) -> str:
    """A plain decimal with at least one place: a column of integers would be read as integers by the official validator.

    >>> decimal_text(1_500_000_000_000_000_000), decimal_text(-1), decimal_text(0)
    ('1.5', '-0.000000000000000001', '0.0')
    """
    sign, value = ("-", -value) if value < 0 else ("", value)
    whole, rest = divmod(value, _UNIT)
    return f"{sign}{whole}.{f'{rest:018}'.rstrip('0') or '0'}"


def instant_text(seconds: int) -> str:
    """
    >>> instant_text(1_795_305_600)
    '2026-11-22T00:00:00Z'
    """
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


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
    while piece := list(islice(waiting, PIECE)):
        about += [_subject_cells(subject, mode) for subject in subjects[len(about) :]]
        yield _piece(piece, subjects, about, period=period, mode=mode, version=version)


def _piece(
    charges: Sequence[Charge],
    subjects: Sequence[Subject],
    about: Sequence[Mapping[str, str | None]],
    *,
    period: str,
    mode: Mode,
    version: Version,
) -> dict[str, FocusColumn]:
    found = {**_of_subjects(charges, about), **_of_charges(charges, subjects, period)}
    if any(charge.commitment for charge in charges):
        found |= _commitments(charges, [_quantity(charge) for charge in charges])
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


def _of_subjects(charges: Sequence[Charge], about: Sequence[Mapping[str, str | None]]) -> dict[str, FocusColumn]:
    """What hangs on the subject, and on whether the row is priced by a SKU at all."""
    codes = [charge.subject for charge in charges]
    # Without a metered quantity there is no SKU price, and then none of these may be given.
    priced = [charge.subject if charge.is_metered else -1 for charge in charges]
    columns: dict[str, FocusColumn] = {
        name: Coded([cells[name] for cells in about], codes) for name in _SUBJECT_COLUMNS
    }
    columns |= {
        name: Coded([*(cells[name] for cells in about), None], priced) for name in _PRICED_COLUMNS
    }  # -1 is the last
    return columns


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


def _of_charges(charges: Sequence[Charge], subjects: Sequence[Subject], period: str) -> dict[str, FocusColumn]:
    count = len(charges)
    begun, after = period_bounds(period)
    units = [subject.unit_nano for subject in subjects]
    billed = [charge.billed_nano * _NANO_TO_SCALE for charge in charges]
    used = [charge.effective_nano * _NANO_TO_SCALE for charge in charges]
    # columns that are the same are one object: it is written out once
    billed_cost = Decimals(billed)
    effective = billed_cost if used == billed else Decimals(used)
    quantities = Decimals([_quantity(charge) for charge in charges])
    consumed_values = [
        quantity if charge.category == "Usage" and charge.status != "Unused" else None
        for quantity, charge in zip(quantities.values, charges, strict=True)
    ]
    consumed = quantities if consumed_values == quantities.values else Decimals(consumed_values)
    unit_prices = Decimals([_unit_price(charge, units[charge.subject]) for charge in charges])
    contracted = Decimals([_contracted(charge, units[charge.subject]) for charge in charges])
    list_prices, listed = unit_prices, contracted
    if any(subject.list_nano for subject in subjects):
        lists = [_list_nano(charge, subjects[charge.subject]) for charge in charges]
        list_prices = Decimals(
            [nano * _NANO_TO_SCALE if nano else price for nano, price in zip(lists, unit_prices.values, strict=True)]
        )
        listed = Decimals(
            [
                _of_seconds(charge.seconds, nano) if nano and charge.seconds is not None else cost
                for charge, nano, cost in zip(charges, lists, contracted.values, strict=True)
            ]
        )
    categories = ("Usage", "Purchase", "Credit", "Adjustment")
    begins, ends = (
        [charge.start_us // 1_000_000 for charge in charges],
        [charge.end_us // 1_000_000 for charge in charges],
    )
    invoices = [charge.invoice for charge in charges]
    return {
        "BilledCost": billed_cost,
        "BillingAccountType": _same("Account", count),
        "BillingCurrency": _same("USD", count),
        "BillingPeriodEnd": Instants([after] * count),
        "BillingPeriodStart": Instants([begun] * count),
        "ChargeCategory": Coded(categories, [categories.index(charge.category) for charge in charges]),
        "ChargeClass": Coded([None, "Correction"], [int(charge.is_correction) for charge in charges]),
        "ChargeDescription": _described(charges, subjects),
        "ChargeFrequency": Coded(["Usage-Based", "One-Time"], [int(charge.category != "Usage") for charge in charges]),
        "ChargePeriodEnd": Instants([max(end, begin + 1) for begin, end in zip(begins, ends, strict=True)]),
        "ChargePeriodStart": Instants(begins),
        "ConsumedQuantity": consumed,
        "ConsumedUnit": _units(charges, consumed.values),
        "ContractedCost": contracted,
        "ContractedUnitPrice": unit_prices,
        "EffectiveCost": effective,
        "InvoiceDetailId": _coded(
            [f"{charge.invoice}/{charge.category}" if charge.invoice else None for charge in charges]
        ),
        "InvoiceId": _coded(invoices),
        "ListCost": listed,
        "ListUnitPrice": list_prices,
        "PricingCurrency": _same("USD", count),
        "PricingCurrencyContractedUnitPrice": unit_prices,
        "PricingCurrencyEffectiveCost": effective,
        "PricingCurrencyListUnitPrice": list_prices,
        "PricingQuantity": quantities,
        "PricingUnit": _units(charges, quantities.values),
        "x_BatchId": _coded([charge.batch for charge in charges]),
        "x_EventKind": _coded([charge.kind for charge in charges]),
        "x_LedgerTransactionId": Texts([charge.entry_id for charge in charges]),
        **(
            _foreign(charges, unit_prices.values, list_prices.values, used)
            if any(charge.foreign for charge in charges)
            else {}
        ),
    }


def _coded(values: Sequence[str | None]) -> Coded:
    """Few texts that recur."""
    distinct = list(dict.fromkeys(values))
    numbers = {value: number for number, value in enumerate(distinct)}
    return Coded(distinct, list(map(numbers.__getitem__, values)))


def _described(charges: Sequence[Charge], subjects: Sequence[Subject]) -> Coded:
    names = [subject.rental or "" for subject in subjects]
    pairs = [(charge.kind, charge.subject) for charge in charges]
    distinct = list(dict.fromkeys(pairs))
    numbers = {pair: number for number, pair in enumerate(distinct)}
    texts = [f"{kind} {names[subject]}".rstrip() for kind, subject in distinct]
    return Coded(texts, list(map(numbers.__getitem__, pairs)))


def _units(charges: Sequence[Charge], quantities: Sequence[int | None]) -> Coded:
    return _coded(
        [None if quantity is None else charge.unit for charge, quantity in zip(charges, quantities, strict=True)]
    )


def _foreign(
    charges: Sequence[Charge], prices: Sequence[int | None], lists: Sequence[int | None], used: Sequence[int]
) -> dict[str, FocusColumn]:
    """What was priced in another currency than it is billed in: an Akash lease in AKT."""
    costs = [
        charge.foreign_nano * _NANO_TO_SCALE if charge.foreign else cost
        for charge, cost in zip(charges, used, strict=True)
    ]

    def told(own: Sequence[int | None]) -> Decimals:
        return Decimals(
            [
                price if charge.foreign is None else _of_quantity(charge, abs(charge.foreign_nano))
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


def _quantity(charge: Charge) -> int | None:
    if charge.quantity_nano is not None:
        return charge.quantity_nano * _NANO_TO_SCALE
    return _hours(charge.seconds)


def _hours(seconds: int | None) -> int | None:
    """Seconds as hours at scale 18: the error of a third of an hour is below 1e-18 h."""
    if seconds is None:
        return None
    return seconds * _UNIT // 3600


def _unit_price(charge: Charge, unit_nano: int) -> int | None:
    """Of one PricingUnit at scale 18: the rental's hour, or where that is not the price what the charge says of itself."""
    if not charge.is_metered:
        return None
    if _has_hourly_price(charge, unit_nano):
        return unit_nano * _NANO_TO_SCALE
    return _of_quantity(charge, abs(charge.priced_nano))


def _of_quantity(charge: Charge, nano: int) -> int | None:
    """So many nano-units for one PricingUnit, at scale 18."""
    if charge.quantity_nano is not None:
        return div_half_even(nano * _UNIT, abs(charge.quantity_nano)) if charge.quantity_nano else None
    return None if charge.seconds is None else div_half_even(nano * _NANO_TO_SCALE * 3600, abs(charge.seconds))


def _has_hourly_price(charge: Charge, unit_nano: int) -> bool:
    return bool(unit_nano) and charge.seconds is not None and charge.commitment is None


def _list_nano(charge: Charge, subject: Subject) -> int:
    """The hour's price that the discount of an interruptible machine is taken off; 0 where what was charged is the list price,
    as far as anybody knows."""
    is_usage = charge.category == "Usage" and charge.seconds is not None
    return subject.list_nano if is_usage and charge.commitment is None and charge.foreign is None else 0


def _contracted(charge: Charge, unit_nano: int) -> int:
    """Unit price x quantity at scale 18: the booked amount (whole nanos, rounded on the meter's total) may miss it by a
    nano."""
    if charge.seconds is None or not _has_hourly_price(charge, unit_nano):
        return charge.priced_nano * _NANO_TO_SCALE
    return _of_seconds(charge.seconds, unit_nano)


def _of_seconds(seconds: int, nano_hour: int) -> int:
    """At scale 18; negative for seconds that are given back."""
    cost = div_half_even(nano_hour * abs(seconds) * _NANO_TO_SCALE, 3600)
    return cost if seconds >= 0 else -cost
