"""What a machine's first call contradicts: where it calls from, and what it has. A contradiction ends the rental before any key
or input is released. Agreement promotes nothing: an address is easily borrowed.
"""

from __future__ import annotations

import asyncio
import csv
import ipaddress
import re
from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import structlog

from broker.settings import Settings

log = structlog.get_logger()


async def observed_country(settings: Settings, address: str | None) -> str | None:
    """The country that a machine calls from, where a table of networks is given and has its address."""
    table = settings.residency.ip_countries
    return None if table is None else await asyncio.to_thread(country_of, table, address)


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


@dataclass(frozen=True, slots=True)
class _Range:
    first: int
    last: int
    country: str


def country_of(table: Path, address: str | None) -> str | None:
    """The country of an address by a table of networks (CSV `network,country`); None when it is private or not in it."""
    try:
        parsed = ipaddress.ip_address(address or "")
    except ValueError:
        return None
    if not parsed.is_global:
        return None  # a proxy's, or this machine's
    ranges = _read(table, parsed.version)
    at = bisect_right([each.first for each in ranges], int(parsed)) - 1
    return ranges[at].country if at >= 0 and int(parsed) <= ranges[at].last else None


def _read(table: Path, version: int) -> list[_Range]:
    found = []
    try:
        with table.open(encoding="utf-8", newline="") as file:
            for row in csv.reader(file):
                if len(row) >= 2 and (network := _network(row[0])) is not None and network.version == version:
                    found.append(_Range(int(network[0]), int(network[-1]), row[1].strip().upper()))
    except OSError as failure:
        log.error("hello.no_table", table=str(table), error=f"{type(failure).__name__}: {failure}")
    return sorted(found, key=lambda each: each.first)


def _network(text: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network | None:
    try:
        return ipaddress.ip_network(text.strip())
    except ValueError:
        return None  # a heading
