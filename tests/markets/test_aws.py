"""EC2 as a market: what is asked of it, how it fails, and what is concluded. moto answers, behind a proxy of ours."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import pytest
import yaml

from markets.aws.leftovers import Leftovers
from markets.aws.listing import OWNER
from markets.aws.machine_types import quota_code
from markets.aws.market import AwsMarket
from markets.aws.offers import availability_zones
from markets.aws.price_list import PriceList
from markets.errors import (
    Ambiguous,
    MarketsError,
    NoCapacity,
    NotAuthorized,
    PartialList,
    PriceMoved,
    QuotaExceeded,
    RateLimited,
    RentalNotFound,
    StillReleasing,
    Unsupported,
)
from markets.market import Download, Intent, MachineStart, Rental
from markets.offer import Offer
from tests.markets.aws_rig import ON_DEMAND, REGION, Aws, client
from tests.markets.rigs import new_tag

pytestmark = pytest.mark.aws
START = MachineStart(
    argv=("/broker/agent.pyz", "run"),
    files={"agent.json": b"{}"},
    image=f"vllm/vllm-openai@sha256:{'0' * 64}",
    downloads={"agent.pyz": Download("https://broker.example/agent.pyz", "0" * 64, "single-use")},
    dead_man_s=900,
)


@dataclass
class Shop:
    """One account of our own, so that no other test's machines are in its lists."""

    aws: Aws
    market: AwsMarket
    cache: Path
    owner: str

    async def offer(self, sku: str = "c5.large", pricing: str = "spot") -> Offer:
        """The first such offer; c5.large has no accelerator, so that no other type serves in its place."""
        return next(each for each in await self.market.offers() if each.key.sku == sku and each.key.pricing == pricing)

    async def rent(self, offer: Offer, tag: str, bound: Decimal | None = None) -> Rental:
        return await self.market.rent(offer, Intent(tag, self.owner, START, bound or offer.price or Decimal(0)))

    def asked(self, action: str) -> dict[str, str]:
        """The form of the latest such request."""
        return next(form for name, form in reversed(self.aws.asked) if name == action)


@pytest.fixture
async def shop(aws: Aws, tmp_path: Path) -> AsyncIterator[Shop]:
    owner = new_tag()
    market = aws.market(tmp_path, owner=owner)
    yield Shop(aws, market, tmp_path, owner)
    await market.close()


async def test_spot_is_one_request_that_ends_and_is_billed_as_we_expect(shop: Shop) -> None:
    offer, tag = await shop.offer(), new_tag()
    rental = await shop.rent(offer, tag)
    form = shop.asked("RunInstances")
    wanted = {
        "ClientToken": tag,
        "MinCount": "1",
        "MaxCount": "1",
        "InstanceType": "c5.large",
        "InstanceInitiatedShutdownBehavior": "terminate",
        "InstanceMarketOptions.MarketType": "spot",
        "InstanceMarketOptions.SpotOptions.MaxPrice": "0.035",
        "InstanceMarketOptions.SpotOptions.SpotInstanceType": "one-time",
        "InstanceMarketOptions.SpotOptions.InstanceInterruptionBehavior": "terminate",
        "MetadataOptions.HttpTokens": "required",
        "MetadataOptions.HttpPutResponseHopLimit": "1",
        "BlockDeviceMapping.1.Ebs.Encrypted": "true",
        "BlockDeviceMapping.1.Ebs.DeleteOnTermination": "true",
        "BlockDeviceMapping.1.DeviceName": "/dev/sda1",
    }
    assert wanted.items() <= form.items()
    assert not [name for name in form if name.startswith(("IamInstanceProfile", "KeyName"))], (
        "nothing to steal, nobody to log in"
    )
    assert {form[f"TagSpecification.{n}.ResourceType"] for n in (1, 2, 3)} == {
        "instance",
        "volume",
        "network-interface",
    }
    ec2 = client(shop.aws.moto)
    group = ec2.describe_security_groups(GroupIds=[form["SecurityGroupId.1"]])["SecurityGroups"][0]
    assert group["IpPermissions"] == [], "nobody dials in"
    assert (rental.facts["lifecycle"], rental.facts["owner"]) == ("spot", shop.owner)
    assert rental.facts["zone"] in (f"{REGION}a", f"{REGION}b")


async def test_on_demand_takes_any_zone_and_only_types_that_cost_no_more(shop: Shop) -> None:
    offer, tag = await shop.offer("g5.xlarge", "on_demand"), new_tag()
    rental = await shop.rent(offer, tag)
    form = shop.asked("CreateFleet")
    assert form["ClientToken"] == tag and form["Type"] == "instant"
    overrides = {value for name, value in form.items() if name.endswith(".InstanceType")}
    subnets = {value for name, value in form.items() if name.endswith(".SubnetId")}
    assert overrides == {"g5.xlarge"} and len(subnets) == 3, "g5.2xlarge costs more on demand"
    assert (rental.price, rental.offer_key.zone) == (Decimal("1.258"), None)
    left = client(shop.aws.moto).describe_launch_templates()["LaunchTemplates"]
    assert tag not in [each["LaunchTemplateName"] for each in left], "the template holds the rental's token"


async def test_a_cheaper_type_that_serves_an_on_demand_offer_is_booked_at_its_own_price(shop: Shop) -> None:
    """EC2 takes the cheapest of a fleet's types; the offer's own price was booked for it, a fifth too much."""
    offer = await shop.offer("g5.2xlarge", "on_demand")
    rental = await shop.rent(offer, new_tag())
    assert (rental.facts["type"], rental.price) == ("g5.xlarge", Decimal("1.258"))
    assert (rental.offer_key, offer.price) == (offer.key, Decimal("1.516"))


async def test_a_template_that_a_crash_left_behind_is_removed_and_those_of_others_are_not(shop: Shop) -> None:
    ec2, theirs = client(shop.aws.moto), new_tag()
    for name, owner in ((f"{shop.owner}-old", shop.owner), (theirs, theirs)):
        tags = [{"ResourceType": "launch-template", "Tags": [{"Key": OWNER, "Value": owner}]}]
        ec2.create_launch_template(
            LaunchTemplateName=name, LaunchTemplateData={"InstanceType": "c5.large"}, TagSpecifications=tags
        )

    def left() -> set[str]:
        return {each["LaunchTemplateName"] for each in ec2.describe_launch_templates()["LaunchTemplates"]}

    await shop.market.rentals()
    assert f"{shop.owner}-old" in left(), "it may be of a call that is under way"
    leftovers = Leftovers(shop.market._account, shop.owner)
    await leftovers.sweep(REGION, datetime.now(UTC) + timedelta(hours=2))
    assert f"{shop.owner}-old" not in left() and theirs in left()


async def test_a_larger_type_that_is_cheaper_now_serves_the_offer_at_its_own_price(shop: Shop) -> None:
    offer, tag = await shop.offer("g5.xlarge"), new_tag()
    shop.aws.spot["g5.xlarge"] = "0.54"
    rental = await shop.rent(offer, tag)
    form = shop.asked("CreateFleet")
    assert {value for name, value in form.items() if name.endswith(".InstanceType")} == {"g5.xlarge", "g5.2xlarge"}
    assert {value for name, value in form.items() if name.endswith(".MaxPrice")} == {"0.55"}
    assert rental.price == Decimal({"g5.xlarge": "0.54", "g5.2xlarge": "0.50"}[rental.facts["type"]])
    assert rental.offer_key == offer.key


async def test_user_data_holds_no_secret_but_the_single_use_token(shop: Shop) -> None:
    from base64 import b64decode  # noqa: PLC0415

    await shop.rent(await shop.offer(), new_tag())
    document = b64decode(shop.asked("RunInstances")["UserData"]).decode()
    assert document.startswith("#cloud-config\n") and len(document) < 16_384
    files = {each["path"]: each for each in yaml.safe_load(document)["write_files"]}
    holding = [path for path, file in files.items() if "single-use" in file["content"]]
    assert holding == ["/var/lib/broker/agent.pyz.header"] and files[holding[0]]["permissions"] == "0600"
    assert "AKIDTEST" not in document


@pytest.mark.parametrize(
    ("status", "code", "error"),
    [
        (400, "InsufficientInstanceCapacity", NoCapacity),
        (400, "Unsupported", NoCapacity),
        (400, "SpotMaxPriceTooLow", PriceMoved),
        (400, "VcpuLimitExceeded", QuotaExceeded),
        (400, "MaxSpotInstanceCountExceeded", QuotaExceeded),
        (403, "UnauthorizedOperation", NotAuthorized),
        (400, "ExpiredToken", NotAuthorized),
        (503, "RequestLimitExceeded", RateLimited),
        (500, "InternalError", Ambiguous),
        (503, "Unavailable", Ambiguous),
        (400, "InvalidAMIID.Malformed", MarketsError),
    ],
)
async def test_what_ec2_says_to_a_request_is_the_typed_error(
    shop: Shop, status: int, code: str, error: type[MarketsError]
) -> None:
    offer, tag = await shop.offer(), new_tag()
    shop.aws.faults["RunInstances"] = [(status, code)]
    with pytest.raises(error, match=code) as raised:
        await shop.rent(offer, tag)
    assert type(raised.value) is error
    assert shop.aws.calls["RunInstances"] == 1, "what creates is never repeated behind our back"
    with pytest.raises(RentalNotFound):
        await shop.market.rental(tag)


async def test_a_fleet_that_finds_no_capacity_says_so(shop: Shop) -> None:
    offer = await shop.offer("g5.xlarge", "on_demand")
    shop.aws.empty_fleet = "InsufficientInstanceCapacity"
    with pytest.raises(NoCapacity, match="InsufficientInstanceCapacity"):
        await shop.rent(offer, new_tag())
    shop.aws.empty_fleet = "MaxSpotInstanceCountExceeded"
    with pytest.raises(QuotaExceeded):
        await shop.rent(offer, new_tag())


@pytest.mark.parametrize("fault", ["drop after", "500 after"])
@pytest.mark.parametrize(
    ("sku", "pricing", "action"), [("c5.large", "spot", "RunInstances"), ("g5.xlarge", "on_demand", "CreateFleet")]
)
async def test_instance_leaked_by_an_answer_that_was_lost_is_found_by_tag_and_not_made_twice(
    shop: Shop, fault: str, sku: str, pricing: str, action: str
) -> None:
    offer, tag = await shop.offer(sku, pricing), new_tag()
    shop.aws.faults[action] = [fault]
    with pytest.raises(Ambiguous):
        await shop.rent(offer, tag)
    assert (await shop.market.rental(tag)).state == "running"
    again = await shop.rent(offer, tag)
    assert [each.facts["id"] for each in await shop.market.rentals()] == [again.facts["id"]]
    assert shop.aws.calls[action] == 1


async def test_a_request_that_never_arrived_is_ambiguous_and_made_nothing(shop: Shop) -> None:
    offer, tag = await shop.offer(), new_tag()
    shop.aws.faults["RunInstances"] = ["drop"]
    with pytest.raises(Ambiguous):
        await shop.rent(offer, tag)
    with pytest.raises(RentalNotFound):
        await shop.market.rental(tag)


async def test_the_same_client_token_with_another_machine_start_is_ambiguous(shop: Shop) -> None:
    """A broker that died rents again with a new bootstrap token; EC2 refuses, and the first machine must be looked for."""
    offer, tag = await shop.offer(), new_tag()
    await shop.rent(offer, tag)
    other = replace(START, files={"agent.json": b'{"again": 1}'})
    shop.aws.hides = 1
    with pytest.raises(Ambiguous, match="IdempotentParameterMismatch"):
        await shop.market.rent(offer, Intent(tag, shop.owner, other, Decimal(1)))
    assert len(await shop.market.rentals()) == 1


async def test_a_list_that_lags_behind_the_creation_is_waited_for(shop: Shop) -> None:
    offer, tag = await shop.offer(), new_tag()
    shop.aws.hides = 2  # the look before, and the first one after
    assert (await shop.rent(offer, tag)).state == "running"


async def test_a_price_that_moved_above_the_bound_after_the_creation_ends_the_machine(shop: Shop) -> None:
    offer, tag = await shop.offer(), new_tag()
    shop.aws.later_spot = {**shop.aws.spot, "c5.large": "0.5"}
    with pytest.raises(PriceMoved, match=r"0\.5 USD/h since its creation, more than 0\.035; terminated"):
        await shop.rent(offer, tag)
    assert (await shop.market.rental(tag)).state == "ended"


async def test_a_price_that_fell_is_what_the_rental_costs(shop: Shop) -> None:
    offer, tag = await shop.offer(), new_tag()
    shop.aws.later_spot = {**shop.aws.spot, "c5.large": "0.03"}
    assert (await shop.rent(offer, tag)).price == Decimal("0.03")


async def test_a_list_that_breaks_off_is_not_taken_for_the_whole(shop: Shop) -> None:
    tag = new_tag()
    await shop.rent(await shop.offer(), tag)
    shop.aws.is_cut = True
    with pytest.raises(PartialList, match="broke off after 1") as cut:
        await shop.market.rentals()
    assert [each.tag for each in cut.value.found] == [tag]


async def test_a_region_that_does_not_answer_makes_the_list_partial_not_short(shop: Shop, tmp_path: Path) -> None:
    tag = new_tag()
    await shop.rent(await shop.offer(), tag)
    both = shop.aws.market(tmp_path, owner=shop.owner, regions=(REGION, "eu-west-1"))
    try:
        shop.aws.dead_region = "eu-west-1"
        with pytest.raises(PartialList) as cut:
            await both.rentals()
        assert [each.tag for each in cut.value.found] == [tag]
        assert {each.key.region for each in await both.offers()} == {REGION}
        assert (await both.rental(tag)).state == "running"
        with pytest.raises(MarketsError):
            await both.rental(new_tag())  # it may be in the region that does not answer
    finally:
        await both.close()


async def test_a_release_is_confirmed_only_when_ec2_says_terminated(shop: Shop) -> None:
    tag = new_tag()
    await shop.rent(await shop.offer(), tag)
    shop.aws.slow_ends = 3
    for _ in range(2):
        with pytest.raises(StillReleasing, match="shutting-down"):
            await shop.market.release(tag)
    released = await shop.market.release(tag)
    assert released == await shop.market.release(tag)
    assert (await shop.market.rental(tag)).ended_at == released.at
    assert shop.aws.calls["TerminateInstances"] == 1


async def test_a_machine_that_spot_took_back_was_preempted(shop: Shop) -> None:
    tag = new_tag()
    await shop.rent(await shop.offer(), tag)
    await shop.market.release(tag)
    shop.aws.reclaimed = True
    first, second = await shop.market.rental(tag), await shop.market.rental(tag)
    assert (first.state, first.end_reason) == ("ended", "preempted")
    assert first.ended_at == second.ended_at is not None


async def test_foreign_machines_in_the_same_account_are_not_seen(shop: Shop) -> None:
    ec2 = client(shop.aws.moto)
    theirs = ec2.run_instances(ImageId="ami-03cf127a", InstanceType="c5.large", MinCount=1, MaxCount=1)
    assert await shop.market.rentals() == []
    ec2.terminate_instances(InstanceIds=[theirs["Instances"][0]["InstanceId"]])


async def test_all_types_and_zones_of_a_family_share_one_quota_and_it_is_unknown_without_an_answer(
    shop: Shop, tmp_path: Path
) -> None:
    assert (await shop.offer()).quota is None
    shop.aws.quotas = {
        quota_code(name, is_spot=spot) or "": 9 for name in ("c5.large", "g5.xlarge") for spot in (True, False)
    }
    market = shop.aws.market(tmp_path, owner=shop.owner)
    try:
        offers = await market.offers()
    finally:
        await market.close()
    spot = [each for each in offers if each.key.pricing == "spot" and each.key.sku.startswith("g")]
    shares = {each.key.sku: each.quota for each in spot if each.quota}
    assert len({each.key.zone for each in spot}) == 2
    assert {each.group for each in shares.values()} == {f"aws/{REGION}/{quota_code('g5.xlarge', is_spot=True)}"}
    assert {each.left for each in shares.values()} == {9}
    assert (shares["g5.12xlarge"].units, shares["g4dn.xlarge"].units) == (48, 4)
    assert {each.capacity for each in offers} == {None}, "what EC2 has of a type it never says"


async def test_one_list_of_machines_that_failed_made_the_quota_of_every_offer_unknown(
    shop: Shop, tmp_path: Path
) -> None:
    shop.aws.quotas = {
        quota_code(name, is_spot=spot) or "": 9 for name in ("c5.large", "g5.xlarge") for spot in (True, False)
    }
    market = shop.aws.market(tmp_path, owner=shop.owner)
    try:
        before = {str(each.key): each.quota for each in await market.offers()}
        shop.aws.is_cut = True
        after = {str(each.key): each.quota for each in await market.offers()}
    finally:
        shop.aws.is_cut = False
        await market.close()
    assert any(before.values()) and after == before


async def test_offers_are_of_linux_in_the_regions_own_zones_and_say_where_they_are(shop: Shop) -> None:
    offers = await shop.market.offers()
    spot = [each for each in offers if each.key.pricing == "spot"]
    assert {each.key.sku for each in offers} == {"g5.xlarge", "g5.2xlarge", "g5.12xlarge", "g4dn.xlarge", "c5.large"}
    zones = availability_zones(client(shop.aws.moto).describe_availability_zones()["AvailabilityZones"])
    assert {each.key.zone for each in spot} == {zones[f"{REGION}a"], zones[f"{REGION}b"]}, "ids, not names"
    assert {each.price for each in spot if each.key.sku == "g5.xlarge"} == {Decimal("0.55")}, (
        "not Windows, no Local Zone"
    )
    chip = next(each.accelerator for each in offers if each.key.sku == "g5.12xlarge")
    assert (chip.name, chip.count, chip.memory_mib) == ("a10g", 4, 22888)
    for each in offers:
        assert (each.country, each.subdivision, each.location_tier) == ("DE", "DE-HE", "hyperscaler_region")
        assert (each.jurisdictions, each.minimum_s, each.quarantined) == (("DE", "US"), 60, None)
        assert each.evidence[0].kind == "region_table"


async def test_the_price_list_is_read_once_and_then_only_asked_whether_it_changed(shop: Shop) -> None:
    now = datetime.now(UTC)
    await shop.market.offers()
    await shop.market.offers()
    assert shop.aws.calls["price list"] == 1
    newborn = PriceList(shop.cache, url=shop.aws.url + "/price-list/{region}/index.csv")
    prices = newborn.prices(REGION)
    assert prices is not None and prices.by_type == {name: Decimal(text) for name, text in ON_DEMAND.items()}
    assert prices.checked_at >= now - timedelta(seconds=5)
    assert shop.aws.calls["price list"] == 1, "what was found is kept beside its ETag"


async def test_without_the_price_list_spot_is_still_offered(shop: Shop, tmp_path: Path) -> None:
    market = shop.aws.market(tmp_path, owner=shop.owner, price_list_url=shop.aws.url + "/nowhere/{region}")
    try:
        assert {each.key.pricing for each in await market.offers()} == {"spot"}
    finally:
        await market.close()


async def test_charges_are_said_to_be_unknown(shop: Shop) -> None:
    with pytest.raises(Unsupported, match="Cost and Usage Report"):
        await shop.market.charges(datetime.now(UTC), datetime.now(UTC))
