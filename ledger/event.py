"""The event: the only thing that is ever posted (contract C6). Its JSON is what `ledger replay` will read."""

from __future__ import annotations

from typing import Literal

import msgspec

Kind = Literal[
    "budget.grant",
    "hold.open",
    "hold.extend",
    "hold.void",
    "hold.expire",
    "usage.accrue",
    "usage.waste",
    "saving.reuse",
    "refund.expected",
    "refund.received",
    "invoice.match",
    "correction",
]

UNIT_USD = "USD"


class Dims(msgspec.Struct, frozen=True, kw_only=True):
    """Who and what an event concerns. Ids only; nothing that a person typed."""

    project: str | None = None
    batch: str | None = None
    rental: str | None = None
    offer_key: str | None = None
    attempt: int | None = None


class Line(msgspec.Struct, frozen=True, kw_only=True):
    """One posting: `nano` > 0 debits `account`, < 0 credits it; never 0."""

    account: str
    nano: int
    unit: str = UNIT_USD


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """One balanced transaction, named by a `key` of our own making, so that posting twice posts once.

    `hold` is the id of the hold that this event opens, extends, draws on (accruals) or resolves. `corrects` is the key
    of the entry that this one corrects; entries are never changed. `period` of an event is the UTC month of
    `occurred_at_us`.
    """

    key: str
    kind: Kind
    occurred_at_us: int
    actor: str
    dims: Dims
    lines: tuple[Line, ...]
    corrects: str | None = None
    hold: str | None = None


class Posted(msgspec.Struct, frozen=True, kw_only=True):
    """The event is now in the books, as entry number `seq`."""

    entry_id: str
    seq: int


class Exists(msgspec.Struct, frozen=True, kw_only=True):
    """The same event was already in the books; nothing was written."""

    entry_id: str
    seq: int


def encode(event: Event) -> bytes:
    """The canonical bytes that are stored and hashed; never re-serialised later."""
    return msgspec.json.encode(event, order="deterministic")
