"""What a FOCUS export of a million rows costs beside pyarrow reading and writing the same rows, and how much memory it takes.

Each measurement is a process of its own (memory that one leaves behind must not count for the other), paired and interleaved:
`export` makes rows out of charges and writes CSV and Parquet, as the command does; `pyarrow` reads those files and writes them
again. CPU-seconds and peak resident memory of the process. `python -m benchmarks.ledger` runs this with the books' own figures.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PERIOD = "2026-11"
BEGAN_US = 1_793_491_200_000_000
MACHINES = 1_000


def charges(rows: int) -> Iterator[Any]:
    """A month of readings of a thousand machines, a minute each."""
    from ledger.focus.charge import Charge  # noqa: PLC0415 - the baseline's process must not pay for our imports

    price = [1_000_000_000 + 7 * machine for machine in range(MACHINES)]
    for number in range(rows):
        machine, minute = number % MACHINES, number // MACHINES
        start = BEGAN_US + minute * 60_000_000
        nano = price[machine] * (minute + 1) // 60 - price[machine] * minute // 60
        yield Charge(
            entry_id=f"entry_{number:026d}", kind="usage.accrue", category="Usage", is_correction=False, subject=machine,
            billed_nano=nano, effective_nano=nano, seconds=60, start_us=start, end_us=start + 60_000_000, batch=None,
            invoice=None,
        )  # fmt: skip


def subjects() -> list[Any]:
    from ledger.focus.charge import Subject  # noqa: PLC0415 - as above

    return [
        Subject(
            market=("aws", "gcp", "vast.ai")[machine % 3], project=f"project-{machine % 20}", rental=f"rental_{machine:026d}",
            offer_key=None, pricing="spot", region="eu-west-1", zone="eu-west-1a", sku="p5.48xlarge", accelerator="H100",
            accelerators=8, memory_mib=81_559, unit_nano=1_000_000_000 + 7 * machine, model="llama",
        )
        for machine in range(MACHINES)
    ]  # fmt: skip


def export(path: Path, rows: int, form: str) -> None:
    """Rows out of charges into one file."""
    from ledger.focus.files import FocusFiles  # noqa: PLC0415 - as above
    from ledger.focus.table import header, pieces  # noqa: PLC0415 - as above

    files = FocusFiles(
        header("1.4"),
        csv_path=path.with_suffix(".csv") if form != "parquet" else None,
        parquet_path=path.with_suffix(".parquet") if form != "csv" else None,
    )
    for piece in pieces(charges(rows), subjects(), period=PERIOD, mode="passthrough", version="1.4"):
        files.write(piece)
    files.close()


def rewrite(path: Path, form: str) -> None:
    """What pyarrow does with the same rows: read, and write again, with the same compression."""
    copy = path.with_suffix(".copy")
    if form != "parquet":
        from pyarrow import csv  # noqa: PLC0415 - our own process needs none of it

        csv.write_csv(csv.read_csv(path.with_suffix(".csv")), copy)
    if form == "csv":
        return
    from pyarrow import parquet  # noqa: PLC0415 - as above

    source = parquet.ParquetFile(path.with_suffix(".parquet"))
    with parquet.ParquetWriter(copy, source.schema_arrow, compression="zstd") as writer:
        for group in range(source.num_row_groups):
            writer.write_table(source.read_row_group(group))


def child(what: str, path: Path, rows: int, form: str) -> None:
    began = time.process_time()
    if what == "export":
        export(path, rows, form)
    else:
        rewrite(path, form)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"cpu_s": time.process_time() - began, "rss_mb": peak}))


def measure(rows: int, pairs: int, form: str = "both") -> dict[str, Any]:
    """The medians of the pairs; `ratio` is of CPU-seconds."""
    ours, theirs = [], []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows"
        for _ in range(pairs):
            ours.append(_run("export", path, rows, form))
            theirs.append(_run("pyarrow", path, rows, form))
        size = sum(each.stat().st_size for each in Path(folder).glob("rows.[cp][sa][vr]*"))
    return {
        "format": form,
        "rows": rows,
        "pairs": pairs,
        "mib": round(size / 2**20, 1),
        "export_cpu_s": round(statistics.median(each["cpu_s"] for each in ours), 3),
        "pyarrow_cpu_s": round(statistics.median(each["cpu_s"] for each in theirs), 3),
        "ratio": round(statistics.median(a["cpu_s"] / b["cpu_s"] for a, b in zip(ours, theirs, strict=True)), 2),
        "export_rss_mb": round(max(each["rss_mb"] for each in ours)),
        "pyarrow_rss_mb": round(max(each["rss_mb"] for each in theirs)),
    }


def _run(what: str, path: Path, rows: int, form: str) -> dict[str, float]:
    command = [
        sys.executable,
        "-m",
        "benchmarks.ledger_finance",
        "--child",
        what,
        "--path",
        str(path),
        "--rows",
        str(rows),
    ]
    done = subprocess.run([*command, "--form", form], check=True, capture_output=True, text=True)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--form", choices=("both", "csv", "parquet"), default="both")
    parser.add_argument("--json", action="store_true", help="one JSON document; it is printed in any case")
    parser.add_argument("--child", choices=("export", "pyarrow"), help=argparse.SUPPRESS)
    parser.add_argument("--path", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.child:
        child(asked.child, asked.path, asked.rows, asked.form)
    else:
        print(json.dumps(measure(asked.rows, asked.pairs, asked.form), indent=2))


if __name__ == "__main__":
    main()
