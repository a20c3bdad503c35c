"""The sweep carried out, of real markets: each way in which machines leak or fleets are killed, by its name.

`sandbox` is a process that rents processes; `aws` is moto behind a proxy that adds what moto lacks.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from botocore.loaders import Loader
from ulid import ULID

from broker.control.reconcile import Reconciler
from broker.control.settle import Settler
from jobs.clock import db_now
from ledger.audit import check
from ledger.tables import Entry
from markets import price_book, rentals
from markets.instants import micros
from markets.market import Intent, MachineStart, Market, Rental
from markets.meter import Terms, amount, billed_seconds
from markets.offer import Offer
from markets.tables import RentalRow
from tests.markets.aws_rig import Aws, moto
from tests.markets.rigs import Api, Sandbox, sandbox_in

SECOND_US = 1_000_000
START = MachineStart(argv=("sleep", "1000"), image="busybox", files={"agent.json": b"{}"})


@dataclass
class World:
    """A broker without its HTTP, whose only market is a real one; `other` is somebody else's view of the same market."""

    town: Any
    market: Market
    other: Market
    offer: Offer
    owner: str
    break_lists: Callable[[], Awaitable[None]]
    mend_lists: Callable[[], Awaitable[None]]

    def __post_init__(self) -> None:
        services = replace(self.town.services, markets={self.market.name: self.market}, owner=self.owner)
        self.reconciler = Reconciler(services)
        self.settler = Settler(services)

    async def create(self, *, row: str | None = "creating", market: Market | None = None, owner: str = "") -> str:
        """A machine that the broker has no memory of, or that of an intent that got no further than `row`."""
        tag = f"rental_{ULID()}"
        if row is not None:
            await self.intend(tag, is_failed=row == "failed")
        assert self.offer.price is not None
        await (market or self.market).rent(self.offer, Intent(tag, owner or self.owner, START, self.offer.price))
        return tag

    async def intend(self, tag: str, *, is_failed: bool = False) -> None:
        """A row whose machine the market is asked for; or that it was found to have never made."""
        async with self.town.database.transaction() as session:
            now_us = await db_now(session)
            await rentals.record_intent(
                session, rental_id=tag, offer=self.offer, project="default", model="m", precision="auto",
                purpose={}, now_us=now_us,
            )  # fmt: skip
            await rentals.mark_creating(session, tag, now_us=now_us)
            if is_failed:
                await rentals.failed(session, tag, error="the market never had it", now_us=now_us)

    async def sweep(self, times: int = 1, *, later_s: int = 0) -> None:
        """Rounds of the loop, the first of them `later_s` after now."""
        self.town.database.clock_offset_us += later_s * SECOND_US
        for _ in range(times):
            await self.reconciler.step()
            await self.settler.step()

    async def row(self, tag: str) -> RentalRow | None:
        found: RentalRow | None = await self.town.row(RentalRow, tag)
        return found

    async def state(self, tag: str) -> str:
        row = await self.row(tag)
        return row.state if row else "unknown"

    async def booked_nano(self, tag: str) -> int:
        """What the ledger says that the rental cost."""
        entries = [each for each in await self.town.rows(Entry) if each.rental == tag and each.kind == "usage.accrue"]
        return sum(int(each.key.split(":")[4]) for each in entries[-1:])

    async def of_market(self, tag: str) -> Rental:
        return await self.market.rental(tag)

    async def of_market_whole(self, tag: str) -> Rental:
        """Asked while the lists are broken: they are mended for the question."""
        await self.mend_lists()
        try:
            return await self.market.rental(tag)
        finally:
            await self.break_lists()


@pytest.fixture(scope="module")
def moto_url(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with moto(tmp_path_factory.mktemp("moto")) as url:
        yield url


@pytest.fixture(scope="module")
def loader() -> Loader:
    return Loader(include_default_search_paths=True)


@pytest.fixture(scope="module")
def sandbox(tmp_path_factory: pytest.TempPathFactory) -> Any:
    yield from sandbox_in(tmp_path_factory.mktemp("sandbox") / "sandbox")


@pytest.fixture(params=["sandbox", pytest.param("aws", marks=pytest.mark.aws)])
async def world(town: Any, tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[World]:
    owner = f"broker_{ULID()}"
    async with AsyncExitStack() as stack:
        if request.param == "aws":
            fixtures = request.getfixturevalue("moto_url"), request.getfixturevalue("loader")
            aws = await stack.enter_async_context(Aws(*fixtures))
            market, other = aws.market(tmp_path, owner=owner), aws.market(tmp_path, owner="somebody_else")
            sku = "c5.large"

            async def turn(cut: bool) -> None:
                aws.is_cut = cut
        else:
            rig: Sandbox = request.getfixturevalue("sandbox")
            market, other = (type(rig.market())(rig.find, owner=each) for each in (owner, "somebody_else"))
            sku = "plenty"
            api = await stack.enter_async_context(Api.of(rig))

            async def turn(cut: bool) -> None:
                asked = ("POST", {"name": "partial_list", "times": 1000}) if cut else ("DELETE", None)
                status, _ = await api(asked[0], "/v1/admin/faults", asked[1])
                assert status < 300

        offer = next(each for each in await market.offers() if each.key.sku == sku)
        async with town.database.transaction() as session:
            await price_book.store_offers(session, market.name, [offer], now_us=await db_now(session))
        yield World(town, market, other, offer, owner, lambda: turn(True), lambda: turn(False))
        for each, mark in ((market, owner), (other, "somebody_else")):
            for rental in await each.rentals():
                if rental.state != "ended" and rental.facts["owner"] == mark:
                    await each.release(rental.tag)
            await each.close()


def expected_nano(world: World, rental: Rental) -> int:
    """What the market's own times cost, by the meter that does not know the ledger."""
    assert rental.started_at is not None and rental.ended_at is not None
    terms = Terms(rental.price, world.offer.granularity_s, world.offer.minimum_s)
    seconds = billed_seconds(terms, micros(rental.started_at), micros(rental.ended_at), final=True)
    return int(amount(terms, seconds) * 10**9)


async def test_instance_leaked_between_create_and_record_is_adopted_and_its_cost_is_booked(world: World) -> None:
    tag = await world.create()
    await world.sweep()
    assert await world.state(tag) == "running", "one list is enough to believe in what is there"
    async with world.town.database.transaction() as session:
        await rentals.request_release(session, tag, reason="test", now_us=await db_now(session))
    await world.sweep(2)
    rental = await world.of_market(tag)
    assert (await world.state(tag), rental.state) == ("ended", "ended")
    assert await world.booked_nano(tag) == expected_nano(world, rental) > 0


async def test_instance_leaked_by_a_create_that_we_gave_up_on_is_released_and_its_cost_is_booked(world: World) -> None:
    tag = await world.create(row="failed")
    await world.sweep(3)
    rental = await world.of_market(tag)
    assert (await world.state(tag), rental.state) == ("ended", "ended")
    assert await world.booked_nano(tag) == expected_nano(world, rental) > 0


async def test_instance_leaked_without_any_record_is_released_after_two_lists_and_the_grace_and_its_cost_is_booked(
    world: World,
) -> None:
    tag = await world.create(row=None)
    await world.sweep(3)
    assert (await world.of_market(tag)).state == "running", (
        "a machine that is new to us may be another process's intent"
    )
    await world.sweep(later_s=121)
    rental = await world.of_market(tag)
    assert rental.state == "ended"
    await world.sweep()
    row = await world.row(tag)
    assert row is not None and (row.project, row.settled, row.purpose) == ("default", True, {"leaked": True})
    assert await world.booked_nano(tag) == expected_nano(world, rental) > 0
    async with world.town.database.transaction() as session:
        assert await check(session) == [], "no hold can have come before it; a restore must not refuse these books"


async def test_instance_leaked_that_ended_by_itself_is_booked_all_the_same(world: World) -> None:
    tag = await world.create(row=None)
    await world.market.release(tag)
    await world.sweep()
    assert await world.booked_nano(tag) == expected_nano(world, await world.of_market(tag)) > 0


async def test_a_machine_that_the_market_is_still_making_is_not_given_up(world: World) -> None:
    """A host that pulls 10 GB of image lists nothing for minutes; its first start was failed, and released when it came."""
    tag = f"rental_{ULID()}"
    await world.intend(tag)
    world.reconciler.services.renting.add(tag)
    await world.sweep(3, later_s=200)
    assert await world.state(tag) == "creating"
    world.reconciler.services.renting.discard(tag)
    await world.sweep()
    assert await world.state(tag) == "failed"


async def test_nothing_is_killed_on_a_partial_list(world: World) -> None:
    tag, last = await world.create(row=None), await world.create()
    await world.sweep()
    await world.break_lists()
    await world.sweep()
    await world.sweep(2, later_s=121)
    assert (await world.of_market_whole(tag)).state == "running", "two complete lists in a row are wanted, and time"
    assert await world.state(last) in ("running", "releasing"), "what is missing from a list that is cut is not lost"
    await world.mend_lists()
    await world.sweep()
    await world.sweep(later_s=121)
    assert (await world.of_market(tag)).state == "ended"


async def test_foreign_machines_are_untouched_whatever_they_look_like(world: World) -> None:
    theirs = await world.create(row=None, market=world.other, owner="somebody_else")
    await world.sweep(2)
    await world.sweep(2, later_s=1000)
    assert (await world.other.rental(theirs)).state == "running"
    assert await world.state(theirs) == "unknown"


async def test_a_cycle_kills_no_more_than_its_cap_of_leaked_machines_the_next_the_rest_and_none_foreign(
    world: World,
) -> None:
    """A database that was lost, or the wrong one: five a cycle, and a person is called."""
    theirs = await world.create(row=None, market=world.other, owner="somebody_else")
    tags = [await world.create(row=None) for _ in range(7)]
    await world.sweep(2)
    await world.sweep(later_s=121)
    assert [(await world.of_market(tag)).state for tag in tags].count("running") == 2
    await world.sweep()
    assert [(await world.of_market(tag)).state for tag in tags].count("running") == 0
    assert (await world.other.rental(theirs)).state == "running"
