"""What each market owes the broker, and what the broker hands to a market (contract C3).

Implementations translate; they never decide. All methods are async; a synchronous SDK runs in its adapter's own bounded
thread pool. Every method may raise RateLimited, NotAuthorized and Unavailable. Anything else that a method raises is
named in its docstring, and callers handle exactly those. Prices are Decimal in the offer's currency; times are aware
UTC datetimes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from typing import Literal, Protocol

from markets.offer import Offer, OfferKey

RentalState = Literal["pending", "running", "releasing", "ended"]
EndReason = Literal["released", "preempted", "exited", "failed"]


@dataclass(frozen=True, slots=True)
class Download:
    """A file that the machine fetches by itself, because its start-up document has no room for it.

    `bearer` goes into the Authorization header; it is the rental's single-use token and nothing more valuable. `ca` (PEM) is
    trusted beside what the machine's system does.
    """

    url: str
    sha256: str
    bearer: str = field(repr=False)
    ca: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class MachineStart:
    """What a fresh machine runs first; the equivalent of a cloud's user data.

    `process` markets run `argv` with `files` laid beside it (relative name → content); `container` markets run `image`
    with `argv` as its command, `files` mounted read-only under `/broker`. `env` never holds a long-lived secret:
    the bootstrap token in it is single-use. `{dir}` in argv and env stands for the folder that holds `files`.

    Of containers: `cache` asks for a folder at /cache that outlives the container (weights, what engines compile); `user`
    is whom the image's programs run as (`2000`, `2000:0`), None the image's own.

    `vm` markets do as containers do, once the machine has fetched `downloads` into the same folder; `/state` is a folder
    of the machine's that the container writes to, and `/state/alive` getting older than `dead_man_s` ends the machine.
    """

    argv: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, bytes] = field(default_factory=dict)
    image: str | None = None
    shm_mib: int | None = None
    entrypoint: tuple[str, ...] | None = None
    cache: bool = False
    user: str | None = None
    downloads: Mapping[str, Download] = field(default_factory=dict)
    dead_man_s: int = 0


@dataclass(frozen=True, slots=True)
class Intent:
    """What the broker has decided to rent, written to its database *before* the market hears of it.

    `tag` is unique and ends up on the machine: whatever crashes after this, the sweeper finds the machine by it.
    `max_price` is the hourly price that the hold was computed with; a market that now asks for more raises PriceMoved.
    """

    tag: str
    owner: str
    start: MachineStart
    max_price: Decimal


@dataclass(frozen=True, slots=True)
class Rental:
    """A machine that we pay for, as the market sees it.

    `started_at` and `ended_at` are the market's own metering times. `seen_at` is the market's clock when it said so:
    "running at seen_at" is what accrual books up to. `facts` are strings that a person may want (pid, address).
    """

    tag: str
    offer_key: OfferKey
    state: RentalState
    price: Decimal
    currency: str
    started_at: datetime | None
    ended_at: datetime | None
    seen_at: datetime
    end_reason: EndReason | None = None
    exit_status: int | None = None
    facts: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Released:
    """The market's confirmation that a rental is gone and no longer billed since `at`."""

    tag: str
    at: datetime


@dataclass(frozen=True, slots=True)
class Charge:
    """One line of the provider's invoice: `amount` in `currency` for `seconds` billed of one rental."""

    tag: str
    offer_key: OfferKey
    from_at: datetime
    to_at: datetime
    seconds: int
    amount: Decimal
    currency: str
    final: bool


class PriceSource(Protocol):
    """A place that says what things cost. Token endpoints and price cards are only this."""

    name: str

    async def offers(self) -> list[Offer]:
        """All offers of this market now, also those with capacity 0: being sold out is data, not absence."""
        ...

    async def close(self) -> None:
        """Give back sockets and threads. Rentals go on."""
        ...


class Market(PriceSource, Protocol):
    """A place where capacity can be rented. Only rentals tagged with our `owner` are ever seen or touched."""

    async def rent(self, offer: Offer, intent: Intent) -> Rental:
        """Create what `intent` names and tag it with `intent.tag`. Renting the same tag twice creates once.

        NoCapacity, QuotaExceeded, PriceMoved: nothing was created. Ambiguous: something may have been; the caller looks
        for the tag with `rental` before it tries again.
        """
        ...

    async def rental(self, tag: str) -> Rental:
        """The rental with this tag, also for a while after its end. RentalNotFound: the market never had it."""
        ...

    async def rentals(self) -> list[Rental]:
        """All rentals that carry our owner mark, ended ones included for at least an hour after their end.

        PartialList: the answer was incomplete. A short list is never returned as if it were whole; the error holds what
        was found, because the meters of those go on.
        """
        ...

    async def release(self, tag: str) -> Released:
        """End the rental. Idempotent: a rental that has ended answers with its end.

        StillReleasing: asked for, not confirmed; the caller retries and accrual goes on. RentalNotFound as in `rental`.
        """
        ...

    async def charges(self, from_at: datetime, to_at: datetime) -> list[Charge]:
        """What the provider bills for rentals whose metered time overlaps the half-open period [from_at, to_at).

        Unsupported: this adapter has no way to learn it.
        """
        ...
