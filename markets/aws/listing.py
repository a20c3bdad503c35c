"""EC2's instances as our rentals. Pure.

The tags of an instance say whose it is, which offer it was rented as and at what price; they are set in the call that
creates it. Times are EC2's own, to the second.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from decimal import Decimal, InvalidOperation
from types import MappingProxyType
from typing import Any

from markets.market import EndReason, Rental, RentalState
from markets.offer import OfferKey

TAG, OWNER, OFFER, PRICE = "broker:tag", "broker:owner", "broker:offer", "broker:price"

_STATES: Mapping[str, RentalState] = MappingProxyType(
    {
        "pending": "pending",
        "running": "running",
        "shutting-down": "releasing",
        # we never stop machines; whoever did has not ended the rental, and its disk is still billed
        "stopping": "running",
        "stopped": "running",
        "terminated": "ended",
    }
)
_REASONS: Mapping[str, EndReason] = MappingProxyType(
    {
        "Client.UserInitiatedShutdown": "released",
        "Client.InstanceInitiatedShutdown": "exited",
        "Server.SpotInstanceTermination": "preempted",
        "Server.SpotInstanceShutdown": "preempted",
    }
)
_MOMENT = re.compile(r"\((\d{4}-\d\d-\d\d \d\d:\d\d:\d\d) (?:GMT|UTC)\)")


def tags_of(*, tag: str, owner: str, offer: OfferKey, price: Decimal) -> list[dict[str, str]]:
    """What a resource of ours carries from its first moment."""
    pairs = {"Name": f"broker {tag}", TAG: tag, OWNER: owner, OFFER: str(offer), PRICE: f"{price:f}"}
    return [{"Key": key, "Value": value} for key, value in pairs.items()]


def instances(reservations: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return [instance for reservation in reservations for instance in reservation["Instances"]]


def tag_values(instance: Mapping[str, Any]) -> dict[str, str]:
    return {each["Key"]: each["Value"] for each in instance.get("Tags", [])}


def stated_end(instance: Mapping[str, Any]) -> datetime | None:
    """When it stopped being billed: EC2 does not bill what is shutting down. Stated for what was ended by a request only."""
    found = _MOMENT.search(instance.get("StateTransitionReason", ""))
    return datetime.strptime(found[1], "%Y-%m-%d %H:%M:%S").replace(tzinfo=UTC) if found else None


def rental_of(instance: Mapping[str, Any], *, region: str, seen_at: datetime, ended_at: datetime | None) -> Rental:
    """Raises ValueError when its tags are not those that we set. `ended_at` is used for an instance that has ended."""
    tags = tag_values(instance)
    try:
        offer_key, price = OfferKey.parse(tags[OFFER]), Decimal(tags[PRICE])
    except (KeyError, InvalidOperation) as error:
        raise ValueError(f"instance {instance['InstanceId']} of {tags.get(TAG)}: tag {error!r}") from error
    state = _STATES.get(instance["State"]["Name"], "running")
    started_at = instance["LaunchTime"].astimezone(UTC)
    reason = instance.get("StateReason", {}).get("Code", "")
    end_reason: EndReason = _REASONS.get(reason, "failed" if reason else "released")
    return Rental(
        tag=tags[TAG],
        offer_key=offer_key,
        state=state,
        price=price,
        currency="USD",
        started_at=started_at,
        ended_at=_end(started_at, ended_at, end_reason) if state == "ended" and ended_at else None,
        seen_at=max(seen_at, started_at),
        end_reason=end_reason if state == "ended" else None,
        facts=_facts(instance, tags, region),
    )


def _end(started_at: datetime, ended_at: datetime, reason: EndReason) -> datetime:
    """EC2's times are cut to the second, and whatever ran at all is billed: it ran for a second at least.

    What EC2 itself could not start (`failed`) is not billed.
    """
    return max(ended_at, started_at if reason == "failed" else started_at + timedelta(seconds=1))


def _facts(instance: Mapping[str, Any], tags: Mapping[str, str], region: str) -> dict[str, str]:
    facts = {
        "owner": tags.get(OWNER, ""),
        "id": instance["InstanceId"],
        "type": instance["InstanceType"],
        "region": region,
        "zone": instance.get("Placement", {}).get("AvailabilityZone", ""),
        "lifecycle": instance.get("InstanceLifecycle") or "on-demand",
        "ec2_state": instance["State"]["Name"],
    }
    reason = instance.get("StateReason", {}).get("Message")
    return facts | ({"reason": reason} if reason else {})
