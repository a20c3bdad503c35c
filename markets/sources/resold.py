"""Machines of one market that another sells, too: whose they are, and where they are said to be.

An aggregator's offer and the direct one are one machine: counting both would plan with room that is not there. The direct
market's own words count, where it is asked at all.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType

import pycountry

from markets.facts.regions import canonical, operators
from markets.provider.listing import country_of

# How Shadeform, Prime Intellect and Fluence call clouds that are markets of ours.
MARKET_OF: Mapping[str, str] = MappingProxyType(
    {
        "aws": "aws",
        "azure": "azure",
        "gcp": "gcp",
        "google": "gcp",
        "oci": "oci",
        "oracle": "oci",
        "akash": "akash",
        "datacrunch": "verda",
        "verda": "verda",
        "koyeb": "koyeb",
        "lambda": "lambda",
        "lambdalabs": "lambda",
        "runpod": "runpod",
        "salad": "salad",
        "scaleway": "scaleway",
        "thunder": "thunder",
        "thundercompute": "thunder",
        "vast": "vast",
        "vastai": "vast",
        "vultr": "vultr",
    }
)


@dataclass(slots=True)
class Direct:
    """The markets that this broker asks itself at the moment, by our names: whoever opens them keeps it so."""

    markets: frozenset[str] = frozenset()

    def same_machines(self, cloud: str) -> str | None:
        """Why an offer of `cloud`'s machines is not to be chosen here, or None."""
        market = MARKET_OF.get(cloud.lower().replace("-", "").replace("_", "").replace(" ", ""))
        if market is None or market not in self.markets:
            return None
        return f"the same machines as the market {market!r} offers, which is asked itself; its offers count"


def operated(cloud: str) -> tuple[str, str | None]:
    """Who operates the machines of `cloud`, and where that can be compelled, where we know it."""
    known = operators().get(canonical(cloud))
    return (known.operator, known.parent_country or known.country) if known else (cloud, None)


def country_said(display: str, region: str) -> str | None:
    """The country of a region by its display name and its id. Where the two differ, or only a code says it that is a state's
    of the US or Canada as well, it is unknown.

    >>> country_said("US, Wichita, KS", "us-central-1"), country_said("Oslo, Norway", "oslo-norway-1")
    ('US', 'NO')
    >>> country_said("CA, Los Angeles", "los-angeles-1"), country_said("CA, Montreal", "montreal-canada-2")
    (None, 'CA')
    >>> country_said("Toronto, Canana", "canada-1"), country_said("Paris, France", "oslo-norway-1")
    ('CA', None)
    """
    by_id = country_in_slug(region)
    first, comma, _ = display.partition(",")
    code = first.strip()
    if comma and len(code) == 2 and code.isupper() and pycountry.countries.get(alpha_2=code):
        named = None if code in _states() and code != by_id else code
    else:
        named = country_of(display) or (country_of(first) if comma else None)
    return (named or by_id) if named is None or by_id is None or named == by_id else None


def country_in_slug(slug: str) -> str | None:
    """The country that a data center's id ends with, in full: `kristiansand-norway-2`.

    >>> country_in_slug("dulles-usa-1"), country_in_slug("tokyo-japan-2"), country_in_slug("canada-1")
    ('US', 'JP', 'CA')
    >>> country_in_slug("us-central-3"), country_in_slug("new-jersey-1"), country_in_slug("atlanta-georgia-1")
    (None, None, None)
    """
    words = [word for word in slug.lower().split("-") if not word.isdecimal()]
    if not words or words[-2:-1] == ["new"]:  # New Jersey is not Jersey, New Mexico not Mexico
        return None
    return country_of(words[-1])


@cache
def _states() -> frozenset[str]:
    """Two letters of states and provinces: `CA` is California and Canada, `DE` Delaware and Germany."""
    codes = (each.code for each in pycountry.subdivisions)
    return frozenset(code.partition("-")[2] for code in codes if code.startswith(("US-", "CA-")))
