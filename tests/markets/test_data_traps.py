"""What real price data do to a naive broker, trap by trap, each with the tests that say we do not fall into it; and the
integrity of offers that are made of every price file of the reference data (BROKER_REFERENCE).

The traps are all those of the research (`data_traps`, `markets_cloud`, `markets_depin`), but those of how machines are rented where
we only read prices. A name below that is no test, or is renamed, fails here.

| trap | tests |
| --- | --- |
| a calculator prices machines where the accelerator does not exist (GCP) | test_gcp_is_priced_only_where_the_device_exists, test_googles_machines_are_listed_where_their_accelerator_exists_and_nowhere_else |
| 0.00 or nothing is unknown, never free (Vast, Azure, Akash, io.net, OpenRouter) | test_price_0_is_unknown_never_free, test_azure_spot_is_known_by_a_word_and_its_0_is_unknown, test_a_vast_bid_of_0_is_unknown_and_not_the_price_of_its_disk, test_vasts_zero_spot_prices_are_unknown_and_its_continent_is_not_the_union, test_akash_a_null_price_is_unknown_and_not_free, test_ionet_a_price_of_0_is_unknown_and_a_cpu_is_no_gpu, test_openrouter_free_and_it_depends_are_no_prices |
| spot equals on-demand (RunPod) | test_a_runpod_bid_that_saves_nothing_is_listed_as_it_is |
| spot is above on-demand (AWS p5.48xlarge in ca-central-1: savings of -62 %) | test_spot_above_on_demand_is_believed |
| one file mixes prices per GPU and per instance | test_per_gpu_prices_among_per_instance_ones_are_caught |
| one GPU has many names | test_a_providers_name_means_one_device, test_every_row_is_found_again_by_its_own_name_and_is_plausible, test_the_history_of_list_prices_is_known_device_by_device |
| one name means several GPUs | test_what_a_name_does_not_settle_is_listed_and_not_guessed, test_a_machine_type_has_the_accelerator_that_our_models_know |
| an hour is cheap and its tokens are not | test_for_a_model_the_dearer_hour_can_be_the_cheaper_token |
| precision is part of what was asked for | test_fp8_is_claimed_only_where_the_arithmetic_exists, test_an_offer_that_cannot_compute_a_profile_says_why |
| local zones and government regions are not their region | test_local_zones_have_no_country_of_their_region, test_zones_belong_to_their_region_unless_they_lie_elsewhere, test_a_documented_region_has_its_country_and_evidence |
| a country without a city (Vast) | test_a_vast_country_without_a_city_is_a_country_all_the_same |
| who can compel the operator is another question than where it stands | test_the_parent_can_be_compelled_wherever_the_machine_is |
| continent EU is not the European Union; eu- in a name neither | test_vasts_zero_spot_prices_are_unknown_and_its_continent_is_not_the_union, test_regions_outside_of_the_union_are_not_in_it, test_koyeb_a_continent_is_no_country, test_fluence_eu_is_no_country |
| a list price falls 44 % in a day | test_a_list_price_that_falls_by_half_is_believed_and_one_that_falls_tenfold_only_when_repeated, test_a_year_of_gcps_prices_is_believed_week_by_week |
| what was quoted and what is charged differ for honest reasons | test_dstack_1890_what_was_quoted_and_what_is_charged_stand_side_by_side_in_the_books_of_a_machine, test_an_offer_that_bills_more_than_it_quotes_is_planned_with_as_it_bills |
| a copy of the spot traces has the sign turned (Frontier-CS) | test_the_inverted_trace_is_refused |
| spot is lost by region at once: spread over regions, and many losses are one event | test_six_machines_are_not_all_in_one_region, test_machines_taken_together_are_one_event_and_not_ten |
| how an engine is tuned moves cost as much as price does | test_what_was_measured_is_met_within_a_factor_of_two, test_what_the_operator_gives_and_what_was_measured_go_before_the_estimate |
| an unknown region fails closed | test_an_unknown_region_fails_closed, test_unlocated_offers_are_flagged |
| availability moves more than price: sold out is data | test_sold_out_is_data, test_a_region_that_has_sold_out_stays_listed_with_capacity_0, test_each_market_has_its_own_interval_and_limit_of_age |
| spot is one price a zone, and preemption comes by region | test_offers_are_of_linux_in_the_regions_own_zones_and_say_where_they_are |
| tokens can be bought for less than GPUs | test_buying_is_advised_where_it_is_allowed_and_costs_less |
| what the host says of its place is a claim | test_vasts_verified_is_a_score_and_no_proof_of_a_place, test_a_vast_host_without_a_place_has_no_country, test_salad_a_country_is_a_filter_and_no_more_than_a_claim |
| a host lists the same GPUs in several sizes (Vast) | test_vast_asks_of_one_machine_are_the_same_gpus_and_never_more_than_it_has |
| an ask for one device handed back another (Vast) | test_a_machine_that_contradicts_its_offer_at_the_hello_gets_no_key_and_no_input |
| attestation proves what runs, never where | test_a_machine_that_attests_itself_is_nowhere_without_evidence_of_its_place |
| GeoIP of the gateway is not the place of the GPU (Akash) | test_akash_is_verified_only_where_an_auditor_signed_a_data_center_whose_address_agrees, test_akash_an_address_alone_is_geoip_and_never_more_than_a_claim |
| the provider's own word for a device is needed again | test_the_providers_own_word_for_a_device_is_kept |
| an empty place, a plan for nothing (Vultr) | test_vultrs_empty_place_and_machines_without_gpus_are_no_offers |
| bare metal without GPU data (Vultr) | test_vultrs_bare_metal_names_its_gpus_in_its_id_alone |
| an estimator misstates memory (OCI), as does EC2 of Trainium2 | test_oracles_memory_of_a_gpu_is_the_tables, test_trainium_inferentia_gaudi_and_amd_are_listed_with_their_facts |
| a machine has no price but the sum of its parts (GCP, Vast) | test_a_google_machine_costs_the_sum_of_its_parts, test_a_google_part_without_a_price_makes_the_whole_unknown, test_a_vast_price_has_its_disk_in_it_and_its_traffic_both_ways_beside_it |
| an on-demand SKU of what is not sold on demand (GCP) | test_a_google_machine_that_is_not_sold_on_demand_is_not_chosen_though_it_has_a_price |
| reserved and flex-start SKUs say the same words (GCP's TPUs) | test_google_tpus_cost_their_chips_in_the_zones_that_have_them |
| cents, texts, seconds, minutes, days, blocks, coins, bookings | test_lambda_prices_are_cents, test_shadeform_asks_cents_and_for_the_whole_machine, test_koyeb_is_billed_by_the_second_and_priced_by_it, test_every_unit_becomes_dollars_per_instance_hour, test_ionet_the_price_is_of_the_whole_block_and_not_of_a_gpu |
| euros (Scaleway, Prime) need a dated rate | test_euros_without_a_rate_are_an_unknown_price_and_with_one_dated_dollars, test_prime_euros_become_dollars_at_a_dated_rate_or_no_price_at_all |
| ingress costs, too (Vast) | test_a_vast_price_has_its_disk_in_it_and_its_traffic_both_ways_beside_it |
| preemptible is half, of virtual machines alone (OCI) | test_oracles_preemptible_is_half_the_price_and_of_virtual_machines_alone |
| low priority, Windows and next year's prices among today's (Azure) | test_of_azures_rows_the_one_that_is_billed_now_counts |
| capacity blocks and installed software among on-demand (AWS) | test_only_the_price_of_a_plain_linux_machine_is_read |
| EU-RO-1 is Romania (RunPod) | test_runpods_eu_ro_1_is_in_romania_and_us_ca_2_not_in_canada |
| pages shift, come twice, go round, break off | test_a_page_that_comes_twice_makes_no_offer_twice, test_pages_that_go_round_are_an_error, test_a_vast_list_that_was_cut_is_no_list |
| two official documents of one API (Lambda) | test_lambda_of_2023_is_read_too |
| an object for an array (Vast), a lost backslash (Akash), `no` for Norway (Salad) | test_vasts_object_for_an_array_is_read, test_akash_screening_is_as_the_document_says_once_its_lost_backslash_is_back, test_salad_no_is_norway |
| aggregators sell what other markets sell | test_a_machine_that_its_own_market_offers_too_is_not_counted_twice, test_machines_that_two_aggregators_sell_count_where_they_are_cheapest, test_fluence_machines_of_a_market_that_is_asked_itself_are_not_counted_twice |
| refunds differ: sunk, reserve, escrow, minimum | test_ionet_a_booking_is_sunk, test_fluence_three_hours_are_deducted_one_is_spent_and_the_rest_comes_back, test_akash_what_is_left_of_the_deposit_comes_back, test_prime_prepaid_hours_are_paid_whatever_is_used |
| a slice is not a GPU | test_a_slice_of_a_vultr_gpu_is_not_taken_for_one, test_an_azure_size_that_nobody_knows_is_listed_and_never_chosen, test_what_nobody_knows_or_our_images_cannot_use_is_listed_and_never_chosen |
| a host leaves at its own time (Vast) | test_a_vast_host_that_leaves_within_the_hour_is_not_chosen |
| plenty of GPUs and no bid (Akash) | test_akash_plenty_of_gpus_and_no_bid_is_sold_out, test_akash_a_provider_with_an_open_incident_has_nothing |
| memory is reported a few percent short, or of all GPUs together | test_a_providers_name_means_one_device, test_verdas_memory_is_of_all_gpus_together |
| a type that is short or ends is still listed (Scaleway) | test_scaleway_types_that_are_short_or_end_are_not_chosen |
| sold by one unit and stocked by another (Salad) | test_salad_counts_gpus_and_we_count_machines |
| 1.08 interruptions an hour of 100 nodes (Salad) | test_salad_hazard_is_measured_at_the_highest_priority_and_unknown_below_it |
| a stale price shown as fresh | test_stale_price_shown_as_fresh_cannot_happen_when_polls_fail, test_a_failed_poll_never_refreshes_an_old_price |
"""  # noqa: E501

from __future__ import annotations

import csv
import functools
import gzip
import io
import json
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.control.convert import facts_of
from broker.database import Database
from markets import price_book
from markets.aws.machine_types import MachineType
from markets.aws.offers import RegionFacts, SpotPrice, region_offers
from markets.cards.rate_card import read_card
from markets.instants import micros
from markets.offer import Accelerator, Offer
from markets.offer_record import offer_from_record, record_from_offer
from markets.price_search import Wanted
from markets.provider.listing import Said
from markets.provider.listing import offer as listed_offer
from markets.sources.azure import gpus_of
from solver.residency import compile_countries, evaluate
from tests.markets.test_price_data import check

NOW = datetime(2026, 11, 27, tzinfo=UTC)
REFERENCE = os.environ.get("BROKER_REFERENCE")
reference = pytest.mark.skipif(REFERENCE is None, reason="the reference data is not here (BROKER_REFERENCE)")
PRICES = Path(REFERENCE or ".") / "data" / "prices"
HEADER = (
    "sku",
    "gpu",
    "gpu_count",
    "gpu_memory_gib",
    "form",
    "price",
    "currency",
    "of",
    "pricing",
    "region",
    "country",
)
Row = dict[str, str]


def test_every_trap_has_tests_that_exist() -> None:
    tests = Path(__file__).parents[1]
    known = {name for file in tests.rglob("test_*.py") for name in re.findall(r"def (test_\w+)", file.read_text())}
    lines = [line for line in (__doc__ or "").splitlines() if line.startswith("| ")][2:]
    named = {line: re.findall(r"\btest_\w+", line.rpartition(" | ")[2]) for line in lines}
    assert len(lines) > 40 and all(named.values())
    assert {each for names in named.values() for each in names} - known == set()


def test_a_machine_that_attests_itself_is_nowhere_without_evidence_of_its_place() -> None:
    """A quote of the CPU and a report of the GPU prove what runs there; the country stays the contract's to say."""
    (plain,) = card([{"sku": "cvm", "gpu": "H200", "gpu_count": "8", "price": "24"}], "phala")
    attested = replace(plain, confidentiality="gpu_tee", operator="Phala")
    assert (attested.quarantined, attested.country, attested.location_tier) == (None, None, "anonymous")
    told = evaluate(compile_countries(["US", "IN"]), facts_of(attested), micros(NOW))
    assert told.outcome == "deny" and "country" in {each.field for each in told.reasons}


async def test_spot_above_on_demand_is_believed(book: Database) -> None:
    """AWS p5.48xlarge in ca-central-1: the Spot Advisor said savings of -62 %. It is dearer, and it is true."""
    kind = MachineType("p5.48xlarge", 192, Accelerator("nvidia", "h100-sxm", "sxm", 81_920, 8))
    on_demand, spot = Decimal("55.04"), Decimal("89.16")
    zones, spots = {"ca-central-1a": "cac1-az1"}, {kind.name: [SpotPrice("ca-central-1a", spot, NOW)]}
    facts = RegionFacts("ca-central-1", NOW, {kind.name: kind}, zones, spots, {kind.name: on_demand}, NOW)
    async with book.transaction() as session:
        stored = await price_book.store_offers(
            session, "aws", region_offers(facts, ("on_demand", "spot")), now_us=micros(NOW)
        )
        listed = await price_book.offers(session, now_us=micros(NOW), max_age_s={}, default_max_age_s=60)
        found = await price_book.cheapest(
            session, Wanted(gpu="h100"), now_us=micros(NOW), max_age_s={}, default_max_age_s=60
        )
    assert stored.quarantined == 0 and [each.excluded for each in listed] == [None, None]
    assert [(each.offer.pricing, each.offer.price) for each in found] == [("on_demand", on_demand), ("spot", spot)]


def test_the_providers_own_word_for_a_device_is_kept() -> None:
    """JarvisLabs launches by its raw name: what we call a device is not what they do."""
    word = "NVIDIA A100-SXM4-80GB"
    said = Said(
        **{"market": "jarvis", "sku": "x", "pricing": "on_demand", "launch": "vm", "price": Decimal(1)},
        **{"source": "test", "raw": {}, "device": word, "count": 1},
    )
    made = listed_offer(said, NOW)
    assert (made.accelerator.name, made.raw["device"]) == ("a100-sxm-80", word)


CELLS = st.sampled_from(
    [
        "",
        "0",
        "-1",
        "nan",
        "inf",
        "1e-30",
        "1e400",
        "1,5",
        "$3",
        "3.5",
        "H100 SXM",
        "A100",
        "LPU",
        "EU",
        "UK",
        "DE",
        "Georgia",
    ]
) | st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), max_size=8)


@given(st.lists(st.fixed_dictionaries(dict.fromkeys(HEADER, CELLS)), max_size=4))
@settings(max_examples=60, deadline=None)
def test_no_card_makes_an_offer_at_no_price_without_currency_or_in_a_country_without_evidence(
    given_rows: list[Row],
) -> None:
    """Whatever stands in its cells: each line is an offer that holds, one that says why it is not chosen, or a finding."""
    text = io.StringIO()
    writer = csv.DictWriter(text, HEADER)
    writer.writeheader()
    writer.writerows(given_rows)
    read = read_card(text.getvalue(), market="mine", observed_at=NOW, source="test")
    check(list(read.offers))
    assert all(offer_from_record(record_from_offer(each)) == each for each in read.offers)


# --- every price file of the reference data --------------------------------------------------------------------------


def rows(name: str, every: int = 1) -> list[Row]:
    file = PRICES / name
    with gzip.open(file, "rt") if name.endswith(".gz") else file.open() as lines:
        return list(csv.DictReader(lines))[::every]


def card(given: list[Row], market: str) -> tuple[Offer, ...]:
    """The rows as a rate card: each is an offer, or the test fails with the line."""
    named: dict[str, Row] = {}
    for number, row in enumerate(given):
        named[f"{row.get('sku', '')}#{number}"] = row
    lines = [",".join(HEADER)]
    for sku, row in named.items():
        lines.append(",".join((row | {"sku": sku, "currency": "USD"}).get(column, "") for column in HEADER))
    read = read_card("\n".join(lines), market=market, observed_at=NOW, source="test")
    assert read.findings == () and len(read.offers) == len(given)
    return read.offers


def whole(text: str) -> str:
    return str(int(float(text)))


def gcp() -> Iterator[Row]:
    listed = rows("gcp_gpu_weekly.csv.gz", every=50)
    for row in listed:
        if row["gpu_count"]:
            for pricing, price in (("on_demand", row["hour_usd"]), ("spot", row["hour_spot_usd"])):
                yield {
                    **{"sku": row["instance"], "gpu": row["gpu"], "gpu_count": whole(row["gpu_count"])},
                    **{"price": price, "pricing": pricing, "region": row["region"]},
                }


@functools.cache
def aws_devices() -> dict[str, tuple[str, str]]:
    listed = rows("aws_gpu_all_regions_2026-01-21.csv.gz")
    return {row["instance"]: (row["gpu"], row["gpu_count"]) for row in listed if row["gpu_count"]}


def aws_regions() -> Iterator[Row]:
    for row in rows("aws_gpu_all_regions_2026-01-21.csv.gz"):
        gpu, count = row["gpu"], max(1, int(float(row["gpu_count"] or 0)))
        yield {
            "sku": row["instance"],
            "gpu": gpu,
            "gpu_count": str(count),
            "price": row["on_demand_usd_hour"],
            "region": row["region"],
        }


def aws_history() -> Iterator[Row]:
    for row in rows("aws_gpu_on_demand_history.csv.gz", every=5):
        gpu, count = aws_devices().get(row["instance"], ("nobody says", "1"))
        count = str(max(1, int(float(count))))
        yield {
            "sku": row["instance"],
            "gpu": gpu,
            "gpu_count": count,
            "price": row["on_demand_usd_hour"],
            "region": row["region"],
        }


def aws_spot() -> Iterator[Row]:
    counts = {"xlarge": 1, "2xlarge": 1, "8xlarge": 8, "16xlarge": 16, "24xlarge": 8}
    for row in rows("aws_p2p3_spot_history_2019-2020.csv.gz", every=20):
        family, _, size = row["instance"].partition(".")
        count = {"p3.8xlarge": 4, "p3.16xlarge": 8}.get(row["instance"], counts[size])
        device = (
            {"gpu": "K80"} if family == "p2" else {"gpu": "V100", "gpu_memory_gib": "32" if family == "p3dn" else "16"}
        )
        yield {
            **{"sku": row["instance"], "gpu_count": str(count), "price": row["spot_usd_hour"], "pricing": "spot"},
            **({"form": "SXM"} if family != "p2" else {}),
            **device,
            "region": row["zone"][:-1],
        }


def azure() -> Iterator[Row]:
    for row in rows("azure_gpu_on_demand_history.csv.gz", every=4):
        series, count = gpus_of(row["instance"])
        if series is None or not isinstance(count, int):
            continue
        yield {
            **{"sku": row["instance"], "gpu": series.device, "gpu_count": str(count), "form": series.form or ""},
            **{"gpu_memory_gib": str(series.gib or ""), "price": row["on_demand_usd_hour"], "region": row["region"]},
        }


def neocloud(name: str, column: str, every: int) -> Iterator[Row]:
    for row in rows(name, every):
        socket = row["socket"].partition("_")[0]
        yield {
            "sku": name,
            "gpu": row["gpu_type"].replace("_", " "),
            "gpu_count": "1",
            "form": socket,
            "price": row[column],
            "of": "gpu",
        }


def neocloud_list() -> Iterator[Row]:
    for row in rows("neocloud_list_2026-02-11.csv"):
        yield {
            **{"sku": row["product"].replace(",", " "), "gpu": row["product"].replace(",", " ")},
            **{"gpu_count": whole(row["gpu_count"] or "1"), "price": row["price_per_hour_usd"]},
        }


def vast() -> Iterator[Row]:
    for row in rows("vast_snapshot_skypilot_v8.csv"):
        for pricing, price in (("on_demand", row["usd_hour"]), ("bid", "0.00")):
            yield {
                **{"sku": row["gpu"], "gpu": row["gpu"], "gpu_count": row["gpu_count"], "pricing": pricing},
                **{"price": price, "country": row["country_iso2"]},
            }


def representative() -> Iterator[Row]:
    clouds = json.loads((PRICES / "hyperscaler_representative_2026-05-17.json").read_text())
    for cloud in ("aws", "azure", "gcp"):
        for each in clouds[cloud]["instances"]:
            for pricing, name in (("on_demand", "hourly_usd"), ("spot", "spot_hourly_usd")):
                yield {
                    "sku": each["sku"],
                    "gpu": "",
                    "gpu_count": "0",
                    "price": str(each.get(name) or ""),
                    "pricing": pricing,
                }


FILES: dict[str, tuple[str, Callable[[], Iterator[Row]], int]] = {
    # file → the market whose regions it has, its rows, and at least how many offers of them are to be chosen
    "gcp_gpu_weekly": ("gcp", gcp, 2_000),
    "aws_gpu_all_regions": ("aws", aws_regions, 600),
    "aws_gpu_on_demand_history": ("aws", aws_history, 300),
    "aws_p2p3_spot_history": ("aws", aws_spot, 500),
    "azure_gpu_on_demand_history": ("azure", azure, 900),
    "neocloud_stats": ("prime-intellect", lambda: neocloud("neocloud_stats_30min.csv.gz", "min", 5), 300),
    "neocloud_by_provider": (
        "prime-intellect",
        lambda: neocloud("neocloud_by_provider_30min.csv.gz", "min_usd_gpu_hour", 20),
        300,
    ),
    "neocloud_by_config": (
        "prime-intellect",
        lambda: neocloud("neocloud_by_config_30min.csv.gz", "min_usd_gpu_hour", 40),
        300,
    ),
    "neocloud_list": ("neocloud", neocloud_list, 20),
    "vast_snapshot": ("vast", vast, 30),
    "hyperscaler_representative": ("aws", representative, 60),
}


@reference
@pytest.mark.parametrize("file", FILES)
def test_offers_made_of_other_peoples_prices_hold(file: str) -> None:
    """Key written = key read, a positive price or the reason why not, a known device or the reason, a country with evidence."""
    market, made, at_least = FILES[file]
    offers = card(list(made()), market)
    check(list(offers))
    for offer in offers:
        assert offer_from_record(record_from_offer(offer)) == offer
    assert sum(1 for each in offers if each.quarantined is None) >= at_least
