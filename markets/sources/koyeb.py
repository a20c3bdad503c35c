"""Koyeb: GPU instances of a serverless platform, priced by the second, in the regions of its catalogue.

Unverified against the live service. Source: the official OpenAPI document (2025-10), `GET /v1/catalog/instances`. Prices are
texts, of a second and of an hour; offsets and limits are texts, too. `na` and `eu` are continents, no countries.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, datetime
from decimal import Decimal

from markets.offer import Offer
from markets.provider.api import ProviderApi, Reach
from markets.provider.listing import MIB_PER_GIB, Said, distinct, offer
from markets.provider.login import CredentialSource, bearer
from markets.provider.shape import Shape, rows

MARKET = "koyeb"
REACH = Reach("https://app.koyeb.com")
LOGIN = bearer()
PAGE = 100
SECONDS_PER_HOUR = 3600
# Both prices are rounded by the provider; more apart than this, one of them is of something else.
AGREE = Decimal("0.01")
SOURCE = "Koyeb /v1/catalog/instances"
_SIZE = re.compile(r"(?P<number>\d+(?:\.\d+)?)\s*(?P<unit>GB|GiB|MB|MiB)")


class KoyebSource:
    name = MARKET

    def __init__(self, credentials: CredentialSource, reach: Reach = REACH) -> None:
        self._api = ProviderApi(MARKET, reach, login=LOGIN, credentials=credentials)

    async def offers(self) -> list[Offer]:
        at = datetime.now(UTC)

        def after(page: Shape) -> int | None:
            count, offset, listed = page.get("count"), page.get("offset"), len(page["instances"].each())
            reached = (offset.whole() if offset else 0) + listed
            return reached if count and listed and reached < count.whole() else None

        pages = await self._api.pages(self._page, 0, after)
        return koyeb_offers([each for page in pages for each in page["instances"].each()], at)

    async def close(self) -> None:
        await self._api.close()

    async def _page(self, offset: int) -> Shape:
        return await self._api.get("/v1/catalog/instances", {"limit": str(PAGE), "offset": str(offset)})


def koyeb_offers(instances: list[Shape], at: datetime) -> list[Offer]:
    """One offer for each GPU instance type and region in which it is listed.

    The catalogue never says how many there are; that there are none it says by leaving a region out.
    """

    def of(instance: Shape) -> Iterator[Offer]:
        gpu = instance.get("gpu")
        count = gpu.get("count") if gpu else None
        if gpu is None or count is None or count.whole() == 0:
            return
        a_second = instance["price_per_second"].number()
        memory = gpu.get("memory")
        for region in (each.text() for each in instance["regions"].each()):
            yield offer(
                Said(
                    market=MARKET,
                    sku=instance["id"].text(),
                    pricing="on_demand",
                    launch="container",
                    price=a_second * SECONDS_PER_HOUR,
                    source=SOURCE,
                    raw={"instance": instance.value, "region": region},
                    device=gpu["name"].text(),
                    count=count.whole(),
                    memory_mib=_mib(memory.text()) if memory else 0,
                    region=region,
                    not_for_sale=_contradiction(instance, a_second) or _closed(instance),
                ),
                at,
            )

    return distinct(rows(instances, of))


def _contradiction(instance: Shape, a_second: Decimal) -> str | None:
    hourly = instance.get("price_hourly")
    if hourly is None or hourly.number() == 0 or a_second == 0:
        return None
    by_second = a_second * SECONDS_PER_HOUR
    if abs(hourly.number() - by_second) <= hourly.number() * AGREE:
        return None
    return f"it costs {hourly.number()} an hour and {a_second} a second ({by_second} an hour); one of the two is wrong"


def _closed(instance: Shape) -> str | None:
    status = instance.get("status")
    if status is None or status.text().lower() == "available":
        return None
    return f"its status in the catalogue is {status.text()!r}, not 'available'"


def _mib(text: str) -> int:
    """`48GB` of a device are its 48 GiB; 0: not understood, and the name must do."""
    read = _SIZE.fullmatch(text.strip())
    if read is None:
        return 0
    return int(Decimal(read["number"]) * (MIB_PER_GIB if read["unit"].startswith("G") else 1))
