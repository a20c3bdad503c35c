"""Fit the throughput correction on measured runs and say how wrong it is where it has seen nothing: leave one pair out.

`BROKER_REFERENCE` names the folder with `data/throughput`. A pair is (model, accelerator): all of its runs are left out together
and predicted from the others. `--write` stores the fit that ships.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import json
import math
import os
import re
import statistics
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from solver.throughput import fitted
from solver.throughput.hardware import hardware_of
from solver.throughput.model_facts import known_model
from solver.throughput.roofline import Shape, ceiling

FITTED = Path(fitted.__file__).with_name("fitted.json")
SOURCES = (
    "aiconfigurator-core 0.12.0 silicon_sample.csv (Apache-2.0)",
    "MLCommons inference_results_v4.1, offline, closed (Apache-2.0)",
)
# How strongly effects are drawn to the typical one: in runs. Effects of a model or an accelerator more than common ones.
RIDGE, RIDGE_OWN = 1.0, 20.0


@dataclass(frozen=True)
class Run:
    """One measurement beside the roofline: features and log(measured / roofline)."""

    pair: tuple[str, str]
    features: dict[str, float]
    log_ratio: float


def runs(folder: Path) -> list[Run]:
    return [*_silicon(folder / "silicon_sample.csv.gz"), *_mlperf(folder / "mlperf_inference_llm.csv.gz")]


def _silicon(path: Path) -> Iterator[Run]:
    with gzip.open(path, "rt") as text:
        for row in csv.DictReader(text):
            if row["mode"] != "agg":
                continue
            count = round(float(row["tp_size"] or 1) * float(row["pp_size"] or 1))
            ttft_s, tpot_s = float(row["silicon_ttft_ms"]) / 1000, float(row["silicon_tpot_ms"]) / 1000
            shape, batch = Shape(float(row["isl"]), float(row["osl"])), float(row["batch_size"])
            measured = batch * shape.output_tokens / (ttft_s + shape.output_tokens * tpot_s)
            yield from _run(
                row["model_path"],
                row["system"].replace("_", " "),
                row["precision"] or "bf16",
                count,
                shape,
                batch,
                measured,
            )


def _mlperf(path: Path) -> Iterator[Run]:
    """Medians of a model and an accelerator; FP8 where the hardware has it, FP4 on B200."""
    found: dict[tuple[str, str, int], list[float]] = {}
    with gzip.open(path, "rt") as text:
        for row in csv.DictReader(text):
            usable = row["mlperf_round"] == "v4.1" and row["division"] == "closed" and row["scenario"] == "Offline"
            if usable and row["tokens_per_second"] and row["nodes"] == "1" and row["submitter"] != "RedHat":
                key = (row["model"].removesuffix("-99.9").removesuffix("-99"), row["accelerator"])
                count = round(float(row["accelerators_per_node"]))
                found.setdefault((*key, count), []).append(float(row["tokens_per_second"]))
    for (model, name, count), values in sorted(found.items()):
        # replicas of one or two accelerators each: per accelerator, as one
        precision = "fp4" if "B200" in name else "fp8"
        yield from _run(model, name, precision, 1, Shape(294, 294), None, statistics.median(values) / count)


def _run(
    model: str, name: str, precision: str, count: int, shape: Shape, batch: float | None, measured: float
) -> Iterator[Run]:
    facts, hardware = known_model(model), hardware_of(re.sub(r"-(NPS1|SPX|CTS).*", "", name))
    if facts is None or hardware is None or measured <= 0:
        return
    try:
        top = ceiling(facts, precision, hardware, count, shape, batch)
    except ValueError:
        top = ceiling(facts, precision, hardware, count, shape, 64.0)
    found = fitted.features(facts, precision, hardware, count, shape, top.sequences)
    yield Run((facts.id, hardware.id), found, math.log(measured / top.output_of(shape)))


def fit(sample: Sequence[Run]) -> dict[str, float]:
    """Ridge; each pair weighs as the root of its runs, so that the best measured one does not speak for all."""
    names = sorted({name for run in sample for name in run.features})
    matrix = np.array([[run.features.get(name, 0.0) for name in names] for run in sample])
    counts: dict[tuple[str, str], int] = {}
    for run in sample:
        counts[run.pair] = counts.get(run.pair, 0) + 1
    weights = np.array([1 / math.sqrt(counts[run.pair]) for run in sample])
    target = np.array([run.log_ratio for run in sample])
    ridge = np.diag([0.0 if n == "one" else RIDGE_OWN if ":" in n else RIDGE for n in names])
    scale = len(sample) / weights.sum()
    left = matrix.T @ (matrix * (weights * scale)[:, None]) + ridge
    found = np.linalg.solve(left, matrix.T @ (target * weights * scale))
    return {name: round(float(value), 5) for name, value in zip(names, found, strict=True)}


def predict(coefficients: dict[str, float], run: Run) -> float:
    return sum(coefficients.get(name, 0.0) * value for name, value in run.features.items())


def left_out(sample: Sequence[Run]) -> dict[tuple[str, str], list[float]]:
    """Log errors of each pair's runs, predicted from all other pairs."""
    errors = {}
    for pair in sorted({run.pair for run in sample}):
        coefficients = fit([run for run in sample if run.pair != pair])
        errors[pair] = [run.log_ratio - predict(coefficients, run) for run in sample if run.pair == pair]
    return errors


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.throughput", description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--write", action="store_true", help="store the fit that ships")
    arguments = parser.parse_args()
    reference = os.environ.get("BROKER_REFERENCE")
    if not reference:
        sys.exit("BROKER_REFERENCE is not set: it names the folder with data/throughput")
    sample = runs(Path(reference) / "data" / "throughput")
    errors = left_out(sample)
    by_pair = [statistics.median(values) for values in errors.values()]
    every = sorted(abs(value) for values in errors.values() for value in values)
    spread = statistics.pstdev(by_pair)
    coefficients = fit(sample)
    inside = [abs(run.log_ratio - predict(coefficients, run)) for run in sample]
    told = {
        "runs": len(sample),
        "pairs": len(errors),
        "left_out_median_error": round(math.exp(statistics.median(every)) - 1, 3),
        "left_out_p90_error": round(math.exp(every[int(0.9 * len(every))]) - 1, 3),
        "left_out_within_1_5x": round(sum(value < math.log(1.5) for value in every) / len(every), 3),
        "left_out_spread_of_pairs": round(spread, 3),
        "in_sample_median_error": round(math.exp(statistics.median(inside)) - 1, 3),
        "roofline_alone_median_error": round(math.exp(statistics.median(abs(run.log_ratio) for run in sample)) - 1, 3),
        "worst_pairs": {
            "/".join(pair): round(math.exp(statistics.median(values)), 2)
            for pair, values in sorted(errors.items(), key=lambda item: -abs(statistics.median(item[1])))[:5]
        },
    }
    if arguments.write:
        shipped = {"coefficients": coefficients, "spread": round(spread, 4), "runs": len(sample), "sources": SOURCES}
        FITTED.write_text(json.dumps(shipped, indent=1, sort_keys=True) + "\n")
    if arguments.json:
        print(json.dumps(told))
    else:
        for name, value in told.items():
            print(f"{name}: {value}")


if __name__ == "__main__":
    main()
