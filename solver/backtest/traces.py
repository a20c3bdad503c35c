"""Availability traces, read from bytes: 1 and more is available, 0 is not, in every format read here.

`*.json` are the NSDI 2024 "Can't Be Late" files, {"metadata": {"gap_seconds"}, "data": [...]}; `*.jsonl` windows of one zone with
`start_time`, as cut for Frontier-CS. Upstream, Frontier-CS has the sign inverted (its 1 is *not* available); a file whose
`encoding` is not `1=available` is refused.
"""

from __future__ import annotations

import gzip
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import PurePath
from typing import Any

import numpy as np

from solver.backtest.errors import BadTrace
from solver.spot.world import Flags

_NAME = re.compile(r"(?P<zone>[a-z]+(?:-[a-z0-9]+)+?)_(?P<accelerator>[a-z0-9-]+)_(?P<count>\d+)$")


@dataclass(frozen=True, slots=True)
class Trace:
    """One pool's record: a flag a tick, and whether that tick was recorded at all. Ticks are `tick_s` long."""

    name: str
    zone: str
    accelerator: str
    count: int
    tick_s: float
    is_up: Flags
    is_known: Flags


def read(path: str, content: bytes) -> Trace:
    """The trace in a file's bytes, gzipped or not. Raises BadTrace naming the file and the field."""
    text = _text(path, content)
    name = PurePath(path).name.removesuffix(".gz")
    if name.endswith(".jsonl"):
        return _windows(path, text)
    if name.endswith(".json"):
        return _series(path, text)
    raise BadTrace(f"trace {path}: want a .json or .jsonl file (also .gz), as `gap_seconds` with a value a tick")


def together(traces: Sequence[Trace]) -> tuple[Flags, Flags, float]:
    """Zones of one moment: (is_up, is_known) by (zone, tick), and the tick. Raises BadTrace where they do not go together."""
    first = traces[0]
    for each in traces[1:]:
        if each.tick_s != first.tick_s or each.is_up.shape != first.is_up.shape:
            raise BadTrace(
                f"trace {each.name} has {each.is_up.size} ticks of {each.tick_s:g} s, {first.name} has "
                f"{first.is_up.size} of {first.tick_s:g} s: they are no zones of one time; use --each"
            )
        if (each.accelerator, each.count) != (first.accelerator, first.count):
            raise BadTrace(
                f"trace {each.name} is of {each.accelerator} x{each.count}, {first.name} of {first.accelerator} "
                f"x{first.count}: one machine cannot go on as the other; use --each"
            )
    return np.stack([t.is_up for t in traces]), np.stack([t.is_known for t in traces]), first.tick_s


def _text(path: str, content: bytes) -> str:
    try:
        return (gzip.decompress(content) if path.endswith(".gz") else content).decode()
    except (OSError, EOFError, UnicodeDecodeError) as wrong:
        raise BadTrace(f"trace {path}: cannot be read: {wrong}") from wrong


def _pool(path: str) -> tuple[str, str, int]:
    """Zone, accelerator and count, from a name such as us-east-1a_v100_1.json."""
    stem = PurePath(path).name.split(".", 1)[0]
    found = _NAME.match(stem)
    if found is None:
        return stem, "unknown", 1
    return found["zone"], found["accelerator"], int(found["count"])


def _series(path: str, text: str) -> Trace:
    try:
        body = json.loads(text)
        gap, values = body["metadata"]["gap_seconds"], body["data"]
    except (json.JSONDecodeError, KeyError, TypeError) as wrong:
        raise BadTrace(f"trace {path}: want {{'metadata': {{'gap_seconds'}}, 'data': [...]}}: {wrong}") from wrong
    if not isinstance(gap, int | float) or not 0 < gap < math.inf:
        raise BadTrace(f"trace {path}: gap_seconds {gap!r} is not a positive number")
    if not isinstance(values, list):
        raise BadTrace(
            f"trace {path}: data is a {type(values).__name__}; want a list of available instances, one a tick"
        )
    wrong_at = next((i for i, value in enumerate(values) if not isinstance(value, int | float) or not value >= 0), None)
    if wrong_at is not None or len(values) < 2:
        what = f"data[{wrong_at}] is {values[wrong_at]!r}" if wrong_at is not None else f"{len(values)} ticks"
        raise BadTrace(f"trace {path}: {what}; want two or more numbers of available instances")
    zone, accelerator, count = _pool(path)
    is_up = np.array(values, dtype=float) > 0
    return Trace(PurePath(path).name, zone, accelerator, count, float(gap), is_up, np.ones_like(is_up))


def _windows(path: str, text: str) -> Trace:
    """Windows put where they belong in time; what no window covers is unknown, and counts as down."""
    rows = [_window(path, number, line) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
    if not rows:
        raise BadTrace(f"trace {path}: no windows in it")
    gap = float(rows[0]["gap_seconds"])
    begin = min(row["at"] for row in rows)
    offsets = [round((row["at"] - begin) / gap) for row in rows]
    size = max(offset + len(row["data"]) for offset, row in zip(offsets, rows, strict=True))
    is_up, is_known = np.zeros(size, dtype=bool), np.zeros(size, dtype=bool)
    for offset, row in zip(offsets, rows, strict=True):
        flags = np.frombuffer(row["data"].encode(), dtype=np.uint8) == ord("1")
        is_up[offset : offset + len(flags)] = flags
        is_known[offset : offset + len(flags)] = True
    zone, accelerator, count = _pool(path)
    return Trace(PurePath(path).name, zone, accelerator, count, gap, is_up, is_known)


def _window(path: str, number: int, line: str) -> dict[str, Any]:
    try:
        row: Mapping[str, Any] = json.loads(line)
        flags = str(row["data"])
        encoding = str(row.get("encoding", ""))
        at = datetime.fromisoformat(row["start_time"]).timestamp()
        gap = float(row["gap_seconds"])
    except (json.JSONDecodeError, KeyError, TypeError, ValueError) as wrong:
        raise BadTrace(f"trace {path}, line {number}: want start_time, gap_seconds and data: {wrong}") from wrong
    if not flags or not set(flags) <= {"0", "1"} or not 0 < gap < math.inf:
        raise BadTrace(f"trace {path}, line {number}: data must be of 0 and 1, gap_seconds positive")
    if encoding != "1=available":
        raise BadTrace(
            f"trace {path}, line {number}: encoding {encoding!r} does not say whether 1 is available; "
            "the same windows are published with either sign"
        )
    return {"data": flags, "at": at, "gap_seconds": gap}
