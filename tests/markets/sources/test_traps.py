"""What real price data of clouds for GPUs does to a naive reader: each trap of the research as the promise that it is not fallen
into."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from decimal import Decimal
from typing import Any

import pytest
from yarl import URL

from broker.control.quotas import quotas_left
from markets.errors import NotAuthorized, ShapeDrift, Unavailable
from markets.price_book import Listed
from markets.provider.listing import country_of
from markets.sources import vultr
from markets.sources.runpod import COUNTS
from markets.sources.scaleway import ScalewaySource
from tests.markets.sources import (
    case_lambda,
    case_runpod,
    case_scaleway,
    case_vast,
    case_verda,
    case_vultr,
)
from tests.markets.sources.document import cassette, official, recorded
from tests.markets.sources.loopback import Fault, Loopback, Reply
from tests.markets.sources.polling import one, poll

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

BUNDLES = "POST /api/v0/bundles/"


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


async def test_vast_asks_of_one_machine_are_the_same_gpus_and_never_more_than_it_has() -> None:
    """A machine of four is listed as four, as two and as one: seven GPUs to whoever adds them up."""
    asks = [case_vast.ask(number, machine_id=7, num_gpus=number) for number in (4, 2, 1)]
    other = [case_vast.ask(9, machine_id=8, num_gpus=2), case_vast.ask(10, machine_id=8, num_gpus=8, rentable=False)]
    listed = [
        Listed(each, each.observed_at, None, None)
        for each in await poll(case_vast.CASE, {BUNDLES: {"offers": asks + other}})
    ]
    assert {(each.market, each.remaining) for each in quotas_left(listed, ())} == {
        ("vast machine 7", 4),
        ("vast machine 8", 2),
    }
    assert {each.offer.quota.units for each in listed if each.offer.quota} == {1, 2, 4, 8}


async def test_a_vast_country_without_a_city_is_a_country_all_the_same() -> None:
    rows = [
        case_vast.ask(1, geolocation="DE"),
        case_vast.ask(2, geolocation=", GB"),
        case_vast.ask(3, geolocation="EU"),
    ]
    offers = await poll(case_vast.CASE, {BUNDLES: {"offers": rows}})
    assert {(each.key.sku, each.country) for each in offers} == {("1", "DE"), ("2", "GB"), ("3", None)}


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


def told_by(client: list[Any]) -> dict[str, Any]:
    """The answers of a recorded client, page by page."""
    pages: dict[str, dict[str, Reply]] = {}
    for each in client:
        url, answer = URL(each["request"]["url"]), each["response"]
        total = {name: value[0] for name, value in answer["headers"].items() if name == "X-Total-Count"}
        said = Reply(json.loads(answer["body"]), total)
        pages.setdefault(f"{each['request']['method']} {url.path}", {})[url.query.get("page", "1")] = said
    return {path: lambda request, _, of=of: of[request.query["page"]] for path, of in pages.items()}


async def test_scaleways_answers_as_its_own_cli_recorded_them_are_read() -> None:
    """What is free is no member of a type, as it was here before its own client was looked at: no offer could be read at all."""
    answers = told_by(cassette("scaleway", "server-type-list-fr-par1"))
    case = replace(
        case_scaleway.CASE,
        make=lambda keys, reach: ScalewaySource(keys, reach, zones=("fr-par-1",), fx=lambda: case_scaleway.EUR),
        answers=answers,
    )
    offers = await poll(case)
    l4 = one(offers, sku="L4-1-24G")
    assert (l4.accelerator.name, l4.accelerator.memory_mib, l4.capacity) == ("l4", 24 * 1024, 0)
    assert l4.price == Decimal("0.7875") * case_scaleway.EUR["EUR"].usd
    assert one(offers, sku="RENDER-S").accelerator.name == "p100" and all(each.country == "FR" for each in offers)
