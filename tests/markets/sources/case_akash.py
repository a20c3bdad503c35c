"""Akash: a model with three bidders (one vouched for, one whose address lies elsewhere, one down), one that nobody can serve."""

from __future__ import annotations

import json
from typing import Any

from aiohttp import web

from markets.sources.akash import AkashSource
from tests.markets.sources.cases import Case
from tests.markets.sources.document import official

FLAGS = (
    "isValidVersion", "isOnline", "isAudited", "featPersistentStorage", "featEndpointCustomDomain", "workloadSupportChia",
    "featEndpointIp",
)  # fmt: skip
UNSAID = (
    "name", "ipRegion", "ipRegionCode", "ipCountry", "ipLat", "ipLon", "uptime1d", "uptime7d", "uptime30d", "lastOnlineDate",
    "host", "organization", "statusPage", "locationRegion", "city", "timezone", "hostingProvider", "hardwareCpu",
    "hardwareCpuArch", "hardwareGpuVendor", "hardwareGpuModels", "hardwareDisk", "featPersistentStorageType", "hardwareMemory",
    "networkProvider", "tier", "workloadSupportChiaCapabilities",
)  # fmt: skip
AUDITOR = "akash1365yvmc4s7awdyj3n2sav7xfx76adc6dnmlx63"


def gpu(model: str, ram: str, free: int, median: float | None) -> dict[str, Any]:
    price = None if median is None else dict.fromkeys(("min", "max", "avg", "weightedAverage", "med"), median)
    if price is not None:
        price |= {"min": median / 10, "currency": "USD"}
    return {
        "vendor": "nvidia", "model": model, "ram": ram, "interface": "SXM5", "availability": {"total": 16, "available": free},
        "providerAvailability": {"total": 3, "available": 2}, "price": price,
    }  # fmt: skip


MODELS = [gpu("h100", "80Gi", 4, 2.4), gpu("h200", "141Gi", 0, 3.1), gpu("b200", "180Gi", 2, None)]


def bidder(owner: str, **more: Any) -> dict[str, Any]:
    day = {"date": "2026-11-26", "hasOpenIncident": False, "incidentCount": 0, "downtimeSeconds": 0}
    return {
        "owner": owner, "hostUri": f"https://{owner}.example:8443", "isAudited": True, "createdAt": "2026-01-01T00:00:00.000Z",
        "location": "eu-west", "organization": None, "incidents": [day | more],
    }  # fmt: skip


BIDDERS = [bidder("akash1vouched"), bidder("akash1elsewhere"), bidder("akash1down", hasOpenIncident=True)]


def provider(owner: str, country: str | None, address: str | None, *, signed: bool, kind: str) -> dict[str, Any]:
    nothing = dict.fromkeys(UNSAID)
    flags = dict.fromkeys(FLAGS, True)
    audited = [AUDITOR] if signed else []
    said = [] if country is None else [{"key": "country", "value": country, "auditedBy": audited}]
    return {
        "owner": owner, "hostUri": f"https://{owner}.example:8443", "createdHeight": 1, "cosmosSdkVersion": "v0.53",
        "akashVersion": "v1", "gpuModels": [], "networkSpeedDown": 1, "networkSpeedUp": 1, "attributes": said,
        "country": country, "ipCountryCode": address, "locationType": kind, **nothing, **flags,
    }  # fmt: skip


PROVIDERS = [
    provider("akash1vouched", "FR", "FR", signed=True, kind="datacenter"),
    provider("akash1elsewhere", "DE", "SG", signed=True, kind="datacenter"),
    provider("akash1down", None, "US", signed=False, kind="home"),
]


def screened(_: web.Request, body: bytes) -> Any:
    """Only the h100 has a GPU free and a price; whoever asks about another has not read what was said."""
    asked = json.loads(body)["resources"][0]["resource"]["gpu"]["attributes"][0]["key"]
    assert asked == "vendor/nvidia/model/h100/ram/80Gi/interface/sxm", asked
    return {"providers": BIDDERS}


CASE = Case(
    name="akash",
    make=lambda _, reach: AkashSource(reach),
    answers={
        "GET /v1/gpu-prices": {"availability": {"total": 48, "available": 6}, "models": MODELS},
        "GET /v1/providers": PROVIDERS,
        "POST /v1/bid-screening": screened,
    },
    offers=5,
    is_public=True,
    document=lambda: official("akash", "console-openapi.json"),
)
