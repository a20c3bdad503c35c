"""How fast a configured model runs on accelerators that nobody gave a speed for: the solver's throughput model, for profiles.

Only of engines that we start ourselves on GPUs, and of models whose facts are known: by name, or by the `config.json` in their
folder of weights. What the operator gives (`tokens_per_s`) and what was measured go before.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from functools import cache
from pathlib import Path

import structlog

from markets.offer import Accelerator
from solver.throughput import fitted
from solver.throughput.hardware import Hardware, hardware_of
from solver.throughput.model_facts import ModelFacts, from_config, known_model
from solver.throughput.roofline import MOST_SEQUENCES, Shape, room_for
from solver.types import Work
from workers.profile import ModelProfile

log = structlog.get_logger()
ENGINES = frozenset({"vllm", "sglang", "trtllm"})
# The part of a step that few sequences take, too, of speeds that somebody gave or measured: neither all of it nor nothing.
UNKNOWN_FIXED = 0.5
# A request of which nothing is known.
TYPICAL = Shape(512, 256)


@dataclass(frozen=True, slots=True)
class Speed:
    """Tokens a second of a whole instance; `cautious`, `sequences`, `fixed` as in Throughput; `source`: profile or roofline."""

    input_per_s: float
    output_per_s: float
    cautious: float
    source: str
    sequences: float = 0.0
    fixed: float = UNKNOWN_FIXED


def facts_of(profile: ModelProfile) -> ModelFacts | None:
    """The model's facts: of its folder's config.json where it is one on this machine, else by any of its names."""
    if profile.weights and profile.weights.startswith("/"):
        found = _configured(profile.public_name, Path(profile.weights) / "config.json")
        if found is not None:
            return found
    return next(
        (facts for name in (profile.weights, profile.public_name) if name and (facts := known_model(name))), None
    )


def can_estimate(profile: ModelProfile, accelerator: Accelerator) -> bool:
    """Whether there is a speed to expect, and the model fits into the memory of as many accelerators as it is served on."""
    return _is_asked(profile, accelerator) and too_small(profile, accelerator) is None


def too_small(profile: ModelProfile, accelerator: Accelerator) -> str | None:
    """Why the weights and one request do not fit; None where they do, or where nothing is known or a speed was given."""
    if not _is_asked(profile, accelerator):
        return None
    facts, hardware = facts_of(profile), _hardware(accelerator)
    if facts is None or hardware is None:
        return None
    count = profile.options.accelerators
    longest = Shape(profile.context / 2, profile.context / 2)
    if room_for(facts, profile.precision, hardware, count, longest) >= 1:
        return None
    return (
        f"{profile.id}: {facts.weight_bytes(profile.precision) / 1e9:.0f} GB of weights ({profile.precision}) and a request of "
        f"{profile.context} tokens do not fit into {count}x {accelerator.name} ({hardware.memory_gb:.0f} GB each); "
        "a larger tensor_parallel or a narrower precision would"
    )


def estimated_speeds(
    profile: ModelProfile, accelerators: Iterable[Accelerator], works: Sequence[Work]
) -> dict[str, Speed]:
    """By accelerator name, for requests as long as those that wait for the model. Of one name that means several accelerators
    (an H100 is SXM or PCIe, which differ 2.6x) the slowest that it fits, since speeds are kept by name."""
    facts, shape = facts_of(profile), shape_of(profile, works)
    found: dict[str, Speed] = {}
    for accelerator in accelerators:
        hardware = _hardware(accelerator)
        if facts is None or hardware is None or not can_estimate(profile, accelerator):
            continue
        count = profile.options.accelerators
        told = fitted.estimate(facts, profile.precision, hardware, count, shape)
        most = profile.options.max_num_seqs
        if most is not None and most < told.sequences:
            told = fitted.estimate(facts, profile.precision, hardware, count, shape, float(most))
        alone = fitted.estimate(facts, profile.precision, hardware, count, shape, 1.0)
        before = found.get(accelerator.name)
        if before is None or told.output_per_s < before.output_per_s:
            found[accelerator.name] = Speed(
                told.input_per_s,
                told.output_per_s,
                told.cautious,
                "roofline",
                sequences=told.sequences,
                fixed=fixed_part(told.sequences, told.output_per_s, alone.output_per_s),
            )
    return found


def expected_speeds(profile: ModelProfile, accelerators: Iterable[Accelerator]) -> dict[str, tuple[float, float]]:
    """Tokens a second in and out of a whole instance by accelerator name: as given, else as estimated of typical requests.
    Names of which neither is known are left out."""
    alike = {replace(each, count=1, fraction=Decimal(1)) for each in accelerators}
    estimated = estimated_speeds(profile, alike, ())
    return {name: (speed.input_per_s, speed.output_per_s) for name, speed in estimated.items()} | dict(
        profile.tokens_per_s
    )


def fixed_part(sequences: float, output_per_s: float, alone_per_s: float) -> float:
    """The part of a step with so many sequences at once that one alone takes, too, by the speeds of both. Pure.

    >>> fixed_part(100, 1000, 10), fixed_part(100, 1000, 1000), round(fixed_part(100, 1000, 20), 3)
    (1.0, 0.0, 0.495)
    """
    if sequences <= 1:
        return 1.0
    step, alone = sequences / output_per_s, 1 / alone_per_s
    return min(1.0, max(0.0, (alone / step - 1 / sequences) / (1 - 1 / sequences)))


def at_once(profile: ModelProfile) -> float:
    """How many requests the profile's engine computes at once: what a speed that the operator gives is meant for."""
    if profile.options.max_num_seqs is not None:
        return float(profile.options.max_num_seqs)
    return float(MOST_SEQUENCES if profile.engine in ENGINES else profile.parallel)


def shape_of(profile: ModelProfile, works: Sequence[Work]) -> Shape:
    """The mean request of the model's works, in powers of two: a plan must not change with every line that is done."""
    mine = [work for work in works if work.model == profile.id and work.lines]
    lines = sum(work.lines for work in mine)
    if not lines:
        return TYPICAL
    half = profile.context / 2
    means = (sum(work.input_tokens for work in mine) / lines, sum(work.output_tokens_p50 for work in mine) / lines)
    return Shape(*(min(2.0 ** round(math.log2(max(1.0, mean))), half) for mean in means))


def _is_asked(profile: ModelProfile, accelerator: Accelerator) -> bool:
    return (
        profile.engine in ENGINES
        and accelerator.kind in ("nvidia", "amd")
        and accelerator.name not in profile.tokens_per_s
        and _hardware(accelerator) is not None
        and facts_of(profile) is not None
    )


def _hardware(accelerator: Accelerator) -> Hardware | None:
    """With the memory that the market says, where it says one: an "A100" may have 40 or 80 GB."""
    known = hardware_of(f"{accelerator.name} {accelerator.form or ''}")
    if known is None or accelerator.memory_mib <= 0:
        return known
    return replace(known, memory_gb=accelerator.memory_mib * 1.048576e-3)


@cache
def _configured(name: str, path: Path) -> ModelFacts | None:
    """Read once: weights in a folder do not change under their name."""
    if not path.is_file():
        return None
    try:
        return from_config(name, json.loads(path.read_bytes()))
    except (OSError, ValueError) as wrong:
        log.warning("model.facts_unknown", model=name, path=str(path), error=str(wrong))
        return None
