"""Scaleway: GPU machines in Paris, Amsterdam, Warsaw and Milan; prices in euros. Unverified against the live service.

Source: answers that Scaleway's own clients recorded (2026-08) and its Python SDK, `/instance/v1/zones/{zone}/products/servers`,
a page after the other with the total in a header. Whether it answers without a token was not to be seen there, so one is asked
for. What is free is another list, `…/servers/availability`: `available`, `scarce` or `shortage`; the last is sold out, and of a
type that it does not have nothing is known. Billing by the hour is believed, not documented there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from functools import partial

from markets.errors import ShapeDrift
from markets.hourly import FxRate
from markets.offer import Offer
from markets.provider.api import ProviderApi, Reach, together
from markets.provider.listing import Said, distinct, offer
from markets.provider.login import CredentialSource, header
from markets.provider.shape import Shape, rows

MARKET = "scaleway"
REACH = Reach("https://api.scaleway.com")
LOGIN = header("X-Auth-Token", "secret_key")
ZONES = (
    "fr-par-1", "fr-par-2", "fr-par-3", "nl-ams-1", "nl-ams-2", "nl-ams-3", "pl-waw-1", "pl-waw-2", "pl-waw-3", "it-mil-1",
)  # fmt: skip
PAGE = 100
MIB = 1 << 20
SOURCE = "Scaleway /products/servers"


class ScalewaySource:
    """`fx` gives the rates of the day; without one for EUR, prices are unknown."""

    name = MARKET

    def __init__(
        self,
        credentials: CredentialSource,
        reach: Reach = REACH,
        *,
        zones: Sequence[str] = ZONES,
        fx: Callable[[], Mapping[str, FxRate]] = dict,
    ) -> None:
        self._api = ProviderApi(MARKET, reach, login=LOGIN, credentials=credentials)
        self._zones, self._fx = tuple(zones), fx

    async def offers(self) -> list[Offer]:
        at, fx = datetime.now(UTC), self._fx()
        paths = [f"/instance/v1/zones/{zone}/products/servers" for zone in self._zones]
        answers = await together(*map(self._listed, [*paths, *(f"{path}/availability" for path in paths)]))
        sold, free = answers[: len(paths)], answers[len(paths) :]
        return distinct(
            made
            for zone, types, room in zip(self._zones, sold, free, strict=True)
            for made in rows(types.items(), partial(_of, zone=zone, room=room, fx=fx, at=at))
        )

    async def close(self) -> None:
        await self._api.close()

    async def _listed(self, path: str) -> dict[str, Shape]:
        """What is said of each server type, by name. ShapeDrift when fewer come than the answer says there are."""
        found: dict[str, Shape] = {}

        async def ask(number: int) -> Shape:
            return await self._api.get(path, {"page": str(number), "per_page": str(PAGE)})

        def after(page: Shape) -> int | None:
            known = len(found)
            found.update(page["servers"].entries())
            total = page.headers.get("X-Total-Count")
            if total is None or not total.isdecimal():
                raise ShapeDrift(f"{page.where}: no X-Total-Count says how many there are")
            if len(found) < int(total) and len(found) == known:
                raise ShapeDrift(f"{page.where}: the pages end at {len(found)} of {total}")
            numbers.append(numbers[-1] + 1)
            return numbers[-1] if len(found) < int(total) else None

        numbers = [1]
        await self._api.pages(ask, 1, after)
        return found


def _of(
    named: tuple[str, Shape], *, zone: str, room: Mapping[str, Shape], fx: Mapping[str, FxRate], at: datetime
) -> Iterator[Offer]:
    sku, row = named
    chip = row.get("gpu_info")
    if chip is None or not row["gpu"].whole():
        return
    ended = row.get("end_of_service")
    yield offer(
        Said(
            market=MARKET,
            sku=sku,
            pricing="on_demand",
            launch="vm",
            price=row["hourly_price"].number(),
            currency="EUR",
            fx=fx,
            source=SOURCE,
            raw={"type": sku, "zone": zone, "eur_per_hour": str(row["hourly_price"].value)},
            device=chip["gpu_name"].text(),
            count=row["gpu"].whole(),
            memory_mib=chip["gpu_memory"].whole() // MIB,
            region=zone.rpartition("-")[0],
            zone=zone,
            capacity=0 if sku in room and room[sku]["availability"].text() == "shortage" else None,
            granularity_s=3_600,
            minimum_s=3_600,
            interruption_per_hour=Decimal(0),
            not_for_sale="its provider ends this type" if ended and ended.flag() else _slice(row),
        ),
        at,
    )


def _slice(row: Shape) -> str | None:
    profile = row.get("mig_profile")
    return f"a slice of a GPU ({profile.value}), whose speed is not known" if profile else None
