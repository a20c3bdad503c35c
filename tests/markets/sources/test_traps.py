"""What real price data does to a naive reader: each trap of the research as the promise that it is not fallen into."""

from __future__ import annotations

import copy
import re
from decimal import Decimal
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pytest
import stamina

from markets.errors import MarketsError, NotAuthorized, ShapeDrift, Unavailable
from markets.offer import Offer
from markets.provider.api import Reach
from markets.provider.listing import country_of
from markets.sources import gcp, vultr
from markets.sources.azure import gpus_of
from markets.sources.oci import PRICES_PATH, SHAPES_PATH
from markets.sources.runpod import COUNTS
from markets.sources.scaleway import ScalewaySource
from tests.markets.sources import (
    case_azure,
    case_gcp,
    case_lambda,
    case_oci,
    case_runpod,
    case_scaleway,
    case_vast,
    case_verda,
    case_vultr,
)
from tests.markets.sources.cases import Case
from tests.markets.sources.document import official, price_data, recorded
from tests.markets.sources.loopback import Answer, Fault, Loopback, Reply


async def poll(case: Case, answers: dict[str, Answer] | None = None, *, anonymous: bool = False) -> list[Offer]:
    """One poll of the case's adapter, with some of its answers replaced."""
    async with Loopback({**case.answers, **(answers or {})}) as api:
        source = case.open(api.url, anonymous=anonymous)
        with stamina.set_testing(True, attempts=1):
            try:
                return await source.offers()
            finally:
                await source.close()


def one(offers: list[Offer], **wanted: Any) -> Offer:
    """The only offer whose key has these parts."""
    found = [each for each in offers if all(getattr(each.key, name) == value for name, value in wanted.items())]
    assert len(found) == 1, [str(each.key) for each in found or offers]
    return found[0]


# Lambda


async def test_lambda_prices_are_cents() -> None:
    offer = one(await poll(case_lambda.CASE), sku="gpu_8x_h100_sxm5", region="us-south-1")
    assert (offer.price, offer.country, offer.accelerator.name) == (Decimal("23.92"), "US", "h100-sxm")


async def test_lambda_of_2023_is_read_too() -> None:
    """No count of GPUs, no `gpu_description`, prices as texts in its own example."""
    old = {
        "instance_type": {
            "name": "gpu_4x_a6000",
            "description": "4x RTX A6000 (48 GB)",
            "price_cents_per_hour": "320",
            "specs": {"vcpus": 24, "memory_gib": 800, "storage_gib": 512},
        },
        "regions_with_capacity_available": [{"name": "us-az-1", "description": "Phoenix, Arizona"}],
    }
    answers = {"GET /api/v1/instance-types": {"data": {"gpu_4x_a6000": old}}}
    (offer,) = await poll(case_lambda.CASE, answers)
    assert (offer.price, offer.accelerator.name, offer.accelerator.count) == (Decimal("3.2"), "rtx-a6000", 4)
    assert offer.country is None


async def test_lambda_says_which_of_its_words_has_changed() -> None:
    types = copy.deepcopy(case_lambda.TYPES)
    for row in types.values():
        row["instance_type"]["usd_per_hour"] = row["instance_type"].pop("price_cents_per_hour")  # type: ignore[index, attr-defined]
    with pytest.raises(ShapeDrift, match=r"data\.gpu_8x_h100_sxm5\.instance_type has no member 'price_cents_per_hour'"):
        await poll(case_lambda.CASE, {"GET /api/v1/instance-types": {"data": types}})


async def test_a_region_that_has_sold_out_stays_listed_with_capacity_0() -> None:
    empty = copy.deepcopy(case_lambda.TYPES)
    for row in empty.values():
        row["regions_with_capacity_available"] = []
    days = iter([case_lambda.TYPES, empty])
    async with Loopback({"GET /api/v1/instance-types": lambda *_: {"data": next(days)}}) as api:
        source = case_lambda.CASE.open(api.url)
        before, after = await source.offers(), await source.offers()
        await source.close()
    assert {str(offer.key) for offer in before} == {str(offer.key) for offer in after}
    assert {offer.capacity for offer in after} == {0}


def test_atlanta_georgia_is_not_in_the_caucasus() -> None:
    assert country_of("Atlanta, Georgia") is None
    assert country_of("Los Angeles, CA") is None  # not Canada
    assert country_of("Wilmington, DE") is None  # not Germany


# RunPod


async def test_a_runpod_bid_that_saves_nothing_is_listed_as_it_is() -> None:
    offers = await poll(case_runpod.CASE, anonymous=True)
    bid, demand = (one(offers, sku="NVIDIA H100 80GB HBM3/secure", count=1, pricing=p) for p in ("bid", "on_demand"))
    assert bid.price == demand.price == Decimal("2.69")
    assert bid.interruption_per_hour is None and demand.interruption_per_hour == 0


async def test_a_runpod_type_without_stock_is_listed_with_capacity_0_and_without_a_price_as_unknown() -> None:
    offers = await poll(case_runpod.CASE, anonymous=True)
    a40, l4 = one(offers, accelerator="a40"), one(offers, accelerator="l4")
    assert (a40.capacity, a40.price, a40.quarantined) == (0, Decimal("0.4"), None)
    assert (l4.capacity, l4.price) == (0, None) and l4.quarantined


async def test_runpods_eu_ro_1_is_in_romania_and_us_ca_2_not_in_canada() -> None:
    offers = await poll(case_runpod.CASE)
    assert one(offers, region="EU-RO-1").country == "RO"
    sold_out = one(offers, region="US-CA-2")
    assert (sold_out.country, sold_out.capacity) == ("US", 0)


async def test_without_a_key_no_runpod_offer_claims_a_place() -> None:
    assert {offer.country for offer in await poll(case_runpod.CASE, anonymous=True)} == {None}


async def test_the_recorded_runpod_answer_is_read() -> None:
    """46 types of 2026-05-31, in the shape that was asked for then; four of them are in neither cloud."""
    types = recorded("runpod", "graphql-gpu_types.recorded.json")["response"]["data"]["gpuTypes"]
    for row in types:
        lowest = row.pop("lowestPrice")
        row["secure1"] = lowest if row["secureCloud"] else None
        row["community1"] = None if row["secureCloud"] else lowest
    offers = await poll(case_runpod.CASE, {"POST /graphql": {"data": {"gpuTypes": types}}}, anonymous=True)
    bids = [offer for offer in offers if offer.pricing == "bid"]
    assert len({offer.key.sku.rpartition("/")[0] for offer in offers}) == 42
    assert len(bids) == 15 and all(bid.price for bid in bids)
    assert all(offer.price or offer.quarantined for offer in offers)


async def test_runpods_catalogue_is_asked_as_its_document_says() -> None:
    document = official("runpod", "rest-v2-openapi.json")
    if document is None:
        pytest.skip("no official document here")
    async with Loopback(case_runpod.CASE.answers, document=document) as api:
        source = case_runpod.CASE.open(api.url)
        await source.offers()
        await source.close()
    assert [each for each in api.violations if "graphql" not in each] == []
    assert sum(each.startswith("GET /v2/catalog/gpus") for each in api.requests) == len(COUNTS)


async def test_a_graphql_refusal_with_status_200_is_an_error() -> None:
    with pytest.raises(Unavailable, match="not today"):
        await poll(case_runpod.CASE, {"POST /graphql": {"errors": [{"message": "not today"}], "data": None}})


# Vast.ai


async def test_a_vast_bid_of_0_is_unknown_and_not_the_price_of_its_disk() -> None:
    offer = one(await poll(case_vast.CASE), sku="3", pricing="bid")
    assert offer.price is None and "unknown" in str(offer.quarantined)


async def test_a_vast_price_has_its_disk_in_it_and_its_traffic_both_ways_beside_it() -> None:
    offer = one(await poll(case_vast.CASE), sku="2")
    disk = Decimal("0.15") * 100 / 720
    assert offer.price is not None and abs(offer.price - Decimal("0.31") - disk) < Decimal("1e-9")
    assert (offer.egress_per_gb, offer.ingress_per_gb) == (Decimal("0.004"), Decimal("0.002"))


async def test_vasts_verified_is_a_score_and_no_proof_of_a_place() -> None:
    offers = await poll(case_vast.CASE)
    bid, center = one(offers, sku="1", pricing="bid"), one(offers, sku="1", pricing="on_demand")
    assert (bid.location_tier, bid.country, bid.evidence[0].kind) == ("claimed", "US", "host_claim")
    assert (center.location_tier, center.country) == ("verified_host", "IS")
    assert bid.operator is None and bid.jurisdictions is None


async def test_a_vast_host_without_a_place_has_no_country() -> None:
    offer = one(await poll(case_vast.CASE), sku="2")
    assert (offer.country, offer.location_tier, offer.evidence) == (None, "anonymous", ())


async def test_vasts_object_for_an_array_is_read() -> None:
    """The example of its own document."""
    offers = await poll(case_vast.CASE, {"POST /api/v0/bundles/": {"offers": case_vast.ask(9)}})
    assert {(offer.key.sku, offer.pricing) for offer in offers} == {("9", "on_demand"), ("9", "bid")}


async def test_a_vast_host_that_leaves_within_the_hour_is_not_chosen() -> None:
    offers = await poll(case_vast.CASE, {"POST /api/v0/bundles/": {"offers": [case_vast.ask(9, duration=1800)]}})
    assert all("takes it back in 1800 s" in str(offer.quarantined) for offer in offers)


async def test_a_vast_list_that_was_cut_is_no_list(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("markets.sources.vast.MOST", 2)
    with pytest.raises(Unavailable, match="cut"):
        await poll(case_vast.CASE)


# Vultr


async def test_vultrs_empty_place_and_machines_without_gpus_are_no_offers() -> None:
    offers = await poll(case_vultr.CASE)
    assert one(offers, sku=case_vultr.A100["id"]).key.region == "ewr"
    assert not [offer for offer in offers if offer.key.sku == case_vultr.CPU["id"]]


async def test_a_slice_of_a_vultr_gpu_is_not_taken_for_one() -> None:
    offer = one(await poll(case_vultr.CASE), sku=case_vultr.SLICE["id"])
    assert offer.accelerator.fraction == Decimal("0.05") and "a slice" in str(offer.quarantined)


async def test_vultrs_bare_metal_names_its_gpus_in_its_id_alone() -> None:
    offers = await poll(case_vultr.CASE)
    demand, spare = (one(offers, sku=case_vultr.H100["id"], pricing=pricing) for pricing in ("on_demand", "spot"))
    assert (demand.accelerator.name, demand.accelerator.count, demand.country) == ("h100", 8, "NL")
    assert (demand.price, spare.price) == (Decimal("23.92"), Decimal("18.4"))


async def test_a_vultr_plan_that_is_not_sold_on_demand_is_not_listed_so() -> None:
    offer = one(await poll(case_vultr.CASE), sku=case_vultr.MI325X["id"])
    assert (offer.pricing, offer.capacity, offer.accelerator.count) == ("spot", 0, 6)


def test_every_vultr_device_is_in_the_accelerator_table() -> None:
    assert [device for device in vultr.WHOLE_GIB if not vultr.is_known(device)] == []


async def test_a_provider_and_our_table_that_differ_on_a_place_are_both_not_believed() -> None:
    moved = [{**case_vultr.REGIONS[0], "country": "BR"}, case_vultr.REGIONS[1]]
    offers = await poll(case_vultr.CASE, {"GET /v2/regions": case_vultr.page("regions", *moved)})
    offer = one(offers, sku=case_vultr.A100["id"])
    assert offer.country is None and "BR by its provider and in US by our table" in str(offer.quarantined)


# Verda


async def test_verdas_memory_is_of_all_gpus_together() -> None:
    offers = await poll(case_verda.CASE)
    assert {offer.accelerator.memory_mib for offer in offers if offer.key.sku == "2A6000.20V"} == {48 * 1024}
    assert not [offer.quarantined for offer in offers if offer.quarantined]


async def test_verda_has_spot_room_of_its_own_and_iceland_is_not_finland() -> None:
    offers = await poll(case_verda.CASE)
    here = one(offers, sku="1H100.80S.30V", region="FIN-01", pricing="on_demand")
    spot = one(offers, sku="1H100.80S.30V", region="FIN-01", pricing="spot")
    there = one(offers, sku="1H100.80S.30V", region="ICE-01", pricing="on_demand")
    assert (here.price, spot.price) == (Decimal("3.95"), Decimal("1.70"))
    assert (here.capacity, spot.capacity, there.capacity) == (None, 0, 0)
    assert (here.country, there.country) == ("FI", "IS")


async def test_a_verda_token_that_has_ended_is_fetched_anew() -> None:
    async with Loopback(case_verda.CASE.answers) as api:
        source = case_verda.CASE.open(api.url)
        await source.offers()
        api.faults = (Fault(401, after=len(api.requests), times=1),)
        assert len(await source.offers()) == case_verda.CASE.offers
        await source.close()
    assert sum(each.startswith("POST /v1/oauth2/token") for each in api.requests) == 2


async def test_a_verda_refusal_shows_neither_secret_nor_token() -> None:
    async with Loopback(case_verda.CASE.answers, faults=(Fault(403, after=1),)) as api:
        source = case_verda.CASE.open(api.url)
        with pytest.raises(NotAuthorized) as refused:
            await source.offers()
        await source.close()
    assert "secret_verda" not in str(refused.value) and "token_of_a_moment" not in str(refused.value)


async def test_the_recorded_verda_rows_are_read() -> None:
    rows = recorded("verda", "instance-types-sample.json")
    answers = {
        "GET /v1/instance-types": [value for name, value in rows.items() if name != "data"],
        "GET /v1/instance-availability": rows["data"],
    }
    offers = await poll(case_verda.CASE, answers)
    offer = one(offers, sku="1V100.6V", region="FIN-01", pricing="spot")
    assert (offer.price, offer.capacity, offer.accelerator.name) == (Decimal("0.25"), None, "v100-16")


# Scaleway


async def test_euros_without_a_rate_are_an_unknown_price_and_with_one_dated_dollars() -> None:
    case = case_scaleway.CASE
    async with Loopback(case.answers) as api:
        without = case_scaleway.Case(
            name="scaleway",
            make=lambda keys, reach: ScalewaySource(keys, reach, zones=("fr-par-1", "pl-waw-2")),
            answers={},
            offers=4,
            credentials=case.credentials,
        ).open(api.url)
        unknown = await without.offers()
        await without.close()
    assert {offer.price for offer in unknown} == {None}
    assert all("no rate of EUR" in str(offer.quarantined) for offer in unknown)
    offer = one(await poll(case), sku="L4-1-24G")
    assert (offer.price, offer.currency) == (Decimal("0.86625"), "USD")
    assert "2026-11-01" in offer.raw["fx"]


async def test_scaleway_types_that_are_short_or_end_are_not_chosen() -> None:
    offers = await poll(case_scaleway.CASE)
    assert one(offers, sku="L4-8-24G").capacity == 0
    assert "ends this type" in str(one(offers, sku="RENDER-S").quarantined)
    assert one(offers, zone="pl-waw-2").country == "PL"


async def test_scaleway_pages_that_end_too_soon_are_no_list() -> None:
    short = {case_scaleway.path("pl-waw-2"): lambda request, _: Reply(
        {"servers": {} if request.query["page"] == "2" else case_scaleway.WARSAW[0]}, {"X-Total-Count": "70"}
    )}  # fmt: skip
    with pytest.raises(ShapeDrift, match="end at 1 of 70"):
        await poll(case_scaleway.CASE, short)


async def test_the_recorded_scaleway_types_are_read() -> None:
    found = recorded("scaleway", "gpu-server-types-fr-par-1.json")
    offers = await poll(case_scaleway.CASE, {case_scaleway.path("fr-par-1"): case_scaleway.pages(found)})
    l4 = one(offers, sku="L4-1-24G")
    assert (l4.accelerator.name, l4.accelerator.memory_mib, l4.capacity) == ("l4", 24 * 1024, 0)


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
