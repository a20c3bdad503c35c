"""Which device a provider means: the accelerator table, and reading a provider's own name by it.

The figures are the vendors' data sheets: dense (not sparse) tensor arithmetic, memory as the device is sold. One name can
be two devices (an A100 has 40 or 80 GB) and one device many names; H100 SXM, PCIe and NVL differ 2.6x in tokens/s. A name
that is not here, or that the table contradicts, is listed with the reason and never guessed.

For adapters: `identify("NVIDIA H100 80GB HBM3", count=8, form="SXM5")`, then `accelerator=found.accelerator` and
`quarantined=found.problem`.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from functools import cache
from importlib.resources import files
from types import MappingProxyType

from markets.offer import Accelerator, AcceleratorKind

# AWS reports 45,776 MiB for the 48 GiB of an L40S and 22,888 for an L4's 24 (6.9 %); marketing's 80 GB are 76,294 MiB.
TOLERANCE = 0.08
# The memory in GH200's usual name is the processor's.
_HOST_MEMORY_GIB = frozenset({480, 576, 624})
_KINDS: Mapping[str, AcceleratorKind] = MappingProxyType(
    {"nvidia": "nvidia", "amd": "amd", "tpu": "tpu", "trainium": "trainium", "gaudi": "gaudi"}
)
# Words that say whose it is or how it is cooled, not which device it is.
_NOISE = frozenset(
    {
        "nvidia", "tesla", "geforce", "amd", "instinct", "intel", "habana", "google", "aws", "gpu", "gpus", "tensor", "core",
        "generation", "edition", "hbm2", "hbm2e", "hbm3", "hbm3e", "gddr6", "oam", "apu", "superchip", "nvlink", "vram",
        "graphics", "corporation", "with", "of", "ram", "memory", "virtual", "vws", "ib", "accelerator", "chip",
        "chips", "r", "x",
    }
)  # fmt: skip
_FORMS: Mapping[str, str] = MappingProxyType(
    {
        "sxm": "sxm",
        "sxm2": "sxm",
        "sxm3": "sxm",
        "sxm4": "sxm",
        "sxm5": "sxm",
        "sxm6": "sxm",
        "pcie": "pcie",
        "nvl": "nvl",
    }
)


@dataclass(frozen=True, slots=True)
class Chip:
    """One row of the table. TFLOPS are dense; None: the device has no such arithmetic (or nobody says).

    `form` None is a device of the family whose form factor a source does not say; its figures are the slowest form's.
    """

    name: str
    kind: AcceleratorKind
    family: str
    form: str | None
    memory_mib: int
    bandwidth_gb_s: int
    fp16_tflops: Decimal | None
    fp8_tflops: Decimal | None
    fp4_tflops: Decimal | None
    engines: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Identified:
    """What a name means. With a `problem` the accelerator is what was said, kept for people, and must not be chosen."""

    accelerator: Accelerator
    problem: str | None = None


def identify(
    raw_name: str,
    *,
    count: int,
    memory_mib: int | None = None,
    form: str | None = None,
    fraction: Decimal = Decimal(1),
) -> Identified:
    """The accelerator that a provider calls `raw_name`. `memory_mib` (of one whole device) and `form` are further words of
    the provider (`SXM5`, `PCIe`); what the name itself says of them wins. Never raises.

    >>> identify("8x A100 (80 GB SXM4)", count=8).accelerator.name
    'a100-sxm-80'
    >>> identify("L4", count=1, memory_mib=22_888).accelerator.memory_mib
    22888
    >>> identify("NVIDIA A100", count=1).problem is None, identify("Groq LPU", count=1).problem is None
    (False, False)
    """
    words = _words(raw_name)
    said = _Said(raw_name, words, memory_mib, form)
    found = _candidates(said)
    if count < 1 and isinstance(found, Chip):
        found = f"accelerator {raw_name!r}: the offer has {count} of them"
    if isinstance(found, str):
        unknown = Accelerator("none", _slug(raw_name), said.form, said.memory_mib or 0, max(0, count), fraction)
        return Identified(unknown, found)
    memory = memory_mib if memory_mib and _near(memory_mib, found.memory_mib) else found.memory_mib
    return Identified(Accelerator(found.kind, found.name, found.form, memory, count, fraction))


@cache
def chips() -> Mapping[str, Chip]:
    """The table, by our name."""
    text = files("markets.facts").joinpath("accelerators.csv").read_text(encoding="utf-8")
    return MappingProxyType({row["name"]: _chip(row) for row in csv.DictReader(text.splitlines())})


@cache
def _families() -> Mapping[str, tuple[tuple[Chip, ...], str | None]]:
    """What a bare name can mean, and the form that an alias adds to it (GCP's `h100-mega` is SXM)."""
    text = files("markets.facts").joinpath("accelerators.csv").read_text(encoding="utf-8")
    found: dict[str, tuple[tuple[Chip, ...], str | None]] = {}
    rows = list(csv.DictReader(text.splitlines()))
    for row in rows:
        family = tuple(chip for chip in chips().values() if chip.family == row["family"])
        found[row["family"]] = (family, None)
    for row in rows:
        for alias in filter(None, row["aliases"].split("|")):
            family = tuple(chip for chip in chips().values() if chip.family == row["family"])
            found.setdefault(alias, (family, row["form"] or None))
        found.setdefault(" ".join(_tokens(row["name"])), ((chips()[row["name"]],), None))
    return MappingProxyType(found)


class _Said:
    """All that a provider said of a device, taken apart."""

    def __init__(self, raw: str, words: list[str], memory_mib: int | None, form: str | None) -> None:
        self.raw = raw
        gib = [int(match[1]) for word in words if (match := re.fullmatch(r"(\d+)(?:gb|gib|g)", word))]
        forms = [_FORMS[word] for word in words if word in _FORMS]
        if not forms and "h100" in words and re.search(r"\b80\s?gb hbm3\b", raw, re.IGNORECASE):
            forms = ["sxm"]  # the driver's own name of the SXM board; the PCIe card has HBM2e, the NVL 94 GB
        plain = [word for word in words if word not in _FORMS and not re.fullmatch(r"\d+(?:gb|gib|g)", word)]
        self.name = " ".join(plain)
        in_name = [each for each in gib if not (each in _HOST_MEMORY_GIB and "gh200" in plain)]
        self.memory_mib = in_name[0] * 1024 if in_name else memory_mib
        given = _FORMS.get("".join(_tokens(form))) if form else None
        self.form = forms[0] if forms else given


def _candidates(said: _Said) -> Chip | str:
    family, alias_form = _families().get(said.name, ((), None))
    own = chips().get(said.raw.strip().lower())
    if own is not None and own.name != own.family:  # `a100-sxm-80`; a bare `h100` may also be the NVL
        family, alias_form = (own,), own.form
    if not family:
        return f"accelerator {said.raw!r} is not in the table; it is listed and never chosen until somebody adds it"
    fits = [chip for chip in family if said.memory_mib is None or _near(said.memory_mib, chip.memory_mib)]
    if not fits:
        sizes = ", ".join(sorted({f"{chip.memory_mib // 1024} GiB" for chip in family}))
        return f"accelerator {said.raw!r} with {said.memory_mib} MiB is none that we know ({sizes}); a slice, or another device"
    form = said.form or alias_form
    if form is not None:
        exact = [chip for chip in fits if chip.form == form] or [chip for chip in fits if _is_on_card(chip, form)]
        if not exact:
            return f"accelerator {said.raw!r}: no {form} form of it is known ({', '.join(c.name for c in family)})"
        fits = exact
    return _only(said, fits)


def _only(said: _Said, fits: list[Chip]) -> Chip | str:
    """The one that fits, or the family's row without a form; else the words that say what it can be."""
    formless = [chip for chip in fits if chip.form is None]
    for certain in (fits, formless):
        if len(certain) == 1:
            return certain[0]
    names = ", ".join(chip.name for chip in fits)
    return f"accelerator {said.raw!r} can be {names}; the source does not say which"


def _is_on_card(chip: Chip, form: str) -> bool:
    """NVL devices are PCIe cards: who says PCIe of an H200 means its NVL."""
    return form == "pcie" and chip.form == "nvl"


def _chip(row: Mapping[str, str]) -> Chip:
    return Chip(
        name=row["name"],
        kind=_KINDS[row["kind"]],
        family=row["family"],
        form=row["form"] or None,
        memory_mib=int(row["memory_gib"]) * 1024,
        bandwidth_gb_s=int(row["bandwidth_gb_s"]),
        fp16_tflops=_number(row["fp16_tflops"]),
        fp8_tflops=_number(row["fp8_tflops"]),
        fp4_tflops=_number(row["fp4_tflops"]),
        engines=tuple(row["engines"].split()),
    )


def _number(text: str) -> Decimal | None:
    return Decimal(text) if text else None


def _near(reported_mib: int, known_mib: int) -> bool:
    return abs(reported_mib - known_mib) <= known_mib * TOLERANCE


def _words(raw: str) -> list[str]:
    """`8x NVIDIA A100 (80 GB SXM4)` → `a100 80gb sxm4`."""
    plain = re.sub(r"^\s*\d+\s*x\s+|^\s*\d+x(?=[a-z])", "", raw.lower())
    plain = re.sub(r"(\d+)\s+(gb|gib)\b", r"\1\2", plain)
    return [word for word in _tokens(plain) if word not in _NOISE]


def _tokens(text: str) -> list[str]:
    return [word for word in re.split(r"[^a-z0-9.]+", text.lower()) if word]


def _slug(raw: str) -> str:
    """Never a name of the table: nobody's speeds are those of a device that we do not know."""
    return "unknown-" + ("-".join(_tokens(raw)) or "unnamed")
