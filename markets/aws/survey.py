"""The look at a region: types, zones, spot prices, on-demand prices and quotas, each asked as seldom as it changes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import structlog

from markets.aws.account import Account
from markets.aws.advisor import Advisor
from markets.aws.listing import instances
from markets.aws.machine_types import MachineType, machine_type, quota_code
from markets.aws.offers import LINUX, RegionFacts, SpotPrice, availability_zones, spot_prices
from markets.aws.price_list import PriceList
from markets.errors import MarketsError

_SELDOM_S = 3_600
_log = structlog.get_logger("markets.aws")


@dataclass(slots=True)
class Survey:
    """`patterns` are the instance types of interest, with wildcards as in EC2's filters (`g6.*`)."""

    account: Account
    price_list: PriceList
    patterns: Sequence[str]
    boot_s: int | None
    advisor: Advisor | None = None
    _kept: dict[tuple[str, str], tuple[float, Any]] = field(default_factory=dict)
    _told: set[str] = field(default_factory=set)

    async def region(self, region: str) -> RegionFacts:
        """All facts of now. Raises what `Account.ask` raises; without quotas or the price list it goes on without them."""
        types, zones = await asyncio.gather(self.types(region), self.zones(region))
        (spot, seen_at), listed, quotas = await asyncio.gather(
            self.spot(region, sorted(types)), self._on_demand(region), self._quotas(region, types)
        )
        return RegionFacts(
            region=region,
            seen_at=seen_at,
            types=types,
            zones=zones,
            spot=spot,
            on_demand=listed and listed[0],
            on_demand_at=listed and listed[1],
            quotas=quotas,
            boot_s=self.boot_s,
            hazards=await self.advisor.hazards(region) if self.advisor else {},
        )

    async def types(self, region: str) -> Mapping[str, MachineType]:
        async def look() -> dict[str, MachineType]:
            wanted = [{"Name": "instance-type", "Values": list(self.patterns)}]
            raw, _ = await self.account.pages(
                region, "describe_instance_types", "InstanceTypes", page=100, Filters=wanted
            )
            known = [each for each in map(machine_type, raw) if each is not None]
            return {each.name: each for each in known}

        types: Mapping[str, MachineType] = await self._seldom(region, "types", look)
        return types

    async def zones(self, region: str) -> Mapping[str, str]:
        async def look() -> dict[str, str]:
            answer = await self.account.ask(region, "describe_availability_zones")
            return availability_zones(answer["AvailabilityZones"])

        zones: Mapping[str, str] = await self._seldom(region, "zones", look)
        return zones

    async def spot(self, region: str, types: Sequence[str]) -> tuple[dict[str, list[SpotPrice]], datetime]:
        """Spot prices of now, and AWS's clock. Without a StartTime of now it would be three months of history."""
        if not types:  # no filter would be all types
            return {}, datetime.now(UTC)
        zones = await self.zones(region)
        history, seen_at = await self.account.pages(
            region,
            "describe_spot_price_history",
            "SpotPriceHistory",
            page=1_000,
            InstanceTypes=list(types),
            ProductDescriptions=list(LINUX),
            StartTime=datetime.now(UTC),
        )
        return spot_prices(history, zones), seen_at

    async def on_demand(self, region: str, name: str) -> Decimal | None:
        listed = await self._on_demand(region)
        return listed[0].get(name) if listed else None

    async def _on_demand(self, region: str) -> tuple[Mapping[str, Decimal], datetime] | None:
        try:
            prices = await self.account.in_thread(lambda: self.price_list.prices(region))
        except MarketsError as error:
            self._tell("aws.price_list_unavailable", region, error)
            prices = self.price_list.known(region)
        return (prices.by_type, prices.checked_at) if prices else None

    async def _quotas(self, region: str, types: Mapping[str, MachineType]) -> dict[str, int]:
        """vCPUs that the account may still start, by quota code: by the latest answers where the newest question failed. Those
        that were never read are left out, and told once."""
        codes = {quota_code(name, is_spot=is_spot) for name in types for is_spot in (False, True)} - {None}
        try:
            limits: Mapping[str, int] = await self._seldom(
                region, "quotas", lambda: self._limits(region, sorted(filter(None, codes)))
            )
        except MarketsError as error:
            self._tell("aws.quotas_unknown", region, error)
            limits = self._kept.get((region, "quotas"), (0.0, {}))[1]
            self._kept[region, "quotas"] = (time.monotonic(), limits)  # asked again in an hour, not every poll
        try:
            used = await self._used(region)
            self._kept[region, "used"] = (time.monotonic(), used)
        except MarketsError as error:
            # one list that fails must not make the quota of every offer unknown: what ran a moment ago mostly still runs
            self._tell("aws.use_unknown", region, error)
            seen_s, used = self._kept.get((region, "used"), (0.0, None))
            if used is None or time.monotonic() - seen_s > _SELDOM_S:
                return {}
        return {code: max(0, limit - used.get(code, 0)) for code, limit in limits.items()}

    async def _limits(self, region: str, codes: Sequence[str]) -> dict[str, int]:
        limits = {}
        for code in codes:
            answer = await self.account.ask(
                region, "get_service_quota", service="service-quotas", ServiceCode="ec2", QuotaCode=code
            )
            limits[code] = int(answer["Quota"]["Value"])
        return limits

    async def _used(self, region: str) -> dict[str, int]:
        """vCPUs of all that runs in the account, ours and others', by quota code."""
        running = [{"Name": "instance-state-name", "Values": ["pending", "running"]}]
        reservations, _ = await self.account.pages(region, "describe_instances", "Reservations", Filters=running)
        used: dict[str, int] = {}
        for each in instances(reservations):
            code = quota_code(each["InstanceType"], is_spot=each.get("InstanceLifecycle") == "spot")
            cpu = each.get("CpuOptions", {})
            vcpus = cpu.get("CoreCount", 0) * cpu.get("ThreadsPerCore", 0)
            if code:
                used[code] = used.get(code, 0) + vcpus
        return used

    def _tell(self, event: str, region: str, error: MarketsError) -> None:
        if (text := f"{event} {region} {error}") not in self._told:
            self._told.add(text)
            _log.warning(event, region=region, error=f"{error.code}: {error}")

    async def _seldom(self, region: str, what: str, look: Callable[[], Awaitable[Any]]) -> Any:
        kept = self._kept.get((region, what))
        if kept is None or time.monotonic() - kept[0] > _SELDOM_S:
            kept = (time.monotonic(), await look())
            self._kept[region, what] = kept
        return kept[1]
