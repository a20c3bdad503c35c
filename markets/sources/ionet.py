"""io.net: prepaid blocks of GPUs, as containers and as machines. Unverified against the live service.

Source: the public answers of `GET /v1/io-cloud/vmaas/hardware` and `/caas/hardware` as others recorded them (2026-06), and the
document of the enterprise API's `/vmaas/hardware`, whose rows have no `sold_out` and may have no memory and no place. `price` is
of the whole configuration and an hour, in dollars: not of a GPU. Rows without a price, without a GPU, or sold out are listed. A
booking is paid ahead by the hour and is not given back when it is ended.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime

from markets.offer import Offer
from markets.provider.api import ProviderApi, Reach, together
from markets.provider.listing import MIB_PER_GIB, Place, Said, distinct, offer
from markets.provider.login import CredentialSource, header
from markets.provider.shape import Shape, rows

MARKET = "io-net"
REACH = Reach("https://api.io.solutions/v1/io-cloud")
LOGIN = header("x-api-key", is_optional=True)
SOURCE = "io.net /vmaas/hardware and /caas/hardware"
HOUR_S = 3600


class IonetSource:
    name = MARKET

    def __init__(self, credentials: CredentialSource, reach: Reach = REACH) -> None:
        self._api = ProviderApi(MARKET, reach, login=LOGIN, credentials=credentials)

    async def offers(self) -> list[Offer]:
        at = datetime.now(UTC)
        machines, containers = await together(self._api.get("/vmaas/hardware"), self._api.get("/caas/hardware"))
        return ionet_offers(machines, containers, at)

    async def close(self) -> None:
        await self._api.close()


def ionet_offers(machines: Shape, containers: Shape, at: datetime) -> list[Offer]:
    """One offer for each configuration: as a container where it can be had as one, else as a machine. They are one stock."""
    replicas = dict(rows(containers["data"]["hardware"].each(), lambda row: [(row["id"].text(), row)]))
    listed = {row["id"].text(): row for row in machines["data"]["hardware"].each()}
    both = {**listed, **replicas}

    def of(row: Shape) -> Iterator[Offer]:
        sku, count = row["id"].text(), row["num_cards"].whole()
        if count == 0:
            return
        machine = listed.get(sku, row)
        country, link = _text(row, "location"), _text(machine, "interconnect")
        yield offer(
            Said(
                market=MARKET,
                sku=sku,
                pricing="on_demand",
                launch="container" if sku in replicas else "vm",
                price=row["price"].number(),
                source=SOURCE,
                raw={"machine": machine.value, "container": sku in replicas and replicas[sku].value},
                device=row["name"].text(),
                count=count,
                memory_mib=_gib(row) * MIB_PER_GIB,
                form=link,
                region=country,
                place=Place(country, "claimed", "host_claim", SOURCE) if country else None,
                by_hosts=True,
                capacity=_capacity(row, replicas),
                granularity_s=HOUR_S,
                minimum_s=HOUR_S,
            ),
            at,
        )

    return distinct(rows(both.values(), of))


def _capacity(row: Shape, replicas: Mapping[str, Shape]) -> int | None:
    """0 when it is sold out, whatever is counted beside."""
    sold_out = row.get("sold_out")
    if sold_out and sold_out.flag():
        return 0
    counted = replicas[row["id"].text()].get("available_replicas") if row["id"].text() in replicas else None
    return max(0, counted.whole()) if counted else None


def _gib(row: Shape) -> int:
    """0, what the table says, where it is null."""
    found = row.get("vram_per_card")
    return found.whole() if found else 0


def _text(row: Shape, name: str) -> str | None:
    found = row.get(name)
    return found.text() if found and found.value != "" else None
