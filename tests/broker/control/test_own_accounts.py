"""Projects that rent with their own keys (BYOK), at two AWS accounts of moto's beside the house's."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from botocore.loaders import Loader
from pydantic import SecretStr
from ulid import ULID

from broker.control.accrue import Accruer
from broker.control.place import Placer
from broker.control.plan import Planner
from broker.control.planned_offers import planned_offers
from broker.control.poll import Poller
from broker.control.reconcile import Reconciler
from broker.control.snapshot import listed_offers
from broker.credentials import MachinesRun
from broker.house_accounts import HouseAccounts
from broker.market_set import open_accounts, open_markets
from broker.market_settings import AwsSettings
from broker.services import Services
from broker.settings import Settings
from jobs.clock import db_now
from ledger.tables import Entry
from markets import rentals
from markets.errors import MarketsError, PartialList
from markets.tables import PollRow, RentalRow
from tests.markets.aws_rig import PARAMETER, REGION, Aws, account, client, moto
from workers.profile import ModelProfile

pytestmark = pytest.mark.aws
ACME, BRAVO = "111111111111", "222222222222"


@pytest.fixture(scope="module")
def moto_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with moto(tmp_path_factory.mktemp("moto")) as url:
        yield url


@dataclass
class World:
    town: Any
    aws: Aws
    services: Services
    keys: dict[str, dict[str, str]]

    async def keep(self, project: str, **changes: str) -> None:
        values = {name: SecretStr(value) for name, value in (self.keys[project] | changes).items()}
        await self.services.credentials.keep(project, "aws", values, by="ada")

    async def rent_for(self, *projects: str) -> dict[str, RentalRow]:
        """A batch for each; what became of their rentals, by project."""
        await Poller(self.services).step()
        for project in projects:
            await self.town.batch(project=project)
        await Planner(self.services).step()
        await Placer(self.services, None).step()
        return {row.project: row for row in await self.town.rows(RentalRow)}

    async def sweep(self, times: int = 1) -> None:
        reconciler = Reconciler(self.services)
        for _ in range(times):
            await reconciler.step()

    def machines(self, project: str | None) -> list[str]:
        """The tags of the machines that run in the account (None: the house's)."""
        ec2 = client(self.aws.moto, keys=None if project is None else self.keys[project])
        found = ec2.describe_instances(Filters=[{"Name": "instance-state-name", "Values": ["pending", "running"]}])
        return [
            next(tag["Value"] for tag in each["Tags"] if tag["Key"] == "broker:tag")
            for group in found["Reservations"]
            for each in group["Instances"]
        ]


@pytest.fixture
async def world(town: Any, tmp_path: Path, moto_url: str) -> AsyncIterator[World]:
    async with AsyncExitStack() as stack:
        aws = await stack.enter_async_context(Aws(moto_url, Loader(include_default_search_paths=True)))
        settings = Settings(
            data=tmp_path,
            cache=tmp_path / "cache",
            markets=("aws",),
            aws=AwsSettings(
                regions=(REGION,),
                instance_types=("g5.xlarge",),
                access_key_id="AKIDTEST",
                secret_access_key=SecretStr("secret"),
                image=PARAMETER,
                endpoint_url=aws.url,
                price_list_url=aws.url + "/price-list/{region}/index.csv",
            ),
        )
        model = ModelProfile(
            id="tiny",
            engine="vllm",
            weights="org/tiny",
            image=f"vllm/vllm-openai@sha256:{'0' * 64}",
            launches=("vm",),
            tokens_per_s={"a10g": (1000, 10)},
        )
        owner = f"broker_{ULID()}"
        services = replace(
            town.services,
            settings=settings,
            owner=owner,
            markets=await open_markets(settings, HouseAccounts(town.database), owner=owner, stack=stack),
            accounts=open_accounts(settings, town.services.credentials, owner=owner, stack=stack),
            models={"tiny": model},
            public_url="https://broker.example",
        )
        keys = {"acme": account(moto_url, ACME), "bravo": account(moto_url, BRAVO)}
        world = World(town, aws, services, keys)
        yield world
        aws.locked_out.clear()
        for row in await town.rows(RentalRow):
            if row.started_us is not None and row.state != "ended" and (market := services.market(row.market)):
                await market.release(row.id)


async def test_each_project_rents_with_its_own_keys_and_all_others_with_the_houses(world: World) -> None:
    await world.keep("acme")
    await world.keep("bravo")
    rented = await world.rent_for("acme", "bravo", "default")
    assert {project: row.market for project, row in rented.items()} == {
        "acme": "aws~acme",
        "bravo": "aws~bravo",
        "default": "aws",
    }
    for project, holder in (("acme", "acme"), ("bravo", "bravo"), ("default", None)):
        row = rented[project]
        assert row.state == "running", row.error
        assert world.machines(holder) == [row.id], (
            f"the machine of {project} is not in its own account, or not alone there"
        )


async def test_machines_are_seen_booked_and_given_back_in_the_account_that_they_are_of(world: World) -> None:
    await world.keep("acme")
    await world.keep("bravo")
    rented = await world.rent_for("acme", "bravo")
    await world.sweep(3)
    assert {row.state for row in await world.town.rows(RentalRow)} == {"running"}, "no account's list is another's loss"
    async with world.town.database.transaction() as session:
        await rentals.request_release(session, rented["acme"].id, reason="test", now_us=await db_now(session))
    await world.sweep(2)
    await Accruer(world.services).step()
    assert (world.machines("acme"), world.machines("bravo")) == ([], [rented["bravo"].id])
    states = {row.project: row.state for row in await world.town.rows(RentalRow)}
    assert states == {"acme": "ended", "bravo": "running"}
    entries = [each for each in await world.town.rows(Entry) if each.rental == rented["bravo"].id]
    assert {(each.project, (each.offer_key or "").partition("/")[0]) for each in entries} == {("bravo", "aws~bravo")}


async def test_a_machine_leaked_in_a_projects_account_is_ended_there_at_its_own_expense(world: World) -> None:
    await world.keep("acme")
    (row,) = (await world.rent_for("acme")).values()
    async with world.town.database.transaction() as session:
        await session.delete(await session.get_one(RentalRow, row.id))
    reconciler = Reconciler(world.services)
    await reconciler.step()
    world.town.database.clock_offset_us += 121_000_000
    for _ in range(2):
        await reconciler.step()
    assert world.machines("acme") == []
    found = await world.town.row(RentalRow, row.id)
    assert (found.project, found.market, found.state, found.purpose) == ("acme", "aws~acme", "ended", {"leaked": True})


async def test_a_key_that_is_refused_stops_nobody_else_and_is_seen(world: World) -> None:
    await world.keep("acme")
    await world.keep("bravo")
    world.aws.locked_out.add(world.keys["acme"]["access_key_id"])
    rented = await world.rent_for("acme", "bravo", "default")
    assert {project: row.market for project, row in rented.items()} == {"bravo": "aws~bravo", "default": "aws"}
    refused, fine = [await world.town.row(PollRow, f"aws~{project}") for project in ("acme", "bravo")]
    assert (refused.error or "").startswith("not_authorized"), "what is wrong with it must be shown"
    assert fine.error is None
    await world.sweep()
    assert await world.town.intents() == [], "the house does not pay for a project whose own key is refused"
    world.aws.locked_out.clear()


async def test_new_keys_are_used_at_once_and_those_taken_away_never_again(world: World) -> None:
    await world.keep("acme", secret_access_key="", access_key_id="AKIDNOBODY")
    world.aws.locked_out.add("AKIDNOBODY")
    await Poller(world.services).step()
    assert (await world.town.row(PollRow, "aws~acme")).error
    await world.keep("acme")
    async with world.town.database.transaction() as session:
        (await session.get_one(PollRow, "aws~acme")).again_us = None
    (row,) = (await world.rent_for("acme")).values()
    assert (row.market, world.machines("acme")) == ("aws~acme", [row.id])
    with pytest.raises(MachinesRun, match="1 machines of aws~acme run on them"):
        await world.services.credentials.forget("acme", "aws")
    async with world.town.database.transaction() as session:
        await rentals.request_release(session, row.id, reason="test", now_us=await db_now(session))
    await world.sweep(2)
    await world.services.credentials.forget("acme", "aws")
    await world.services.accounts.refresh()
    assert world.services.market("aws~acme") is None


async def test_a_key_rotated_while_machines_are_listed_ends_no_loop_and_leaves_no_moment_without_an_account(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The adapter that another loop was using was closed under it: its queued calls were cancelled, and the loop with them.
    Meanwhile the name stood for nothing, so that the account's machines were drained as those of an unknown market."""
    await world.keep("acme")
    accounts = world.services.accounts
    await asyncio.gather(*(accounts.refresh() for _ in range(3)))  # as three loops do at the start
    used = accounts.opened["aws~acme"]
    is_there: list[bool] = []
    close = type(used).close

    async def watched(self: Any) -> None:
        is_there.append(world.services.market("aws~acme") is not None)
        await close(self)

    monkeypatch.setattr(type(used), "close", watched)
    listing = [asyncio.create_task(used.rentals()) for _ in range(12)]  # more than the account has threads
    for _ in range(20):
        await asyncio.sleep(0)
    await world.keep("acme")
    await asyncio.gather(*(accounts.refresh() for _ in range(3)))
    assert is_there == [True], "it is opened once anew, and closed when the next one is there"
    for found in await asyncio.gather(*listing, return_exceptions=True):
        assert isinstance(found, list | MarketsError | PartialList), (
            "a call under way ends with an answer or is told that it is over"
        )
    with pytest.raises(PartialList, match="closed"):  # which nobody takes for all that there is
        await used.rentals()


async def test_a_key_of_another_account_replaces_none_that_machines_run_on(world: World) -> None:
    """The other account's list was complete and empty: two sweeps later the machines were `lost`, and cost on."""
    await world.keep("acme")
    (row,) = (await world.rent_for("acme")).values()
    accounts, credentials = world.services.accounts, world.services.credentials
    (kept,) = await credentials.of_project("acme")
    assert kept.account == ACME, "what was kept without it is learnt"
    theirs = {name: SecretStr(value) for name, value in world.keys["bravo"].items()}
    number, doubt = await accounts.told("aws", theirs)
    assert (number, doubt) == (BRAVO, None)
    with pytest.raises(MachinesRun, match=f"1 machines of aws~acme run in the account {ACME}.* are of {BRAVO}"):
        await credentials.keep("acme", "aws", theirs, by="ada", account=number, doubt=doubt)
    world.aws.faults["GetCallerIdentity"] = [(403, "InvalidClientTokenId")]
    number, doubt = await accounts.told("aws", theirs)
    assert number is None
    with pytest.raises(MachinesRun, match=r"not known: not_authorized.*InvalidClientTokenId"):
        await credentials.keep("acme", "aws", theirs, by="ada", account=number, doubt=doubt)
    await world.sweep(3)
    assert [each.state for each in await world.town.rows(RentalRow)] == ["running"]
    again = account(world.aws.moto, ACME)
    assert again["access_key_id"] != world.keys["acme"]["access_key_id"]
    mine = {name: SecretStr(value) for name, value in again.items()}
    number, doubt = await accounts.told("aws", mine)
    await credentials.keep("acme", "aws", mine, by="ada", account=number, doubt=doubt)
    await world.sweep(3)
    assert [each.state for each in await world.town.rows(RentalRow)] == ["running"], "the same account sees them still"
    async with world.town.database.transaction() as session:
        await rentals.request_release(session, row.id, reason="test", now_us=await db_now(session))
    await world.sweep(2)
    await credentials.keep("acme", "aws", theirs, by="ada", account=BRAVO)


async def test_offers_seen_with_a_projects_keys_are_that_projects_alone(world: World) -> None:
    await world.keep("acme")
    await Poller(world.services).step()
    async with world.town.database.transaction() as session:
        now_us = await db_now(session)
        seen = {
            who: {
                each.offer.market for each in await listed_offers(session, world.services, now_us=now_us, project=who)
            }
            for who in ("acme", "bravo", None)
        }
        planned = await planned_offers(session, world.services, now_us=now_us, of_rentals=(), projects={"bravo"})
    assert seen == {"acme": {"aws", "aws~acme"}, "bravo": {"aws"}, None: {"aws"}}
    assert {each.offer.market for each in planned.listed} == {"aws"}
