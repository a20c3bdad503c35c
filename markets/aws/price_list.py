"""On-demand prices from AWS's public bulk price list: one CSV a region, no credentials, hundreds of megabytes.

It is read as a stream, in a thread, at most once a day; what was found in it is kept in a small file beside its ETag, so
that a broker that starts anew, or finds the list unchanged, reads nothing.
Format: five lines about the file, then a header, then one row a price (AWS Price List Bulk API). Unverified against the
live service; the columns are those that gpuhunt and others read.
"""

from __future__ import annotations

import csv
import json
import time
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal, InvalidOperation
from pathlib import Path
from tempfile import NamedTemporaryFile

from markets.errors import Unavailable

BULK = "https://pricing.us-east-1.amazonaws.com/offers/v1.0/aws/AmazonEC2/current/{region}/index.csv"
_LINES_ABOUT = 5
_TIMEOUT_S = 60
_AGE_S = 86_400
_RETRY_S = 900
# How long a list that was AWS's current one is taken for it: the next look is a day away, and may fail once.
HOLDS = timedelta(seconds=_AGE_S + _RETRY_S)
# What a price must be to be the one that a plain Linux instance is billed at. MarketOption: without it, Capacity Blocks.
_WANTED: Mapping[str, tuple[str, ...]] = {
    "TermType": ("OnDemand",),
    "Unit": ("Hrs",),
    "Currency": ("USD",),
    "Tenancy": ("Shared",),
    "Operating System": ("Linux",),
    "CapacityStatus": ("Used",),
    "Pre Installed S/W": ("", "NA"),
    "MarketOption": ("", "OnDemand"),
}
_NEEDED = ("TermType", "Tenancy", "Operating System", "CapacityStatus", "Instance Type", "PricePerUnit", "Unit")


@dataclass(frozen=True, slots=True)
class Prices:
    """USD per hour by instance type. `checked_at` is when AWS last said that this is its current list."""

    region: str
    by_type: Mapping[str, Decimal]
    etag: str
    checked_at: datetime


class PriceList:
    """Blocking; call it in a thread. Prices that could not be checked again keep the time at which they last were."""

    def __init__(self, folder: Path, *, url: str = BULK) -> None:
        self._folder = folder
        self._url = url
        self._known: dict[str, Prices] = {}
        self._next_s: dict[str, float] = {}

    def prices(self, region: str) -> Prices | None:
        """The latest that is known, or None. Raises Unavailable when it is time to look and the list cannot be had;

        the next look is then a quarter of an hour away, and what was known before is returned meanwhile.
        """
        if region not in self._known:
            self._restore(region)
        if time.monotonic() >= self._next_s.get(region, 0):
            self._next_s[region] = time.monotonic() + _RETRY_S
            self._known[region] = self._fetch(region, self._known.get(region))
            self._store(self._known[region])
            self._next_s[region] = time.monotonic() + _AGE_S
        return self._known.get(region)

    def known(self, region: str) -> Prices | None:
        """The latest that is known, without a look."""
        return self._known.get(region)

    def _fetch(self, region: str, known: Prices | None) -> Prices:
        url = self._url.format(region=region)
        request = urllib.request.Request(url, headers={"If-None-Match": known.etag} if known and known.etag else {})
        now = datetime.now(UTC)
        try:
            with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as response:
                by_type = read_price_list(line.decode("utf-8") for line in response)
                etag = response.headers.get("ETag") or ""
        except urllib.error.HTTPError as error:
            if error.code == 304 and known is not None:
                return Prices(region, known.by_type, known.etag, now)
            raise Unavailable(f"aws: price list {url}: status {error.code}") from error
        except (OSError, ValueError) as error:
            raise Unavailable(f"aws: price list {url}: {error}") from error
        return Prices(region, by_type, etag, now)

    def _file(self, region: str) -> Path:
        return self._folder / f"aws_on_demand_{region}.json"

    def _store(self, prices: Prices) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        rows = {name: f"{price:f}" for name, price in prices.by_type.items()}
        content = {"etag": prices.etag, "checked_at": prices.checked_at.isoformat(), "usd_per_hour": rows}
        # A name of its own: the house's account and a project's store the same list at the same time, and one poll failed when
        # the other had moved the file that both wrote.
        with NamedTemporaryFile("w", encoding="utf-8", dir=self._folder, suffix=".new", delete=False) as new:
            json.dump(content, new)
        Path(new.name).replace(self._file(prices.region))

    def _restore(self, region: str) -> None:
        try:
            content = json.loads(self._file(region).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return
        by_type = {name: Decimal(price) for name, price in content["usd_per_hour"].items()}
        checked_at = datetime.fromisoformat(content["checked_at"])
        self._known[region] = Prices(region, by_type, content["etag"], checked_at)
        self._next_s[region] = time.monotonic() + _AGE_S - (datetime.now(UTC) - checked_at).total_seconds()


def read_price_list(lines: Iterable[str]) -> dict[str, Decimal]:
    """USD per hour by instance type. Raises ValueError when it is not the list's format, or prices contradict."""
    rows = iter(lines)
    for _ in range(_LINES_ABOUT):
        next(rows, None)
    header = next(csv.reader([next(rows, "")]), [])
    missing = [name for name in _NEEDED if name not in header]
    if missing:
        raise ValueError(f"line {_LINES_ABOUT + 1} has no column {', '.join(missing)}; it is not the bulk price list")
    found: dict[str, Decimal] = {}
    for row in csv.reader(_candidates(rows)):
        named = dict(zip(header, row, strict=False))
        if any(named.get(column, "") not in values for column, values in _WANTED.items()):
            continue
        name, text = named["Instance Type"], named["PricePerUnit"]
        try:
            price = Decimal(text)
        except InvalidOperation as error:
            raise ValueError(f"instance type {name}: price {text!r} is not a number") from error
        if price <= 0:  # unknown, not free
            continue
        if found.get(name, price) != price:
            raise ValueError(f"instance type {name}: two on-demand prices, {found[name]} and {price}")
        found[name] = price
    return found


def _candidates(lines: Iterator[str]) -> Iterator[str]:
    """Most of a million rows are other terms and systems: a look at the text is ten times cheaper than parsing it."""
    return (line for line in lines if '"OnDemand"' in line and '"Linux"' in line)
