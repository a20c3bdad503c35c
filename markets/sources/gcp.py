"""Google Cloud: machines with GPUs or TPUs, priced by their parts, in the zones where the accelerator exists. Unverified against
the live service.

Sources: the Cloud Billing Catalog for prices, Compute Engine's lists for shapes and zones. A price list alone is not enough:
more than half of what its calculator prices is in regions without the accelerator (data of 2026-07). On-demand SKUs exist for
machines that are not sold on demand; these are listed with the reason. T4, P100 and V100 are attached to N1 machines: one
shape for each count is listed. A TPU machine costs its chips: their price has the host's processors and memory in it (Google's
page of TPU prices). TPU v2 to v4 are no machines of Compute Engine: they are listed where its accelerators are, with the reason
and without a price. Each host of a TPU slice is a machine of its own here; slices of several hosts are no offers.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from decimal import Decimal
from itertools import chain
from typing import TYPE_CHECKING, Any

from markets.errors import ShapeDrift, Unsupported
from markets.facts.accelerators import identify
from markets.offer import Offer, Pricing
from markets.provider.api import ProviderApi, Reach
from markets.provider.listing import Said, distinct, offer
from markets.provider.login import CredentialSource, Login, bearer
from markets.provider.shape import Shape
from markets.sources.gcp_quotas import quota_of, quotas_left
from markets.sources.gcp_skus import PartPrices, part_prices

if TYPE_CHECKING:
    from markets.sources.gcp_account import Account

MARKET = "gcp"
REACH = Reach("https://cloudbilling.googleapis.com", timeout_s=60)
LOGIN = Login(("service_account",))
SKUS = "/v1/services/6F81-5844-456A/skus"
PAGE = "5000"
FAMILIES = re.compile(r"^(a2|a3|a4|g2|g4)-")
# Each generation under two spellings: `ct6e-standard-8t` has `ct6e` and `ct6e-standard-8t-tpu` has `tpu-v6e`.
TPUS = re.compile(r"^(?P<type>ct5lp?|ct5p|ct6e|tpu7x)-\w+-(?P<chips>\d+)t(?:-tpu)?$")
WHY_NO_OLD_TPU = (
    "rented as a slice by the Cloud TPU API, at prices of another kind, and no engine profile runs on it; TPU v5e and later "
    "are machines of Compute Engine"
)
OLD_TPUS = ("tpu-v2", "tpu-v3", "tpu-v4")
FILTER = "(name eq a2-.*) OR (name eq a3-.*) OR (name eq a4-.*) OR (name eq g2-.*) OR (name eq g4-.*) OR (name eq n1-standard-.*)"
FILTER += " OR (name eq ct5.*) OR (name eq ct6e-.*) OR (name eq tpu7x-.*)"
# Prices change by the day, and the list has some 40,000 rows: read so often, whatever the poll's cadence is.
SKUS_AGE_S = 6 * 3_600
MIB_PER_GIB = 1024
SSD_PART_GIB = 375
MINIMUM_S = 60
NOTICE_S = 30
EGRESS_PER_GB = Decimal("0.12")
# Accelerators that are attached to N1 machines: how many → which machine feeds them. Google's documentation, "GPU machine types".
ATTACHED: Mapping[str, Mapping[int, str]] = {
    "nvidia-tesla-t4": {1: "n1-standard-8", 2: "n1-standard-16", 4: "n1-standard-32"},
    "nvidia-tesla-p100": {1: "n1-standard-8", 2: "n1-standard-16", 4: "n1-standard-32"},
    "nvidia-tesla-v100": {1: "n1-standard-8", 2: "n1-standard-16", 4: "n1-standard-32", 8: "n1-standard-64"},
}
# Google's documentation, "Accelerator-optimized machine family": these have on-demand SKUs and no on-demand instances.
NOT_ON_DEMAND = re.compile(r"^(a3-ultragpu-|a4-|a4x-|a3-highgpu-[124]g$)")
SOURCE = "Cloud Billing Catalog and Compute Engine"


@dataclass(frozen=True, slots=True)
class Machine:
    """A shape in a zone, with its accelerators."""

    name: str
    zone: str
    cpus: int
    memory_mib: int
    accelerator: str
    count: int
    ssd_gib: int = 0

    @property
    def region(self) -> str:
        return self.zone.rpartition("-")[0]

    @property
    def family(self) -> str:
        """As SKUs tell families apart: an A3 Mega is not billed as an A3."""
        for special in ("a3-megagpu", "a3-ultragpu"):
            if self.name.startswith(special):
                return special
        return self.name.partition("-")[0]


class GcpSource:
    """`compute` replaces Compute Engine's address, `project` the service account's own."""

    name = MARKET

    def __init__(
        self,
        credentials: CredentialSource,
        reach: Reach = REACH,
        *,
        compute: str | None = None,
        project: str | None = None,
    ) -> None:
        self._credentials, self._reach, self._compute, self._project = credentials, reach, compute, project
        self._account: Account | None = None
        self._billing = ProviderApi(MARKET, reach, login=bearer("token"), credentials=self._token)
        self._prices: PartPrices | None = None
        self._next_s = 0.0

    async def offers(self) -> list[Offer]:
        at = datetime.now(UTC)
        account = self._opened()
        accelerators = {(zone, each.name) for zone, each in await account.accelerator_types()}
        if not accelerators:
            raise ShapeDrift("gcp: Compute Engine lists no accelerator in any zone")
        types = await account.machine_types(FILTER)
        prices = await self._part_prices()
        quotas = await quotas_left(account)
        sold = (each for machine in machines(types, accelerators) for each in _of(machine, prices, quotas, at))
        return distinct(chain(sold, old_tpus(accelerators, at)))

    async def close(self) -> None:
        await self._billing.close()
        if self._account is not None:
            await self._account.close()

    def _opened(self) -> Account:
        # Imported here: google-cloud-compute is an extra, and takes a second to load.
        try:
            from markets.sources.gcp_account import Account  # noqa: PLC0415
        except ModuleNotFoundError as missing:
            raise Unsupported(f"gcp: needs {missing.name}; install compute-broker[gcp]") from missing

        if self._account is None:
            self._account = Account(self._credentials, self._reach, endpoint=self._compute, project=self._project)
        return self._account

    async def _token(self) -> Mapping[str, str] | None:
        return await self._opened().token()

    async def _part_prices(self) -> PartPrices:
        if self._prices is None or time.monotonic() >= self._next_s:

            async def ask(token: str) -> Shape:
                wanted = {"currencyCode": "USD", "pageSize": PAGE} | ({"pageToken": token} if token else {})
                return await self._billing.get(SKUS, wanted)

            def after(page: Shape) -> str | None:
                following = page.get("nextPageToken")
                return str(following.value) if following and following.value else None

            pages = await self._billing.pages(ask, "", after)
            self._prices = part_prices(sku for page in pages for sku in page["skus"].each())
            self._next_s = time.monotonic() + SKUS_AGE_S
        return self._prices


def machines(types: list[tuple[str, Any]], accelerators: set[tuple[str, str]]) -> Iterator[Machine]:
    """Those with accelerators that their zone really has, and N1 machines with what is attached to them."""
    standard: dict[tuple[str, str], Any] = {}
    for zone, each in types:
        if each.deprecated.state in ("DEPRECATED", "OBSOLETE", "DELETED"):
            continue
        if each.name.startswith("n1-standard-"):
            standard[zone, each.name] = each
        elif (tpu := TPUS.match(each.name)) is not None:  # the list of machines is by zone, as that of accelerators is
            yield Machine(each.name, zone, each.guest_cpus, each.memory_mb, tpu["type"], int(tpu["chips"]))
        elif FAMILIES.match(each.name) and each.accelerators:
            chip = each.accelerators[0]
            if (zone, chip.guest_accelerator_type) in accelerators:
                ssd = each.bundled_local_ssds.partition_count * SSD_PART_GIB
                yield Machine(
                    each.name, zone, each.guest_cpus, each.memory_mb, chip.guest_accelerator_type,
                    chip.guest_accelerator_count, ssd,
                )  # fmt: skip
    for zone, accelerator in sorted(accelerators):
        for count, name in ATTACHED.get(accelerator, {}).items():
            if (host := standard.get((zone, name))) is not None:
                yield Machine(
                    f"{name}+{count}x{accelerator}", zone, host.guest_cpus, host.memory_mb, accelerator, count
                )


def old_tpus(accelerators: set[tuple[str, str]], at: datetime) -> Iterator[Offer]:
    """TPU v2 to v4 in the zones that have them: never placed, and people see why."""
    for zone, name in sorted(accelerators):
        if identify(name, count=1).accelerator.name not in OLD_TPUS:
            continue
        said = Said(
            market=MARKET,
            sku=name,
            pricing="on_demand",
            launch="vm",
            price=None,
            source=SOURCE,
            raw={"accelerator": name, "zone": zone},
            device=name,
            count=1,
            region=zone.rpartition("-")[0],
            zone=zone,
        )
        listed = offer(said, at)
        yield replace(listed, quarantined=f"offer {listed.key}: {WHY_NO_OLD_TPU} (source: {SOURCE})")


def _of(machine: Machine, prices: PartPrices, quotas: Mapping[tuple[str, str], int], at: datetime) -> Iterator[Offer]:
    pricings: tuple[tuple[Pricing, bool], ...] = (("on_demand", False), ("spot", True))
    for pricing, is_spot in pricings:
        parts = _parts(machine, prices, is_spot=is_spot)
        is_disputed = prices.disputed and ("tpu", _chip(machine), machine.region, is_spot) in prices.disputed
        if (
            all(each is None for each in parts.values()) and not is_disputed
        ):  # no SKU of it at all there: it is not sold so
            continue
        refused = not is_spot and NOT_ON_DEMAND.match(machine.name)
        yield offer(
            Said(
                market=MARKET,
                sku=machine.name,
                pricing=pricing,
                launch="vm",
                price=None,
                components=parts,
                source=SOURCE,
                raw={"machine": machine.name, "zone": machine.zone, "parts": {k: str(v) for k, v in parts.items()}},
                device=machine.accelerator.removeprefix("nvidia-"),
                count=machine.count,
                form="SXM" if machine.accelerator == "nvidia-tesla-a100" else None,
                memory_mib=40 * MIB_PER_GIB if machine.accelerator == "nvidia-tesla-a100" else 0,
                region=machine.region,
                zone=machine.zone,
                minimum_s=MINIMUM_S,
                egress_per_gb=EGRESS_PER_GB,
                interruption_per_hour=None if is_spot else Decimal(0),
                notice_s=NOTICE_S if is_spot else 0,
                quota=quota_of(machine.accelerator, machine.region, machine.count, quotas, is_spot=is_spot),
                not_for_sale="it has an on-demand price and is not sold on demand" if refused else None,
            ),
            at,
        )


def _parts(machine: Machine, prices: PartPrices, *, is_spot: bool) -> dict[str, Decimal | None]:
    """Each part's price for an hour of the machine; None for one whose SKU is not there."""

    def times(one: Decimal | None, many: Decimal) -> Decimal | None:
        return None if one is None else one * many

    region, family = machine.region, machine.family
    if TPUS.match(machine.name):
        return {"tpu": times(prices.of("tpu", _chip(machine), region, is_spot=is_spot), Decimal(machine.count))}
    gib = Decimal(machine.memory_mib) / MIB_PER_GIB
    parts = {
        "gpu": times(prices.of("gpu", machine.accelerator, region, is_spot=is_spot), Decimal(machine.count)),
        "core": times(prices.of("core", family, region, is_spot=is_spot), Decimal(machine.cpus)),
        "ram": times(prices.of("ram", family, region, is_spot=is_spot), gib),
    }
    if machine.ssd_gib:
        parts["ssd"] = times(prices.of("ssd", "local", region, is_spot=is_spot), Decimal(machine.ssd_gib))
    return parts


def _chip(machine: Machine) -> str:
    """Our name of a TPU machine's chip, which is also that of its prices: `ct5lp` and `ct5l` are both a v5e."""
    return identify(machine.accelerator, count=machine.count).accelerator.name
