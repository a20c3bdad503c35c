"""What the hardware would do at most: a step reads the weights and every key and value once, or computes, whichever is slower.

Formulas: a token costs 2 FLOP an active weight; a step of B sequences takes max(bytes moved / bandwidth, FLOP / peak); a mixture
touches 1 − (1 − k/E)^B of its experts. B is what memory leaves room for.
"""

from __future__ import annotations

from dataclasses import dataclass

from solver.throughput.hardware import Hardware
from solver.throughput.model_facts import ModelFacts, bytes_of

# What engines use of the memory, and what one accelerator needs beside weights and cache.
USABLE, RESERVED_GB = 0.9, 1.5
# As many sequences as engines take at once by default (vLLM's max_num_seqs).
MOST_SEQUENCES = 256


@dataclass(frozen=True, slots=True)
class Shape:
    """Tokens in and out of a typical request."""

    input_tokens: float
    output_tokens: float


@dataclass(frozen=True, slots=True)
class Ceiling:
    """Tokens a second of all `count` accelerators together, and with how many sequences at once."""

    input_per_s: float
    output_per_s: float
    sequences: float

    def output_of(self, shape: Shape) -> float:
        """Output tokens a second over whole requests, reading the prompts included."""
        seconds = shape.input_tokens / self.input_per_s + shape.output_tokens / self.output_per_s
        return shape.output_tokens / seconds


def room_for(facts: ModelFacts, precision: str, hardware: Hardware, count: int, shape: Shape) -> float:
    """How many sequences fit beside the weights; below 1 the model does not fit."""
    memory = count * (USABLE * hardware.memory_gb - RESERVED_GB) * 1e9
    # on average a sequence is half done
    tokens = shape.input_tokens + shape.output_tokens / 2
    return (memory - facts.weight_bytes(precision)) / max(1.0, facts.kv_bytes(precision) * tokens)


def ceiling(
    facts: ModelFacts, precision: str, hardware: Hardware, count: int, shape: Shape, sequences: float | None = None
) -> Ceiling:
    """The most that `count` accelerators can do. `sequences` None: as many as fit. Raises ValueError when none does."""
    room = room_for(facts, precision, hardware, count, shape)
    batch = min(room, MOST_SEQUENCES) if sequences is None else sequences
    if batch < 1:
        raise ValueError(
            f"{facts.id} in {precision} does not fit: {facts.weight_bytes(precision) / 1e9:.0f} GB of weights beside "
            f"{count}x {hardware.memory_gb:.0f} GB of {hardware.id}"
        )
    width = bytes_of(precision, facts.native)
    peak = count * 1e12 * (hardware.tflops_8 if width <= 1.06 else hardware.tflops_16)
    touched = facts.active_b
    if facts.is_moe:
        hit = 1 - (1 - facts.experts_used / facts.experts) ** batch
        touched = facts.active_b + (facts.params_b - facts.active_b) * hit
    context = shape.input_tokens + shape.output_tokens / 2
    moved = touched * 1e9 * width + batch * context * facts.kv_bytes(precision)
    step_s = max(moved / (count * hardware.bandwidth_tbs * 1e12), 2 * facts.active_b * 1e9 * batch / peak)
    return Ceiling(peak / (2 * facts.active_b * 1e9), batch / step_s, batch)
