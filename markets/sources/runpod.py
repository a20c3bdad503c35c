"""RunPod: pods in the secure cloud and at community hosts. Unverified against the live service.

Sources: REST v2's official OpenAPI document (2026-08) for what is on demand in which data center, with a key; the public
GraphQL `gpuTypes` (an answer recorded on 2026-05-31) for the rest: without a key nothing says in which data center there is
room, and offers then have no place. Prices are US dollars an hour and GPU. Interruptible pods by bid are in GraphQL only and
are not sold in v2 any more; of 15 types with both prices 14 asked as much as on demand. Nothing is charged for traffic.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from decimal import Decimal

import pycountry

from markets.errors import Unavailable
from markets.facts.accelerators import identify
from markets.offer import Offer, Pricing
from markets.provider.api import ProviderApi, Reach, together
from markets.provider.listing import MIB_PER_GIB, Place, Said, declared, distinct, offer
from markets.provider.login import CredentialSource, bearer
from markets.provider.shape import Shape, rows

MARKET = "runpod"
REACH = Reach("https://api.runpod.io")
LOGIN = bearer(is_optional=True)
GRAPHQL = "/graphql"
CATALOG = "/v2/catalog/gpus"
COUNTS = (1, 2, 4, 8)
CLOUDS = ("secure", "community")
# Ids begin with the country ("US-KS-2", "CA-MTL-1") or with a part of the world and the country ("EU-RO-1" is in Romania).
_PARTS_OF_THE_WORLD = frozenset({"EU", "EUR", "AP", "OC", "SEA"})
_BEGIN_WITH_COUNTRY = frozenset({"US", "CA"})


class RunPodSource:
    name = MARKET

    def __init__(self, credentials: CredentialSource, reach: Reach = REACH) -> None:
        self._api = ProviderApi(MARKET, reach, login=LOGIN, credentials=credentials)

    async def offers(self) -> list[Offer]:
        at = datetime.now(UTC)
        answer = await self._api.post(GRAPHQL, {"query": query()})
        if (errors := answer.get("errors")) is not None:
            raise Unavailable(f"runpod: GraphQL refused: {str(errors.value)[:200]}")
        types = answer["data"]["gpuTypes"].each()
        has_key = await self._api.is_logged_in()
        found = rows(types, lambda row: _of_type(row, at, with_secure=not has_key))
        if has_key:
            for count, page in zip(COUNTS, await together(*map(self._catalog, COUNTS)), strict=True):
                found += _of_catalog(page, count, at)
        return distinct(found)

    async def close(self) -> None:
        await self._api.close()

    async def _catalog(self, count: int) -> Shape:
        wanted = {"include": "AVAILABILITY", "product": "POD", "cloud": "SECURE", "count": str(count)}
        return await self._api.get(CATALOG, wanted)


def query() -> str:
    """All types, and what each costs now in pods of so many GPUs: one alias a cloud and count."""
    lowest = " ".join(
        f"{cloud}{count}: lowestPrice(input: {{gpuCount: {count}, secureCloud: {str(cloud == 'secure').lower()}}}) "
        "{ minimumBidPrice uninterruptablePrice stockStatus }"
        for cloud in CLOUDS
        for count in COUNTS
    )
    facts = "id displayName memoryInGb secureCloud communityCloud securePrice communityPrice"
    return f"query {{ gpuTypes {{ {facts} maxGpuCountSecureCloud maxGpuCountCommunityCloud {lowest} }} }}"


def _of_type(row: Shape, at: datetime, *, with_secure: bool) -> Iterator[Offer]:
    for cloud in CLOUDS:
        if not row[f"{cloud}Cloud"].flag():
            continue
        most = row.get(f"maxGpuCount{cloud.capitalize()}Cloud")
        listed = row.get(f"{cloud}Price")
        for count in COUNTS:
            if most is not None and count > most.whole():
                continue
            now = row.get(f"{cloud}{count}")
            asked, bid = (now.get(name) if now else None for name in ("uninterruptablePrice", "minimumBidPrice"))
            if cloud == "community" or with_secure:
                yield _offer(row, cloud, count, "on_demand", asked or listed, None if asked else 0, at)
            if bid is not None:
                yield _offer(row, cloud, count, "bid", bid, None, at)


def _offer(
    row: Shape, cloud: str, count: int, pricing: Pricing, per_gpu: Shape | None, capacity: int | None, at: datetime
) -> Offer:
    return _made(
        at,
        gpu=row["id"].text(),
        name=row["displayName"].text(),
        gib=row["memoryInGb"].whole(),
        cloud=cloud,
        count=count,
        pricing=pricing,
        per_gpu=per_gpu.number() if per_gpu else None,
        capacity=capacity,
        source="RunPod GraphQL gpuTypes",
    )


def _of_catalog(page: Shape, count: int, at: datetime) -> list[Offer]:
    def of(row: Shape) -> Iterator[Offer]:
        if not row["secure"].flag() or count > row["maxCount"]["secure"].whole():
            return
        centers = row.get("dataCenters")
        room: list[tuple[str | None, int | None]] = [
            (each["id"].text(), 0 if each["availability"].text() == "NONE" else None)
            for each in (centers.each() if centers else [])
        ]
        for center, capacity in room or [(None, 0)]:
            yield _made(
                at,
                gpu=row["id"].text(),
                name=row["name"].text(),
                gib=row["memory"].whole(),
                cloud="secure",
                count=count,
                pricing="on_demand",
                per_gpu=row["price"]["secure"].number(),
                capacity=capacity,
                source="RunPod /v2/catalog/gpus",
                center=center,
            )

    return rows(page["gpus"].each(), of)


def _made(
    at: datetime,
    *,
    gpu: str,
    name: str,
    gib: int,
    cloud: str,
    count: int,
    pricing: Pricing,
    per_gpu: Decimal | None,
    capacity: int | None,
    source: str,
    center: str | None = None,
) -> Offer:
    is_ours = cloud == "secure"
    return offer(
        Said(
            market=MARKET,
            sku=f"{gpu}/{cloud}",
            pricing=pricing,
            launch="container",
            price=None if per_gpu is None else per_gpu * count,
            source=source,
            raw={"gpu": gpu, "cloud": cloud, "count": count, "usd_per_gpu_hour": str(per_gpu), "center": center},
            # of "NVIDIA H200" and "H200 SXM" the one that says more; of "NVIDIA B300 SXM6 AC" and "B300" the one that we know
            device=gpu if identify(name, count=1, memory_mib=gib * MIB_PER_GIB).problem else name,
            count=count,
            memory_mib=gib * MIB_PER_GIB,
            region=center,
            place=_place(center),
            by_hosts=not is_ours,
            capacity=capacity,
            interruption_per_hour=Decimal(0) if pricing == "on_demand" and is_ours else None,
        ),
        at,
    )


def _place(center: str | None) -> Place | None:
    return declared(country_of_center(center), "RunPod data center id") if center else None


def country_of_center(center: str) -> str | None:
    """The country in a data center's id; None for an id of another form.

    >>> country_of_center("EU-RO-1"), country_of_center("US-CA-2"), country_of_center("CA-MTL-1"), country_of_center("EUR-IS-1")
    ('RO', 'US', 'CA', 'IS')
    >>> country_of_center("SA-1"), country_of_center("EU-XX-1")
    (None, None)
    """
    first, *rest = center.split("-")
    code = first if first in _BEGIN_WITH_COUNTRY else rest[0] if first in _PARTS_OF_THE_WORLD and rest else ""
    return code if pycountry.countries.get(alpha_2=code) else None
