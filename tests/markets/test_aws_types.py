"""What EC2 calls things, and what they are to us. Pure; test_aws.py has the conversation."""

from __future__ import annotations

import gzip
import json
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import moto
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


def device(name: str, count: int, memory: int, **more: Any) -> dict[str, Any]:
    return {"Name": name, "Count": count, "MemoryInfo": {"SizeInMiB": memory}} | more


def neuron(name: str, count: int, memory: int) -> dict[str, Any]:
    return {"NeuronDevices": [device(name, count, memory, CoreInfo={"Count": 2, "Version": 2})]}


@pytest.mark.parametrize(
    ("given", "kind", "name", "count", "gib"),
    [
        # as EC2 answered (moto's record of it)
        (raw("trn1.2xlarge", NeuronInfo=neuron("Trainium", 1, 32_768)), "trainium", "trainium1", 1, 32),
        # it says 512 GiB of each
        (raw("trn2.48xlarge", NeuronInfo=neuron("Trainium2", 16, 524_288)), "trainium", "trainium2", 16, 96),
        (raw("inf1.xlarge", NeuronInfo=neuron("Inferentia", 1, 8_192)), "trainium", "inferentia1", 1, 8),
        (raw("inf2.24xlarge", NeuronInfo=neuron("Inferentia2", 6, 32_768),
             InferenceAcceleratorInfo={"Accelerators": [device("Inferentia2", 6, 32_768, Manufacturer="AWS")]}),
         "trainium", "inferentia2", 6, 32),
        # Gaudi is a GPU in EC2's words
        (raw("dl1.24xlarge", GpuInfo={"Gpus": [device("Gaudi HL-205", 8, 32_768, Manufacturer="Habana")]}),
         "gaudi", "gaudi1", 8, 32),
        (raw("g4ad.xlarge", GpuInfo={"Gpus": [device("Radeon Pro V520", 1, 8_192, Manufacturer="AMD")]}), "amd", "v520", 1, 8),
    ],
)  # fmt: skip
def test_trainium_inferentia_gaudi_and_amd_are_listed_with_their_facts(
    given: Any, kind: str, name: str, count: int, gib: int
) -> None:
    found = machine_type(given)
    assert found is not None and found.problem is None
    chip = found.accelerator
    assert (chip.kind, chip.name, chip.count, chip.memory_mib) == (kind, name, count, gib * 1024)


@pytest.mark.parametrize(
    ("given", "name", "said"),
    [
        (raw("dl2q.24xlarge", InferenceAcceleratorInfo={"Accelerators": [device("Qualcomm AI100", 8, 16_000)]}),
         "unknown-qualcomm-ai100", "not in the table"),
        (raw("g9.xlarge", ("X9", 1, 90_000)), "unknown-x9", "not in the table"),
        (raw("p9.xlarge", ("H100", 1, 200_000)), "unknown-h100", "none that we know"),
        (raw("g6f.large", GpuInfo={"Gpus": [device("L4", 0, 2_861, GpuPartitionSize=0.125, LogicalGpuCount=1)]}),
         "l4", "a slice (0.125)"),
        (raw("g5g.xlarge", ("T4g", 1, 16_384), ProcessorInfo={"SupportedArchitectures": ["arm64"]}), "t4g", "not x86-64"),
        (raw("z1.large", ("L4", 1, 22_888), ("T4", 1, 16_384)), "unknown-l4-t4", "not in the table"),
    ],
)  # fmt: skip
def test_what_nobody_knows_or_our_images_cannot_use_is_listed_and_never_chosen(
    given: Any, name: str, said: str
) -> None:
    found = machine_type(given)
    assert found is not None and found.problem is not None and said in found.problem
    assert found.accelerator.name == name
    now = datetime(2026, 11, 27, tzinfo=UTC)
    facts = RegionFacts("eu-central-1", now, {found.name: found}, {}, {}, {found.name: Decimal(1)}, now)
    [offer] = region_offers(facts, ("on_demand",))
    assert said in (offer.quarantined or "") and offer.key.accelerator == name


@pytest.mark.parametrize(
    "given",
    [
        raw("c7g.large", ProcessorInfo={"SupportedArchitectures": ["arm64"]}),
        raw("f2.6xlarge", FpgaInfo={"Fpgas": [device("Virtex UltraScale+ (VU47P)", 1, 81_920)]}),
        raw("vt1.3xlarge", MediaAcceleratorInfo={"Accelerators": [device("U30", 1, 24_576)]}),
    ],
)
def test_what_computes_no_models_is_not_in_the_list(given: Any) -> None:
    assert machine_type(given) is None


def test_every_accelerator_that_ec2_lists_is_known_or_told() -> None:
    """moto's record of DescribeInstanceTypes: 900 types, of which no known one is doubted."""
    listed = json.loads(
        gzip.decompress((Path(moto.__file__).parent / "ec2/resources/instance_types.json.gz").read_bytes())
    )
    found = {name: machine_type(each) for name, each in listed.items()}
    with_devices = {name: each for name, each in found.items() if each and (each.accelerator.count or each.problem)}
    doubted = {name.partition(".")[0] for name, each in with_devices.items() if each.problem}
    assert doubted == {"g5g", "g6f", "gr6f", "dl2q"}
    names = {each.accelerator.name for each in with_devices.values() if not each.problem}
    assert names >= {
        "trainium1",
        "trainium2",
        "inferentia1",
        "inferentia2",
        "h200-sxm",
        "b300-sxm",
        "rtx-pro-6000",
        "l4",
    }


@pytest.mark.parametrize(
    ("name", "on_demand", "spot"),
    [
        ("g5.xlarge", "L-DB2E81BA", "L-3819A6DF"),  # two quotas with nearly one name
        ("gr6.4xlarge", "L-DB2E81BA", "L-3819A6DF"),
        ("p4d.24xlarge", "L-417A185B", "L-7212CCBC"),
        ("p5en.48xlarge", "L-417A185B", "L-C4BD4855"),  # spot of P5 is apart
        ("c5.large", "L-1216C47A", "L-34B43A08"),
        ("inf2.xlarge", "L-1945791B", "L-B5D1601B"),
        ("trn2.48xlarge", "L-2C3B7624", "L-6B0D517C"),
        ("dl1.24xlarge", "L-6E869C2A", "L-85EED4F7"),
        ("hpc7a.96xlarge", None, None),
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
