"""The market `aws`: EC2 instances, spot and on-demand. Unverified against the live service."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import structlog
from botocore.loaders import Loader

from markets.aws.account import Account, BrokenOff, CredentialSource
from markets.aws.advisor import Advisor
from markets.aws.cloud_init import user_data
from markets.aws.failures import fleet_error
from markets.aws.ground import Ground
from markets.aws.launch import Choice, Grounds, Wish, fleet_request, run_request, template_request
from markets.aws.leftovers import Leftovers
from markets.aws.listing import OWNER, PRICE, TAG, instances, rental_of, stated_end
from markets.aws.offers import MARKET, region_offers
from markets.aws.price_list import BULK, PriceList
from markets.aws.survey import Survey
from markets.errors import (
    Ambiguous,
    MarketsError,
    NoCapacity,
    PartialList,
    PriceMoved,
    RentalNotFound,
    StillReleasing,
    Unavailable,
    Unsupported,
)
from markets.market import Charge, Intent, Released, Rental
from markets.offer import Offer, OfferKey, Pricing

_LAG_S = (0.0, 0.2, 0.5, 1.0, 2.0)
_log = structlog.get_logger("markets.aws")


@dataclass(frozen=True, slots=True)
class AwsOptions:
    """Where and what to rent. `subnets` and `security_groups` are by region; see `Ground` for what is used without them.

    Without `advisor_url` nothing is known of how often spot is taken away.
    """

    regions: tuple[str, ...]
    instance_types: tuple[str, ...]
    image: str
    pricings: tuple[Pricing, ...] = ("spot", "on_demand")
    disk_gib: int = 200
    boot_s: int | None = None
    subnets: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    security_groups: Mapping[str, str] = field(default_factory=dict)
    endpoint_url: str | None = None
    sts_endpoint_url: str | None = None
    price_list_url: str = BULK
    advisor_url: str | None = None


class AwsMarket:
    """Rentals are the instances that carry our tags, in the configured regions only."""

    name = MARKET

    def __init__(
        self,
        options: AwsOptions,
        *,
        credentials: CredentialSource,
        owner: str,
        cache: Path,
        loader: Loader | None = None,
    ) -> None:
        self._options = options
        self._owner = owner
        self._account = Account(
            credentials, endpoint_url=options.endpoint_url, sts_endpoint_url=options.sts_endpoint_url, loader=loader
        )
        price_list = PriceList(cache, url=options.price_list_url)
        self._advisor = Advisor(options.advisor_url) if options.advisor_url else None
        self._survey = Survey(self._account, price_list, options.instance_types, options.boot_s, self._advisor)
        self._ground = Ground(
            self._account,
            image=options.image,
            owner=owner,
            subnets=options.subnets,
            security_groups=options.security_groups,
        )
        self._leftovers = Leftovers(self._account, owner)
        self._offers: dict[str, list[Offer]] = {}
        self._ends: dict[str, datetime] = {}
        self._renting: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def offers(self) -> list[Offer]:
        """Of all regions. A region that does not answer keeps its offers with the time at which they were seen.

        Raises the first region's error when none answers.
        """
        answers = await asyncio.gather(*map(self._region_offers, self._options.regions))
        failures = [answer for answer in answers if isinstance(answer, MarketsError)]
        for region, answer in zip(self._options.regions, answers, strict=True):
            if isinstance(answer, MarketsError):
                _log.warning("aws.region_unavailable", region=region, error=f"{answer.code}: {answer}")
            else:
                self._offers[region] = answer
        if len(failures) == len(self._options.regions):
            raise failures[0]
        return [offer for offers in self._offers.values() for offer in offers]

    async def rent(self, offer: Offer, intent: Intent) -> Rental:
        """RunInstances, or CreateFleet where several types or zones serve, under the tag as ClientToken.

        PriceMoved also when the price turned out above the bound after the creation: what was created is then being
        terminated, and the list of rentals shows its end and cost. NoCapacity also for a region that is not configured.
        """
        region = offer.key.region or ""
        if region not in self._options.regions:
            raise NoCapacity(f"offer {offer.key}: region {region!r} is not in aws.regions any more")
        async with self._renting.setdefault(intent.tag, asyncio.Lock()):
            return await self._find(region, intent.tag) or await self._create(region, offer, intent)

    async def rental(self, tag: str) -> Rental:
        """Asked of every region. EC2 forgets an instance about an hour after its end."""
        answers = await asyncio.gather(
            *(self._find(region, tag) for region in self._options.regions), return_exceptions=True
        )
        failure: MarketsError | None = None
        for answer in answers:
            if isinstance(answer, Rental):
                return answer
            if isinstance(answer, MarketsError):
                failure = answer
            elif isinstance(answer, BaseException):
                raise answer
        if failure is not None:
            raise failure
        raise RentalNotFound(f"aws: no instance of {self._owner} carries the tag {tag!r}")

    async def rentals(self) -> list[Rental]:
        """All pages of all regions, or PartialList with what the others have."""
        answers = await asyncio.gather(*map(self._region_rentals, self._options.regions))
        found = [rental for rentals, _ in answers for rental in rentals]
        problems = [problem for _, problem in answers if problem]
        if problems:
            raise PartialList("; ".join(problems), found=found)
        return found

    async def release(self, tag: str) -> Released:
        """TerminateInstances, until DescribeInstances says terminated. The end is the one that EC2 states."""
        rental = await self.rental(tag)
        if rental.state != "ended":
            region, instance = rental.facts["region"], rental.facts["id"]
            if rental.state != "releasing":
                await self._account.ask(region, "terminate_instances", InstanceIds=[instance])
            found = await self._find(region, tag)
            if found is None or found.state != "ended":
                state = found.facts["ec2_state"] if found else "not listed"
                raise StillReleasing(f"aws: {tag} ({instance}) is {state}")
            rental = found
        if rental.ended_at is None:
            raise StillReleasing(f"aws: {tag} has ended, and EC2 has not said when")
        return Released(tag=tag, at=rental.ended_at)

    async def charges(self, from_at: datetime, to_at: datetime) -> list[Charge]:
        """Unsupported: EC2 itself says nothing of charges, and forgets instances an hour after their end."""
        raise Unsupported(
            "aws: charges come with AWS's Cost and Usage Report, which is not read yet; the ledger's accruals are by EC2's "
            "own times and the price at launch"
        )

    async def account(self) -> str:
        """The account's number, of the login that is in use now."""
        return await self._account.number(self._options.regions[0])

    async def close(self) -> None:
        await self._account.close()
        if self._advisor is not None:
            await self._advisor.close()

    async def _create(self, region: str, offer: Offer, intent: Intent) -> Rental:
        grounds = await self._ground.of(region)
        choices = await self._choices(offer.key, grounds, intent.max_price)
        wish = self._wish(offer, intent, choices[0].price)
        if len(choices) == 1:
            instance = await self._run(region, wish, grounds, choices[0])
        else:
            instance = await self._fleet(region, wish, grounds, choices)
        await self._check_price(region, wish, instance, choices)
        rental = await self._listed(region, intent.tag, str(instance["InstanceId"]))
        _log.info("aws.rented", rental=intent.tag, **rental.facts)
        return rental

    async def _region_offers(self, region: str) -> list[Offer] | MarketsError:
        try:
            return region_offers(await self._survey.region(region), self._options.pricings)
        except MarketsError as error:
            return error

    async def _choices(self, key: OfferKey, grounds: Grounds, max_price: Decimal) -> list[Choice]:
        """Where the offer can be had for at most `max_price`: its own type first, then those with the same accelerator."""
        region = key.region or ""
        types = await self._survey.types(region)
        if key.sku not in types:
            raise NoCapacity(f"offer {key}: {key.sku} is not among aws.instance_types in {region}")
        alike = [name for name, kind in types.items() if kind.accelerator == types[key.sku].accelerator]
        names = [key.sku, *sorted(set(alike) - {key.sku})] if types[key.sku].accelerator.count else [key.sku]
        found = await (self._spot_choices if key.pricing == "spot" else self._listed_choices)(key, names, grounds)
        own = [each for each in found if each.instance_type == key.sku]
        if not own:
            raise NoCapacity(f"offer {key}: no price, or no subnet of ours, for it now")
        dearest = max(each.price for each in own)
        if dearest > max_price:
            raise PriceMoved(f"offer {key}: costs {dearest} USD/h now, more than the {max_price} planned with")
        return [each for each in found if each.price <= max_price]

    async def _spot_choices(self, key: OfferKey, names: Sequence[str], grounds: Grounds) -> list[Choice]:
        region = key.region or ""
        zones = await self._survey.zones(region)
        prices, _ = await self._survey.spot(region, names)
        return [
            Choice(name, grounds.subnets[zones[each.zone]], each.zone, each.price)
            for name in names
            for each in prices.get(name, ())
            if zones[each.zone] == key.zone and key.zone in grounds.subnets
        ]

    async def _listed_choices(self, key: OfferKey, names: Sequence[str], grounds: Grounds) -> list[Choice]:
        """On-demand is one price in all zones."""
        region = key.region or ""
        prices = {name: await self._survey.on_demand(region, name) for name in names}
        return [
            Choice(name, subnet, zone, price)
            for name, price in prices.items()
            if price is not None
            for zone, subnet in sorted(grounds.subnets.items())
        ]

    def _wish(self, offer: Offer, intent: Intent, price: Decimal) -> Wish:
        document = user_data(
            intent.start, tag=intent.tag, owner=intent.owner, price=price, accelerator=offer.accelerator
        )
        return Wish(offer.key, intent, price, document, self._options.disk_gib)

    async def _run(self, region: str, wish: Wish, grounds: Grounds, choice: Choice) -> Mapping[str, Any]:
        answer = await self._account.ask(region, "run_instances", may_create=True, **run_request(wish, grounds, choice))
        made: Mapping[str, Any] = answer["Instances"][0]
        return made

    async def _fleet(self, region: str, wish: Wish, grounds: Grounds, choices: Sequence[Choice]) -> Mapping[str, Any]:
        """The template is deleted whatever happens: it holds the rental's token. A crash before that leaves a template
        named after the tag: its token expires, and `Leftovers` removes it."""
        tag = wish.intent.tag
        await self._account.ask(region, "create_launch_template", **template_request(wish, grounds))
        try:
            answer = await self._account.ask(region, "create_fleet", may_create=True, **fleet_request(wish, choices))
        finally:
            try:
                await self._account.ask(region, "delete_launch_template", LaunchTemplateName=tag)
            except MarketsError as error:
                _log.warning("aws.template_left", rental=tag, region=region, error=f"{error.code}: {error}")
        made = [
            (each["InstanceIds"], each["InstanceType"]) for each in answer.get("Instances", ()) if each["InstanceIds"]
        ]
        if not made:
            raise fleet_error(answer.get("Errors", []), f"create_fleet of {wish.offer}")
        (instance_ids, instance_type) = made[0]
        return {"InstanceId": instance_ids[0], "InstanceType": instance_type}

    async def _check_price(
        self, region: str, wish: Wish, instance: Mapping[str, Any], choices: Sequence[Choice]
    ) -> None:
        """Look again at what was created: if spot has moved above the bound meanwhile, end it; else tag what it costs."""
        tag, name, bound = wish.intent.tag, instance["InstanceType"], wish.intent.max_price
        if not wish.is_spot:
            # a list price does not move in the meantime; a fleet takes the cheapest type, which may be another than the offer's
            listed = next((each.price for each in choices if each.instance_type == name), wish.price)
            if listed != wish.price:
                await self._tag_price(region, tag, instance["InstanceId"], listed)
            return
        try:
            prices, _ = await self._survey.spot(region, [name])
            zones = await self._survey.zones(region)
        except MarketsError as error:
            # MaxPrice holds by itself: what is not known is only whether it costs less
            _log.warning("aws.price_unchecked", rental=tag, error=f"{error.code}: {error}")
            return
        now = [each.price for each in prices.get(name, ()) if zones[each.zone] == wish.offer.zone]
        if not now:
            return
        if now[0] > bound:
            try:
                await self._account.ask(region, "terminate_instances", InstanceIds=[instance["InstanceId"]])
            except MarketsError as error:
                raise Ambiguous(f"aws: {tag} costs {now[0]}, above {bound}, and could not be ended: {error}") from error
            raise PriceMoved(
                f"offer {wish.offer}: costs {now[0]} USD/h since its creation, more than {bound}; terminated"
            )
        if now[0] != wish.price:
            await self._tag_price(region, tag, instance["InstanceId"], now[0])

    async def _tag_price(self, region: str, tag: str, instance: str, price: Decimal) -> None:
        tags = [{"Key": PRICE, "Value": f"{price:f}"}]
        try:
            await self._account.ask(region, "create_tags", Resources=[instance], Tags=tags)
        except MarketsError as error:
            _log.warning("aws.price_untagged", rental=tag, price=str(price), error=f"{error.code}: {error}")

    async def _listed(self, region: str, tag: str, instance: str) -> Rental:
        """What has just been created. EC2's lists lag behind its creations, mostly by less than a second."""
        for pause_s in _LAG_S:
            await asyncio.sleep(pause_s)
            try:
                rental = await self._find(region, tag)
            except MarketsError as error:
                raise Ambiguous(f"aws: {tag} was created ({instance}), but then: {error}") from error
            if rental is not None:
                return rental
        raise Ambiguous(f"aws: {tag} was created ({instance}) and is not listed yet")

    async def _find(self, region: str, tag: str) -> Rental | None:
        """By tag. Of several (never made by us: the ClientToken is the tag) the one that lives."""
        mine = [{"Name": f"tag:{TAG}", "Values": [tag]}, {"Name": f"tag:{OWNER}", "Values": [self._owner]}]
        reservations, seen_at = await self._account.pages(region, "describe_instances", "Reservations", Filters=mine)
        try:
            found = [self._rental(each, region, seen_at) for each in instances(reservations)]
        except ValueError as wrong:  # somebody took our tags away; the releases of others must not wait for a person
            raise Unavailable(f"aws {region}: {wrong}") from wrong
        return min(found, key=lambda each: each.state == "ended", default=None)

    async def _region_rentals(self, region: str) -> tuple[list[Rental], str | None]:
        mine = [{"Name": f"tag:{OWNER}", "Values": [self._owner]}]
        problem: str | None = None
        try:
            reservations, seen_at = await self._account.pages(
                region, "describe_instances", "Reservations", Filters=mine
            )
        except BrokenOff as cut:
            reservations, seen_at, problem = cut.found, cut.at, str(cut)
        except MarketsError as error:
            # the machines of other regions must not wait for this one
            return [], f"{error.code}: {error}"
        else:
            await self._leftovers.sweep(region, seen_at)
        found = []
        for each in instances(reservations):
            try:
                found.append(self._rental(each, region, seen_at))
            except ValueError as wrong:
                problem = f"region {region}: {wrong}"
        return found, problem

    def _rental(self, instance: Mapping[str, Any], region: str, seen_at: datetime) -> Rental:
        ended_at = stated_end(instance)
        if ended_at is None and instance["State"]["Name"] == "terminated":
            # a reclaimed spot instance states no time: it was gone when we first saw it gone
            ended_at = self._ends.setdefault(instance["InstanceId"], seen_at)
        return rental_of(instance, region=region, seen_at=seen_at, ended_at=ended_at)
