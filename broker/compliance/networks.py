"""The country of an address, by a table of networks that the operator gives (`residency.ip_countries`)."""

from __future__ import annotations

import asyncio
import csv
import ipaddress
from bisect import bisect_right
from dataclasses import dataclass, field
from pathlib import Path

import structlog

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class _Range:
    first: int
    last: int
    country: str


@dataclass
class Networks:
    """The table as it was read last; read again when the file has changed. Machines are asked about at every lease and
    heartbeat, and a table has a million lines."""

    _read: dict[tuple[Path, int, int], list[_Range]] = field(default_factory=dict)

    async def country_of(self, table: Path | None, address: str | None) -> str | None:
        """The country of an address; None without a table, for a private address, and for one that is not in it."""
        if table is None or (parsed := _public(address)) is None:
            return None
        try:
            changed = (await asyncio.to_thread(table.stat)).st_mtime_ns
        except OSError as failure:
            log.error("hello.no_table", table=str(table), error=f"{type(failure).__name__}: {failure}")
            return None
        key = (table, parsed.version, changed)
        if key not in self._read:
            ranges = await asyncio.to_thread(_read, table, parsed.version)
            self._read = {each: known for each, known in self._read.items() if each[2] == changed} | {key: ranges}
        return _found(self._read[key], parsed)


def country_of(table: Path, address: str | None) -> str | None:
    """The country of an address by a table of networks (CSV `network,country`); None when it is private or not in it."""
    parsed = _public(address)
    return None if parsed is None else _found(_read(table, parsed.version), parsed)


def _public(address: str | None) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        parsed = ipaddress.ip_address(address or "")
    except ValueError:
        return None
    return parsed if parsed.is_global else None  # a proxy's, or this machine's


def _found(ranges: list[_Range], parsed: ipaddress.IPv4Address | ipaddress.IPv6Address) -> str | None:
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
