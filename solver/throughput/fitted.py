"""How far below the roofline real engines stay: a linear model of log(measured / roofline), and its spread.

The coefficients (`fitted.json`, made by `python -m benchmarks.throughput --write`) come from measured serving runs; see NOTICE.
What a model or an accelerator has as its own effect was shrunk (ridge), so that an unknown one is a typical one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

import msgspec

from solver.throughput.hardware import Hardware
from solver.throughput.model_facts import ModelFacts, bytes_of
from solver.throughput.roofline import Ceiling, Shape, ceiling

# The 20 % quantile of a normal distribution: what deadlines are planned with.
CAUTIOUS_SIGMA = 0.8416


class Fit(msgspec.Struct, frozen=True):
    """Coefficients by feature name, and the standard deviation of the log error by how much was known of the pair."""

    coefficients: dict[str, float]
    spread: float
    runs: int
    sources: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Estimate:
    """Tokens a second of a whole instance; `cautious` is the 20 % quantile as a part of them."""

    input_per_s: float
    output_per_s: float
    sequences: float
    cautious: float


@cache
def shipped() -> Fit:
    """The fit that comes with this release."""
    return msgspec.json.decode(files("solver.throughput").joinpath("fitted.json").read_bytes(), type=Fit)


def features(
    facts: ModelFacts, precision: str, hardware: Hardware, count: int, shape: Shape, sequences: float
) -> dict[str, float]:
    """What the correction depends on. Tensor parallelism is `log_count`: its loss was measured, not assumed."""
    width = bytes_of(precision, facts.native)
    return {
        "one": 1.0,
        "log_count": math.log2(count),
        "log_sequences": math.log2(max(1.0, sequences)),
        "log_context": math.log2(max(1.0, shape.input_tokens + shape.output_tokens)) - 11,
        "log_ratio": math.log2(max(1.0, shape.input_tokens) / max(1.0, shape.output_tokens)),
        "moe": float(facts.is_moe),
        "eight_bit": float(0.6 < width <= 1.06),
        "four_bit": float(width <= 0.6),
        f"gpu:{hardware.id}": 1.0,
        f"model:{facts.id}": 1.0,
    }


def log_correction(fit: Fit, found: Mapping[str, float]) -> float:
    return sum(fit.coefficients.get(name, 0.0) * value for name, value in found.items())


def estimate(
    facts: ModelFacts, precision: str, hardware: Hardware, count: int, shape: Shape, sequences: float | None = None
) -> Estimate:
    """The expected speed. Raises ValueError when the model does not fit into the memory."""
    fit = shipped()
    top: Ceiling = ceiling(facts, precision, hardware, count, shape, sequences)
    factor = math.exp(log_correction(fit, features(facts, precision, hardware, count, shape, top.sequences)))
    return Estimate(
        top.input_per_s * factor, top.output_per_s * factor, top.sequences, math.exp(-CAUTIOUS_SIGMA * fit.spread)
    )
