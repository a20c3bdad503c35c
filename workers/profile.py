"""A model and how it is served, as the workers room needs it. The broker fills it from its settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal

from workers.engine_profile import DEFAULT, EngineProfile

EngineKind = Literal["llamacpp", "vllm", "vllm-tpu", "vllm-neuron", "sglang", "trtllm", "url", "command"]

CHAT_AND_COMPLETIONS = ("/v1/chat/completions", "/v1/completions")
# What a model that writes text serves without further settings (seen: xllamacpp 2026.10, vLLM 0.32). Embeddings are
# another mode of both engines; of other people's servers we know only what everybody serves.
ENDPOINTS: Mapping[EngineKind, tuple[str, ...]] = MappingProxyType(
    {
        "llamacpp": (*CHAT_AND_COMPLETIONS, "/v1/responses"),
        "vllm": (*CHAT_AND_COMPLETIONS, "/v1/responses"),
        "vllm-tpu": CHAT_AND_COMPLETIONS,
        "vllm-neuron": CHAT_AND_COMPLETIONS,
        "sglang": CHAT_AND_COMPLETIONS,
        "trtllm": CHAT_AND_COMPLETIONS,
        "url": CHAT_AND_COMPLETIONS,
        "command": CHAT_AND_COMPLETIONS,
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelProfile:
    """`serves` is the model's public name, which lines use; default is the profile's own id. Several profiles may serve one
    model (`llama-8b@fp8` serves `llama-8b`).

    `weights` is a file or folder on the machine that runs the engine, a name that the engine itself can fetch, or
    (`url`) the name under which the remote server knows the model.

    `context` is tokens of prompt and answer a request, `parallel` the requests computed together where the engine wants
    that fixed, else the driver's first guess (vLLM: at least 64). `endpoints` are the paths that batches may use; with
    `/v1/embeddings` among them llama.cpp is started in its embedding mode. `tokens_per_s` is (input, output) by
    accelerator name. `options` is how the engine is run (not of `llamacpp`, `url` and `command`).

    Of launches in containers: `image` (by digest, or `image_tag_may_move`), `entrypoint` (default: `python3`), `shm_mib`,
    `cache` (a folder of the host keeps weights and what engines compile), `user` (whom the image's programs run as).
    `metrics` maps our names to Prometheus samples for engines that we do not know (`command`).
    """

    id: str
    engine: EngineKind
    serves: str | None = None
    weights: str | None = None
    weights_sha256: str | None = None
    revision: str | None = None
    precision: str = "auto"
    context: int = 2048
    parallel: int = 8
    image: str | None = None
    entrypoint: tuple[str, ...] | None = None
    shm_mib: int | None = None
    image_tag_may_move: bool = False
    cache: bool = True
    user: str | None = None
    options: EngineProfile = DEFAULT
    args: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    argv: tuple[str, ...] = ()
    base_url: str | None = None
    api_key: str | None = field(default=None, repr=False)
    launches: tuple[str, ...] = ("process",)
    endpoints: tuple[str, ...] = CHAT_AND_COMPLETIONS
    tokens_per_s: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    load_s: int = 10
    request_timeout_s: int = 600
    health_path: str | None = None
    metrics_path: str | None = None
    metrics: Mapping[str, str] = field(default_factory=dict)

    @property
    def public_name(self) -> str:
        """What lines call the model, and what its engine is told that it is called."""
        return self.serves or self.id
