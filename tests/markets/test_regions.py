"""Regions: a country only with evidence, and an unknown region has none."""

from __future__ import annotations

from datetime import UTC, datetime

import pycountry
import pytest
from hypothesis import given
from hypothesis import strategies as st

from markets.aws.regions import PLACES
from markets.facts.regions import country_code, declared, located, operators, region_of_zone, regions

NOW = datetime(2026, 11, 27, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("provider", "region", "country"),
    [
        ("gcp", "europe-west2", "GB"),  # not the EU
        ("gcp", "europe-west6", "CH"),
        ("gcp", "europe-west12", "IT"),  # in the carbon file alone
        ("aws", "eu-central-2", "CH"),
        ("azure", "norwayeast", "NO"),
        ("aws", "us-gov-west-1", "US"),
        ("azure", "northeurope", "IE"),
        ("datacrunch", "FIN-01", "FI"),  # verda's old name
        ("oci", "uk-london-1", "GB"),
    ],
)
def test_a_documented_region_has_its_country_and_evidence(provider: str, region: str, country: str) -> None:
    where = located(provider, region, observed_at=NOW)
    assert where.country == country and where.jurisdictions is not None and country in where.jurisdictions
    (evidence,) = where.evidence
    assert evidence.kind == "region_table" and evidence.observed_at == NOW and "20" in evidence.source


@pytest.mark.parametrize(
    ("provider", "region"),
    [
        ("aws", "us-east-1-atl-1"),  # a Local Zone is not its region
        ("aws", "us-east-1-bue-1"),  # this one is in Argentina
        ("gcp", "europe-west99"),
        ("runpod", "EU-RO-1"),  # a data centre's name says nothing for certain
        ("nobody", "eu-central-1"),
        ("gcp", None),
    ],
)
def test_an_unknown_region_fails_closed(provider: str, region: str | None) -> None:
    where = located(provider, region, observed_at=NOW)
    assert (where.country, where.evidence, where.jurisdictions, where.location_tier) == (None, (), None, "anonymous")


def test_the_parent_can_be_compelled_wherever_the_machine_is() -> None:
    assert located("gcp", "europe-west4", observed_at=NOW).jurisdictions == ("NL", "US")
    assert located("scaleway", "fr-par", observed_at=NOW).jurisdictions == ("FR",)


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("uk", "GB"),
        ("no", "NO"),
        ("FIN", "FI"),
        ("Netherlands", "NL"),
        ("EU", None),
        ("XX", None),
        ("", None),
        (None, None),
    ],
)
def test_a_country_is_one_country_or_unknown(text: str | None, code: str | None) -> None:
    assert country_code(text) == code


def test_a_claim_keeps_its_own_class_of_evidence() -> None:
    where = declared(
        "vast", "FR", source="geolocation", observed_at=NOW, kind="host_claim", tier="claimed", subdivision="US-TX"
    )
    assert (where.country, where.location_tier, where.evidence[0].kind) == ("FR", "claimed", "host_claim")
    assert where.subdivision is None  # of another country


def test_zones_belong_to_their_region_unless_they_lie_elsewhere() -> None:
    assert region_of_zone("aws", "us-east-1a") == "us-east-1"
    assert region_of_zone("gcp", "europe-west4-b") == "europe-west4"
    assert region_of_zone("scaleway", "fr-par-2") == "fr-par"
    assert region_of_zone("aws", "us-east-1-bue-1a") is None
    assert region_of_zone("aws", "us-east-1-wl1-bos-wlz-1") is None


def test_the_table_is_whole() -> None:
    for (provider, region), row in regions().items():
        assert pycountry.countries.get(alpha_2=row.country), (provider, region)
        assert row.subdivision is None or pycountry.subdivisions.get(code=row.subdivision), (provider, region)
        assert row.source and row.checked >= "2024", (provider, region)
    assert {name for name, _ in regions()} <= set(operators())


def test_one_table_of_awss_regions_does_not_contradict_the_other() -> None:
    theirs = {name: (row.country, row.subdivision) for (provider, name), row in regions().items() if provider == "aws"}
    assert {name: theirs[name] for name in PLACES} == {name: (p.country, p.subdivision) for name, p in PLACES.items()}


@given(st.text(), st.one_of(st.none(), st.text()), st.one_of(st.none(), st.text()))
def test_no_country_without_evidence(provider: str, region: str | None, country: str | None) -> None:
    for where in (
        located(provider, region, observed_at=NOW),
        declared(provider, country, source="s", observed_at=NOW),
    ):
        assert (where.country is None) == (not where.evidence)
        assert where.country is not None or where.jurisdictions is None
