"""From what a person writes (country codes, group names) to the rules that the evaluator reads."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence

import msgspec
import pycountry

from solver.errors import UnknownCountry
from solver.residency.classes import CONFIDENTIALITY
from solver.residency.groups import GROUPS
from solver.residency.types import Policy, PolicyRule

# The class `internal` (contract C5). The own machine and own hosts are `verified_host`. The denies repeat what the allow leaves
# out, so that a later policy which allows more tiers still cannot admit these without naming them.
_INTERNAL_RULES = (
    PolicyRule(
        id="internal.tier",
        effect="allow",
        field="location_tier",
        values=("verified_host", "named_datacenter", "hyperscaler_region"),
    ),
    PolicyRule(id="internal.unverified", effect="deny", field="location_tier", values=("anonymous", "claimed")),
    PolicyRule(id="internal.token_api", effect="deny", field="launch", values=("token_api",)),
)

INTERNAL = Policy(name="internal", rules=_INTERNAL_RULES)
"""What applies to a project without a policy: known places, no claimed or anonymous hosts, no token endpoints."""

_PLACES = ("country", "subdivision", "operator", "jurisdictions")

# Codes that people write and ISO 3166 reserves for something else.
_OFTEN_MEANT = {"UK": "GB", "EL": "GR"}


def compile_countries(names: Sequence[str], name: str | None = None) -> Policy:
    """`INTERNAL` narrowed to the countries in `names`: ISO 3166 alpha-2 codes and group names (`groups.py`), any case.

    The policy is named `name`, or after its countries. Raises UnknownCountry for a value that is neither (with near matches), and
    for an empty list: it would allow nothing, which nobody means.

    >>> compile_countries(["de", "FR"]).rules[-1].values
    ('DE', 'FR')
    """
    if not names:
        raise UnknownCountry("the list of countries is empty: name at least one ISO 3166 alpha-2 code or group")
    countries = sorted({country for each in names for country in _members(each)})
    rule = PolicyRule(id="countries", effect="allow", field="country", values=tuple(countries))
    label = name or "countries:" + ",".join(sorted({each.strip().lower() for each in names}))
    return Policy(name=label, rules=(*_INTERNAL_RULES, rule))


def with_confidentiality(policy: Policy, least: str) -> Policy:
    """`policy`, and besides the place must offer `least` or more of `CONFIDENTIALITY`. `none` asks for nothing.

    Raises ValueError for a class that there is not.

    >>> with_confidentiality(INTERNAL, "cpu_tee").rules[-1].values
    ('cpu_tee', 'gpu_tee')
    """
    enough = CONFIDENTIALITY[CONFIDENTIALITY.index(least) :]
    if enough == CONFIDENTIALITY:
        return policy
    rule = PolicyRule(id="confidentiality", effect="allow", field="confidentiality", values=enough)
    return msgspec.structs.replace(policy, name=f"{policy.name}+confidentiality:{least}", rules=(*policy.rules, rule))


def about_places(policy: Policy) -> Policy | None:
    """`policy` with its rules about where and whose alone, for what holds data and computes nothing; None without any.

    >>> about_places(INTERNAL) is None, [rule.id for rule in about_places(compile_countries(["DE"])).rules]
    (True, ['countries'])
    """
    rules = tuple(rule for rule in policy.rules if rule.field in _PLACES)
    if not rules:
        return None
    if not any(rule.effect == "allow" for rule in rules):
        # every place but the denied ones: what a policy of denies alone means for a place, spelled out for the evaluator
        rules = (*rules, PolicyRule(id="stores", effect="allow", field="launch", values=("store",)))
    return Policy(name=policy.name, rules=rules, version=policy.version)


def _members(value: str) -> tuple[str, ...]:
    text = value.strip()
    if group := GROUPS.get(text.lower()):
        return group.members
    if len(text) == 2 and pycountry.countries.get(alpha_2=text.upper()):
        return (text.upper(),)
    meant = near(text)
    suggestion = f"; did you mean {' or '.join(meant)}?" if meant else ""
    raise UnknownCountry(
        f"{value!r} in the list of countries is neither an ISO 3166 alpha-2 code nor a group ({', '.join(GROUPS)}){suggestion}"
    )


def near(text: str, groups: Iterable[str] = ()) -> list[str]:
    """What may have been meant: a code for a country's name or alpha-3 code, else spellings close to it, `groups` among them."""
    titles: dict[str, str] = {}
    for country in pycountry.countries:
        for title in (country.name, getattr(country, "common_name", None), country.alpha_3):
            if title:
                titles[title.lower()] = country.alpha_2
    titles |= {group.title.lower(): key for key, group in GROUPS.items()} | {key: key for key in (*GROUPS, *groups)}
    if meant := _OFTEN_MEANT.get(text.upper()) or titles.get(text.lower()):
        return [meant]
    if len(text) > 3:
        close = difflib.get_close_matches(text.lower(), titles, n=3, cutoff=0.7)
        return list(dict.fromkeys(titles[each] for each in close))
    codes = [country.alpha_2 for country in pycountry.countries] + list(GROUPS)
    return difflib.get_close_matches(text.upper(), codes, n=3, cutoff=0.5)
