"""What a machine's first call contradicts: where it calls from, and what it has. A contradiction ends the rental before any key
or input is released. Agreement promotes nothing: an address is easily borrowed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import msgspec

from broker.services import Services
from solver.residency import Decision, Reason


class Seen(msgspec.Struct, frozen=True, kw_only=True):
    """What was held against an offer: its key, country and accelerator, the names of the accelerators that the machine shows,
    and the country of the address that it calls from (None: not known)."""

    key: str
    country: str | None
    accelerator: dict[str, str | int]
    shown: tuple[str, ...]
    observed: str | None


async def observed_country(services: Services, address: str | None) -> str | None:
    """The country that a machine calls from, where a table of networks is given and has its address."""
    return await services.networks.country_of(services.settings.residency.ip_countries, address)


def seen(offer: Mapping[str, Any], hello: Mapping[str, Any] | None, observed: str | None) -> Seen:
    """Of an offer's record and a machine's hello, what is compared."""
    chip = offer["accelerator"]
    if offer["launch"] == "token_api":
        observed = None  # the executor calls from here; where the endpoint is, only its operator says
    return Seen(
        key=str(offer["key"]),
        country=offer["country"],
        accelerator={name: chip[name] for name in ("kind", "name", "count")},
        shown=tuple(str(each["name"]) for each in (hello or {}).get("accelerators") or ()),
        observed=observed,
    )


def word_on(what: Seen) -> Decision:
    """Pure: a contradiction denies, and agreement is no more than no contradiction."""
    shown = [{"name": each} for each in what.shown]
    offer = {"key": what.key, "country": what.country, "accelerator": what.accelerator}
    against = contradicts(offer, {"accelerators": shown}, what.observed)
    found = against or f"country {what.observed or 'not known'}, {len(shown)} accelerators"
    reason = Reason(
        rule_id="hello",
        field="machine",
        wanted="what its offer says",
        found=found,
        code="contradicted" if against else "not_contradicted",
    )
    return Decision(outcome="deny" if against else "allow", reasons=(reason,))


def contradicts(offer: Mapping[str, Any], hello: Mapping[str, Any], observed: str | None) -> str | None:
    """Pure: the offer's record, what the machine says, and the country of its address (None: not known).

    >>> contradicts({"key": "k", "country": "DE", "accelerator": {"kind": "none", "name": "cpu", "count": 0}}, {}, "US")
    'offer k is in DE, and its machine calls from an address in US'
    """
    key, chip = offer["key"], offer["accelerator"]
    if observed and offer["country"] and observed != offer["country"]:
        return f"offer {key} is in {offer['country']}, and its machine calls from an address in {observed}"
    found = hello.get("accelerators") or []
    if chip["kind"] != "nvidia" or not chip["count"] or not found:
        return None  # what a driver does not show is not shown to be another
    names = sorted({each["name"] for each in found})
    if not all(_is_named(chip["name"], each) for each in names):
        return f"offer {key} has {chip['count']} {chip['name']}, and its machine shows {', '.join(names)}"
    if len(found) < chip["count"]:
        return f"offer {key} has {chip['count']} {chip['name']}, and its machine shows {len(found)}"
    return None


def _is_named(ours: str, theirs: str) -> bool:
    """Whether a driver's name is of our accelerator: its model, the first word with a digit, must be a word there.

    >>> _is_named("h100-sxm", "NVIDIA H100 80GB HBM3"), _is_named("rtx4090", "NVIDIA GeForce RTX 4090")
    (True, True)
    >>> _is_named("l4", "NVIDIA L40S"), _is_named("a10", "NVIDIA A100-SXM4-80GB"), _is_named("a100-80", "NVIDIA H100 80GB")
    (False, False, False)
    """
    words = re.findall(r"[a-z0-9]+", ours.lower())
    model = next((each for each in words if any(letter.isdigit() for letter in each)), "".join(words))
    shown = re.findall(r"[a-z0-9]+", theirs.lower())
    return model in shown or model in map("".join, pairwise(shown))
