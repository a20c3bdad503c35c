"""The markets room's tables: the price book's latest offers and their history, and rentals (intent and machine in one row).

Times are integer microseconds UTC, money integer nano-USD.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import JSON, BigInteger, Boolean, Column, Index, Integer
from sqlalchemy.types import UserDefinedType
from sqlmodel import Field, SQLModel


def _big(*, nullable: bool = False, index: bool = False) -> Any:
    """A 64-bit integer column: microseconds or nano-USD."""
    return Field(default=None, sa_column=Column(BigInteger, nullable=nullable, index=index))


def _json() -> Any:
    return Field(sa_column=Column(JSON, nullable=False))


class JsonText(UserDefinedType[str]):
    """What is bound to a JSON column as JSON text, by whoever has encoded it already. It goes to the driver as it is: without a
    type of its own PostgreSQL reads it as the column's."""

    cache_ok = True

    def get_col_spec(self, **_: Any) -> str:
        return "JSON"


class OfferRow(SQLModel, table=True):
    """The latest that a market said about one offer; `record` is the whole of it (`markets.offer_record`).

    `observed_us` is when the market said so and decides staleness; `seen_us` is our clock at the poll that stored it.
    `gone_us` is set when a later, complete poll of the market no longer had the offer. An offer that is said again
    unchanged (`fingerprint`: all of it but its times) keeps its `record`, and only `observed_us` moves: read it with
    `price_book.offer_of`. `gpu_nano_hour` is the price of one device (of the machine where it has none), by which markets
    are held against each other; `country` is set only when there was evidence for it.
    """

    __tablename__ = "markets_offer"
    # Both are wide: whoever wants a country that nobody has, or a market's biggest machines, is answered by the index alone.
    __table_args__ = (
        Index(
            "ix_markets_offer_cheapest",
            "accelerator", "price_nano_hour", "market", "pricing", "country", "gpu_count",
        ),
        Index("ix_markets_offer_price", "price_nano_hour", "market", "pricing", "country", "gpu_count"),
    )  # fmt: skip
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
    gpu_count: int = 0
    gpu_nano_hour: int | None = _big(nullable=True)
    fingerprint: str = ""
    record: dict[str, Any] = _json()


class PollRow(SQLModel, table=True):
    """How the latest polls of a market went. `failed_us` later than `ok_us` means: its offers are getting old.

    `failures` counts those since the last good one; no poll before `again_us` (backoff, Retry-After, an open circuit). A
    `card` was handed in by a person (`card_by`), is not polled, and its prices count until `card_until_us`.
    """

    __tablename__ = "markets_poll"
    market: str = Field(primary_key=True)
    ok_us: int | None = _big(nullable=True)
    failed_us: int | None = _big(nullable=True)
    error: str | None = None
    failures: int = 0
    again_us: int | None = _big(nullable=True)
    card_by: str | None = None
    card_until_us: int | None = _big(nullable=True)


class ChangeRow(SQLModel, table=True):
    """One change of what a market said of an offer, as of `at_us`. Only inserted (a trigger holds it) and, when a day has
    been rolled up and is older than the retention, removed.

    `state`: listed, quarantined or gone. Prices are of the whole instance-hour, or of a million tokens in and out.
    """

    __tablename__ = "markets_offer_change"
    __table_args__ = (
        Index("ix_markets_offer_change_key", "key", "at_us"),
        Index("ix_markets_offer_change_at", "at_us"),
    )
    id: int | None = Field(
        default=None, sa_column=Column(BigInteger().with_variant(Integer, "sqlite"), primary_key=True)
    )
    key: str
    at_us: int = _big()
    state: str
    price_nano_hour: int | None = _big(nullable=True)
    input_nano: int | None = _big(nullable=True)
    output_nano: int | None = _big(nullable=True)
    capacity: int | None = None
    reason: str | None = None


class DayRow(SQLModel, table=True):
    """One UTC day of an offer's history, rolled up: what is left of it after the retention.

    Prices are of the hour, where tokens are sold of a million written ones, weighted by how long they held; `listed_ppm` is the
    part of the day in which it was listed at all, `available_ppm` in which it was also not sold out.
    """

    __tablename__ = "markets_offer_day"
    key: str = Field(primary_key=True)
    day_us: int = Field(sa_column=Column(BigInteger, primary_key=True, autoincrement=False))
    changes: int
    min_nano: int | None = _big(nullable=True)
    mean_nano: int | None = _big(nullable=True)
    max_nano: int | None = _big(nullable=True)
    last_nano: int | None = _big(nullable=True)
    listed_ppm: int
    available_ppm: int


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
