"""The requests that create a machine. Pure: an intent and where it may run in, the arguments of boto3's methods out.

One type in one subnet is RunInstances. Several (any zone of the region, or types with the same accelerator that cost no
more) are one CreateFleet of type instant, which needs a launch template that lives as long as the call.
Both are idempotent by ClientToken, which is the intent's tag. Unverified against the live service.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from markets.aws.listing import tags_of
from markets.market import Intent
from markets.offer import OfferKey

USER_DATA_BYTES = 16_384
_TAGGED = ("instance", "volume", "network-interface")


@dataclass(frozen=True, slots=True)
class Grounds:
    """What an instance needs in a region: `subnets` by zone id, all in the VPC of `security_group`."""

    image: str
    root_device: str
    subnets: dict[str, str]
    security_group: str


@dataclass(frozen=True, slots=True)
class Choice:
    """One way to serve an offer: a type in a subnet, at what it costs there now."""

    instance_type: str
    subnet: str
    zone: str
    price: Decimal


@dataclass(frozen=True, slots=True)
class Wish:
    """What is to be created. `max_price` is the bound that spot may never exceed."""

    offer: OfferKey
    intent: Intent
    price: Decimal
    user_data: str
    disk_gib: int

    @property
    def is_spot(self) -> bool:
        return self.offer.pricing == "spot"


def run_request(wish: Wish, grounds: Grounds, choice: Choice) -> dict[str, Any]:
    """RunInstances of exactly one."""
    request = {
        **_machine(wish, grounds),
        "MinCount": 1,
        "MaxCount": 1,
        "ClientToken": wish.intent.tag,
        "InstanceType": choice.instance_type,
        "SubnetId": choice.subnet,
        "UserData": wish.user_data,  # boto3 encodes it here, and does not in launch templates
        "TagSpecifications": _tag_specifications(wish, *_TAGGED),
    }
    if wish.is_spot:
        request["InstanceMarketOptions"] = {
            "MarketType": "spot",
            "SpotOptions": {
                "MaxPrice": f"{wish.intent.max_price:f}",
                "SpotInstanceType": "one-time",
                "InstanceInterruptionBehavior": "terminate",
            },
        }
    return request


def template_request(wish: Wish, grounds: Grounds) -> dict[str, Any]:
    """CreateLaunchTemplate, named after the tag so that one that was left behind can be told."""
    return {
        "LaunchTemplateName": wish.intent.tag,
        "ClientToken": wish.intent.tag,
        "LaunchTemplateData": {
            **_machine(wish, grounds),
            "UserData": base64.b64encode(wish.user_data.encode()).decode(),
            "TagSpecifications": _tag_specifications(wish, *_TAGGED),
        },
        "TagSpecifications": _tag_specifications(wish, "launch-template"),
    }


def fleet_request(wish: Wish, choices: Sequence[Choice]) -> dict[str, Any]:
    """CreateFleet of one instance, made before it answers or not at all. The cheapest stands first, as EC2 will have it."""
    overrides = [
        {"InstanceType": each.instance_type, "SubnetId": each.subnet}
        | ({"MaxPrice": f"{wish.intent.max_price:f}"} if wish.is_spot else {})
        for each in sorted(choices, key=lambda each: each.price)
    ]
    template = {"LaunchTemplateName": wish.intent.tag, "Version": "$Latest"}
    kind: dict[str, Any] = (
        {
            "SpotOptions": {
                "AllocationStrategy": "price-capacity-optimized",
                "InstanceInterruptionBehavior": "terminate",
            }
        }
        if wish.is_spot
        else {"OnDemandOptions": {"AllocationStrategy": "lowest-price"}}
    )
    return {
        "Type": "instant",
        "ClientToken": wish.intent.tag,
        "LaunchTemplateConfigs": [{"LaunchTemplateSpecification": template, "Overrides": overrides}],
        "TargetCapacitySpecification": {
            "TotalTargetCapacity": 1,
            "DefaultTargetCapacityType": "spot" if wish.is_spot else "on-demand",
        },
        # the instance is tagged here as well: a template's tags and the fleet's are both put on
        "TagSpecifications": _tag_specifications(wish, "fleet", "instance"),
        **kind,
    }


def _machine(wish: Wish, grounds: Grounds) -> dict[str, Any]:
    return {
        "ImageId": grounds.image,
        # EC2's default is stop, which keeps billing the disk
        "InstanceInitiatedShutdownBehavior": "terminate",
        "SecurityGroupIds": [grounds.security_group],
        # The agent's container shares the host's network, so one hop is enough; with more, any container could ask.
        # There is no role on the machine, and its tags are not for who runs there.
        "MetadataOptions": {
            "HttpEndpoint": "enabled",
            "HttpTokens": "required",
            "HttpPutResponseHopLimit": 1,
            "InstanceMetadataTags": "disabled",
        },
        "BlockDeviceMappings": [
            {
                "DeviceName": grounds.root_device,
                "Ebs": {
                    "VolumeSize": wish.disk_gib,
                    "VolumeType": "gp3",
                    "Encrypted": True,
                    "DeleteOnTermination": True,
                },
            }
        ],
    }


def _tag_specifications(wish: Wish, *kinds: str) -> list[dict[str, Any]]:
    tags = tags_of(tag=wish.intent.tag, owner=wish.intent.owner, offer=wish.offer, price=wish.price)
    return [{"ResourceType": kind, "Tags": tags} for kind in kinds]
