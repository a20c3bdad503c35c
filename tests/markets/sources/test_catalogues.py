"""Thunder, Koyeb, OpenRouter and a cluster: names that mean two things, prices that are none, devices that are shared."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest

from markets.offer import Offer
from markets.provider.shape import Shape, read
from markets.sources.koyeb import koyeb_offers
from markets.sources.kubernetes import kubernetes_offers
from markets.sources.openrouter import openrouter_offers
from markets.sources.thunder import thunder_offers
from tests.markets.sources.case_koyeb import instance
from tests.markets.sources.case_kubernetes import CARD, CASE, H100, L4, NODES, PODS, node
from tests.markets.sources.case_openrouter import model
from tests.markets.sources.case_thunder import PRICES, SPECS
from tests.markets.sources.loopback import Fault, Loopback

NOON = datetime(2026, 11, 27, 12, tzinfo=UTC)


def said(value: Any) -> Shape:
    return read(json.dumps(value).encode(), "test")


def thunder(prices: dict[str, Any] = PRICES, specs: dict[str, Any] = SPECS) -> dict[str, Offer]:
    found = thunder_offers(said({"pricing": prices}), said({"specs": specs}), NOON)
    return {each.key.sku: each for each in found}


def test_thunder_a_shape_with_two_names_is_sold_once() -> None:
    assert [sku for sku in thunder() if sku.startswith("a100xl_x1")] == [
        "a100xl_x1_prototyping/8vcpu",
        "a100xl_x1_production/15vcpu",
    ]


def test_thunder_disks_and_cpus_among_the_prices_are_no_machines() -> None:
    assert {each.accelerator.name for each in thunder().values()} == {"a100-80", "h100", "rtx-a6000", "l40"}


def test_thunder_production_is_never_sold_at_the_price_of_prototyping() -> None:
    """Without a price of its own a mode has none: the other is 33 % lower."""
    prices = {name: price for name, price in PRICES.items() if name != "a100xl_x1_production"}
    production = thunder(prices)["a100xl_x1_production/15vcpu"]
    assert production.price is None and production.quarantined


def test_thunder_the_price_of_eight_is_of_all_eight() -> None:
    assert thunder()["h100_x8_production/120vcpu"].price == Decimal("19.92")


def test_thunder_north_america_is_no_country() -> None:
    assert {(each.country, each.location_tier) for each in thunder().values()} == {(None, "anonymous")}


def koyeb(*instances: dict[str, Any]) -> list[Offer]:
    return koyeb_offers([said(each) for each in instances], NOON)


def test_koyeb_is_billed_by_the_second_and_priced_by_it() -> None:
    (offer,) = koyeb(instance("l40s", "L40S", "0.0004306", "1.55", "fra"))
    assert (offer.price, offer.granularity_s) == (Decimal("0.0004306") * 3600, 1)


def test_koyeb_two_prices_that_contradict_each_other_are_none_to_plan_with() -> None:
    (offer,) = koyeb(instance("a40", "A40", "0.00019445", "1.55", "par"))
    assert "one of the two is wrong" in (offer.quarantined or "")


def test_koyeb_a_continent_is_no_country() -> None:
    found = {
        each.key.region: each.country
        for each in koyeb(instance("l40s", "L40S", "0.0004306", "1.55", "fra", "na", "eu"))
    }
    assert found == {"fra": "DE", "na": None, "eu": None}


def test_koyeb_what_is_not_open_is_listed_and_not_chosen() -> None:
    (offer,) = koyeb(instance("a40", "A40", "0.0003", "1.08", "tyo", status="preview"))
    assert "'preview'" in (offer.quarantined or "")


def test_koyeb_free_is_unknown() -> None:
    (offer,) = koyeb(instance("a40", "A40", "0", "0", "fra"))
    assert offer.price is None and offer.quarantined


def openrouter(*models: dict[str, Any]) -> list[Offer]:
    return openrouter_offers(said({"data": list(models)}), NOON)


def test_openrouter_a_price_of_one_token_becomes_one_of_a_million_exactly() -> None:
    (offer,) = openrouter(model("m", "0.0000001", "0.00000032", input_cache_read="0.00000005"))
    assert offer.per_million is not None
    assert (offer.per_million.input, offer.per_million.output, offer.per_million.cached) == (
        Decimal("0.1"),
        Decimal("0.32"),
        Decimal("0.05"),
    )


def test_openrouter_free_and_it_depends_are_no_prices() -> None:
    for prompt, completion in (("0", "0"), ("-1", "-1"), ("0.000001", "0"), ("0", "0.000001")):
        (offer,) = openrouter(model("m", prompt, completion))
        assert offer.quarantined


@pytest.mark.parametrize(
    ("override", "context", "why"),
    [
        ({"min_prompt_tokens": 32_000, "prompt": "0.000006"}, 32_000, None),
        ({"min_prompt_tokens": 900_000, "prompt": "0.000006"}, 131_072, None),
        ({"utc_start": 100, "utc_end": 400, "prompt": "0.000006"}, 131_072, "at some hours"),
        ({"utc_days": ["monday"], "completion": "0.00006"}, 131_072, "at some hours"),
    ],
)
def test_openrouter_the_dearer_price_of_long_prompts_was_not_seen(
    override: dict[str, Any], context: int, why: str | None
) -> None:
    """Its own SDK has `overrides`; planned by the price of every day, a batch of long prompts cost twice its quote."""
    asked = model("m", "0.000003", "0.000015")
    asked["pricing"]["overrides"] = [override]
    (offer,) = openrouter(asked)
    assert offer.endpoint is not None and offer.endpoint.context_tokens == context
    assert (why is None and offer.quarantined is None) or (why and why in (offer.quarantined or ""))


def test_openrouter_a_price_of_each_request_cannot_be_counted() -> None:
    (offer,) = openrouter(model("m", "0.000003", "0.000015", request="0.018"))
    assert "each request costs 0.018" in (offer.quarantined or "")


def test_openrouter_says_neither_where_nor_what_is_kept() -> None:
    (offer,) = openrouter(model("m", "0.000003", "0.000015"))
    assert (offer.country, offer.evidence, offer.location_tier, offer.data_policy) == (None, (), "anonymous", None)


def test_openrouter_cached_tokens_dearer_than_fresh_ones_are_a_mistake() -> None:
    (offer,) = openrouter(model("m", "0.000003", "0.000015", input_cache_read="0.000004"))
    assert offer.quarantined


def cluster(nodes: list[Any] = NODES, pods: list[Any] | None = PODS, **card: Any) -> dict[str, Offer]:
    found = kubernetes_offers(
        [said(each) for each in nodes],
        pods if pods is None else [said(each) for each in pods],
        replace(CARD, **card),
        NOON,
    )
    return {each.key.sku: each for each in found}


def test_a_cluster_costs_what_its_rate_card_says_per_gpu() -> None:
    found = cluster()
    assert found["gd-8xh100ib-i128/1of8"].price == Decimal("2.39")
    assert found["gd-8xh100ib-i128/8of8"].price == Decimal("2.39") * 8


def test_a_device_that_the_rate_card_does_not_name_has_no_price() -> None:
    assert all(each.price is None and each.quarantined for each in cluster(usd_per_gpu_hour={}).values())


def test_gpus_of_living_pods_are_taken_and_those_of_a_cordoned_node_are_not_there() -> None:
    """Eight on `a` less four of an init container; `b` is cordoned, and no eight are left anywhere."""
    found = cluster()
    assert (found["gd-8xh100ib-i128/1of8"].capacity, found["gd-8xh100ib-i128/8of8"].capacity) == (4, 0)


def test_a_taint_that_our_pods_do_not_tolerate_closes_a_node() -> None:
    assert cluster([node("a", 8, H100, taint="team/only")], [])["gd-8xh100ib-i128/8of8"].capacity == 0
    assert cluster([node("a", 8, H100, taint="nvidia.com/gpu")], [])["gd-8xh100ib-i128/8of8"].capacity == 1


def test_a_node_that_is_not_ready_has_nothing() -> None:
    broken = node("a", 8, H100)
    broken["status"]["conditions"] = [{"type": "Ready", "status": "Unknown"}]
    assert cluster([broken], [])["gd-8xh100ib-i128/8of8"].capacity == 0


def test_a_share_or_a_slice_of_a_gpu_is_not_a_gpu() -> None:
    shared = cluster([node("c", 4, L4)], [])["l4/1of4"]
    assert "shared by time" in (shared.quarantined or "")
    sliced = {**H100, "nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3-MIG-1g.10gb"}
    assert all("MIG" in (each.quarantined or "") for each in cluster([node("c", 7, sliced)], []).values())


def test_a_cluster_in_a_region_that_its_operator_does_not_place_has_no_country() -> None:
    assert {each.country for each in cluster(regions={}).values()} == {None}
    assert {each.country for each in cluster().values()} == {"US"}


async def test_without_leave_to_list_pods_nobody_knows_what_is_free() -> None:
    first_pods = len(NODES) // 2  # nodes come two a page
    async with Loopback(CASE.answers, faults=(Fault(403, after=first_pods),)) as api:
        source = CASE.open(api.url)
        offers = await source.offers()
        await source.close()
    assert {each.capacity for each in offers} == {None}
