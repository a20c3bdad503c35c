"""Google Cloud by google-cloud-compute itself: L4 and A100 where they exist, T4 on N1, an H200 that is not sold on demand."""

from __future__ import annotations

import functools
import json
from typing import Any

import jwt
from aiohttp import web
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from markets.provider.api import Reach
from markets.provider.login import CredentialSource
from markets.sources.gcp import SKUS, GcpSource
from tests.markets.sources.cases import Case
from tests.markets.sources.loopback import paged

COMPUTE = "/compute/v1/projects/project-1/aggregated"
ZONES = ("us-central1-a", "europe-west4-b")


@functools.cache
def key() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


@functools.cache
def service_account() -> str:
    """The JSON of a service account's key."""
    pem = key().private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return json.dumps(
        {
            "type": "service_account",
            "project_id": "project-1",
            "private_key_id": "key-1",
            "private_key": pem.decode(),
            "client_email": "reader@project-1.iam.gserviceaccount.com",
            "token_uri": "http://127.0.0.1:9/never-asked",
        }
    )


def signed(request: web.Request) -> None:
    """The bearer is a token signed by the account's own key."""
    token = request.headers["Authorization"].removeprefix("Bearer ")
    assert jwt.decode(token, key().public_key(), algorithms=["RS256"])["iss"].startswith("reader@")


def aggregated(member: str, by_zone: dict[str, list[dict[str, Any]]], following: str = "") -> dict[str, Any]:
    items = {f"zones/{zone}": {member: rows} for zone, rows in by_zone.items()}
    empty = {"zones/antarctica-1a": {"warning": {"code": "NO_RESULTS_ON_PAGE", "message": "none"}}}
    return {"items": items | empty, "nextPageToken": following, "kind": "compute#aggregatedList"}


def machine(
    name: str, cpus: int, gib: int, accelerator: str | None = None, count: int = 0, ssd: int = 0
) -> dict[str, Any]:
    row: dict[str, Any] = {"name": name, "guestCpus": cpus, "memoryMb": gib * 1024, "architecture": "X86_64"}
    if accelerator:
        row["accelerators"] = [{"guestAcceleratorType": accelerator, "guestAcceleratorCount": count}]
    return row | ({"bundledLocalSsds": {"partitionCount": ssd, "defaultInterface": "NVME"}} if ssd else {})


def chips(*names: str) -> list[dict[str, Any]]:
    return [{"name": name, "description": name} for name in names]


# a price list has L4 machines in every region; they exist where their accelerator does
L4 = machine("g2-standard-4", 4, 16, "nvidia-l4", 1)
OLD = machine("a2-highgpu-8g", 96, 680, "nvidia-tesla-a100", 8) | {"deprecated": {"state": "DEPRECATED"}}
FIRST = {
    "us-central1-a": [L4, machine("a2-highgpu-1g", 12, 85, "nvidia-tesla-a100", 1), OLD],
    "europe-west4-b": [L4, machine("a3-ultragpu-8g", 224, 2952, "nvidia-h200-141gb", 8, ssd=32)],
}
SECOND = {"us-central1-a": [machine("n1-standard-8", 8, 30)], "europe-west4-b": [machine("n1-standard-8", 8, 30)]}
ACCELERATORS = {
    "us-central1-a": chips("nvidia-l4", "nvidia-tesla-a100", "nvidia-tesla-t4", "nvidia-l4-vws"),
    "europe-west4-b": chips("nvidia-h200-141gb"),
}


def sku(description: str, usage: str, region: str, units: int, nanos: int, unit: str = "h") -> dict[str, Any]:
    price = {"currencyCode": "USD", "units": str(units), "nanos": nanos}
    expression = {"usageUnit": unit, "tieredRates": [{"startUsageAmount": 0, "unitPrice": price}]}
    category = {"resourceFamily": "Compute", "resourceGroup": "GPU", "usageType": usage}
    priced = {"serviceRegions": [region], "pricingInfo": [{"pricingExpression": expression}]}
    return {"description": description, "category": category} | priced


IOWA, HOLLAND = "us-central1", "europe-west4"
SKUS_1 = [
    sku("G2 Instance Core running in Iowa", "OnDemand", IOWA, 0, 24_988_000),
    sku("G2 Instance Ram running in Iowa", "OnDemand", IOWA, 0, 2_927_000, "GiBy.h"),
    sku("Nvidia L4 GPU running in Iowa", "OnDemand", IOWA, 0, 560_040_000),
    sku("Spot Preemptible G2 Instance Core running in Iowa", "Preemptible", IOWA, 0, 9_000_000),
    sku("Spot Preemptible G2 Instance Ram running in Iowa", "Preemptible", IOWA, 0, 1_000_000, "GiBy.h"),
    sku("Nvidia L4 GPU attached to Spot Preemptible VMs running in Iowa", "Preemptible", IOWA, 0, 224_000_000),
    sku("Nvidia L4 GPU running in Netherlands", "OnDemand", HOLLAND, 0, 616_000_000),
    sku("Commitment v1: Nvidia L4 GPU running in Iowa for 1 Year", "Commit1Yr", IOWA, 0, 100_000_000),
    sku("Reserved Nvidia L4 GPU in Iowa", "OnDemand", IOWA, 0, 1_000_000),
]
SKUS_2 = [
    sku("Nvidia Tesla A100 GPU running in Americas", "OnDemand", IOWA, 2, 933_908_000),
    sku("A2 Instance Core running in Americas", "OnDemand", IOWA, 0, 31_611_000),
    sku("A2 Instance Ram running in Americas", "OnDemand", IOWA, 0, 4_237_000, "GiBy.h"),
    sku("Nvidia H200 141GB GPU running in Netherlands", "OnDemand", HOLLAND, 9, 0),
    sku("A3Ultra Instance Core running in Netherlands", "OnDemand", HOLLAND, 0, 20_000_000),
    sku("A3Ultra Instance Ram running in Netherlands", "OnDemand", HOLLAND, 0, 2_000_000, "GiBy.h"),
    sku("SSD backed Local Storage in Netherlands", "OnDemand", HOLLAND, 0, 88_000_000, "GiBy.mo"),
    sku("Nvidia Tesla T4 GPU running in Iowa", "OnDemand", IOWA, 0, 350_000_000),
    sku("N1 Predefined Instance Core running in Americas", "OnDemand", IOWA, 0, 31_611_000),
    sku("N1 Predefined Instance Ram running in Americas", "OnDemand", IOWA, 0, 4_237_000, "GiBy.h"),
]


def types(request: web.Request, _: bytes) -> Any:
    signed(request)
    pages = [aggregated("machineTypes", FIRST, "1"), aggregated("machineTypes", SECOND)]
    return pages[int(request.query.get("pageToken", "0"))]


def billing(*pages: list[dict[str, Any]], ends: bool = True) -> Any:
    made = [
        {"skus": rows, "nextPageToken": str(number + 1) if number + 1 < len(pages) or not ends else ""}
        for number, rows in enumerate(pages)
    ]
    answer = paged(made, "pageToken")

    def checked(request: web.Request, body: bytes) -> Any:
        signed(request)
        return answer(request, body)

    return checked


def opened(credentials: CredentialSource, reach: Reach) -> GcpSource:
    """Google's own key, made when it is first asked for: a case is made when tests are collected."""

    async def keys() -> dict[str, str] | None:
        return None if await credentials() is None else {"service_account": service_account()}

    return GcpSource(keys, reach, compute=reach.base_url)


OTHERS = {
    f"GET {COMPUTE}/machineTypes": types,
    f"GET {COMPUTE}/acceleratorTypes": aggregated("acceleratorTypes", ACCELERATORS),
}
CASE = Case(
    name="gcp",
    make=opened,
    answers={**OTHERS, f"GET {SKUS}": billing(SKUS_1, SKUS_2)},
    offers=5,
    credentials={"service_account": "its key is made when it is needed"},
    looping={**OTHERS, f"GET {SKUS}": lambda request, _: {"skus": SKUS_1, "nextPageToken": "1"}},
    twice={**OTHERS, f"GET {SKUS}": billing(SKUS_1, [*SKUS_1, *SKUS_2[:1]], SKUS_2)},
    by_library=True,
    besides=frozenset({"GET /compute/v1/projects/project-1/regions"}),
)
