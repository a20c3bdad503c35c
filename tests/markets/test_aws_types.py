"""What EC2 calls things, and what they are to us. Pure; test_aws.py has the conversation."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from markets.aws.machine_types import machine_type, quota_code
from markets.aws.offers import RegionFacts, region_offers
from markets.aws.price_list import PriceList, Prices, read_price_list
from markets.aws.regions import PLACES
from markets.errors import Unavailable
from tests.markets.aws_rig import ON_DEMAND, price_list


def raw(name: str, *gpus: tuple[str, int, int], **changes: Any) -> dict[str, Any]:
    described = [
        {"Name": gpu, "Manufacturer": "NVIDIA", "Count": count, "MemoryInfo": {"SizeInMiB": memory}}
        for gpu, count, memory in gpus
    ]
    fields = {
        "InstanceType": name,
        "ProcessorInfo": {"SupportedArchitectures": ["x86_64"]},
        "VCpuInfo": {"DefaultVCpus": 8},
        **({"GpuInfo": {"Gpus": described}} if described else {}),
    }
    return fields | changes


@pytest.mark.parametrize(
    ("given", "name", "count"),
    [
        (raw("g6.xlarge", ("L4", 1, 22_888)), "l4", 1),
        (raw("g6e.12xlarge", ("L40S", 4, 45_776)), "l40s", 4),  # reported below its 48 GB
        (raw("p4d.24xlarge", ("A100", 8, 40_960)), "a100-sxm-40", 8),  # one name,
        (raw("p4de.24xlarge", ("A100", 8, 81_920)), "a100-sxm-80", 8),  # two devices
        (raw("c7i.large"), "cpu", 0),
    ],
)
def test_a_machine_type_has_the_accelerator_that_our_models_know(given: Any, name: str, count: int) -> None:
    kind = machine_type(given)
    assert kind is not None
    assert (kind.accelerator.name, kind.accelerator.count) == (name, count)


@pytest.mark.parametrize(
    "given",
    [
        raw("g5g.xlarge", ("T4g", 1, 16_384), ProcessorInfo={"SupportedArchitectures": ["arm64"]}),
        raw("g6f.large", GpuInfo={"Gpus": [{"Name": "L4", "Manufacturer": "NVIDIA", "Count": 1, "GpuPartitionSize": 0.125,
                                           "MemoryInfo": {"SizeInMiB": 2_861}}]}),
        raw("g9.xlarge", ("X9", 1, 90_000)),
        raw("g4ad.xlarge", GpuInfo={"Gpus": [{"Name": "Radeon Pro V520", "Manufacturer": "AMD", "Count": 1,
                                             "MemoryInfo": {"SizeInMiB": 8_192}}]}),
        raw("inf2.xlarge", NeuronInfo={"NeuronDevices": [{"Count": 1}]}),
    ],
)  # fmt: skip
def test_what_our_images_cannot_use_is_not_offered(given: Any) -> None:
    assert machine_type(given) is None


@pytest.mark.parametrize(
    ("name", "on_demand", "spot"),
    [
        ("g5.xlarge", "L-DB2E81BA", "L-3819A6DF"),  # two quotas with nearly one name
        ("gr6.4xlarge", "L-DB2E81BA", "L-3819A6DF"),
        ("p4d.24xlarge", "L-417A185B", "L-7212CCBC"),
        ("p5en.48xlarge", "L-417A185B", "L-C4BD4855"),  # spot of P5 is apart
        ("c5.large", "L-1216C47A", "L-34B43A08"),
        ("inf2.xlarge", None, None),
        ("u-6tb1.metal", None, None),
    ],
)
def test_the_quota_that_limits_a_type(name: str, on_demand: str | None, spot: str | None) -> None:
    assert quota_code(name, is_spot=False) == on_demand
    assert quota_code(name, is_spot=True) == spot


def test_only_the_price_of_a_plain_linux_machine_is_read() -> None:
    read = read_price_list(price_list(ON_DEMAND).splitlines(keepends=True))
    assert {name: str(price) for name, price in read.items()} == ON_DEMAND


def test_a_list_of_another_format_is_refused() -> None:
    with pytest.raises(ValueError, match="line 6 has no column TermType"):
        read_price_list(["a\n"] * 8)
    twice = price_list({"g5.xlarge": "1.258"}) + price_list({"g5.xlarge": "1.3"}).splitlines()[6]
    with pytest.raises(ValueError, match=r"two on-demand prices, 1\.258 and 1\.3"):
        read_price_list(twice.splitlines())


def test_regions_outside_of_the_union_are_not_in_it() -> None:
    """The names say `eu-`; the countries say otherwise. And the operator is American everywhere."""
    assert (PLACES["eu-west-2"].country, PLACES["eu-central-2"].country) == ("GB", "CH")
    assert all("US" in place.jurisdictions and place.country in place.jurisdictions for place in PLACES.values())


@pytest.mark.parametrize(
    ("checked_ago", "age"),
    [
        (timedelta(minutes=4), timedelta(0)),  # three polls of a minute are over
        (timedelta(hours=24, minutes=10), timedelta(0)),  # the next look failed once
        (timedelta(hours=25), timedelta(hours=25)),  # nobody knows whether it is the list of today
    ],
)
def test_on_demand_was_stale_from_the_third_minute_until_the_next_days_look(
    checked_ago: timedelta, age: timedelta
) -> None:
    kind = machine_type(raw("g6.xlarge", ("L4", 1, 22_888)))
    assert kind is not None
    now = datetime(2026, 11, 27, 12, tzinfo=UTC)
    listed = {kind.name: Decimal("0.8")}
    facts = RegionFacts("eu-central-1", now, {kind.name: kind}, {}, {}, listed, now - checked_ago)
    [offer] = region_offers(facts, ("on_demand", "spot"))
    assert now - offer.observed_at == age


def test_a_price_list_that_cannot_be_looked_at_again_is_known_as_it_was(tmp_path: Path) -> None:
    was = Prices("eu-central-1", {"g6.xlarge": Decimal("0.8")}, "tag", datetime.now(UTC) - timedelta(hours=25))
    prices = PriceList(tmp_path, url=(tmp_path / "nowhere").as_uri() + "/{region}")
    prices._store(was)
    with pytest.raises(Unavailable):
        prices.prices("eu-central-1")
    assert prices.known("eu-central-1") == was == prices.prices("eu-central-1")
