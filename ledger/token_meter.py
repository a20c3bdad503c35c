"""Accrual by tokens: what is bought of an endpoint is booked as answers are committed, at the card's price.

As with time (ledger/accrual.py) the meter is cumulative: what is booked for a rental is the price of all tokens so far, rounded
once, and an accrual books the difference. A commit that is repeated changes no sum, so it books nothing.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from msgspec import UNSET
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from ledger import accounts
from ledger.accrual import Meter
from ledger.book import Recorded, lock, post, recorded
from ledger.errors import MalformedEvent
from ledger.event import Dims, Event, Exists, Facts, Line, Posted
from ledger.holds import draw, scopes_of
from ledger.money import div_half_even
from ledger.positions import holds_of_rental
from ledger.tables import Entry
from ledger.units import MTOKEN, NANO_PER_TOKEN

_MILLION = 1_000_000
_KEY = re.compile(r"tokens:.+:(?P<ordinal>[0-9]+):(?P<tokens>[0-9]+):(?P<nano>[0-9]+)(?P<final>:final)?")


@dataclass(frozen=True, slots=True)
class TokenRate:
    """Nano-units for a million tokens of each class."""

    input_nano: int
    cached_nano: int
    output_nano: int


@dataclass(frozen=True, slots=True)
class Used:
    """Tokens in all; cached ones are part of the prompt's, and are charged in their own class alone."""

    prompt: int
    cached: int
    completion: int

    @property
    def total(self) -> int:
        return self.prompt + self.completion


@dataclass(frozen=True, slots=True)
class TokenReading:
    """What the books say of a rental's tokens: `entries` posted, for `tokens` and `nano` in all."""

    entries: int = 0
    tokens: int = 0
    nano: int = 0
    newest: Recorded | None = None
    is_final: bool = False


def cost_of_tokens(rate: TokenRate, used: Used) -> int:
    """Nano-units, rounded once, half to even.

    >>> cost_of_tokens(TokenRate(150_000_000, 75_000_000, 600_000_000), Used(prompt=10, cached=4, completion=5))
    4200
    """
    fresh = used.prompt - used.cached
    return div_half_even(
        fresh * rate.input_nano + used.cached * rate.cached_nano + used.completion * rate.output_nano, _MILLION
    )


async def accrue_tokens(
    session: AsyncSession, meter: Meter, rate: TokenRate, used: Used, *, until_us: int, final: bool, actor: str,
    recorded_at_us: int,
) -> Posted | Exists | None:  # fmt: skip
    """Book what `used` costs and is not in the books yet; `meter` says whose it is, its hourly price books nothing.

    Exists: the books are at this reading already. None: nothing is due, or the reading is older than the books or comes after the
    end. Raises MalformedEvent when a price or a count makes no sense.
    """
    if min(rate.input_nano, rate.cached_nano, rate.output_nano) <= 0 or not 0 <= used.cached <= used.prompt:
        raise MalformedEvent(f"rental {meter.rental}: {used} at {rate} cannot be metered; mend the offer's price")
    await lock(session)
    reading = await read_tokens(session, meter.rental)
    due = cost_of_tokens(rate, used) - reading.nano
    if due == 0 and reading.newest is not None:
        return Exists(entry_id=reading.newest.entry_id, seq=reading.newest.seq)
    holds = await holds_of_rental(session, meter.rental)
    is_ended = reading.is_final or any(hold.resolved for hold in holds)
    if due <= 0 or (not final and is_ended):
        return None  # tokens that were used are never fewer: a smaller count is an older one
    open_hold = next((hold for hold in holds if hold.resolved is None), None)
    newest_hold = open_hold or (holds[-1] if holds else None)
    charged = draw(meter.project, open_hold, due)
    end = ":final" if final else ""
    event = Event(
        key=f"tokens:{meter.rental}:{reading.entries + 1}:{used.total}:{reading.nano + due}{end}",
        kind="usage.accrue",
        occurred_at_us=max(until_us, meter.started_us),
        actor=actor,
        dims=Dims(project=meter.project, batch=meter.batch, rental=meter.rental, offer_key=meter.offer_key),
        lines=(
            Line(account=accounts.compute(meter.market, meter.pricing), nano=due),
            Line(account=accounts.accrued(meter.market), nano=-due),
            *charged.lines,
        ),
        hold=charged.hold,
        scopes=scopes_of(newest_hold) if newest_hold is not None else (meter.scopes or UNSET),
        facts=Facts(
            market=meter.market,
            pricing=meter.pricing,
            from_us=reading.newest.event.occurred_at_us if reading.newest else meter.started_us,
            until_us=max(until_us, meter.started_us),
            quantity_nano=(used.total - reading.tokens) * NANO_PER_TOKEN,
            quantity_unit=MTOKEN,
        ),
    )
    return await post(session, event, recorded_at_us=recorded_at_us)


async def read_tokens(session: AsyncSession, rental: str) -> TokenReading:
    """What is booked for the rental's tokens, out of the newest key."""
    newest = (
        select(Entry)
        .where(
            col(Entry.rental) == rental,
            col(Entry.kind) == "usage.accrue",
            col(Entry.key).startswith(f"tokens:{rental}:", autoescape=True),
        )
        .order_by(col(Entry.seq).desc())
        .limit(1)
    )
    entry = (await session.execute(newest)).scalar_one_or_none()
    if entry is None:
        return TokenReading()
    return token_reading_of(recorded(entry))


def tokens_in(key: str, rental: str) -> int | None:
    """The rental's tokens in all, out of the key of an entry of its meter; None for other entries.

    >>> tokens_in("tokens:r1:2:5000:1500000", "r1"), tokens_in("accrue:r1:1:0-60:5", "r1")
    (5000, None)
    """
    found = _KEY.fullmatch(key) if key.startswith(f"tokens:{rental}:") else None
    return int(found["tokens"]) if found else None


def is_token_entry(event: Event) -> bool:
    """Whether `accrue_tokens` posted this event."""
    return event.kind == "usage.accrue" and event.key.startswith(f"tokens:{event.dims.rental}:")


def token_reading_of(newest: Recorded) -> TokenReading:
    """What the key of a token meter's newest entry says of it. Raises MalformedEvent for another's key."""
    key = newest.event.key
    found = _KEY.fullmatch(key)
    if found is None:
        raise MalformedEvent(f"entry {newest.seq}: key {key!r} is no token meter's; nothing can be metered after it")
    return TokenReading(
        entries=int(found["ordinal"]),
        tokens=int(found["tokens"]),
        nano=int(found["nano"]),
        newest=newest,
        is_final=found["final"] is not None,
    )
