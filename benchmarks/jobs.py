"""What validation costs beside the fastest parser alone, and what a batch of a million lines costs in memory.

`validation` is `jobs.lines` with every check on, sharding and hashing included; `orjson` is `orjson.loads` of each of the
same lines and nothing else. Pairs are interleaved in one process; CPU-seconds, medians. The ratio is orjson's time by
ours: 1.0 would be as fast. The million runs in a process of its own (`benchmarks.million`).
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import orjson

from benchmarks import corpus
from benchmarks.calibrate import calibrate
from jobs.lines import Validator
from jobs.request_line import Terms
from jobs.types import Limits

PIECE = 1024 * 1024  # as the object store reads
FILE_BYTES = 48_000_000
LONG, SHORT = 4_000, 500  # about so many bytes a line


def measure(pairs: int) -> dict[str, Any]:
    calibration = calibrate()
    return {
        "pairs": pairs,
        "long_lines": _validation(LONG, pairs, calibration["json_cpu_s"]),
        "short_lines": _validation(SHORT, pairs, calibration["json_cpu_s"]),
        "calibration": {name: round(value, 4) for name, value in calibration.items()},
    }


def _validation(size: int, pairs: int, json_cpu_s: float) -> dict[str, Any]:
    rows = list(corpus.lines(FILE_BYTES // size, size))
    content = b"".join(rows)
    pieces = [content[at : at + PIECE] for at in range(0, len(content), PIECE)]
    ours, theirs = [], []
    for _ in range(pairs):
        theirs.append(_timed(lambda: _parse(rows)))
        ours.append(_timed(lambda: _validate(pieces, len(rows))))
    ours_s = statistics.median(ours)
    return {
        "lines": len(rows),
        "bytes_a_line": len(content) // len(rows),
        "orjson_us": round(statistics.median(theirs) / len(rows) * 1e6, 2),
        "validation_us": round(ours_s / len(rows) * 1e6, 2),
        "ratio": round(statistics.median(b / a for a, b in zip(ours, theirs, strict=True)), 3),
        "mb_per_cpu_s": round(len(content) / 1e6 / ours_s),
        "cpu_per_json_loop": round(ours_s / json_cpu_s, 3),
    }


def _timed(work: Callable[[], object]) -> float:
    began = time.process_time()
    work()
    return time.process_time() - began


def _parse(rows: list[bytes]) -> None:
    for row in rows:
        orjson.loads(row)


def _validate(pieces: list[bytes], lines: int) -> None:
    terms = Terms(limits=Limits(max_lines=lines), default_output_tokens=256)
    validator = Validator(terms, shard_lines=1_000, shard_bytes=8 * 1024 * 1024)
    for piece in pieces:
        validator.feed(piece)
    found = validator.finish()
    assert found.lines == lines and not found.findings, found.findings[:3]


def million(lines: int) -> Any:
    """What `benchmarks.million` prints."""
    command = [sys.executable, "-m", "benchmarks.million", "--lines", str(lines)]
    return json.loads(subprocess.run(command, check=True, capture_output=True).stdout)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=15)
    parser.add_argument("--million", type=int, default=1_000_000, help="lines of the large batch; 0: leave it out")
    parser.add_argument("--json", action="store_true", help="one JSON object (the only form there is)")
    asked = parser.parse_args()
    found = measure(asked.pairs)
    if asked.million:
        found["million"] = million(asked.million)
    print(json.dumps(found))
