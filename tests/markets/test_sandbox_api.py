"""The sandbox's document is true: valid OpenAPI, and every answer is as it says."""

from __future__ import annotations

import asyncio
import base64
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from openapi_spec_validator import validate

from markets.sandbox.catalogue import load
from markets.sandbox.openapi import document
from tests.markets.rigs import Api, Sandbox, new_tag


@pytest.fixture
async def api(shared_sandbox: Sandbox) -> AsyncIterator[Api]:
    async with Api.of(shared_sandbox) as api:
        yield api


def create(tag: str, **changes: Any) -> dict[str, Any]:
    files = {"hello": base64.b64encode(b"hello").decode()}
    user_data = {"argv": ["sleep", "1000"], "env": {"A": "b"}, "files": files}
    return {"tag": tag, "owner": "o", "offer": "plenty", "max_price": "1", "user_data": user_data} | changes


def test_the_document_is_valid_openapi() -> None:
    validate(document())


async def test_every_answer_is_as_the_document_says(api: Api) -> None:
    """`Api` checks each against the schema of its path and status."""
    tag = new_tag()
    status, answer = await api("POST", "/v1/instances", create(tag))
    instance = answer["instance"]
    assert (status, instance["state"]) == (201, "running")
    assert (await api("POST", "/v1/instances", create(tag)))[0] == 200
    path = f"/v1/instances/{instance['id']}"
    for method, where, body, expected in [
        ("GET", "/v1/offers", None, 200),
        ("GET", "/v1/instances?limit=1", None, 200),
        ("GET", f"/v1/instances?tag={tag}", None, 200),
        ("GET", path, None, 200),
        ("GET", "/v1/meter", None, 200),
        ("GET", "/v1/invoices", None, 200),
        ("GET", "/v1/admin/faults", None, 200),
        ("POST", f"/v1/admin/instances/{instance['id']}/preempt", {"notice_s": 60}, 200),
        ("DELETE", path, None, 200),
        ("DELETE", path, None, 200),
        ("GET", "/v1/invoices", None, 200),
    ]:
        assert (await api(method, where, body))[0] == expected, where


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "code"),
    [
        ("GET", "/v1/instances/i-nothing", None, 404, "instance_not_found"),
        ("DELETE", "/v1/instances/i-nothing", None, 404, "instance_not_found"),
        ("GET", "/v1/instances?limit=0", None, 400, "invalid_request"),
        ("GET", "/v1/invoices?from=yesterday", None, 400, "invalid_request"),
        ("GET", "/v1/invoices?from=2026-11-22T12:00:00", None, 400, "invalid_request"),  # no offset
        ("POST", "/v1/instances", {"tag": "x"}, 400, "invalid_request"),
        ("POST", "/v1/instances", create("../x"), 400, "invalid_request"),
        ("POST", "/v1/instances", create("x", max_price="-1"), 400, "invalid_request"),
        ("POST", "/v1/instances", create("x", max_price=1.5), 400, "invalid_request"),  # money is no float
        ("POST", "/v1/instances", create("x", offer="nothing"), 404, "offer_not_found"),
        ("POST", "/v1/instances", create("x", offer="none"), 409, "sold_out"),
        ("POST", "/v1/instances", create("x", max_price="0.01"), 409, "price_moved"),
        ("POST", "/v1/instances", create("x", user_data={"argv": ["a"], "files": {"f": "?"}}), 400, "invalid_request"),
        ("POST", "/v1/admin/faults", {"name": "no such fault"}, 400, "invalid_request"),
        ("POST", "/v1/admin/instances/i-nothing/preempt", {}, 404, "instance_not_found"),
        ("PATCH", "/v1/admin/offers/nothing", {"capacity": 1}, 404, "offer_not_found"),
    ],
)
async def test_every_refusal_has_its_code(api: Api, method: str, path: str, body: Any, status: int, code: str) -> None:
    answered, answer = await api(method, path, body)
    assert (answered, answer["error"]["code"]) == (status, code)


async def test_without_its_key_nothing_is_answered(api: Api) -> None:
    for path in ("/v1/offers", "/v1/instances", "/v1/meter", "/v1/admin/faults"):
        assert (await api("GET", path, key="wrong"))[0] == 401


async def test_a_body_that_is_not_json_is_refused_not_a_crash(shared_sandbox: Sandbox) -> None:
    handle = await shared_sandbox.find()
    headers = {"Authorization": f"Bearer {handle.token}"}
    async with (
        aiohttp.ClientSession() as session,
        session.post(f"{handle.url}/v1/instances", data=b"{", headers=headers) as response,
    ):
        assert (response.status, (await response.json())["error"]["code"]) == (400, "invalid_json")


def test_the_built_in_catalogue_has_one_of_every_trap() -> None:
    offers = load().offers
    countries = {each.country for each in offers if each.country}
    cheapest = min((each for each in offers if each.price > 0), key=lambda each: each.price)
    assert len(offers) >= 12 and len(countries) >= 6
    assert {each.pricing for each in offers} == {"spot", "on_demand"}
    assert {each.granularity_s for each in offers} == {1, 60}
    assert cheapest.tier == "anonymous"
    assert any(each.capacity == 0 for each in offers) and any(each.price == 0 for each in offers)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ('id = "a"\nprice = 0.5', "float"),  # money is no float
        ('id = "a"\nprice = "1"\nprize = "2"', "prize"),  # a slip of the pen must not be ignored
        ('id = "A b"\nprice = "1"', "id"),
        ('id = "a"\nprice = "-1"', "price"),
    ],
)
async def test_a_wrong_catalogue_is_refused_with_the_field(tmp_path: Path, text: str, complaint: str) -> None:
    file = tmp_path / "catalogue.toml"
    file.write_text(f'[[offers]]\ntier = "claimed"\npricing = "spot"\ncapacity = 1\n{text}\n')
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "markets.sandbox", "--dir", str(tmp_path / "s"), "--catalogue", str(file)),
        stderr=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate()
    assert (process.returncode, out) == (4, b"")
    assert complaint in err.decode()
