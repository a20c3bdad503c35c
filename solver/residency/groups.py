"""Named groups of countries that a residency list may use, each with its source and the date it was read.

A membership is a fact of a day: who changes one, changes the date beside it. Policies are compiled to plain country codes, so
a published policy does not move when a group does.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class CountryGroup:
    """ISO 3166 alpha-2 members of a treaty, with where the list is from and when it was read."""

    title: str
    members: tuple[str, ...]
    source: str
    as_of: str


_EU = (
    "AT",
    "BE",
    "BG",
    "CY",
    "CZ",
    "DE",
    "DK",
    "EE",
    "ES",
    "FI",
    "FR",
    "GR",
    "HR",
    "HU",
    "IE",
    "IT",
    "LT",
    "LU",
    "LV",
    "MT",
    "NL",
    "PL",
    "PT",
    "RO",
    "SE",
    "SI",
    "SK",
)
_EFTA = ("CH", "IS", "LI", "NO")

GROUPS: dict[str, CountryGroup] = {
    "eu": CountryGroup(
        title="European Union",
        members=_EU,
        source="Treaty on European Union, Article 52; membership since the United Kingdom left on 2020-02-01",
        as_of="2026-11-22",
    ),
    "eea": CountryGroup(
        title="European Economic Area",
        members=tuple(sorted((*_EU, "IS", "LI", "NO"))),
        source="Agreement on the European Economic Area, Article 126; Switzerland is not a party",
        as_of="2026-11-22",
    ),
    "efta": CountryGroup(
        title="European Free Trade Association",
        members=_EFTA,
        source="Convention establishing the European Free Trade Association (Vaduz, 2001)",
        as_of="2026-11-22",
    ),
}
