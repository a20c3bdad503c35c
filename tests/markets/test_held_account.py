"""A login that is exchanged, or that nobody says the account of, in the middle of creating and releasing."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any, cast

import pytest

from markets.errors import (
    AccountChanged,
    Ambiguous,
    MarketsError,
    NoCapacity,
    NotAuthorized,
    PriceMoved,
    RateLimited,
    RentalNotFound,
    StillReleasing,
    Unavailable,
)
from markets.held_account import AccountTeller, HeldMarket
from markets.market import Intent, MachineStart, Released, Rental
from markets.offer import Accelerator, Offer, OfferKey

NOON = datetime(2026, 11, 28, 12, tzinfo=UTC)
OFFER = Offer(
    key=OfferKey("aws", "eu-central-1", None, "g5.xlarge", "a10g", 1, "spot"),
    launch="vm",
    accelerator=Accelerator(),
    currency="USD",
    price=Decimal("0.5"),
    observed_at=NOON,
    source="test",
    raw_sha256="",
)
INTENT = Intent(tag="rental_1", owner="broker_1", start=MachineStart(("sleep", "1"), {}), max_price=Decimal(1))


@dataclass
class Provider:
    """Two accounts, each with machines of its own, and the service that says whose the login is."""

    login: str = "A"
    machines: dict[str, set[str]] = field(default_factory=lambda: {"A": set(), "B": set()})
    outage: MarketsError | None = None
    is_silent: bool = False
    meanwhile: Callable[[], object] = lambda: None
    refusal: MarketsError | None = None
    is_slow: bool = False  # a release is not confirmed at once
    over: dict[str, set[str]] = field(default_factory=lambda: {"A": set(), "B": set()})
    name: str = "aws"

    async def account(self) -> str:
        if self.is_silent:
            await asyncio.Event().wait()
        if self.outage:
            raise self.outage
        return self.login

    async def rent(self, offer: Offer, intent: Intent) -> Rental:
        self.meanwhile()
        if self.refusal is None or isinstance(self.refusal, Ambiguous):
            self.machines[self.login].add(intent.tag)
        if isinstance(self.refusal, PriceMoved):
            self.over[self.login].add(intent.tag)
        if self.refusal:
            raise self.refusal
        return Rental(intent.tag, offer.key, "running", Decimal("0.5"), "USD", NOON, None, NOON)

    async def release(self, tag: str) -> Released:
        if tag in self.over[self.login]:
            if self.is_slow:
                raise StillReleasing(tag)
            return Released(tag, NOON)
        if tag not in self.machines[self.login]:
            raise RentalNotFound(tag)
        self.machines[self.login].remove(tag)
        self.over[self.login].add(tag)
        if self.is_slow:
            raise StillReleasing(tag)
        return Released(tag, NOON)

    async def rental(self, tag: str) -> Rental:
        if tag not in self.over[self.login]:
            raise RentalNotFound(tag)
        seen = NOON + timedelta(seconds=7)
        if self.is_slow:
            return Rental(tag, OFFER.key, "releasing", Decimal("0.5"), "USD", NOON, None, seen)
        return Rental(tag, OFFER.key, "ended", Decimal("0.5"), "USD", NOON, seen, seen, "released")


class _Lagging(set[str]):
    """A list that does not show yet what was created."""

    def __contains__(self, tag: object) -> bool:
        return False


async def _hold_a(told: str) -> None:
    if told != "A":
        raise AccountChanged(f"our machines run in A, and the login is of {told}")


def _held(provider: Provider) -> HeldMarket:
    return HeldMarket(cast(AccountTeller, provider), _hold_a, within_s=0.01)


SILENT: list[dict[str, Any]] = [
    {"outage": Unavailable("sts: 503")},
    {"outage": RateLimited("sts: Throttling")},
    {"is_silent": True},  # longer than the sweep waits for a release
]


@pytest.mark.parametrize("trouble", SILENT)
async def test_a_machine_is_released_while_nobody_says_whose_the_login_is(trouble: dict[str, Any]) -> None:
    """After a restart in an outage of STS no machine was ended at all."""
    provider = Provider(**trouble)
    provider.machines["A"].add("rental_1")
    for _ in range(2):  # that there is none is no answer either
        with pytest.raises((Unavailable, RateLimited)):
            await _held(provider).release("rental_1")
    assert provider.machines["A"] == set()


async def test_a_login_of_another_account_is_asked_to_release_nothing() -> None:
    provider = Provider(login="B")
    provider.machines["B"].add("rental_1")
    with pytest.raises(AccountChanged):
        await _held(provider).release("rental_1")
    assert provider.machines["B"] == {"rental_1"}


# EC2 may answer a creation with a server error and have created all the same; spot may have moved above the bound by then, and it
# was ended at once; and it takes a minute to end an instance
@pytest.mark.parametrize("is_slow", [False, True])
@pytest.mark.parametrize("refusal", [None, Ambiguous("ec2: 500"), PriceMoved("2 USD/h since its creation; terminated")])
async def test_a_login_exchanged_while_a_machine_is_created_leaves_none_in_its_account(
    refusal: MarketsError | None, is_slow: bool
) -> None:
    """It was created in B and called a success, B's list was refused, and A's was without it: it ran on, unknown. What it cost
    there until it was ended is owed by the house, too, and was booked nowhere."""
    provider = Provider(refusal=refusal, is_slow=is_slow)
    provider.meanwhile = lambda: vars(provider).update(login="B")
    rental = await _held(provider).rent(OFFER, INTENT)
    found = (rental.state, rental.started_at, rental.ended_at, rental.end_reason)
    assert found == ("ended", NOON, NOON + timedelta(seconds=7), "released")
    assert provider.machines == {"A": set(), "B": set()}


async def test_what_an_exchanged_login_may_have_made_stays_in_doubt_while_nobody_knows_of_it() -> None:
    provider = Provider(refusal=Ambiguous("ec2: 500"))

    def elsewhere() -> None:
        provider.login, provider.machines["B"] = "B", _Lagging()

    provider.meanwhile = elsewhere
    with pytest.raises(Ambiguous, match="exchanged while rental_1 was created"):
        await _held(provider).rent(OFFER, INTENT)


@pytest.mark.parametrize("trouble", [*SILENT, {"outage": NotAuthorized("sts: the key is revoked")}])
async def test_a_creation_that_succeeded_stays_a_success_when_nobody_says_whose_the_login_is(
    trouble: dict[str, Any],
) -> None:
    provider = Provider()
    provider.meanwhile = lambda: vars(provider).update(trouble)
    assert (await _held(provider).rent(OFFER, INTENT)).tag == "rental_1"
    assert provider.machines["A"] == {"rental_1"}


async def test_a_refusal_to_create_is_handed_on() -> None:
    for refusal in (NoCapacity(), PriceMoved()):
        with pytest.raises(type(refusal)):
            await _held(Provider(refusal=refusal)).rent(OFFER, INTENT)
