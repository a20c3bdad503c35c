"""What a machine stands on in a region: image, subnets and a security group without inbound rules, found once an hour."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

import structlog

from markets.aws.account import Account
from markets.aws.launch import Grounds
from markets.aws.listing import OWNER
from markets.errors import MarketsError

GROUP = "broker-no-inbound"
_AGE_S = 3_600
_log = structlog.get_logger("markets.aws")


class Ground:
    """`image` is an AMI (`ami-…`) or the name of an SSM parameter that holds one. Without `subnets` (by region) it is the
    default subnets of the region's default VPC; without `security_groups`, a group of our own that lets nobody in."""

    def __init__(
        self,
        account: Account,
        *,
        image: str,
        owner: str,
        subnets: Mapping[str, Sequence[str]],
        security_groups: Mapping[str, str],
    ) -> None:
        self._account = account
        self._image = image
        self._owner = owner
        self._subnets = subnets
        self._groups = security_groups
        self._known: dict[str, tuple[float, Grounds]] = {}

    async def of(self, region: str) -> Grounds:
        """Raises MarketsError saying what the region lacks."""
        known = self._known.get(region)
        if known is None or time.monotonic() - known[0] > _AGE_S:
            known = (time.monotonic(), await self._find(region))
            self._known[region] = known
        return known[1]

    async def _find(self, region: str) -> Grounds:
        image = self._image
        if not image.startswith("ami-"):
            answer = await self._account.ask(region, "get_parameter", service="ssm", Name=image)
            image = answer["Parameter"]["Value"]
        images = (await self._account.ask(region, "describe_images", ImageIds=[image]))["Images"]
        if not images:
            raise MarketsError(f"aws: region {region} has no image {image!r}; set aws.image")
        subnets, vpc = await self._network(region)
        group = self._groups.get(region) or await self._group(region, vpc)
        return Grounds(image, images[0]["RootDeviceName"], subnets, group)

    async def _network(self, region: str) -> tuple[dict[str, str], str]:
        """One subnet for each zone, and their VPC."""
        named = self._subnets.get(region)
        request = {"SubnetIds": list(named)} if named else {"Filters": [{"Name": "default-for-az", "Values": ["true"]}]}
        found = (await self._account.ask(region, "describe_subnets", **request))["Subnets"]
        if not found:
            raise MarketsError(f"aws: region {region} has no default VPC; name its subnets in aws.subnets")
        vpcs = {each["VpcId"] for each in found}
        if len(vpcs) > 1:
            raise MarketsError(
                f"aws: subnets {named} of region {region} are in several VPCs: {', '.join(sorted(vpcs))}"
            )
        return {each["AvailabilityZoneId"]: each["SubnetId"] for each in found}, vpcs.pop()

    async def _group(self, region: str, vpc: str) -> str:
        wanted = [{"Name": "vpc-id", "Values": [vpc]}, {"Name": "group-name", "Values": [GROUP]}]
        found = (await self._account.ask(region, "describe_security_groups", Filters=wanted))["SecurityGroups"]
        if found:
            group = found[0]
            if group["IpPermissions"]:
                raise MarketsError(
                    f"aws: security group {group['GroupId']} ({GROUP}) of region {region} has inbound rules; remove them: "
                    "machines dial out, nobody dials in"
                )
            return str(group["GroupId"])
        # a new group lets nothing in and everything out
        made = await self._account.ask(
            region,
            "create_security_group",
            GroupName=GROUP,
            Description="Machines of the compute broker: nothing comes in",
            VpcId=vpc,
            TagSpecifications=[{"ResourceType": "security-group", "Tags": [{"Key": OWNER, "Value": self._owner}]}],
        )
        _log.info("aws.security_group", region=region, vpc=vpc, group=made["GroupId"])
        return str(made["GroupId"])
