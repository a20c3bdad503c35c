"""Providers' own SDKs, and dstack's gpuhunt, read the very answers that our adapters' tests are made of, and find the same there.

An answer that the SDK cannot read is none of its provider's. `make clients` installs them and runs this.
"""

from __future__ import annotations

import asyncio
import json
import os
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from markets.offer import Offer
from tests.markets.sources import (
    case_azure,
    case_kubernetes,
    case_oci,
    case_openrouter,
    case_scaleway,
    case_verda,
)
from tests.markets.sources.cases import Case
from tests.markets.sources.loopback import Answer, Loopback
from tests.markets.sources.polling import poll

pytestmark = pytest.mark.clients
SCRIPT = Path(__file__).with_name("their_clients.py")
MIB_PER_GIB = 1024


async def read_by_both(
    case: Case, name: str, more: dict[str, Answer] | None = None, *, environment: str = "sdks"
) -> tuple[list[Offer], list[dict[str, Any]]]:
    """Our adapter's offers, and the rows that the other's client read, of the same answers."""
    async with Loopback({**case.answers, **(more or {})}) as api:
        client = await asyncio.create_subprocess_exec(
            str(Path(os.environ["BROKER_MARKET_CLIENTS"]) / environment / "bin" / "python"), "-I", str(SCRIPT), name, api.url,
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        out, err = await client.communicate()
    assert client.returncode == 0, err.decode()[-3000:]
    return await poll(case), json.loads(out)


async def test_verdas_own_sdk_reads_the_same_types_prices_and_room() -> None:
    offers, rows = await read_by_both(case_verda.CASE, "verda")
    ours = {
        (each.key.sku, each.key.region, each.pricing == "spot"): (
            each.price, each.country, each.accelerator.count, each.capacity != 0,
        )
        for each in offers
    }  # fmt: skip
    theirs = {
        (row["sku"], row["region"], row["spot"]): (
            Decimal(str(row["price"])), row["country"], row["count"], row["free"],
        )
        for row in rows
    }  # fmt: skip
    assert ours == theirs and len(theirs) == case_verda.CASE.offers
    memory = {row["sku"]: row["gib"] * MIB_PER_GIB for row in rows if row["count"]}
    assert memory == {
        each.key.sku: each.accelerator.memory_mib * each.accelerator.count for each in offers if each.accelerator.count
    }


async def test_scaleways_own_sdk_reads_the_same_types_prices_and_room() -> None:
    offers, rows = await read_by_both(case_scaleway.CASE, "scaleway")
    rate = case_scaleway.EUR["EUR"].usd
    ours = {
        (each.key.sku, each.key.zone): (each.price, each.accelerator.count, each.accelerator.memory_mib)
        for each in offers
    }
    theirs = {
        (row["sku"], row["zone"]): (Decimal(str(row["price"])) * rate, row["count"], row["bytes"] >> 20)
        for row in rows
        if row["gpu"]
    }
    assert ours == theirs and len(theirs) == case_scaleway.CASE.offers
    assert {each.key.sku for each in offers if each.capacity == 0} == {
        row["sku"] for row in rows if row["free"] == "shortage"
    }
    assert {each.key.sku for each in offers if each.quarantined} == {row["sku"] for row in rows if row["ended"]}


async def test_openrouters_own_sdk_reads_the_same_models_and_prices() -> None:
    offers, rows = await read_by_both(case_openrouter.CASE, "openrouter")
    million = 1_000_000
    theirs = {
        row["sku"]: (Decimal(row["prompt"]) * million, Decimal(row["completion"]) * million, row["context"])
        for row in rows
        if "text" in row["writes"]
    }
    ours = {
        each.endpoint.model: (each.per_million.input, each.per_million.output, each.endpoint.context_tokens)
        for each in offers
        if each.endpoint and each.per_million
    }
    assert ours == theirs and len(theirs) == case_openrouter.CASE.offers
    cached = {row["sku"]: Decimal(row["cached"]) * million for row in rows if row["cached"]}
    assert cached == {
        each.endpoint.model: each.per_million.cached
        for each in offers
        if each.endpoint and each.per_million and each.per_million.cached
    }


async def test_gpuhunt_reads_the_same_oracle_shapes_and_prices() -> None:
    """It asks the estimator for prices too, which has the same rows as the price list."""
    products = {"GET /a/ocom/docs/cloudestimator2/data/products.json": {"items": case_oci.PRODUCTS}}
    offers, rows = await read_by_both(case_oci.CASE, "oci", products)
    ours = {each.key.sku: (each.price, each.accelerator.count) for each in offers if each.pricing == "on_demand"}
    theirs = {row["sku"]: (None if row["price"] is None else Decimal(str(row["price"])), row["count"]) for row in rows}
    assert ours == theirs and None in {price for price, _ in theirs.values()}
    # Half of on demand, in both; it lists that of bare metal, too, which Oracle does not sell.
    spot = {each.key.sku for each in offers if each.pricing == "spot"}
    assert spot == {row["sku"] for row in rows if row["spot"] and row["sku"].startswith("VM.")}


async def test_gpuhunt_reads_the_same_azure_rows() -> None:
    """It takes rows that are not in force, too: each price of ours is one of those that it lists for the same."""
    offers, rows = await read_by_both(case_azure.CASE, "azure")
    theirs: dict[tuple[str, str, bool], set[Decimal]] = {}
    for row in rows:
        if row["price"]:
            price = Decimal(str(row["price"]))
            theirs.setdefault((row["sku"], row["region"], row["spot"]), set()).add(price)
    ours = {(each.key.sku, str(each.key.region), each.pricing == "spot"): each.price for each in offers if each.price}
    assert {key for key in theirs if not key[0].startswith("Standard_NP")} == set(ours)  # gate arrays are none of ours
    assert [key for key, price in ours.items() if price not in theirs[key]] == []
    memory = {each.key.sku: each.accelerator.memory_mib * each.accelerator.fraction / MIB_PER_GIB for each in offers}
    known = {row["sku"]: row["gib"] for row in rows if row["gib"]}
    assert known and {sku: float(memory[sku]) for sku in known} == pytest.approx(known)


async def test_kubernetes_own_client_asks_the_same_and_reads_the_same_nodes_and_what_is_free() -> None:
    """Its models refuse what its API's document does not allow. Page by page, with the same log-in."""
    asked: dict[str, list[tuple[str, dict[str, str], str | None]]] = {"ours": [], "theirs": []}

    def noted(answer: Answer) -> Answer:
        def note(request: web.Request, body: bytes) -> Answer:
            who = "ours" if len(asked["theirs"]) == pages else "theirs"
            asked[who].append((request.path, dict(request.query), request.headers.get("Authorization")))
            return answer(request, body)

        return note

    pages = 4
    case = replace(case_kubernetes.CASE, answers={path: noted(it) for path, it in case_kubernetes.CASE.answers.items()})
    offers, rows = await read_by_both(case, "kubernetes", environment="kubernetes")
    by_path = sorted(asked["ours"], key=str)
    assert by_path == sorted(asked["theirs"], key=str) and len(by_path) == pages
    assert {login for _, _, login in by_path} == {"Bearer secret_cluster_token"}

    nodes = [row for row in rows if row["gpus"]]
    assert len(nodes) < len(rows)  # the one without GPUs is no offer
    for each in offers:
        sku, _, share = each.key.sku.partition("/")
        alike = [row for row in nodes if row["sku"] == sku]
        count, per_node = (int(number) for number in share.split("of"))
        free = [0 if row["cordoned"] or not row["ready"] else row["gpus"] - row["taken"] for row in alike]
        assert each.capacity == sum(number // count for number in free)
        assert {row["gpus"] for row in alike} == {per_node} and each.accelerator.count == count
        assert {(row["region"], row["mib"]) for row in alike} == {(each.key.region, each.accelerator.memory_mib)}
    assert {each.key.sku.partition("/")[0] for each in offers} == {row["sku"] for row in nodes}
