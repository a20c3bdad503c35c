"""Vast.ai: machines of many hosts, on demand and by bid. Unverified against the live service.

Source: the official OpenAPI document (2026-08), `POST /api/v0/bundles`. It says that a key is needed; others read without
one. Its own example has one object where the schema has an array, and `type: on-demand` where the schema has `ondemand`: the
type is left away for that, which is the default. A price is of the machine (`dph_base`, or the lowest bid) and of DISK_GIB of
its disk, which is billed also while an outbid machine is stopped; what `dph_total` has in it depends on the question. The
host charges for traffic both ways. The same GPUs of a machine are offered in several sizes, on demand and by bid: together they
have what its largest ask has, which is a quota of all.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pycountry

from markets.errors import Unavailable
from markets.offer import Offer, Pricing, QuotaShare
from markets.provider.api import ProviderApi, Reach, together
from markets.provider.listing import Place, Said, distinct, offer
from markets.provider.login import CredentialSource, bearer
from markets.provider.shape import Shape, rows

MARKET = "vast"
REACH = Reach("https://console.vast.ai", timeout_s=60, max_bytes=256 * 1024 * 1024)
LOGIN = bearer(is_optional=True)
BUNDLES = "/api/v0/bundles/"
# More than are listed today; an answer of just so many has been cut.
MOST = 20_000
DISK_GIB = 100
HOURS_A_MONTH = 720
# A host says until when its machine is offered; below this there is no time for a batch.
SHORTEST_S = 3_600
SOURCE = "Vast.ai /api/v0/bundles"


class VastSource:
    name = MARKET

    def __init__(self, credentials: CredentialSource, reach: Reach = REACH) -> None:
        self._api = ProviderApi(MARKET, reach, login=LOGIN, credentials=credentials)

    async def offers(self) -> list[Offer]:
        at = datetime.now(UTC)
        demand, bids = await together(self._search({}), self._search({"type": "bid"}))
        free = _free(demand + bids)
        found = rows(demand, lambda row: _of(row, "on_demand", "dph_base", free, at))
        return distinct(found + rows(bids, lambda row: _of(row, "bid", "min_bid", free, at)))

    async def close(self) -> None:
        await self._api.close()

    async def _search(self, more: dict[str, Any]) -> list[Shape]:
        body = {"limit": MOST, "rentable": {"eq": True}, "rented": {"eq": False}, "allocated_storage": DISK_GIB, **more}
        found = (await self._api.post(BUNDLES, body))["offers"].each_or_one()
        if len(found) >= MOST:
            raise Unavailable(
                f"vast: {len(found)} offers, as many as were asked for: there are more, and the list is cut"
            )
        return found


def _free(asks: Sequence[Shape]) -> Mapping[str, int]:
    """By machine, the devices of its largest ask that can be rented: no more of it are known to be free."""
    free: dict[str, int] = {}
    for machine, count in rows(asks, _rentable):
        free[machine] = max(free.get(machine, 0), count)
    return free


def _rentable(row: Shape) -> Iterator[tuple[str, int]]:
    machine, rentable = _machine(row), row.get("rentable")
    if machine is not None and (rentable is None or rentable.flag()):
        yield machine, row["num_gpus"].whole()


def _machine(row: Shape) -> str | None:
    machine = row.get("machine_id")
    return str(machine.whole()) if machine else None


def _share(row: Shape, free: Mapping[str, int]) -> QuotaShare | None:
    machine = _machine(row)
    if machine is None:
        return None
    return QuotaShare(f"vast machine {machine}", row["num_gpus"].whole(), free.get(machine, 0), "GPUs")


def _of(row: Shape, pricing: Pricing, price_name: str, free: Mapping[str, int], at: datetime) -> Iterator[Offer]:
    price, storage = row.get(price_name), row.get("storage_cost")
    left = row.get("duration")
    rentable = row.get("rentable")
    machine = price.number() if price else Decimal(0)
    disk = storage.number() * DISK_GIB / HOURS_A_MONTH if storage else Decimal(0)
    yield offer(
        Said(
            market=MARKET,
            sku=str(row["id"].whole()),
            pricing=pricing,
            launch="container",
            price=None,
            # a machine at 0 is one whose price nobody knows: its disk alone would be the cheapest offer of all
            components={"machine": machine if machine > 0 else None, f"disk {DISK_GIB} GiB": disk},
            source=SOURCE,
            raw={"pricing": pricing, "row": _words(row)},
            device=row["gpu_name"].text(),
            count=row["num_gpus"].whole(),
            memory_mib=row["gpu_ram"].whole(),
            place=_place(row),
            by_hosts=True,
            capacity=0 if rentable is not None and not rentable.flag() else 1,
            egress_per_gb=_cost(row, "inet_up_cost"),
            ingress_per_gb=_cost(row, "inet_down_cost"),
            not_for_sale=_ends_soon(left.number()) if left else None,
            quota=_share(row, free),
        ),
        at,
    )


def _words(row: Shape) -> dict[str, str]:
    """What the digest is of: not the scores and loads, which differ at every look."""
    named = (
        "id",
        "machine_id",
        "gpu_name",
        "num_gpus",
        "dph_base",
        "min_bid",
        "storage_cost",
        "geolocation",
        "verification",
    )
    return {name: str(value.value) for name in named if (value := row.get(name)) is not None}


def _cost(row: Shape, name: str) -> Decimal:
    cost = row.get(name)
    return max(Decimal(0), cost.number()) if cost else Decimal(0)


def _ends_soon(left_s: Decimal) -> str | None:
    return None if left_s >= SHORTEST_S else f"its host takes it back in {int(left_s)} s"


def _place(row: Shape) -> Place | None:
    """ "Montana, US": the last part is a country's code. The host says so, or for a data center (`hosting_type` 1) Vast's
    agreement with it; "verified" is a score of reliability and says nothing of the place."""
    where, hosting = row.get("geolocation"), row.get("hosting_type")
    code = where.text().rpartition(",")[2].strip().upper() if where else ""
    if pycountry.countries.get(alpha_2=code) is None:
        return None
    if hosting is not None and hosting.whole() == 1:
        return Place(code, "verified_host", "contract", "Vast.ai hosting_type: data center")
    return Place(code, "claimed", "host_claim", "Vast.ai geolocation")
