"""Providers' own SDKs, and dstack's gpuhunt, read the very answers that our adapters' tests are made of, and find the same there.

An answer that the SDK cannot read is none of its provider's. `make clients` installs them and runs this.
"""

from __future__ import annotations

import asyncio
import json
import os
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from markets.offer import Offer
from tests.markets.sources import case_azure, case_oci, case_openrouter, case_scaleway, case_verda
from tests.markets.sources.cases import Case
from tests.markets.sources.loopback import Answer, Loopback
from tests.markets.sources.polling import poll

pytestmark = pytest.mark.clients
SCRIPT = Path(__file__).with_name("their_clients.py")
MIB_PER_GIB = 1024


async def read_by_both(
    case: Case, name: str, more: dict[str, Answer] | None = None
) -> tuple[list[Offer], list[dict[str, Any]]]:
    """Our adapter's offers, and the rows that the other's client read, of the same answers."""
    async with Loopback({**case.answers, **(more or {})}) as api:
        client = await asyncio.create_subprocess_exec(
            str(Path(os.environ["BROKER_MARKET_CLIENTS"]) / "bin" / "python"), "-I", str(SCRIPT), name, api.url,
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
