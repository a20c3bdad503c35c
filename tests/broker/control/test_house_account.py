"""The house's own login at AWS, exchanged for another account's while its machines run: at accounts of moto's."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from botocore.loaders import Loader
from pydantic import SecretStr
from ulid import ULID

from broker.control.place import Placer
from broker.control.plan import Planner
from broker.control.poll import Poller
from broker.control.reconcile import Reconciler
from broker.control.settle import Settler
from broker.house_accounts import HouseAccounts, NotGivenUp
from broker.market_set import open_markets
from broker.market_settings import AwsSettings
from broker.services import Services
from broker.settings import Settings
from broker.tables import HouseAccount
from jobs.clock import db_now
from ledger.tables import Entry
from markets import rentals
from markets.errors import AccountChanged, Unavailable
from markets.tables import PollRow, RentalRow
from tests.markets.aws_rig import PARAMETER, REGION, Aws, account, client, moto
from workers.profile import ModelProfile

pytestmark = pytest.mark.aws
OURS, OTHER = "333333333333", "444444444444"


@pytest.fixture(scope="module")
def moto_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with moto(tmp_path_factory.mktemp("moto")) as url:
        yield url


@dataclass
class House:
    town: Any
    aws: Aws
    stack: AsyncExitStack
    folder: Path
    owner: str
    keys: Mapping[str, Mapping[str, str]]

    async def start(self, number: str) -> Services:
        """A broker with the login of this account, on the same database."""
        settings = Settings(
            data=self.folder,
            cache=self.folder / "cache",
            markets=("aws",),
            aws=AwsSettings(
                regions=(REGION,),
                instance_types=("g5.xlarge",),
                access_key_id=self.keys[number]["access_key_id"],
                secret_access_key=SecretStr(self.keys[number]["secret_access_key"]),
                image=PARAMETER,
                endpoint_url=self.aws.url,
                price_list_url=self.aws.url + "/price-list/{region}/index.csv",
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
        opened = await open_markets(settings, HouseAccounts(self.town.database), owner=self.owner, stack=self.stack)
        changes: dict[str, Any] = {
            "settings": settings,
            "owner": self.owner,
            "markets": opened,
            "models": {"tiny": model},
        }
        return replace(self.town.services, public_url="https://broker.example", **changes)

    async def rent(self, services: Services) -> RentalRow:
        """What became of the rental for one more batch."""
        before = {row.id for row in await self.town.rows(RentalRow)}
        await Poller(services).step()
        await self.town.batch()
        await Planner(services).step()
        await Placer(services, None).step()
        (row,) = [row for row in await self.town.rows(RentalRow) if row.id not in before]
        return row

    async def sweep(self, services: Services, times: int = 3) -> None:
        """Rounds of one broker, long after anything was created."""
        self.town.database.clock_offset_us += 3600 * 1_000_000
        reconciler = Reconciler(services)
        for _ in range(times):
            await reconciler.step()

    async def held(self) -> HouseAccount:
        return await self.town.row(HouseAccount, "aws")

    async def states(self) -> list[str]:
        return sorted(row.state for row in await self.town.rows(RentalRow))

    def machines(self, number: str) -> int:
        ec2 = client(self.aws.moto, keys=dict(self.keys[number]))
        found = ec2.describe_instances(Filters=[{"Name": "instance-state-name", "Values": ["pending", "running"]}])
        mine = [tag for group in found["Reservations"] for each in group["Instances"] for tag in each["Tags"]]
        return sum(tag["Key"] == "broker:owner" and tag["Value"] == self.owner for tag in mine)


@pytest.fixture
async def house(town: Any, tmp_path: Path, moto_url: str) -> AsyncIterator[House]:
    async with AsyncExitStack() as stack:
        aws = await stack.enter_async_context(Aws(moto_url, Loader(include_default_search_paths=True)))
        keys = {number: account(moto_url, number) for number in (OURS, OTHER)}
        house = House(town, aws, stack, tmp_path, f"broker_{ULID()}", keys)
        yield house
        services = await house.start(OURS)
        for row in await town.rows(RentalRow):
            if row.started_us is not None and row.state == "running":
                await services.markets["aws"].release(row.id)


async def test_the_list_of_another_account_takes_no_machine_for_gone(house: House) -> None:
    """The house's key was exchanged for another account's: its list was complete and empty, and after two of them the machines
    were lost to the broker, and billed for ever."""
    services = await house.start(OURS)
    row = await house.rent(services)
    assert (row.state, house.machines(OURS)) == ("running", 1), row.error
    assert (await house.held()).account == OURS

    exchanged = await house.start(OTHER)
    await house.sweep(exchanged)
    assert await house.states() == ["running"], "another account's list is no list"
    async with house.town.database.transaction() as session:
        await rentals.request_release(session, row.id, reason="test", now_us=await db_now(session))
    await house.sweep(exchanged)
    assert await house.states() == ["releasing"], "that another account knows no such machine ends none"
    held = await house.held()
    assert (held.account, held.other) == (OURS, OTHER)

    await house.sweep(await house.start(OURS))
    assert (await house.states(), house.machines(OURS)) == (["ended"], 0)
    assert (await house.held()).other is None


async def test_an_intent_is_not_carried_out_with_another_accounts_login_and_the_market_says_why(house: House) -> None:
    services = await house.start(OURS)
    await Poller(services).step()
    await house.town.batch()
    await Planner(services).step()
    exchanged = await house.start(OTHER)
    house.town.database.clock_offset_us += 120 * 1_000_000
    await Poller(exchanged).step()
    poll = await house.town.row(PollRow, "aws")
    assert (poll.error or "").startswith(f"account_changed: aws: our machines run in the account {OURS}")
    await Placer(exchanged, None).step()
    (row,) = await house.town.rows(RentalRow)
    assert row.state == "failed"
    assert (row.error or "").startswith("account_changed: "), row.error
    assert (house.machines(OURS), house.machines(OTHER)) == (0, 0)
    await house.sweep(exchanged)
    assert (await house.held()).account == OTHER, "no machine is there any more, and no intent"


async def test_a_machine_that_shows_up_after_its_intent_was_given_up_is_not_left_to_an_exchanged_login(
    house: House,
) -> None:
    """The answer to its creation was lost and no list had it for minutes: with no open intent left, any login was let in, and
    the machine was never found."""
    services = await house.start(OURS)
    house.aws.faults |= {"RunInstances": ["drop after"], "CreateFleet": ["drop after"]}
    row = await house.rent(services)
    assert (row.state, house.machines(OURS)) == ("creating", 1), row.error
    house.aws.faults.clear()
    house.aws.hides = 100
    house.town.database.clock_offset_us += 600 * 1_000_000
    reconciler = Reconciler(services)
    for _ in range(3):
        await reconciler.step()
    assert await house.states() == ["failed"]
    house.aws.hides = 0

    exchanged = await house.start(OTHER)
    await Reconciler(exchanged).step()
    held = await house.held()
    assert (held.account, held.other) == (OURS, OTHER)

    await house.sweep(await house.start(OURS))
    assert (await house.states(), house.machines(OURS)) == (["ended"], 0)
    await house.sweep(exchanged)
    assert (await house.held()).account == OTHER, "nothing is left there, and in doubt is nothing for ever"


@dataclass
class Exchanged:
    """An adapter whose login is of another account from its next creation on."""

    inner: Any
    has_created: bool = False

    async def rent(self, *asked: Any) -> Any:
        rental = await self.inner.rent(*asked)
        self.has_created = True
        return rental

    async def account(self) -> str:
        return OTHER if self.has_created else OURS

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


async def test_what_an_exchanged_login_created_is_ended_and_its_cost_is_booked(house: House) -> None:
    """It was ended, and what it had cost until then stood in no book."""
    services = await house.start(OURS)
    market: Any = services.markets["aws"]
    market.inner = Exchanged(market.inner)
    row = await house.rent(services)
    assert (row.state, row.end_reason, house.machines(OURS)) == ("ended", "released", 0), row.error
    await Settler(services).step()
    booked = [entry for entry in await house.town.rows(Entry) if entry.rental == row.id]
    assert "usage.accrue" in {entry.kind for entry in booked}
    settled = await house.town.row(RentalRow, row.id)
    assert settled.settled and settled.started_us is not None


async def test_without_machines_the_login_may_be_of_any_account(house: House) -> None:
    services = await house.start(OURS)
    await Poller(services).step()
    exchanged = await house.start(OTHER)
    assert (await house.rent(exchanged)).state == "running"
    held = await house.held()
    assert (held.account, held.before, held.given_up_by) == (OTHER, OURS, None)
    with pytest.raises(AccountChanged):
        await services.markets["aws"].rentals()
    await house.sweep(services)
    assert await house.states() == ["running"]
    for row in await house.town.rows(RentalRow):
        await exchanged.markets["aws"].release(row.id)
    await house.sweep(exchanged)


async def test_an_outage_of_sts_concludes_nothing_and_ends_by_itself(house: House) -> None:
    await house.rent(await house.start(OURS))
    again = await house.start(OTHER)
    house.aws.faults["GetCallerIdentity"] = [(503, "ServiceUnavailable")] * 100
    await house.sweep(again)
    assert await house.states() == ["running"], "whose list it is, nobody said"
    with pytest.raises(Unavailable):
        await again.markets["aws"].rental("rental_x")
    house.aws.faults.clear()
    await house.sweep(again)
    assert (await house.held()).other == OTHER
    asked = house.aws.calls["GetCallerIdentity"]
    await house.sweep(again)
    assert house.aws.calls["GetCallerIdentity"] == asked, "a key is of one account for ever"


async def test_an_outage_of_sts_keeps_no_machine_running_that_nobody_wants(house: House) -> None:
    """A broker that was started in the outage asked STS before each Terminate, and sent none."""
    row = await house.rent(await house.start(OURS))
    async with house.town.database.transaction() as session:
        await rentals.request_release(session, row.id, reason="test", now_us=await db_now(session))
    started_anew = await house.start(OURS)
    house.aws.faults["GetCallerIdentity"] = [(503, "ServiceUnavailable")] * 100
    await house.sweep(started_anew, times=1)
    assert house.machines(OURS) == 0
    assert await house.states() == ["releasing"], "whose answers these are, nobody said"
    house.aws.faults.clear()
    await house.sweep(started_anew)
    assert await house.states() == ["ended"]


async def test_an_account_is_given_up_by_a_person_and_its_machines_are_written_off(house: House) -> None:
    await house.rent(await house.start(OURS))
    accounts = HouseAccounts(house.town.database)
    with pytest.raises(NotGivenUp, match="no login of another account"):
        await accounts.give_up("aws", OURS, by="ada")
    exchanged = await house.start(OTHER)
    await house.sweep(exchanged)
    with pytest.raises(NotGivenUp, match=f"is {OURS}, not {OTHER}"):
        await accounts.give_up("aws", OTHER, by="ada")
    await accounts.give_up("aws", OURS, by="ada")
    await house.sweep(exchanged)
    assert await house.states() == ["lost"]
    held = await house.held()
    assert (held.account, held.before, held.given_up_by, held.other) == (OTHER, OURS, "ada", None)
