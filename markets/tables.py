"""The markets room's tables: the price book's latest offers, and rentals (intent and machine in one row).

Times are integer microseconds UTC, money integer nano-USD.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import JSON, BigInteger, Boolean, Column
from sqlmodel import Field, SQLModel


def _big(*, nullable: bool = False, index: bool = False) -> Any:
    """A 64-bit integer column: microseconds or nano-USD."""
    return Field(default=None, sa_column=Column(BigInteger, nullable=nullable, index=index))


def _json() -> Any:
    return Field(sa_column=Column(JSON, nullable=False))


class OfferRow(SQLModel, table=True):
    """The latest that a market said about one offer; `record` is the whole of it (`markets.offer_record`).

    `observed_us` is when the market said so and decides staleness; `seen_us` is our clock at the poll that stored it.
    `gone_us` is set when a later, complete poll of the market no longer had the offer.
    """

    __tablename__ = "markets_offer"
    key: str = Field(primary_key=True)
    market: str = Field(index=True)
    accelerator: str
    pricing: str
    country: str | None = None
    price_nano_hour: int | None = _big(nullable=True)
    capacity: int | None = None
    quarantined: str | None = None
    observed_us: int = _big()
    seen_us: int = _big()
    gone_us: int | None = _big(nullable=True)
    record: dict[str, Any] = _json()


class PollRow(SQLModel, table=True):
    """How the latest polls of a market went. `failed_us` later than `ok_us` means: its offers are getting old."""

    __tablename__ = "markets_poll"
    market: str = Field(primary_key=True)
    ok_us: int | None = _big(nullable=True)
    failed_us: int | None = _big(nullable=True)
    error: str | None = None


class RentalRow(SQLModel, table=True):
    """A rental from the intent to its confirmed end. `id` (`rental_` + ULID) is also the tag on the machine.

    `state`: intended → creating → running → releasing → ended | lost | failed (`markets.rentals.TRANSITIONS`).
    `facts` is the offer's record, frozen at placing: why this place was allowed can be shown after the offer is gone.
    `started_us`, `ended_us` and `last_seen_us` are on the market's clock; the others on ours. `settled` is false until
    the broker has booked the final meter, so that a crash between the end and its booking is found.
    """

    __tablename__ = "markets_rental"
    id: str = Field(primary_key=True)
    market: str = Field(index=True)
    offer_key: str = Field(index=True)
    project: str = Field(index=True)
    model: str
    precision: str
    state: str = Field(index=True)
    price_nano_hour: int = _big()
    pricing: str
    granularity_s: int
    minimum_s: int
    facts: dict[str, Any] = _json()
    purpose: dict[str, Any] = _json()
    market_facts: dict[str, Any] = _json()
    created_us: int = _big(index=True)
    started_us: int | None = _big(nullable=True)
    last_seen_us: int | None = _big(nullable=True)
    release_us: int | None = _big(nullable=True)
    release_reason: str | None = None
    ended_us: int | None = _big(nullable=True)
    end_reason: str | None = None
    exit_status: int | None = None
    attempts: int = 0
    error: str | None = None
    settled: bool = Field(default=False, sa_column=Column(Boolean, nullable=False, index=True))
