"""A login that is exchanged, or that nobody says the account of, in the middle of creating and releasing."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, cast

import pytest

from markets.errors import (
    AccountChanged,
    Ambiguous,
    MarketsError,
    NoCapacity,
    NotAuthorized,
    RateLimited,
    RentalNotFound,
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
        if self.refusal:
            raise self.refusal
        return Rental(intent.tag, offer.key, "running", Decimal("0.5"), "USD", NOON, None, NOON)

    async def release(self, tag: str) -> Released:
        if tag not in self.machines[self.login]:
            raise RentalNotFound(tag)
        self.machines[self.login].remove(tag)
        return Released(tag, NOON)


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


# EC2 may answer a creation with a server error and have created all the same
@pytest.mark.parametrize("refusal", [None, Ambiguous("ec2: 500")])
async def test_a_login_exchanged_while_a_machine_is_created_leaves_none_in_its_account(
    refusal: MarketsError | None,
) -> None:
    """It was created in B and called a success, B's list was refused, and A's was without it: it ran on, unknown."""
    provider = Provider(refusal=refusal)
    provider.meanwhile = lambda: vars(provider).update(login="B")
    with pytest.raises(Ambiguous, match="exchanged while rental_1 was created"):
        await _held(provider).rent(OFFER, INTENT)
    assert provider.machines == {"A": set(), "B": set()}


@pytest.mark.parametrize("trouble", [*SILENT, {"outage": NotAuthorized("sts: the key is revoked")}])
async def test_a_creation_that_succeeded_stays_a_success_when_nobody_says_whose_the_login_is(
    trouble: dict[str, Any],
) -> None:
    provider = Provider()
    provider.meanwhile = lambda: vars(provider).update(trouble)
    assert (await _held(provider).rent(OFFER, INTENT)).tag == "rental_1"
    assert provider.machines["A"] == {"rental_1"}


async def test_a_refusal_to_create_is_handed_on() -> None:
    with pytest.raises(NoCapacity):
        await _held(Provider(refusal=NoCapacity())).rent(OFFER, INTENT)
