"""moto's EC2 behind a thin proxy that adds what moto lacks: idempotent client tokens, prices, quotas, and faults.

What the proxy says by itself follows EC2's API reference: error codes, IdempotentParameterMismatch, pages with nextToken.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import re
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import aiohttp
import boto3
from aiohttp import web
from botocore.loaders import Loader

from markets.aws.account import AwsKeys, fixed
from markets.aws.market import AwsMarket, AwsOptions
from tests.markets.rigs import OWNER

REGION = "eu-central-1"
PARAMETER = "/broker/ami"
TYPES = ("g5.xlarge", "g5.2xlarge", "g5.12xlarge", "g4dn.xlarge", "c5.large", "g5g.xlarge")
ON_DEMAND = {"g5.xlarge": "1.258", "g5.2xlarge": "1.516", "g4dn.xlarge": "0.658", "c5.large": "0.097"}
SPOT = {"g5.xlarge": "0.55", "g5.2xlarge": "0.50", "g5.12xlarge": "2.20", "g4dn.xlarge": "0.21", "c5.large": "0.035"}
# Without it, moto reads hundreds of images for each region.
IMAGE = {
    "ami_id": "ami-03cf127a", "state": "available", "public": True, "owner_id": "898082745236", "sriov": "simple",
    "root_device_type": "ebs", "root_device_name": "/dev/sda1", "description": "Deep Learning Base", "platform": None,
    "image_type": "machine", "architecture": "x86_64", "name": "Deep Learning Base", "virtualization_type": "hvm",
    "hypervisor": "xen", "image_location": "amazon/base",
}  # fmt: skip
_CREATES = ("RunInstances", "CreateFleet")


@contextmanager
def moto(folder: Path) -> Iterator[str]:
    """The URL of a moto server of its own, with one image and the parameter that names it."""
    images = folder / "images.json"
    images.write_text(json.dumps([IMAGE]))
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-c", "from moto.server import main; main()", "-H", "127.0.0.1", "-p", str(port)]
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env={**os.environ, "MOTO_AMIS_PATH": str(images)}
    )
    url = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 110
        while True:
            assert process.poll() is None and time.monotonic() < deadline, "moto does not start"
            try:
                urllib.request.urlopen(f"{url}/moto-api/data.json", timeout=5).close()
                break
            except urllib.error.URLError:
                time.sleep(0.1)
        client(url, "ssm").put_parameter(Name=PARAMETER, Value=IMAGE["ami_id"], Type="String")
        yield url
    finally:
        process.kill()
        process.wait()


def client(url: str, service: str = "ec2", keys: Mapping[str, str] | None = None) -> Any:
    """boto3 itself, for what a test does behind the market's back."""
    keys = keys or {"access_key_id": "AKIDTEST", "secret_access_key": "secret"}
    login: dict[str, Any] = {f"aws_{name}": value for name, value in keys.items()}
    return boto3.client(service, region_name=REGION, endpoint_url=url, **login)


def account(url: str, number: str) -> dict[str, str]:
    """Keys of the AWS account with this number, by their names here. The image's parameter is there, too."""
    role = f"arn:aws:iam::{number}:role/broker"
    given = client(url, "sts").assume_role(RoleArn=role, RoleSessionName="test")["Credentials"]
    keys = {
        "access_key_id": given["AccessKeyId"],
        "secret_access_key": given["SecretAccessKey"],
        "session_token": given["SessionToken"],
    }
    client(url, "ssm", keys).put_parameter(Name=PARAMETER, Value=IMAGE["ami_id"], Type="String", Overwrite=True)
    return keys


@dataclass(eq=False)
class Aws:
    """`async with Aws(moto_url)`. `faults[action]`: what the next calls of that action get instead of an answer:

    `(status, code)`; "drop" (the connection closed before anything happens), "drop after" and "500 after" (it happened).
    `spot` are prices by type, the same in all zones; `quotas` vCPUs by code, else no answer. `cut_after` instances a list
    has a next page that never comes. `slow_ends`: terminated is said to be shutting-down so many more times. `hides`: so
    many lists of instances are empty, as EC2's may be just after a creation. `empty_fleet`: fleets make nothing, for this
    reason. `later_spot`: the prices from the next creation on. `dead_region` answers nothing. `locked_out`: access keys that
    AWS does not know.
    """

    moto: str
    loader: Loader
    faults: dict[str, list[Any]] = field(default_factory=dict)
    spot: dict[str, str] = field(default_factory=lambda: dict(SPOT))
    on_demand: dict[str, str] = field(default_factory=lambda: dict(ON_DEMAND))
    quotas: dict[str, int] = field(default_factory=dict)
    is_cut: bool = False
    slow_ends: int = 0
    reclaimed: bool = False
    later_spot: dict[str, str] | None = None
    empty_fleet: str | None = None
    dead_region: str | None = None
    hides: int = 0
    locked_out: set[str] = field(default_factory=set)
    calls: Counter[str] = field(default_factory=Counter)
    asked: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    url: str = ""
    _answers: dict[tuple[str, str], tuple[str, int, bytes]] = field(default_factory=dict)
    _locks: dict[str, asyncio.Lock] = field(default_factory=dict)

    async def __aenter__(self) -> Aws:
        self._session = aiohttp.ClientSession()
        application = web.Application()
        application.router.add_get("/price-list/{region}/index.csv", self._price_list)
        application.router.add_get("/spot-advisor-data.json", self._advisor)
        application.router.add_route("*", "/{path:.*}", self._forward)
        self._runner = web.AppRunner(application, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._runner.cleanup()
        await self._session.close()

    def market(self, cache: Path, *, owner: str = OWNER, **changes: Any) -> AwsMarket:
        options: dict[str, Any] = {
            "regions": (REGION,),
            "instance_types": TYPES,
            "image": PARAMETER,
            "endpoint_url": self.url,
            "price_list_url": self.url + "/price-list/{region}/index.csv",
            "boot_s": 300,
        }
        keys = AwsKeys("AKIDTEST", "secret")
        return AwsMarket(
            AwsOptions(**(options | changes)), credentials=fixed(keys), owner=owner, cache=cache, loader=self.loader
        )

    async def _advisor(self, request: web.Request) -> web.Response:
        """g5 is taken away often, c5 seldom; of g4dn nothing is said."""
        self.calls["advisor"] += 1
        rows = {"g5.xlarge": {"s": 56, "r": 4}, "c5.large": {"s": 60, "r": 0}}
        return web.json_response({"spot_advisor": {REGION: {"Linux": rows, "Windows": {}}}, "ranges": []})

    async def _price_list(self, request: web.Request) -> web.Response:
        self.calls["price list"] += 1
        etag = f'"{hashlib.sha256(str(sorted(self.on_demand.items())).encode()).hexdigest()}"'
        if request.headers.get("If-None-Match") == etag:
            return web.Response(status=304)
        return web.Response(text=price_list(self.on_demand), headers={"ETag": etag})

    async def _forward(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        form = dict(parse_qsl(body.decode(errors="replace"), keep_blank_values=True))
        action = form.get("Action") or request.headers.get("X-Amz-Target", "").rpartition(".")[2]
        self.calls[action] += 1
        self.asked.append((action, form))
        login = request.headers.get("Authorization", "")
        if self.dead_region and f"/{self.dead_region}/" in login:
            return _error(503, "Unavailable")
        if any(f"Credential={key}/" in login for key in self.locked_out):
            self.faults[action] = [(401, "AuthFailure"), *self.faults.get(action, [])]
        fault = self.faults[action].pop(0) if self.faults.get(action) else None
        if fault == "drop":
            return _cut(request)
        if isinstance(fault, tuple):
            return _error(*fault)
        status, answer = await self._once(request, action, form, body)
        if action in _CREATES and self.later_spot is not None:
            self.spot = self.later_spot
        if fault == "drop after":
            return _cut(request)
        if fault == "500 after":
            return _error(500, "InternalError")
        kind = "text/xml" if form else "application/x-amz-json-1.1"
        return web.Response(status=status, body=answer, content_type=kind)

    async def _once(self, request: web.Request, action: str, form: dict[str, str], body: bytes) -> tuple[int, bytes]:
        token = form.get("ClientToken")
        if token is None:
            return await self._answer(request, action, form, body)
        lock = self._locks.setdefault(token, asyncio.Lock())
        async with lock:
            said = str(sorted((name, value) for name, value in form.items() if name != "Version"))
            before = self._answers.get((action, token))
            if before is not None:
                if before[0] != said:
                    return 400, _error_body("IdempotentParameterMismatch")
                return before[1], before[2]
            status, answer = await self._answer(request, action, form, body)
            if status < 300:
                self._answers[action, token] = (said, status, answer)
            return status, answer

    async def _answer(self, request: web.Request, action: str, form: dict[str, str], body: bytes) -> tuple[int, bytes]:
        if action == "DescribeSpotPriceHistory":
            return 200, self._spot_history(form)
        if action == "CreateFleet" and self.empty_fleet:
            return 200, _empty_fleet(self.empty_fleet)
        if action == "GetServiceQuota":
            return self._quota(body)
        headers = {name: value for name, value in request.headers.items() if name not in ("Host", "Content-Length")}
        async with self._session.request(
            request.method, self.moto + request.path_qs, data=body, headers=headers, skip_auto_headers=["Content-Type"]
        ) as response:
            status, answer = response.status, await response.read()
        if action == "DescribeInstances":
            answer = self._listed(form, answer)
            if answer is _CUT:
                return 503, _error_body("ServiceUnavailable")
        return status, answer

    def _listed(self, form: dict[str, str], answer: bytes) -> bytes:
        if self.hides:
            self.hides -= 1
            return re.sub(rb"(?s)<reservationSet>.*</reservationSet>", b"<reservationSet/>", answer)
        if self.is_cut:
            if form.get("NextToken"):
                return _CUT
            answer = answer.replace(b"</reservationSet>", b"</reservationSet><nextToken>more</nextToken>")
        if self.reclaimed:
            answer = answer.replace(b"Client.UserInitiatedShutdown", b"Server.SpotInstanceTermination")
            answer = re.sub(rb"<reason>User initiated [^<]*</reason>", b"<reason/>", answer)
        if self.slow_ends and b"<name>terminated</name>" in answer:
            self.slow_ends -= 1
            answer = re.sub(
                rb"<code>48</code>\s*<name>terminated</name>", b"<code>32</code><name>shutting-down</name>", answer
            )
        return answer

    def _spot_history(self, form: dict[str, str]) -> bytes:
        types = [value for name, value in form.items() if name.startswith("InstanceType.")]
        at = "2026-11-22T10:00:00.000Z"
        rows = "".join(
            f"<item><instanceType>{name}</instanceType><productDescription>{system}</productDescription>"
            f"<spotPrice>{price}</spotPrice><timestamp>{at}</timestamp><availabilityZone>{zone}</availabilityZone></item>"
            for name, price in self.spot.items()
            if name in types
            # Windows is dearer and not ours; a Local Zone is another city, or another country
            for zone, system, price in [
                (f"{REGION}a", "Linux/UNIX", price),
                (f"{REGION}b", "Linux/UNIX", price),
                (f"{REGION}b", "Windows", "0.001"),
                (f"{REGION}-ham-1a", "Linux/UNIX", "0.001"),
            ]
        )
        return (
            '<DescribeSpotPriceHistoryResponse xmlns="http://ec2.amazonaws.com/doc/2016-11-15/"><requestId>r</requestId>'
            f"<spotPriceHistorySet>{rows}</spotPriceHistorySet><nextToken/></DescribeSpotPriceHistoryResponse>"
        ).encode()

    def _quota(self, body: bytes) -> tuple[int, bytes]:
        for code, value in self.quotas.items():
            if code.encode() in body:
                return 200, f'{{"Quota": {{"QuotaCode": "{code}", "Value": {value}.0}}}}'.encode()
        return 500, b'{"__type": "ServiceException", "message": "not here"}'


_CUT = b"cut"


def _cut(request: web.Request) -> web.StreamResponse:
    if request.transport is not None:
        request.transport.abort()
    raise asyncio.CancelledError


def _error_body(code: str) -> bytes:
    return (
        f"<Response><Errors><Error><Code>{code}</Code><Message>as told by the test</Message></Error></Errors>"
        "<RequestID>r</RequestID></Response>"
    ).encode()


def _error(status: int, code: str) -> web.Response:
    return web.Response(status=status, body=_error_body(code), content_type="text/xml")


def _empty_fleet(code: str) -> bytes:
    return (
        '<CreateFleetResponse xmlns="http://ec2.amazonaws.com/doc/2016-11-15/"><requestId>r</requestId>'
        f"<fleetId>fleet-1</fleetId><errorSet><item><errorCode>{code}</errorCode>"
        "<errorMessage>none</errorMessage></item></errorSet><fleetInstanceSet/></CreateFleetResponse>"
    ).encode()


COLUMNS = (
    "SKU", "TermType", "Unit", "PricePerUnit", "Currency", "Instance Type", "Tenancy", "Operating System",
    "CapacityStatus", "Pre Installed S/W", "MarketOption", "Region Code",
)  # fmt: skip


def price_list(on_demand: dict[str, str]) -> str:
    """A bulk price list as AWS publishes it, with rows that must not count."""
    about = ["FormatVersion,v1.0", "Disclaimer,This pricing list, is", "Publication Date,2026-11-22", "Version,1"]
    rows = [",".join(f'"{each}"' for each in COLUMNS)]

    def row(name: str, price: str, **other: str) -> None:
        fields = {
            "SKU": "S", "TermType": "OnDemand", "Unit": "Hrs", "PricePerUnit": price, "Currency": "USD",
            "Instance Type": name, "Tenancy": "Shared", "Operating System": "Linux", "CapacityStatus": "Used",
            "Pre Installed S/W": "NA", "MarketOption": "OnDemand", "Region Code": REGION, **other,
        }  # fmt: skip
        rows.append(",".join(f'"{fields[column]}"' for column in COLUMNS))

    for name, price in on_demand.items():
        row(name, price)
        row(name, "0.0000000000", CapacityStatus="AllocatedCapacityReservation")
        row(name, "9.9", **{"Operating System": "Windows"})
        row(name, "9.8", **{"Pre Installed S/W": "SQL Std"})
        row(name, "0.1", TermType="Reserved")
        row(name, "0.2", MarketOption="CapacityBlock")
        row(name, "1.9", Tenancy="Dedicated")
        row(name, "0.0")
    return "\r\n".join([*about, "OfferCode,AmazonEC2", *rows, ""])
