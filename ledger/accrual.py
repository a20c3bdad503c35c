"""Accrual: instance time is booked as it passes, by the provider's own clock, until the end is confirmed.

The meter is cumulative: what is booked for a rental is always `cost_of_seconds(price, billed seconds so far)`, rounded
once, and an accrual books the difference to what the books already say. So replays, crashes and polls in any number and
order book the same total, to the nano (litellm #36877, #37050: billed on every poll).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

import msgspec
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from ledger import accounts
from ledger.book import Recorded, lock, post, recorded
from ledger.errors import MalformedEvent
from ledger.event import Dims, Event, Exists, Facts, Line, Posted
from ledger.holds import draw, scopes_of
from ledger.money import cost_of_seconds
from ledger.positions import Hold, holds_of_rental
from ledger.tables import Entry

SECOND_US = 1_000_000
METER_KINDS = ("usage.accrue", "correction")
_METER_KEY = re.compile(
    r"accrue:.+:(?P<ordinal>[0-9]+):[0-9]+-(?P<seconds>[0-9]+):(?P<nano>-?[0-9]+)(?P<final>:final)?"
)


# Who books a machine that nobody commissioned (it leaked, and the sweeper let it go): no hold can have come before it.
LEAKED = "broker.leaked"


@dataclass(frozen=True, slots=True)
class Meter:
    """What is metered: one rental at one hourly price, billed in increments of `granularity_s`, at least `minimum_s`.

    `started_us` is the provider's metering start. `batch` is given when the rental serves that batch alone. `scopes` are the
    nodes of the budget tree above the project, for a rental that never had a hold (its hold's count otherwise).
    """

    rental: str
    offer_key: str
    market: str
    pricing: str
    project: str
    batch: str | None
    price_nano_hour: int
    started_us: int
    granularity_s: int = 1
    minimum_s: int = 0
    scopes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Reading:
    """What the books say of a rental's meter: `entries` posted, up to `seconds`, for `nano` in all.

    `newest` is the last of them. `is_final`: it was the final one.
    """

    entries: int = 0
    seconds: int = 0
    nano: int = 0
    newest: Recorded | None = None
    is_final: bool = False


def billed_seconds(started_us: int, until_us: int, granularity_s: int, minimum_s: int, final: bool) -> int:
    """Seconds that the provider bills for [started, until).

    Final: the time rounded up to whole increments, at least the minimum (EC2, GCE: "per second, minimum 60 s").
    Not final: closed increments only, so that an accrual never runs ahead of the invoice; the minimum is due as soon
    as the first increment has closed, as no end can make it cheaper any more. A machine that ran for no time at all, or
    whose end lies before its start (a clock that went backwards), costs nothing.
    Raises ValueError for an increment below 1 s or a negative minimum.

    >>> billed_seconds(0, 90_000_000, 60, 0, final=False), billed_seconds(0, 90_000_000, 60, 0, final=True)
    (60, 120)
    >>> billed_seconds(0, 999_999, 1, 60, final=False), billed_seconds(0, 1_000_000, 1, 60, final=False)
    (0, 60)
    """
    if granularity_s < 1 or minimum_s < 0:
        raise ValueError(
            f"granularity {granularity_s} s, minimum {minimum_s} s: an increment is 1 s or more, a minimum 0 or more"
        )
    elapsed_us = max(0, until_us - started_us)
    increment_us = granularity_s * SECOND_US
    closed, rest = divmod(elapsed_us, increment_us)
    increments = closed + (1 if final and rest else 0)
    return max(minimum_s, increments * granularity_s) if increments else 0


async def accrue(
    session: AsyncSession, meter: Meter, *, until_us: int, final: bool, actor: str, recorded_at_us: int
) -> Posted | Exists | None:
    """Book what the rental costs up to `until_us` and is not in the books yet.

    `until_us` is the provider's time: "running at until_us", or with `final` its confirmed end. Posts `usage.accrue`,
    or a `correction` when the final meter is below what was booked (the books never go down otherwise). Exists: the
    books are at this reading already. None: nothing is due yet, or the reading is older than the books, or comes after
    the end. An interval belongs to the UTC month in which it closes. Raises MalformedEvent when price or increments
    make no sense, UnknownAccount when the pricing has no account.
    """
    if meter.price_nano_hour == 0 and meter.pricing == "reserved":
        return None  # paid for already: its commitment is amortised (ledger/commitments.py)
    if meter.price_nano_hour <= 0 or meter.granularity_s < 1 or meter.minimum_s < 0:
        raise MalformedEvent(
            f"rental {meter.rental}: price {meter.price_nano_hour} nano-USD/h, granularity {meter.granularity_s} s, "
            f"minimum {meter.minimum_s} s cannot be metered; mend the offer's facts"
        )
    await lock(session)
    reading = await read_meter(session, meter.rental)
    seconds = billed_seconds(meter.started_us, until_us, meter.granularity_s, meter.minimum_s, final)
    due = cost_of_seconds(meter.price_nano_hour, seconds) - reading.nano
    if due == 0 and reading.newest is not None:
        return Exists(entry_id=reading.newest.entry_id, seq=reading.newest.seq)
    holds = await holds_of_rental(session, meter.rental)
    # A hold is resolved only when the end is confirmed: "running" that arrives after that is old news.
    is_ended = reading.is_final or any(hold.resolved for hold in holds)
    if due == 0 or (not final and (due < 0 or is_ended)):
        return None
    open_hold = next((hold for hold in holds if hold.resolved is None), None)
    # What comes after the hold's end counts where the hold did, though its project may have moved to another team since.
    newest_hold = open_hold or (holds[-1] if holds else None)
    scopes = scopes_of(newest_hold) if newest_hold is not None else (meter.scopes or msgspec.UNSET)
    event = _event(meter, reading, open_hold, scopes, seconds, due, until_us=until_us, final=final, actor=actor)
    return await post(session, event, recorded_at_us=recorded_at_us)


async def read_meter(session: AsyncSession, rental: str) -> Reading:
    """What is booked for the rental's meter, out of the newest key. Corrections by people are not part of it."""
    newest = (
        select(Entry)
        .where(
            col(Entry.rental) == rental,
            col(Entry.kind).in_(METER_KINDS),
            col(Entry.key).startswith(f"accrue:{rental}:", autoescape=True),
        )
        .order_by(col(Entry.seq).desc())
        .limit(1)
    )
    entry = (await session.execute(newest)).scalar_one_or_none()
    return Reading() if entry is None else reading_of(recorded(entry))


def _event(
    meter: Meter, reading: Reading, hold: Hold | None, scopes: tuple[str, ...] | msgspec.UnsetType, seconds: int, due: int,
    *, until_us: int, final: bool, actor: str,
) -> Event:  # fmt: skip
    kind: Literal["usage.accrue", "correction"] = "usage.accrue" if due > 0 else "correction"
    charged = draw(meter.project, hold, due)
    return Event(
        key=_key(meter.rental, reading, seconds, due, final),
        kind=kind,
        occurred_at_us=max(until_us, meter.started_us),
        actor=actor,
        dims=Dims(project=meter.project, batch=meter.batch, rental=meter.rental, offer_key=meter.offer_key),
        lines=(
            Line(account=accounts.compute(meter.market, meter.pricing), nano=due),
            Line(account=accounts.accrued(meter.market), nano=-due),
            *charged.lines,
        ),
        corrects=reading.newest.event.key if reading.newest and kind == "correction" else None,
        hold=charged.hold,
        scopes=scopes,
        facts=Facts(
            market=meter.market,
            pricing=meter.pricing,
            from_us=meter.started_us + min(reading.seconds, seconds) * SECOND_US,
            until_us=meter.started_us + max(reading.seconds, seconds) * SECOND_US,
            seconds=seconds - reading.seconds,
        ),
    )


def _key(rental: str, reading: Reading, seconds: int, due: int, final: bool) -> str:
    """`accrue:<rental>:<n>:<from second>-<to second>:<nano in all>[:final]`, the n-th reading that was booked.

    The ordinal makes two writers that read the same state collide, and lets a final reading be revised back and forth.
    What is booked in all stands in the key so that a meter reads one entry, not thousands; the audit adds them up.
    """
    end = ":final" if final else ""
    return f"accrue:{rental}:{reading.entries + 1}:{reading.seconds}-{seconds}:{reading.nano + due}{end}"


def is_meter_entry(event: Event) -> bool:
    """Whether `accrue` posted this event."""
    return event.kind in METER_KINDS and event.key.startswith(f"accrue:{event.dims.rental}:")


def reading_of(newest: Recorded) -> Reading:
    """What the key of a meter's newest entry says of it: the inverse of `_key`. Raises MalformedEvent for another's key."""
    key = newest.event.key
    found = _METER_KEY.fullmatch(key)
    if found is None:
        raise MalformedEvent(f"entry {newest.seq}: key {key!r} is no meter's; nothing can be metered after it")
    return Reading(
        entries=int(found["ordinal"]),
        seconds=int(found["seconds"]),
        nano=int(found["nano"]),
        newest=newest,
        is_final=found["final"] is not None,
    )
