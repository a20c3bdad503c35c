"""The event: the only thing that is ever posted (contract C6). Its JSON is what `ledger replay` reads."""

from __future__ import annotations

from typing import Literal

import msgspec

from ledger.errors import MalformedEvent

Kind = Literal[
    # memo: what may be spent, what is set aside, what was spared
    "budget.grant",
    "hold.open",
    "hold.extend",
    "hold.post",
    "hold.void",
    "hold.expire",
    "saving.reuse",
    "saving.on_demand",
    "saving.api",
    # what was used, and what of it was in vain
    "usage.accrue",
    "usage.waste",
    # what comes back
    "refund.expected",
    "refund.received",
    "credit.grant",
    "credit.apply",
    # money that is with a provider before it is used
    "prepaid.fund",
    "deposit.pay",
    "deposit.return",
    "escrow.fund",
    "escrow.return",
    "escrow.spend",
    "commitment.buy",
    "commitment.amortise",
    # other units than the books' own
    "fx.buy",
    "fx.sell",
    # what the provider says, and what is paid
    "invoice.match",
    "invoice.variance",
    "invoice.pay",
    "chargeback.bill",
    # the books themselves
    "correction",
    "period.close",
]

UNIT_USD = "USD"


class Dims(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Who and what an event concerns. Ids only; nothing that a person typed."""

    project: str | None = None
    batch: str | None = None
    rental: str | None = None
    offer_key: str | None = None
    attempt: int | None = None


class Line(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One posting: `nano` > 0 debits `account`, < 0 credits it; never 0."""

    account: str
    nano: int
    unit: str = UNIT_USD


class Facts(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """What is known of an event beside its amounts; None was not said. Codes, ids and numbers: no text that a person typed.

    `market` and `pricing` are the market's own name and the offer's pricing; an account name shows a safe form. `from_us` to
    `until_us` is the time that was used or paid for (start inclusive, end exclusive), `seconds` what of it is billed.
    `quantity_nano` of `quantity_unit` is what was metered, where that is no money. `reason` is a code: of waste (`startup`,
    `idle` …), of a variance (`rounding`, `minimum`, `leaked`, `tier`, `price`, `fx` …), of a write-off.

    `rate` is units of `rate_quote` for one of `rate_unit`, a decimal; `rate_source` and `rate_at_us` say who said so and when.
    `approval` is the id of the approval that allowed it.
    """

    market: str | None = None
    pricing: str | None = None
    reason: str | None = None
    from_us: int | None = None
    until_us: int | None = None
    seconds: int | None = None
    quantity_nano: int | None = None
    quantity_unit: str | None = None
    rate: str | None = None
    rate_unit: str | None = None
    rate_quote: str | None = None
    rate_source: str | None = None
    rate_at_us: int | None = None
    invoice: str | None = None
    invoice_line: str | None = None
    commitment: str | None = None
    approval: str | None = None


class Event(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One balanced transaction, named by a `key` of our own making, so that posting twice posts once.

    `hold` is the id of the hold that this event opens, extends, draws on (accruals) or resolves. `corrects` is the key
    of the entry that this one corrects; entries are never changed. `period` of an event is the UTC month of
    `occurred_at_us`, or the first open month after it once that month is closed.

    `scopes` are the nodes of the budget tree above the project that it counts against (`org:acme`, `team:ml`); the project
    itself is in `dims`. Fields that are UNSET are not in the stored bytes: those of before they existed stay as they were.
    """

    key: str
    kind: Kind
    occurred_at_us: int
    actor: str
    dims: Dims
    lines: tuple[Line, ...]
    corrects: str | None = None
    hold: str | None = None
    scopes: tuple[str, ...] | msgspec.UnsetType = msgspec.UNSET
    facts: Facts | msgspec.UnsetType = msgspec.UNSET


class Posted(msgspec.Struct, frozen=True, kw_only=True):
    """The event is now in the books, as entry number `seq`."""

    entry_id: str
    seq: int


class Exists(msgspec.Struct, frozen=True, kw_only=True):
    """The same event was already in the books; nothing was written."""

    entry_id: str
    seq: int


def decoded(given: object) -> Event:
    """An event out of plain JSON values. Raises MalformedEvent, saying where and what."""
    try:
        return msgspec.convert(given, Event)
    except msgspec.ValidationError as problem:
        raise MalformedEvent(f"this is no event: {problem}") from problem


def encode(event: Event) -> bytes:
    """The canonical bytes that are stored and hashed; never re-serialised later."""
    return msgspec.json.encode(event, order="deterministic")
