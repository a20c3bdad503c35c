"""Scaleway: two zones, one of them with two pages; a type that is short, one that ends, one without a GPU."""

from __future__ import annotations

from collections.abc import Callable
from datetime import date
from decimal import Decimal
from typing import Any

from aiohttp import web

from markets.hourly import FxRate
from markets.sources.scaleway import ScalewaySource
from tests.markets.sources.cases import Case
from tests.markets.sources.loopback import Reply

EUR = {"EUR": FxRate("EUR", Decimal("1.10"), date(2026, 11, 1), "a test's own rate")}
GIB = 1 << 30


def server(gpus: int = 1, name: str | None = "L4", gib: int = 24, **facts: Any) -> dict[str, Any]:
    chip = {"gpu_manufacturer": "NVIDIA", "gpu_name": name, "gpu_memory": gib * GIB} if name else None
    row = {"arch": "x86_64", "ncpus": 8, "gpu": gpus, "gpu_info": chip, "mig_profile": None, "hourly_price": 0.7875}
    row |= {"alt_names": [], "ram": 48 * GIB, "scratch_storage_max_volumes_count": 0}
    return row | {"monthly_price": 574.875, "end_of_service": False} | facts


def pages(*found: dict[str, Any], total: int | None = None) -> Callable[[web.Request, bytes], Reply]:
    count = sum(map(len, found)) if total is None else total
    return lambda request, _: Reply({"servers": found[int(request.query["page"]) - 1]}, {"X-Total-Count": str(count)})


PARIS = (
    {"L4-1-24G": server(), "DEV1-S": server(0, None, hourly_price=0.0088)},
    {"L4-8-24G": server(8), "RENDER-S": server(1, "P100", 16, end_of_service=True)},
)
WARSAW = ({"L40S-2-48G": server(2, "L40S", 48, hourly_price=2.8)},)
# A list of its own, and one that does not have each type.
PARIS_ROOM = ({"L4-1-24G": {"availability": "available"}}, {"L4-8-24G": {"availability": "shortage"}})
WARSAW_ROOM = ({"L40S-2-48G": {"availability": "scarce"}},)


def path(zone: str, of: str = "servers") -> str:
    return f"GET /instance/v1/zones/{zone}/products/{of}"


ROOM = {
    path("fr-par-1", "servers/availability"): pages(*PARIS_ROOM),
    path("pl-waw-2", "servers/availability"): pages(*WARSAW_ROOM),
}

CASE = Case(
    name="scaleway",
    make=lambda keys, reach: ScalewaySource(keys, reach, zones=("fr-par-1", "pl-waw-2"), fx=lambda: EUR),
    answers={path("fr-par-1"): pages(*PARIS), path("pl-waw-2"): pages(*WARSAW), **ROOM},
    offers=4,
    credentials={"secret_key": "secret_scaleway_key"},
    looping={
        path("fr-par-1"): lambda request, _: Reply({"servers": PARIS[0]}, {"X-Total-Count": "99"}),
        path("pl-waw-2"): pages(*WARSAW),
        **ROOM,
    },
    twice={
        path("fr-par-1"): pages(PARIS[0], {**PARIS[0], **PARIS[1]}, total=4),
        path("pl-waw-2"): pages(*WARSAW),
        **ROOM,
    },
)
