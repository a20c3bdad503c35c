"""What an hour costs on spot and on demand, from price lists as they are published. Unknown prices are never free.

Read by their columns: AWS spot history (`spot_usd_hour` by zone), on-demand lists (`on_demand_usd_hour` by region), and Google's
(`hour_usd`, `hour_spot_usd`), which price every machine type in every region and therefore count only beside the list of which
accelerator exists where.
"""

from __future__ import annotations

import csv
import gzip
import io
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from solver.backtest.errors import BadPrices
from solver.backtest.traces import Trace
from solver.spot.world import Pools

# What is in an AWS machine type of the recorded generations: (accelerator, count). Source: AWS instance types.
AWS = {
    "p2.xlarge": ("k80", 1), "p2.8xlarge": ("k80", 8), "p2.16xlarge": ("k80", 16),
    "p3.2xlarge": ("v100", 1), "p3.8xlarge": ("v100", 4), "p3.16xlarge": ("v100", 8),
    "p4d.24xlarge": ("a100", 8), "p5.48xlarge": ("h100", 8), "g4dn.xlarge": ("t4", 1), "g5.xlarge": ("a10g", 1),
    "g6.xlarge": ("l4", 1), "g6e.xlarge": ("l40s", 1),
}  # fmt: skip
# Google's accelerator names in the region list, by what its price list calls them.
GOOGLE = {
    "A100-40GB": "nvidia-tesla-a100", "A100-80GB": "nvidia-a100-80gb", "H100-80GB": "nvidia-h100-80gb",
    "H100-MEGA-80GB": "nvidia-h100-mega-80gb", "L4-24GB": "nvidia-l4", "RTX-PRO-6000": "nvidia-rtx-pro-6000",
}  # fmt: skip
# Columns of Google's list of which accelerator exists in which region.
EXISTS = {"NAME", "ZONE"}


@dataclass(frozen=True, slots=True)
class Price:
    """One listed price per whole machine and hour; `place` is a zone or a region."""

    accelerator: str
    count: int
    place: str
    kind: Literal["spot", "on_demand"]
    usd_hour: float


def read(files: Mapping[str, bytes]) -> tuple[Price, ...]:
    """All prices in the files, by path. Raises BadPrices for a file that is none, naming it."""
    tables = {path: _rows(path, content) for path, content in files.items()}
    exists = {(row["ZONE"], row["NAME"]) for rows in tables.values() for row in rows if row.keys() >= EXISTS}
    return tuple(price for path, rows in tables.items() for price in _prices(path, rows, exists))


def pools(prices: Sequence[Price], traces: Sequence[Trace]) -> Pools:
    """Spot of each trace's zone and the cheapest on-demand anywhere. Medians of the series; of a zone without prices of its
    own, of all places. Raises BadPrices where there are none."""
    kind = (traces[0].accelerator.lower(), traces[0].count)
    mine = [price for price in prices if (price.accelerator, price.count) == kind]
    spot = [price for price in mine if price.kind == "spot"]
    on_demand: dict[str, list[float]] = {}
    for price in mine:
        if price.kind == "on_demand":
            on_demand.setdefault(price.place, []).append(price.usd_hour)
    if not spot or not on_demand:
        missing = "spot" if not spot else "on-demand"
        listed = ", ".join(sorted({f"{p.accelerator} x{p.count} {p.kind}" for p in prices})[:12]) or "nothing"
        raise BadPrices(
            f"no {missing} price of {kind[0]} x{kind[1]} in the price files (they list: {listed}); add a file that has one, "
            "or give --spot-price as a part of on-demand"
        )
    everywhere = statistics.median(price.usd_hour for price in spot)
    by_zone = [[price.usd_hour for price in spot if price.place == trace.zone] for trace in traces]
    return Pools(
        spot=tuple(statistics.median(own) if own else everywhere for own in by_zone),
        on_demand=min(statistics.median(listed) for listed in on_demand.values()),
    )


def _rows(path: str, content: bytes) -> list[dict[str, str]]:
    try:
        text = (gzip.decompress(content) if path.endswith(".gz") else content).decode()
        head = text.split("\n", 1)[0]
        return list(csv.DictReader(io.StringIO(text), delimiter=";" if ";" in head else ","))
    except (OSError, EOFError, UnicodeDecodeError, csv.Error) as wrong:
        raise BadPrices(f"prices {path}: cannot be read as CSV: {wrong}") from wrong


def _prices(path: str, rows: Sequence[Mapping[str, str]], exists: set[tuple[str, str]]) -> Iterator[Price]:
    columns = set(rows[0]) if rows else set()
    if {"zone", "instance", "spot_usd_hour"} <= columns:
        yield from _aws(path, rows, "zone", "spot_usd_hour", "spot")
    elif {"region", "instance", "on_demand_usd_hour"} <= columns:
        yield from _aws(path, rows, "region", "on_demand_usd_hour", "on_demand")
    elif {"region", "instance", "hour_usd", "hour_spot_usd", "gpu", "gpu_count"} <= columns:
        if not exists:
            raise BadPrices(
                f"prices {path}: Google lists prices also for regions without the accelerator; "
                "give the file of accelerator types by region beside it"
            )
        yield from _google(path, rows, exists)
    elif not columns >= EXISTS:
        raise BadPrices(
            f"prices {path}: columns {', '.join(sorted(columns)) or 'none'} are of no price list known here"
        )


def _aws(
    path: str, rows: Sequence[Mapping[str, str]], place: str, column: str, kind: Literal["spot", "on_demand"]
) -> Iterator[Price]:
    for number, row in enumerate(rows, 2):
        known, usd = AWS.get(row["instance"]), _usd(path, number, row[column])
        if not known or usd is None:
            continue
        if not row[place]:
            raise BadPrices(f"prices {path}, line {number}: no {place}")
        # GovCloud is a partition of its own: nobody outside it may rent there
        if "gov" not in row[place]:
            yield Price(known[0], known[1], row[place], kind, usd)


def _google(path: str, rows: Sequence[Mapping[str, str]], exists: set[tuple[str, str]]) -> Iterator[Price]:
    for number, row in enumerate(rows, 2):
        if (row["region"], GOOGLE.get(row["gpu"], "")) not in exists or not row["gpu_count"]:
            continue
        name, count = row["gpu"].split("-")[0].lower(), _count(path, number, row["gpu_count"])
        for column, kind in (("hour_usd", "on_demand"), ("hour_spot_usd", "spot")):
            usd = _usd(path, number, row[column])
            if usd is not None:
                yield Price(name, count, row["region"], "spot" if kind == "spot" else "on_demand", usd)


def _count(path: str, number: int, text: str) -> int:
    """How many accelerators; Google writes them as 1.0."""
    try:
        return round(float(text))
    except (ValueError, OverflowError) as wrong:
        raise BadPrices(f"prices {path}, line {number}: {text!r} is no count of accelerators") from wrong


def _usd(path: str, number: int, text: str) -> float | None:
    """A price; None where it is empty or 0, which is unknown."""
    if not text:
        return None
    try:
        value = float(text)
    except ValueError as wrong:
        raise BadPrices(f"prices {path}, line {number}: {text!r} is no price") from wrong
    return value if 0 < value < float("inf") else None
