"""What every market owes the broker, asked of each (contract C3): with real processes, and of AWS through moto's server."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from functools import partial
from pathlib import Path

import pytest

from markets.errors import NoCapacity, PriceMoved, RentalNotFound
from markets.local import LocalMarket
from markets.machine import processes_of
from markets.market import Intent, MachineStart, Market
from markets.offer import Offer, price_problem
from markets.sandbox.client import SandboxMarket
from tests.markets.aws_rig import Aws
from tests.markets.own_hosts import HostRig
from tests.markets.rigs import OWNER, Sandbox, new_tag, until_true

SLEEP = MachineStart(argv=("sleep", "1000"), image="busybox")


@dataclass
class Rig:
    """A market under test: `open` is a broker's new start, `roomy` the sku of an offer with room."""

    open: Callable[[], Market]
    market: Market
    roomy: str
    aws: Aws | None = None

    async def offer(self) -> Offer:
        return next(each for each in await self.market.offers() if each.key.sku == self.roomy)

    async def rent(self, tag: str, start: MachineStart = SLEEP) -> Offer:
        offer = await self.offer()
        assert offer.price is not None
        await self.market.rent(offer, Intent(tag, OWNER, start, offer.price))
        return offer


def local(tmp_path: Path) -> Callable[[], Market]:
    return lambda: LocalMarket(tmp_path / "local", owner=OWNER, price=Decimal("0.05"), country="DE", slots=3)


PROCESSES = ("local", "sandbox", "hosts")


@asynccontextmanager
async def rig_of(name: str, request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Rig]:
    async with AsyncExitStack() as stack:
        aws: Aws | None = None
        reopen: Callable[[], Market]
        if name == "aws":
            fixtures = request.getfixturevalue("moto_url"), request.getfixturevalue("loader")
            aws = await stack.enter_async_context(Aws(*fixtures))
            reopen, roomy = partial(aws.market, tmp_path), "g5.xlarge"
        elif name == "local":
            reopen, roomy = local(tmp_path), "this-machine"
        elif name == "sandbox":
            sandbox: Sandbox = request.getfixturevalue("shared_sandbox")
            reopen, roomy = sandbox.market, "plenty"
        else:
            host: HostRig = request.getfixturevalue("shared_host")
            reopen, roomy = host.market, host.own.name
        market = reopen()
        yield Rig(reopen, market, roomy, aws)
        for rental in await market.rentals():
            if rental.state != "ended":
                await market.release(rental.tag)
        await market.close()


@pytest.fixture(params=[*PROCESSES, pytest.param("aws", marks=pytest.mark.aws)])
async def rig(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Rig]:
    async with rig_of(request.param, request, tmp_path) as opened:
        yield opened


@pytest.fixture(params=PROCESSES)
async def process_rig(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Rig]:
    """A market whose rentals are processes that a test can look at: not moto, whose machines run nothing."""
    async with rig_of(request.param, request, tmp_path) as opened:
        yield opened


async def test_offers_are_priced_located_and_traceable(rig: Rig) -> None:
    offer = await rig.offer()
    assert price_problem(offer) is None
    assert offer.market == rig.market.name
    assert (offer.country, offer.currency) == ("DE", "USD")
    assert offer.launch == {"hosts": "container", "aws": "vm"}.get(rig.market.name, "process")
    assert [each.observed_at + each.ttl > datetime.now(UTC) for each in offer.evidence] == [True]
    assert len(offer.raw_sha256) == 64
    assert (await rig.offer()).key == offer.key


async def test_a_rental_lives_and_its_end_is_confirmed(rig: Rig) -> None:
    tag = new_tag()
    offer = await rig.rent(tag)
    rental = await rig.market.rental(tag)
    assert (rental.state, rental.offer_key, rental.price) == ("running", offer.key, offer.price)
    assert rental.started_at is not None and rental.started_at <= rental.seen_at
    released = await rig.market.release(tag)
    assert processes_of(tag) == []
    after = await rig.market.rental(tag)
    exit_status = None if rig.aws else -9
    assert (after.state, after.end_reason, after.exit_status) == ("ended", "released", exit_status)
    assert after.ended_at == released.at >= rental.started_at


async def test_renting_the_same_tag_twice_creates_once(rig: Rig) -> None:
    tag = new_tag()
    await asyncio.gather(rig.rent(tag), rig.rent(tag))
    await rig.rent(tag)
    if rig.aws is None:
        assert [each.name() for each in processes_of(tag)].count("sleep") == 1
    assert [each.tag for each in await rig.market.rentals()].count(tag) == 1


async def test_renting_an_ended_tag_again_does_not_start_it_again(rig: Rig) -> None:
    tag = new_tag()
    await rig.rent(tag)
    await rig.market.release(tag)
    offer = await rig.offer()
    again = await rig.market.rent(offer, Intent(tag, OWNER, SLEEP, Decimal(1)))
    assert again.state == "ended"
    assert processes_of(tag) == []


async def test_releasing_twice_answers_with_the_same_end(rig: Rig) -> None:
    tag = new_tag()
    await rig.rent(tag)
    assert await rig.market.release(tag) == await rig.market.release(tag)


async def test_ended_rentals_stay_listed(rig: Rig) -> None:
    tag = new_tag()
    await rig.rent(tag)
    await rig.market.release(tag)
    listed = {each.tag: each.state for each in await rig.market.rentals()}
    assert listed[tag] == "ended"


async def test_a_killed_process_is_an_ended_rental_with_its_exit_status(process_rig: Rig) -> None:
    tag = new_tag()
    await process_rig.rent(tag)
    os.kill(int((await process_rig.market.rental(tag)).facts["pid"]), signal.SIGKILL)

    async def has_ended() -> bool:
        return (await process_rig.market.rental(tag)).state == "ended"

    await until_true(has_ended, "the market notices the kill")
    rental = await process_rig.market.rental(tag)
    assert (rental.exit_status, rental.end_reason) == (-9, "failed")


@pytest.mark.parametrize(("code", "reason"), [(0, "exited"), (3, "failed")])
async def test_a_process_that_ends_by_itself_stops_its_meter_there(process_rig: Rig, code: int, reason: str) -> None:
    tag = new_tag()
    await process_rig.rent(tag, MachineStart(argv=("sh", "-c", f"exit {code}"), image="busybox"))

    async def has_ended() -> bool:
        return (await process_rig.market.rental(tag)).state == "ended"

    await until_true(has_ended, "the market notices the exit")
    first, second = await process_rig.market.rental(tag), await process_rig.market.rental(tag)
    assert (first.exit_status, first.end_reason) == (code, reason)
    assert first.ended_at == second.ended_at


async def test_instance_leaked_between_create_and_record_is_found_by_tag_after_the_brokers_death(rig: Rig) -> None:
    tag = new_tag()
    await rig.rent(tag)
    newborn = rig.open()  # knows nothing but its configuration
    try:
        found = await newborn.rental(tag)
        assert found.state == "running"
        assert tag in {each.tag for each in await newborn.rentals()}
        await newborn.release(tag)
    finally:
        await newborn.close()
    assert processes_of(tag) == []


async def test_an_unknown_tag_is_said_to_be_unknown(rig: Rig) -> None:
    for ask in (rig.market.rental, rig.market.release):
        with pytest.raises(RentalNotFound):
            await ask(new_tag())


async def test_a_dearer_price_than_planned_creates_nothing(rig: Rig) -> None:
    tag, offer = new_tag(), await rig.offer()
    assert offer.price is not None
    with pytest.raises(PriceMoved):
        await rig.market.rent(offer, Intent(tag, OWNER, SLEEP, offer.price / 2))
    with pytest.raises(RentalNotFound):
        await rig.market.rental(tag)


async def test_charges_cover_the_metered_time_in_whole_increments(process_rig: Rig) -> None:
    tag = new_tag()
    offer = await process_rig.rent(tag)
    at = (await process_rig.market.release(tag)).at
    charge = next(each for each in await process_rig.market.charges(at - timedelta(hours=1), at) if each.tag == tag)
    assert charge.final and charge.to_at == at
    assert charge.seconds == -((charge.from_at - charge.to_at) // timedelta(seconds=offer.granularity_s))
    assert offer.price is not None
    assert charge.amount == (offer.price * charge.seconds / 3600).quantize(Decimal("1e-9"))
    after = at + timedelta(hours=1)
    assert tag not in {each.tag for each in await process_rig.market.charges(after, after + timedelta(hours=1))}


async def test_a_running_rental_is_charged_for_closed_increments_only(process_rig: Rig) -> None:
    tag = new_tag()
    await process_rig.rent(tag)
    now = datetime.now(UTC)
    charge = next(
        each for each in await process_rig.market.charges(now - timedelta(1), now + timedelta(1)) if each.tag == tag
    )
    assert not charge.final
    assert charge.seconds == (charge.to_at - charge.from_at) // timedelta(seconds=1)


async def test_foreign_rentals_are_never_seen(
    rig: Rig, tmp_path: Path, request: pytest.FixtureRequest, shared_sandbox: Sandbox
) -> None:
    tag = new_tag()
    await rig.rent(tag)
    other: Market
    if rig.market.name == "local":
        other = LocalMarket(tmp_path / "local", owner="someone_else", price=Decimal(1))
    elif rig.aws is not None:
        other = rig.aws.market(tmp_path, owner="someone_else")
    elif rig.market.name == "sandbox":
        other = SandboxMarket(shared_sandbox.find, owner="someone_else")
    else:
        other = request.getfixturevalue("shared_host").market(owner="someone_else")
    try:
        assert tag not in {each.tag for each in await other.rentals()}
        for ask in (other.rental, other.release):
            with pytest.raises(RentalNotFound):
                await ask(tag)
    finally:
        await other.close()
    assert (await rig.market.rental(tag)).state == "running"


async def test_sold_out_is_listed_with_capacity_0_and_refused(
    tmp_path: Path, shared_sandbox: Sandbox, host: HostRig
) -> None:
    local_market = LocalMarket(tmp_path / "local", owner=OWNER, price=Decimal(1))
    for market in (local_market, shared_sandbox.market(), host.market(slots=1)):
        sku = {"local": "this-machine", "sandbox": "one", "hosts": "host-a"}[market.name]
        first, second = new_tag(), new_tag()
        offer = next(each for each in await market.offers() if each.key.sku == sku)
        assert offer.capacity == 1
        await market.rent(offer, Intent(first, OWNER, SLEEP, Decimal(1)))
        assert [each.capacity for each in await market.offers() if each.key == offer.key] == [0]
        with pytest.raises(NoCapacity):
            await market.rent(replace(offer, capacity=1), Intent(second, OWNER, SLEEP, Decimal(1)))
        await market.release(first)
        assert [each.capacity for each in await market.offers() if each.key == offer.key] == [1]
        await market.close()
