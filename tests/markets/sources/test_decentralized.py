"""Akash, Salad, Fluence and io.net: whose word a place is, what a price pays for, and what comes back of a deposit."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest

from markets.offer import Offer
from markets.provider.listing import Place
from markets.provider.shape import Shape, read
from markets.sources.akash import Gpu, akash_offers, places_of, screening
from markets.sources.fluence import container_offers, machine_offers
from markets.sources.ionet import ionet_offers
from markets.sources.resold import Direct
from markets.sources.salad import SaladSource
from tests.markets.sources.case_akash import AUDITOR, bidder, provider
from tests.markets.sources.case_fluence import MACHINES, METAL, PLANS, gpu, group, option, priced
from tests.markets.sources.case_ionet import B300, CONTAINERS, H100, row
from tests.markets.sources.case_salad import CASE as SALAD
from tests.markets.sources.case_salad import CLASSES
from tests.markets.sources.document import Document, official
from tests.markets.sources.loopback import Loopback

NOON = datetime(2026, 11, 27, 12, tzinfo=UTC)
H100_GPU = Gpu("nvidia", "h100", "80Gi", "SXM5", 4, Decimal("2.4"), {})


def said(value: Any) -> Shape:
    return read(json.dumps(value).encode(), "test")


def place(country: str | None, address: str | None, *, signed: bool, kind: str = "datacenter") -> Place | None:
    return places_of(said([provider("o", country, address, signed=signed, kind=kind)]))["o"]


def test_akash_is_verified_only_where_an_auditor_signed_a_data_center_whose_address_agrees() -> None:
    """Each of the three alone, and any two of them, is a claim."""
    verified = place("FR", "FR", signed=True)
    assert verified is not None and (verified.tier, verified.kind) == ("verified_host", "auditor_signed")
    for claimed in (
        place("FR", "FR", signed=False),
        place("FR", None, signed=True),
        place("FR", "FR", signed=True, kind="home"),
        place(None, "FR", signed=True),
    ):
        assert claimed is not None and claimed.tier == "claimed"


def test_akash_a_signature_of_somebody_else_is_none() -> None:
    stranger = provider("o", "FR", "FR", signed=True, kind="datacenter")
    stranger["attributes"][0]["auditedBy"] = [AUDITOR.replace("1365", "1366")]
    found = places_of(said([stranger]))["o"]
    assert found is not None and (found.tier, found.kind) == ("claimed", "host_claim")


def test_akash_a_word_that_its_gateways_address_contradicts_places_nobody() -> None:
    assert place("DE", "SG", signed=True) is None


def test_akash_an_address_alone_is_geoip_and_never_more_than_a_claim() -> None:
    """GeoIP is of the gateway's host name, not of the GPU's."""
    found = place(None, "DE", signed=False)
    assert found is not None and (found.tier, found.kind) == ("claimed", "geoip")


def akash(gpu: Gpu = H100_GPU, *bidders: dict[str, Any]) -> list[Offer]:
    return akash_offers([(gpu, [said(each) for each in bidders])], {}, NOON)


def test_akash_a_null_price_is_unknown_and_not_free() -> None:
    (unpriced,) = akash(replace(H100_GPU, price=None), bidder("o"))
    assert unpriced.price is None and unpriced.quarantined


def test_akash_plenty_of_gpus_and_no_bid_is_sold_out() -> None:
    """support#644: users see plenty of available GPUs and receive no bids."""
    (nobody,) = akash(H100_GPU)
    assert nobody.capacity == 0


def test_akash_a_provider_with_an_open_incident_has_nothing() -> None:
    up, down = akash(H100_GPU, bidder("up"), bidder("down", hasOpenIncident=True))
    assert (up.capacity, down.capacity) == (None, 0)


def test_akash_what_is_left_of_the_deposit_comes_back() -> None:
    (offer,) = akash(H100_GPU, bidder("o"))
    assert (offer.deposit, offer.refundable_fraction, offer.granularity_s) == (Decimal("0.5"), 1, 6)


def test_akash_screening_is_as_the_document_says_once_its_lost_backslash_is_back() -> None:
    """The saved document has 44 patterns `^d+$`: taken as they are they refuse every number."""
    document = official("akash", "console-openapi.json")
    if document is None:
        pytest.skip("no official document here")
    assert screening(H100_GPU)["resources"][0]["price"] == {"denom": "uact", "amount": "100000"}


async def test_salad_no_is_norway() -> None:
    """A YAML 1.1 reader makes `false` of it, and a filter for Norway then asks for everywhere."""
    async with Loopback(SALAD.answers, document=document_of_salad()) as api:
        source = SALAD.open(api.url)
        assert isinstance(source, SaladSource)
        offers = await source.offers()
        await source.close()
    assert api.violations == []
    assert {each.country for each in offers} == {"US", "NO"}
    assert all(each.capacity == 0 for each in offers if each.country == "NO")


def document_of_salad() -> Document | None:
    return SALAD.document() if SALAD.document else None


async def salad() -> list[Offer]:
    async with Loopback(SALAD.answers) as api:
        source = SALAD.open(api.url)
        offers = await source.offers()
        await source.close()
    return offers


async def test_salad_a_country_is_a_filter_and_no_more_than_a_claim() -> None:
    assert {each.location_tier for each in await salad()} == {"claimed"}


async def test_salad_hazard_is_measured_at_the_highest_priority_and_unknown_below_it() -> None:
    hazards = {each.key.sku.rpartition("/")[2]: each.interruption_per_hour for each in await salad()}
    assert hazards == {"high": Decimal("0.011"), "medium": None, "low": None, "batch": None}
    assert {each.notice_s for each in await salad()} == {0}


async def test_salad_counts_gpus_and_we_count_machines() -> None:
    eight = next(each for each in await salad() if each.accelerator.count == 8 and each.country == "US")
    assert eight.capacity == 21 // 8


def test_fluence_three_hours_are_deducted_one_is_spent_and_the_rest_comes_back() -> None:
    offer = container_offers(said(PLANS), NOON)[0]
    assert (offer.price, offer.deposit, offer.refundable_fraction) == (Decimal("2.96"), Decimal("5.92"), 1)
    assert (offer.minimum_s, offer.granularity_s) == (3600, 3600)


def test_fluence_usdc_is_a_dollar_and_another_coin_is_not() -> None:
    plan = json.loads(json.dumps(PLANS))
    plan[0]["plan"]["pricing"]["currency"] = "FLT"
    found = container_offers(said(plan), NOON)
    assert all(each.price is None and "FLT" in (each.quarantined or "") for each in found)


def test_fluence_eu_is_no_country() -> None:
    by_region = {each.key.region: each.country for each in container_offers(said(PLANS), NOON)}
    assert by_region == {"US": "US", "EU": None}


def test_fluence_the_cheapest_of_a_group_is_no_offer() -> None:
    offers = machine_offers(
        said({"data": [group(gpu("a10", "24Gi", "pcie"), 1, option("x", "dulles-usa-1", "sesterce", 0.99))]}),
        NOON,
        Direct(),
    )
    assert [(each.key.sku, each.price) for each in offers] == [("x", Decimal("0.99"))]


@pytest.mark.parametrize("vram", ["Gi", "NaNGi", "-1Gi", "24 Gi", "24"])
def test_fluence_a_memory_that_is_no_number_ends_no_poll(vram: str) -> None:
    listed = [group(gpu("a10", vram, "pcie"), 1, option("x", "dulles-usa-1", "sesterce", 0.99))]
    assert [each.key.sku for each in machine_offers(said({"data": listed}), NOON, Direct())] == ["x"]


def test_fluence_a_data_center_is_placed_by_the_country_it_names_in_full() -> None:
    found = machine_offers(said({"data": MACHINES}), NOON, Direct())
    assert {each.key.region: each.country for each in found} == {
        "us-central-3": None,
        "kristiansand-norway-2": "NO",
        "dulles-usa-1": "US",
    }


def test_fluence_machines_of_a_market_that_is_asked_itself_are_not_counted_twice() -> None:
    found = machine_offers(said({"data": MACHINES}), NOON, Direct(frozenset({"lambda"})))
    assert [each.key.sku for each in found if each.quarantined] == ["same"]


def test_fluence_bare_metal_is_a_machine_of_ones_own() -> None:
    (metal,) = machine_offers(said({"data": METAL}), NOON, Direct())
    assert (metal.confidentiality, metal.launch, metal.accelerator.count) == ("dedicated", "vm", 8)


def test_fluence_an_upfront_of_nothing_holds_nothing_back() -> None:
    plan = json.loads(json.dumps(PLANS))
    plan[0]["plan"]["pricing"] = priced(2.0, upfront=0)
    assert container_offers(said(plan), NOON)[0].deposit == 0


def ionet(machines: list[Any], containers: list[Any]) -> dict[str, Offer]:
    found = ionet_offers(said({"data": {"hardware": machines}}), said({"data": {"hardware": containers}}), NOON)
    return {each.key.sku: each for each in found}


def test_ionet_the_price_is_of_the_whole_block_and_not_of_a_gpu() -> None:
    block = ionet([H100], CONTAINERS)["8H100.80S.176V__FI"]
    assert block.accelerator.count == 8 and block.price is not None and round(block.price, 4) == Decimal("27.8753")


def test_ionet_sold_out_wins_over_whatever_is_counted() -> None:
    assert ionet([B300], CONTAINERS)["8B300.240V__FI"].capacity == 0


def test_ionet_a_row_as_short_as_its_document_allows_was_left_out() -> None:
    """`id`, `deploy_id`, `name`, `num_cards`, `supplier` and `price` are required there; memory and place may be null."""
    short = {"id": "x", "deploy_id": 7, "name": "H100", "num_cards": 8, "supplier": "io", "price": 27.8}
    offer = ionet([{**short, "vram_per_card": None, "location": None, "interconnect": None, "nvlink": False}], [])["x"]
    assert (offer.price, offer.capacity, offer.country) == (Decimal("27.8"), None, None)


def test_ionet_a_price_of_0_is_unknown_and_a_cpu_is_no_gpu() -> None:
    found = ionet([row("1L40S.0V__US", "L40S", 1, 48, 0, "US"), row("1CPU__US", "", 0, 0, 0.1, "US")], [])
    assert list(found) == ["1L40S.0V__US"]
    assert found["1L40S.0V__US"].price is None and found["1L40S.0V__US"].quarantined


def test_ionet_a_booking_is_sunk() -> None:
    block = ionet([H100], CONTAINERS)["8H100.80S.176V__FI"]
    assert (block.minimum_s, block.granularity_s, block.refundable_fraction) == (3600, 3600, 0)


def test_ionet_one_stock_is_listed_once() -> None:
    assert len(ionet([H100, B300], CONTAINERS)) == 2
    assert ionet([H100], [])["8H100.80S.176V__FI"].launch == "vm"
    assert ionet([H100], CONTAINERS)["8H100.80S.176V__FI"].launch == "container"


async def test_salad_a_class_of_no_gpus_is_no_cpu_machine_at_a_gpus_price() -> None:
    answers = dict(SALAD.answers)
    path = next(name for name in answers if name.endswith("/gpu-classes"))
    answers[path] = {"items": [each | {"gpu_count": 0} for each in CLASSES[:1]] + CLASSES[1:]}
    async with Loopback(answers) as api:
        source = SALAD.open(api.url)
        offers = await source.offers()
        await source.close()
    assert {each.accelerator.name for each in offers} == {"rtx-5090"}
