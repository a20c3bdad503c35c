"""Fluence: GPU plans of vetted data centers, as containers, machines and bare metal. Unverified against the live service.

Source: Fluence documentation, "Browse available GPU plans" (2026-02). The OpenAPI document that is public says nothing of GPUs;
that of the GPU cloud is at the service alone (`/gpu/openapi.json`): no public copy was found (looked 2026-11-28). `/plans/` is a
flat array, `/plans/vms` and `/plans/baremetal` are grouped by model and by count: a group's `minimum_price` is of its cheapest
option and no offer. Prices are USDC an hour, of the whole plan. `upfront_hours` are deducted at the start, one is spent and the
rest comes back; billing is by hours of the clock. A location is a country's code, or a data center's id; machines are other
providers', who may be markets of ours, too.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, datetime
from decimal import Decimal

from markets.errors import ShapeDrift
from markets.facts.regions import country_code
from markets.offer import Confidentiality, Launch, Offer
from markets.provider.api import ProviderApi, Reach, together
from markets.provider.listing import MIB_PER_GIB, Place, Said, distinct, offer
from markets.provider.login import CredentialSource, header
from markets.provider.shape import Shape, rows
from markets.sources.resold import Direct, country_in_slug, operated

MARKET = "fluence"
REACH = Reach("https://api.fluence.dev/gpu")
LOGIN = header("X-API-KEY")
SOURCE = "Fluence /gpu/plans"
HOUR_S = 3600
# What it writes of a memory; anything else ("Gi" alone, "NaNGi") is a memory that nobody knows.
_GIB = re.compile(r"([0-9]{1,6}(?:\.[0-9]{1,3})?)Gi")


class FluenceSource:
    name = MARKET

    def __init__(self, credentials: CredentialSource, reach: Reach = REACH, *, direct: Direct | None = None) -> None:
        self._api = ProviderApi(MARKET, reach, login=LOGIN, credentials=credentials)
        self._direct = direct or Direct()

    async def offers(self) -> list[Offer]:
        at = datetime.now(UTC)
        containers, machines, metal = await together(
            self._api.get("/plans/"), self._api.get("/plans/vms"), self._api.get("/plans/baremetal")
        )
        found = container_offers(containers, at)
        return distinct([*found, *machine_offers(machines, at, self._direct), *machine_offers(metal, at, self._direct)])

    async def close(self) -> None:
        await self._api.close()


def container_offers(plans: Shape, at: datetime) -> list[Offer]:
    """One offer for each plan and location. A plan is listed while it can be had; how often nobody says."""

    def of(row: Shape) -> Iterator[Offer]:
        plan = row["plan"]
        for location in (each.text() for each in row["attributes"]["location"].each()):
            yield _offer(
                plan["id"].text(),
                plan["gpu_model"],
                plan["supply"]["gpu_count"].whole(),
                plan["pricing"],
                location,
                at,
                launch="container",
                raw=row,
            )

    return rows(plans.each(), of)


def machine_offers(answer: Shape, at: datetime, direct: Direct) -> list[Offer]:
    """One offer for each option; those of a market that is asked itself are listed as its machines."""

    def of(group: Shape) -> Iterator[Offer]:
        for number in group["availability_by_number"].each():
            for option in number["options"].each():
                provider = option["provider"].text()
                yield _offer(
                    option["id"].text(),
                    group["gpu_model"],
                    number["gpu_count"].whole(),
                    option["pricing"],
                    option["location"].text(),
                    at,
                    launch="vm",
                    raw=option,
                    provider=provider,
                    confidentiality="dedicated" if option["deployment_type"].text() == "BAREMETAL" else "none",
                    not_for_sale=direct.same_machines(provider),
                )

    return rows(answer["data"].each(), of)


def _offer(
    sku: str,
    gpu: Shape,
    count: int,
    pricing: Shape,
    location: str,
    at: datetime,
    *,
    launch: Launch,
    raw: Shape,
    provider: str | None = None,
    confidentiality: Confidentiality = "none",
    not_for_sale: str | None = None,
) -> Offer:
    if count < 1:
        raise ShapeDrift(f"{raw.where}: a GPU plan with {count} GPUs")
    hour, upfront = pricing["hour"].number(), pricing["upfront_hours"].whole()
    vram = gpu["vram"].text()
    country = _country(location)
    operator, home = operated(provider) if provider else (None, None)
    return offer(
        Said(
            market=MARKET,
            sku=sku,
            pricing="on_demand",
            launch=launch,
            price=hour,
            currency=pricing["currency"].text(),
            source=SOURCE,
            raw={"plan": raw.value, "gpu": gpu.value, "location": location},
            device=f"{gpu['vendor'].text()} {gpu['model'].text()} {vram.removesuffix('i')}B",
            count=count,
            memory_mib=int(Decimal(known[1]) * MIB_PER_GIB) if (known := _GIB.fullmatch(vram)) else 0,
            form=gpu["interface"].text(),
            region=location,
            place=Place(country, "named_datacenter", "contract", SOURCE) if country else None,
            operator=operator,
            home=home,
            by_hosts=provider is None,
            granularity_s=HOUR_S,
            minimum_s=HOUR_S,
            deposit=max(Decimal(0), hour * (upfront - 1)),
            refundable_fraction=Decimal(1),
            confidentiality=confidentiality,
            not_for_sale=not_for_sale,
        ),
        at,
    )


def _country(location: str) -> str | None:
    """`US` of a container plan, `kristiansand-norway-2` of a machine; `us-central-3` names no country in full."""
    return country_code(location) if len(location) == 2 and location.isupper() else country_in_slug(location)
