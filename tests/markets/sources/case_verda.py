"""Verda: one and two GPUs and a machine without, in two places, after a token."""

from __future__ import annotations

import json
from typing import Any

from aiohttp import web

from markets.sources.verda import VerdaSource
from tests.markets.sources.cases import Case


def kind(sku: str, name: str, count: int, gib: int, price: str, spot: str) -> dict[str, Any]:
    row = {"instance_type": sku, "name": name, "currency": "usd", "price_per_hour": price, "spot_price": spot}
    row |= {
        "id": sku,
        "description": "Dedicated Hardware Instance",
        "display_name": None,
        "model": name,
        "manufacturer": "",
    }
    row |= {"cpu": {"number_of_cores": 30}, "memory": {"size_in_gigabytes": 120}, "storage": {"description": "dynamic"}}
    row |= {"best_for": [], "p2p": None, "supported_os": ["ubuntu-24.04"], "deploy_warning": None}
    return row | {"gpu": {"description": "", "number_of_gpus": count}, "gpu_memory": {"size_in_gigabytes": gib}}


TYPES = [
    kind("1H100.80S.30V", "H100 SXM5 80GB", 1, 80, "3.95", "1.70"),
    # the memory is of both GPUs together
    kind("2A6000.20V", "RTX A6000 48GB", 2, 96, "1.98", "0.70"),
    kind("CPU.120V.480G", "AMD EPYC", 0, 0, "3.00", "1.50"),
]
PLACES = [
    {"code": "FIN-01", "name": "Finland 1", "country_code": "FI"},
    {"code": "ICE-01", "name": "Iceland 1", "country_code": "IS"},
]


def room(request: web.Request, _: bytes) -> list[dict[str, Any]]:
    """`isSpot`, as its SDK asks: by another name it is not heard."""
    free = ["2A6000.20V"] if request.query.get("isSpot") == "true" else ["1H100.80S.30V", "2A6000.20V"]
    return [{"location_code": "FIN-01", "availabilities": free}, {"location_code": "ICE-01", "availabilities": []}]


def token(_: web.Request, body: bytes) -> dict[str, Any]:
    asked = json.loads(body)
    assert asked == {"grant_type": "client_credentials", "client_id": "client_1", "client_secret": "secret_verda"}
    told = {"access_token": "token_of_a_moment", "token_type": "Bearer", "expires_in": 3600}
    return told | {"refresh_token": "token_of_later", "scope": "cloud-api-v1"}


CASE = Case(
    name="verda",
    make=VerdaSource,
    answers={
        "POST /v1/oauth2/token": token,
        "GET /v1/instance-types": TYPES,
        "GET /v1/locations": PLACES,
        "GET /v1/instance-availability": room,
    },
    offers=12,
    credentials={"client_id": "client_1", "client_secret": "secret_verda"},
)
