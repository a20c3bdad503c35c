"""Where a provider's region is, and who can be compelled there: the location facts of an offer, with their evidence.

Regions match exactly: a Local Zone (`us-east-1-atl-1`) is not its region, and a region that is not in the table has no
country, so every policy that asks for one denies it. Sources stand in each row; the table is put together from files whose
licences allow it (NOTICE).

For adapters, by the provider's region name, or by the country that its API declares:

    where = located("gcp", "europe-west4", observed_at=now)
    where = declared("vultr", "NL", source="GET /v2/regions", observed_at=now)
    Offer(..., **where.fields())
"""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache
from importlib.resources import files
from types import MappingProxyType
from typing import Any, cast

from markets.offer import Evidence, LocationTier

# How long a documented or declared location counts after it was last looked up: the table is read anew with each poll, but a
# snapshot that nobody refreshes must not vouch for ever.
EVIDENCE_TTL = timedelta(days=30)
ALIASES: Mapping[str, str] = MappingProxyType(
    {
        "amazon": "aws", "google": "gcp", "oracle": "oci", "lambdalabs": "lambda", "lambda_labs": "lambda",
        "datacrunch": "verda", "crusoecloud": "crusoe", "akamai": "linode", "ovhcloud": "ovh", "do": "digitalocean",
        "massed_compute": "massedcompute", "nexgen": "hyperstack",
    }
)  # fmt: skip
# What people write where ISO 3166-1 has another code. EU is no country.
_COUNTRY_ALIASES: Mapping[str, str] = MappingProxyType({"UK": "GB", "EL": "GR", "USA": "US", "UAE": "AE"})
_FIRST_ZONE_LETTER = re.compile(r"^(?P<region>.+\d)(?P<zone>[a-z])$")
_GCP_ZONE = re.compile(r"^(?P<region>.+)-[a-z]$")
_NUMBERED_ZONE = re.compile(r"^(?P<region>.+)-\d$")


@dataclass(frozen=True, slots=True)
class Region:
    """One row of the table. `country` is ISO 3166-1 alpha-2, `subdivision` ISO 3166-2 where the source names it."""

    provider: str
    region: str
    country: str
    subdivision: str | None
    place: str
    source: str
    checked: str


@dataclass(frozen=True, slots=True)
class Operator:
    """Who operates a provider's machines, and the parent that can be compelled wherever they stand."""

    operator: str
    country: str
    parent: str | None
    parent_country: str | None
    tier: LocationTier

    def jurisdictions(self, country: str) -> tuple[str, ...]:
        """Where the operator of a machine in `country` can be compelled."""
        return tuple(sorted({country, self.country, *([self.parent_country] if self.parent_country else [])}))


@dataclass(frozen=True, slots=True)
class Located:
    """The location fields of an offer. Country None: unknown; then there is no evidence and no jurisdiction either."""

    country: str | None
    subdivision: str | None
    evidence: tuple[Evidence, ...]
    location_tier: LocationTier
    operator: str | None
    jurisdictions: tuple[str, ...] | None

    def fields(self) -> dict[str, Any]:
        """The keyword arguments of `Offer` that these are."""
        return {
            "country": self.country,
            "subdivision": self.subdivision,
            "evidence": self.evidence,
            "location_tier": self.location_tier,
            "operator": self.operator,
            "jurisdictions": self.jurisdictions,
        }


def located(provider: str, region: str | None, *, observed_at: datetime) -> Located:
    """What the table knows of `region` at `provider`; evidence kind `region_table`, as of `observed_at`."""
    name = canonical(provider)
    row = regions().get((name, region or ""))
    if row is None:
        return _nowhere(name)
    evidence = Evidence("region_table", f"{row.source}, {row.checked}", observed_at, EVIDENCE_TTL)
    return _place(name, row.country, row.subdivision, (evidence,), None)


def declared(
    provider: str,
    country: str | None,
    *,
    source: str,
    observed_at: datetime,
    subdivision: str | None = None,
    kind: str = "api_declared",
    tier: LocationTier | None = None,
) -> Located:
    """What the provider's own answer says: `country` as alpha-2, alpha-3 or an English name. `kind` is the class of
    evidence (`api_declared`, `host_claim`, `geoip`, `contract`, `operator_statement`), `tier` what it can carry; without
    one it is the provider's own.

    A country that is none (`EU`, `XX`) is unknown. The subdivision counts only when it is one of that country.
    """
    name = canonical(provider)
    code = country_code(country)
    if code is None:
        return _nowhere(name)
    evidence = Evidence(kind, source, observed_at, EVIDENCE_TTL)
    fits = subdivision is not None and re.fullmatch(rf"{code}-[A-Z0-9]{{1,3}}", subdivision) is not None
    return _place(name, code, subdivision if fits else None, (evidence,), tier)


def region_of_zone(provider: str, zone: str) -> str | None:
    """The region of a zone (`us-east-1a`, `europe-west4-b`, `fr-par-2`); None where it is not an ordinary zone of a known
    region: Local and Wavelength Zones lie elsewhere, some of them in another country."""
    name = canonical(provider)
    pattern = {"aws": _FIRST_ZONE_LETTER, "gcp": _GCP_ZONE, "scaleway": _NUMBERED_ZONE}.get(name)
    match = pattern.fullmatch(zone) if pattern else None
    region = match["region"] if match else zone
    return region if (name, region) in regions() else None


def country_code(text: str | None) -> str | None:
    """ISO 3166-1 alpha-2 of a code or English name; None when it is not one country.

    >>> country_code("uk"), country_code("FIN"), country_code("Netherlands"), country_code("EU"), country_code(None)
    ('GB', 'FI', 'NL', None, None)
    """
    if not text or not text.strip():
        return None
    # Imported where it is used: pycountry reads its tables from disk.
    import pycountry  # noqa: PLC0415

    wanted = text.strip()
    wanted = _COUNTRY_ALIASES.get(wanted.upper(), wanted)
    try:
        return pycountry.countries.lookup(wanted).alpha_2
    except LookupError:
        return None


def canonical(provider: str) -> str:
    """Our name of a provider that others write differently (`datacrunch`, `lambdalabs`)."""
    name = provider.strip().lower()
    return ALIASES.get(name, name)


@cache
def regions() -> Mapping[tuple[str, str], Region]:
    """The table, by (provider, region)."""
    return MappingProxyType(
        {
            (row["provider"], row["region"]): Region(
                row["provider"],
                row["region"],
                row["country"],
                row["subdivision"] or None,
                row["place"],
                row["source"],
                row["checked"],
            )
            for row in _rows("regions.csv")
        }
    )


@cache
def operators() -> Mapping[str, Operator]:
    """Who operates what, by provider. Companies' seats as their legal notices have them; absent: unknown."""
    return MappingProxyType(
        {
            row["provider"]: Operator(
                row["operator"],
                row["operator_country"],
                row["parent"] or None,
                row["parent_country"] or None,
                cast(LocationTier, row["tier"]),
            )
            for row in _rows("operators.csv")
        }
    )


def checked_at(row: Region) -> datetime:
    """When the row's source was looked at: the first day of that month."""
    year, month = row.checked.split("-")[:2]
    return datetime(int(year), int(month), 1, tzinfo=UTC)


def _place(
    provider: str, country: str, subdivision: str | None, evidence: tuple[Evidence, ...], tier: LocationTier | None
) -> Located:
    operator = operators().get(provider)
    return Located(
        country=country,
        subdivision=subdivision,
        evidence=evidence,
        location_tier=tier or (operator.tier if operator else "claimed"),
        operator=operator.operator if operator else None,
        jurisdictions=operator.jurisdictions(country) if operator else None,
    )


def _nowhere(provider: str) -> Located:
    operator = operators().get(provider)
    return Located(None, None, (), "anonymous", operator.operator if operator else None, None)


def _rows(name: str) -> list[dict[str, str]]:
    return list(csv.DictReader(files("markets.facts").joinpath(name).read_text(encoding="utf-8").splitlines()))
