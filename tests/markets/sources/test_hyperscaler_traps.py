"""The same traps in the price lists of the large clouds: Oracle, Azure and Google."""

from __future__ import annotations

import dataclasses
import re
from decimal import Decimal
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pytest

from markets.errors import MarketsError, NotAuthorized, ShapeDrift
from markets.offer import Offer, QuotaShare
from markets.provider.api import Reach
from markets.sources import gcp
from markets.sources.azure import gpus_of
from markets.sources.oci import PRICES_PATH, SHAPES_PATH
from tests.markets.sources import (
    case_azure,
    case_gcp,
    case_oci,
)
from tests.markets.sources.document import price_data, recorded
from tests.markets.sources.loopback import Loopback
from tests.markets.sources.polling import one, poll

# Oracle


async def test_oracles_preemptible_is_half_the_price_and_of_virtual_machines_alone() -> None:
    offers = await poll(case_oci.CASE)
    demand, spot = (one(offers, sku="VM.GPU.A10.2", pricing=pricing) for pricing in ("on_demand", "spot"))
    assert (demand.price, spot.price) == (4, 2)
    assert one(offers, sku="BM.GPU.H100.8").pricing == "on_demand"


async def test_an_oracle_part_without_a_price_is_unknown_and_not_another_parts() -> None:
    offer = one(await poll(case_oci.CASE), sku="BM.GPU.L40S.4")
    assert offer.price is None and offer.quarantined


async def test_oracles_recorded_price_list_is_read() -> None:
    offers = await poll(case_oci.CASE, {f"GET {PRICES_PATH}": recorded("oci", "cetools-prices-usd.json")})
    assert one(offers, sku="BM.GPU.H100.8").price == 80
    assert one(offers, sku="BM.GPU.H100.8").accelerator.name == "h100-sxm"


async def test_oracles_memory_of_a_gpu_is_the_tables() -> None:
    """Its estimator says 24 GiB of everything here, and misstates several new shapes."""
    offer = one(await poll(case_oci.CASE), sku="BM.GPU.H100.8")
    assert offer.accelerator.memory_mib == 80 * 1024


@pytest.mark.parametrize(
    ("shape", "gpus", "kind", "name", "gib"),
    [
        ("BM.GPU.MI300X.8", 8, "amd", "mi300x", 192),
        ("BM.GPU.MI355X-v1.8", 8, "amd", "mi355x", 288),
        ("BM.GPU.GB200.4", 4, "nvidia", "gb200", 186),
    ],
)
async def test_oracles_shapes_have_their_accelerators_facts(
    shape: str, gpus: int, kind: str, name: str, gib: int
) -> None:
    shapes = {"items": [case_oci.shape(shape, gpus, "B98415")]}
    [offer] = await poll(case_oci.CASE, {f"GET {SHAPES_PATH}": shapes})
    chip = offer.accelerator
    assert (chip.kind, chip.name, chip.count, chip.memory_mib) == (kind, name, gpus, gib * 1024)
    assert offer.price == 10 * gpus and offer.quarantined is None


async def test_without_a_region_oracle_has_no_place() -> None:
    shapes = {f"GET {SHAPES_PATH}": {"items": case_oci.SHAPES[:1]}}
    everywhere = {each.country for each in await poll(case_oci.CASE, shapes)}
    assert everywhere == {"DE"}


async def test_an_error_is_one_of_ours() -> None:
    with pytest.raises(MarketsError):
        await poll(case_oci.CASE, {f"GET {SHAPES_PATH}": {"items": "soon"}})


# Azure


async def test_azure_spot_is_known_by_a_word_and_its_0_is_unknown() -> None:
    offers = await poll(case_azure.CASE)
    demand, spot = (one(offers, sku=case_azure.A100, pricing=pricing) for pricing in ("on_demand", "spot"))
    assert (demand.price, spot.price) == (Decimal("3.673"), Decimal("0.84"))
    assert (spot.notice_s, spot.interruption_per_hour, demand.interruption_per_hour) == (30, None, 0)
    unknown = one(offers, sku=case_azure.H100, pricing="spot")
    assert unknown.price is None and unknown.quarantined


async def test_of_azures_rows_the_one_that_is_billed_now_counts() -> None:
    """Not low priority (0.73), not the price of a year to come (9.99), not that of another meter region (4.44)."""
    prices = {offer.price for offer in await poll(case_azure.CASE) if offer.key.sku == case_azure.A100}
    assert prices == {Decimal("3.673"), Decimal("0.84")}


async def test_an_azure_size_that_nobody_knows_is_listed_and_never_chosen() -> None:
    offers = await poll(case_azure.CASE)
    assert "not in the table" in str(one(offers, sku="Standard_NX96_B900_v9").quarantined)
    assert "a slice" in str(one(offers, sku=case_azure.SLICE).quarantined)


async def test_azures_mi300x_is_eight_amd_accelerators() -> None:
    answer = {
        f"GET {case_azure.PRICES}": {
            "Items": [case_azure.item("Standard_ND96isr_MI300X_v5", "eastus", 48.0)],
            "NextPageLink": None,
        }
    }
    offer, *_ = await poll(case_azure.CASE, answer)
    chip = offer.accelerator
    assert (chip.kind, chip.name, chip.count, chip.memory_mib) == ("amd", "mi300x", 8, 192 * 1024)
    assert offer.quarantined is None and offer.price == 48


async def test_azure_asks_one_region_at_a_time_for_gpus_alone() -> None:
    async with Loopback(case_azure.CASE.answers) as api:
        source = case_azure.CASE.open(api.url)
        await source.offers()
        await source.close()
    assert len(api.requests) == 3
    assert all("Standard_N" in each and each.count("armRegionName") == 1 for each in api.requests)


async def test_azures_next_page_on_another_host_is_not_followed() -> None:
    answers = {
        f"GET {case_azure.PRICES}": {"Items": [], "NextPageLink": "https://prices.elsewhere.example/api/retail/prices"}
    }
    with pytest.raises(ShapeDrift, match=r"prices\.elsewhere\.example"):
        await poll(case_azure.CASE, answers)


def test_every_azure_gpu_size_of_two_years_is_known() -> None:
    """All N-series sizes that karpenter-provider-azure listed from 2023-10 to 2025-06; of the rest nobody says the GPUs."""
    found = {row["instance"] for row in price_data("azure_gpu_on_demand_history.csv.gz")}
    unknown = {sku for sku in found if gpus_of(sku)[0] is None and not sku.startswith("Standard_NP")}
    assert unknown == {
        "Standard_NC8ads_A10_v4", "Standard_NC16ads_A10_v4", "Standard_NC32ads_A10_v4",
        "Standard_NV4as_v4", "Standard_NV8as_v4", "Standard_NV16as_v4", "Standard_NV32as_v4",
    }  # fmt: skip


# Google Cloud


async def test_googles_machines_are_listed_where_their_accelerator_exists_and_nowhere_else() -> None:
    """Its calculator prices every machine type in every region: a naive L4 minimum is 0.077, the true one 0.27."""
    offers = await poll(case_gcp.CASE)
    assert {offer.key.zone for offer in offers if offer.key.sku == "g2-standard-4"} == {"us-central1-a"}
    assert not [offer for offer in offers if offer.key.sku == "a2-highgpu-8g"]  # deprecated


async def test_a_google_machine_costs_the_sum_of_its_parts() -> None:
    """The machine's own price of 2025-12-25 in Cyclenerd's weekly table, which Google's calculator was asked for."""
    offer = one(await poll(case_gcp.CASE), sku="a2-highgpu-1g")
    assert offer.price == Decimal("3.673385") == sum(offer.components.values())
    assert (offer.accelerator.name, offer.country, offer.key.region) == ("a100-sxm-40", "US", "us-central1")


async def test_google_prices_are_those_of_cyclenerds_table() -> None:
    rows = price_data("gcp_gpu_weekly.csv.gz")
    (row,) = [
        row for row in rows
        if (row["date"], row["instance"], row["region"]) == ("2025-12-25", "a2-highgpu-1g", "us-central1")
    ]  # fmt: skip
    assert one(await poll(case_gcp.CASE), sku="a2-highgpu-1g").price == Decimal(row["hour_usd"])


# Of the catalogue as it was on 2026-06-14: descriptions, regions and amounts are Google's own.
TPU_SKUS = [
    case_gcp.sku("TpuV5e running in Delhi", "OnDemand", "us-central1", 1, 441_320_000),
    case_gcp.sku(
        "TpuV5e attached to Spot Preemptible VMs running in Singapore", "Preemptible", "us-central1", 0, 780_000_000
    ),
    case_gcp.sku("TPU7x running in Americas", "OnDemand", "us-central1", 12, 0),
    case_gcp.sku("Reserved TpuV5e in Delhi in Calendar Mode", "OnDemand", "us-central1", 1, 0),
    case_gcp.sku("Commitment v1: TpuV5e running in Netherlands for 3 Years", "Commit3Yr", "us-central1", 1, 0),
    case_gcp.sku("DWS Defined Duration V5e", "OnDemand", "us-central1", 0, 700_000_000),
    case_gcp.sku("Tpu-v4 Pod Accelerator USA", "OnDemand", "us-central1", 12, 880_000_000),
]
TPU_MACHINES = [
    case_gcp.machine("ct5lp-hightpu-4t", 112, 192),
    case_gcp.machine("ct5lp-hightpu-4t-tpu", 112, 192, "tpu-v5e", 4),
    case_gcp.machine("tpu7x-standard-4t", 224, 960, "tpu7x", 4),
    case_gcp.machine("ct6e-standard-8t", 360, 1440, "ct6e", 8),  # no SKU of it there
]


async def google_tpus(*more: dict[str, Any]) -> list[Offer]:
    listed = case_gcp.aggregated("machineTypes", {"us-central1-a": TPU_MACHINES})
    skus = case_gcp.billing([*case_gcp.SKUS_1, *TPU_SKUS, *more])
    offers = await poll(case_gcp.CASE, {f"GET {case_gcp.COMPUTE}/machineTypes": listed, f"GET {gcp.SKUS}": skus})
    return [each for each in offers if each.accelerator.kind == "tpu"]


async def test_google_tpus_cost_their_chips_in_the_zones_that_have_them() -> None:
    """Reserved, committed and flex-start SKUs say the same words with other prices: v5e is 1.44 USD a chip, not 0.70."""
    offers = await google_tpus()
    found = {(each.key.sku, each.accelerator.name, each.accelerator.count, each.pricing, each.price) for each in offers}
    v5e = {("tpu-v5e", 4, "on_demand", Decimal("5.76528")), ("tpu-v5e", 4, "spot", Decimal("3.12"))}
    skus = ("ct5lp-hightpu-4t", "ct5lp-hightpu-4t-tpu")
    assert found == {(sku, *each) for sku in skus for each in v5e} | {
        ("tpu7x-standard-4t", "tpu-7x", 4, "on_demand", Decimal(48))
    }
    assert all(each.country == "US" and each.key.zone == "us-central1-a" and not each.quarantined for each in offers)
    assert {each.accelerator.memory_mib for each in offers} == {16 * 1024, 192 * 1024}


async def test_a_tpu_with_two_prices_has_none_and_google_has_all_others() -> None:
    other = case_gcp.sku("TpuV5e running in Iowa", "OnDemand", "us-central1", 2, 0)
    offers = {(each.accelerator.name, each.pricing): each for each in await google_tpus(other)}
    assert offers["tpu-v5e", "on_demand"].price is None and "unknown" in (
        offers["tpu-v5e", "on_demand"].quarantined or ""
    )
    assert offers["tpu-v5e", "spot"].quarantined is None and offers["tpu-7x", "on_demand"].quarantined is None


@pytest.mark.parametrize(
    "is_granted", [True, False]
)  # False: an answer that is no error of Google's, and broke its library
async def test_google_offers_say_what_the_region_still_grants_and_have_prices_without_that(is_granted: bool) -> None:
    """A key that may not read regions has prices all the same, and quotas that nobody knows."""
    granted = [
        {"metric": "NVIDIA_L4_GPUS", "limit": 8.0, "usage": 3.0},
        {"metric": "PREEMPTIBLE_NVIDIA_L4_GPUS", "limit": 1.0, "usage": 1.0},
        {"metric": "NVIDIA_T4_GPUS", "limit": 0.0, "usage": 0.0},
    ]
    regions = {"kind": "compute#regionList", "items": [{"name": "us-central1", "quotas": granted}]}
    path = "GET /compute/v1/projects/project-1/regions"
    offers = await poll(case_gcp.CASE, {path: regions} if is_granted else None)
    found = {(each.key.sku, each.pricing): each.quota for each in offers if each.quota}
    group = "gcp/us-central1/{}NVIDIA_L4_GPUS".format
    assert len(offers) == case_gcp.CASE.offers and found == (
        {
            ("g2-standard-4", "on_demand"): QuotaShare(group(""), 1, 5, "GPU"),
            ("g2-standard-4", "spot"): QuotaShare(group("PREEMPTIBLE_"), 1, 0, "GPU"),
        }
        if is_granted
        else {}
    )


async def test_old_google_tpus_are_listed_with_the_reason_and_never_chosen() -> None:
    """They were missing without a word: Compute Engine has their accelerators and no machines, a SKU has a price for a pod."""
    where = {"us-central1-a": case_gcp.chips("nvidia-l4", "ct3", "ct3p", "ct4p", "ct5lp")}
    changed = {f"GET {case_gcp.COMPUTE}/acceleratorTypes": case_gcp.aggregated("acceleratorTypes", where)}
    old = [each for each in await poll(case_gcp.CASE, changed) if each.accelerator.kind == "tpu"]
    assert {(each.key.sku, each.accelerator.name, each.price) for each in old} == {
        ("ct3", "tpu-v3", None),
        ("ct3p", "tpu-v3", None),
        ("ct4p", "tpu-v4", None),
    }
    assert all("Cloud TPU API" in (each.quarantined or "") and each.country == "US" for each in old)


async def test_an_error_page_that_is_not_googles_own_broke_its_library_and_the_poll() -> None:
    """`{"error": "no such page"}`, of a proxy in between: the library takes the text for an object."""
    bare = dataclasses.replace(case_gcp.CASE, answers={})
    with pytest.raises(ShapeDrift, match="Compute Engine"):
        await poll(bare)


async def test_a_google_machine_that_is_not_sold_on_demand_is_not_chosen_though_it_has_a_price() -> None:
    offer = one(await poll(case_gcp.CASE), sku="a3-ultragpu-8g", pricing="on_demand")
    ssd = Decimal("0.088") / 730 * 32 * 375
    assert offer.price is not None and abs(offer.price - 72 - Decimal("4.48") - Decimal("5.904") - ssd) < Decimal(
        "1e-6"
    )
    assert "not sold on demand" in str(offer.quarantined)
    assert offer.accelerator.name.startswith("h200")


async def test_googles_attached_accelerators_come_with_their_machine() -> None:
    offer = one(await poll(case_gcp.CASE), accelerator="t4")
    assert offer.key.sku == "n1-standard-8+1xnvidia-tesla-t4" and offer.key.zone == "us-central1-a"
    assert offer.price == Decimal("0.35") + 8 * Decimal("0.031611") + 30 * Decimal("0.004237")


async def test_a_google_part_without_a_price_makes_the_whole_unknown() -> None:
    without = [row for row in case_gcp.SKUS_2 if "A2 Instance Ram" not in row["description"]]
    offers = await poll(case_gcp.CASE, {f"GET {gcp.SKUS}": case_gcp.billing(case_gcp.SKUS_1, without)})
    offer = one(offers, sku="a2-highgpu-1g")
    assert offer.price is None and "ram has no price" in str(offer.quarantined)


async def test_two_prices_of_one_google_part_are_no_price() -> None:
    other = {**case_gcp.SKUS_2[0], "pricingInfo": case_gcp.SKUS_2[1]["pricingInfo"]}
    with pytest.raises(ShapeDrift, match="two prices of gpu of nvidia-tesla-a100"):
        await poll(case_gcp.CASE, {f"GET {gcp.SKUS}": case_gcp.billing(case_gcp.SKUS_1, [*case_gcp.SKUS_2, other])})


async def test_googles_recorded_skus_are_read_and_rupiahs_are_no_dollars() -> None:
    skus = recorded("gcp", "billing-skus-sample.json")["skus"]
    dollars = [row for row in skus if "USD" in str(row)]
    offers = await poll(case_gcp.CASE, {f"GET {gcp.SKUS}": case_gcp.billing(skus)})
    offer = one(offers, sku="a2-highgpu-1g")
    assert len(dollars) == 3 and offer.price == Decimal("3.673385")


async def test_a_google_key_that_is_none_is_told_without_it() -> None:
    async with Loopback(case_gcp.CASE.answers) as api:

        async def broken() -> dict[str, str]:
            return {"service_account": '{"private_key": "-----BEGIN secret"'}

        source = gcp.GcpSource(broken, Reach(api.url), compute=api.url)
        with pytest.raises(NotAuthorized) as refused:
            await source.offers()
        await source.close()
    assert "BEGIN secret" not in str(refused.value)


async def test_the_billing_catalogue_is_asked_as_its_discovery_document_says() -> None:
    document = recorded("gcp", "cloudbilling.v1.discovery.json")
    method = document["resources"]["services"]["resources"]["skus"]["methods"]["list"]
    async with Loopback(case_gcp.CASE.answers) as api:
        source = case_gcp.CASE.open(api.url)
        await source.offers()
        await source.close()
    asked = [urlsplit(each.partition(" ")[2]) for each in api.requests if "/skus" in each]
    assert asked and all(re.fullmatch(r"/v1/services/[^/]+/skus", each.path) for each in asked)
    assert {name for each in asked for name, _ in parse_qsl(each.query)} <= set(method["parameters"])


async def test_google_skus_are_read_once_for_many_polls() -> None:
    async with Loopback(case_gcp.CASE.answers) as api:
        source = case_gcp.CASE.open(api.url)
        await source.offers()
        await source.offers()
        await source.close()
    assert sum("/skus" in each for each in api.requests) == 2


async def test_compute_engines_pages_that_go_round_are_an_error() -> None:
    """Google's own library would follow them for ever."""
    forever = case_gcp.aggregated("machineTypes", case_gcp.FIRST, following="1")
    with pytest.raises(ShapeDrift, match="go round"):
        await poll(case_gcp.CASE, {f"GET {case_gcp.COMPUTE}/machineTypes": forever})
