"""Settings of the models that may be asked for, and of the ways to run their engines."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from pydantic import SecretStr, model_validator

from broker.section import Section
from workers.engine_profile import DEFAULT, EngineProfile
from workers.profile import EngineKind


class ProfileSettings(Section):
    """One way to run a model's engine: the options of `workers.engine_profile.EngineProfile`, and what it changes of the
    model's own section (an AWQ profile has other weights and another speed).

    `precision` is what a batch's wish of that name is held against, by default the quantisation or the dtype.
    """

    options: EngineProfile = DEFAULT
    weights: str | None = None
    weights_sha256: str | None = None
    revision: str | None = None
    precision: str | None = None
    context: int | None = None
    image: str | None = None
    shm_mib: int | None = None
    args: tuple[str, ...] | None = None
    env: dict[str, str] | None = None
    launches: tuple[str, ...] | None = None
    tokens_per_s: dict[str, tuple[float, float]] | None = None
    load_s: int | None = None

    @model_validator(mode="before")
    @classmethod
    def _options_stand_beside(cls, given: Any) -> Any:
        """In TOML the options stand beside the rest: `[models."m".profiles.fp8] quantization = "fp8"`."""
        if not isinstance(given, dict):
            return given
        names = {each.name for each in fields(EngineProfile)} & given.keys()
        beside = {name: given[name] for name in names}
        rest = {name: value for name, value in given.items() if name not in names}
        return {**rest, "options": {**rest.get("options", {}), **beside}} if beside else given


class ModelSettings(Section):
    """One model that may be asked for, and how it is served.

    `publisher`, `licence` (SPDX) and `costly` are what residency policies may ask of it.

    `serves` is the name that lines use, default the section's own: several sections may serve one model, and the cheapest
    that a batch accepts does. `precision` is what a batch's wish of that name is held against. `profiles` are ways to run
    the engine, by name: each is a profile of its own, `MODEL@NAME`.

    `engine`: `llamacpp`, `vllm` (`vllm-tpu`, `vllm-neuron`), `sglang` and `trtllm` start a server from `weights`; `url` uses a
    server that already runs at `base_url`; `command` starts `argv`, any program that serves the OpenAI API on
    {host}:{port}. `tokens_per_s` is the starting estimate (input, output) by accelerator name; measurements replace it.
    Of GPUs that it does not name, speed is estimated where the model is known (its name, or the `config.json` in its folder of
    weights).
    `endpoints`: what batches may use, by default what the engine serves of a model that writes text; an embedding model
    says `["/v1/embeddings"]`. `image` is named by digest, or `image_tag_may_move` says that you accept what a tag is.
    """

    engine: EngineKind
    serves: str | None = None
    publisher: str | None = None
    licence: str | None = None
    costly: bool | None = None
    weights: str | None = None
    weights_sha256: str | None = None
    revision: str | None = None
    precision: str = "auto"
    context: int = 2048
    parallel: int = 8
    image: str | None = None
    image_tag_may_move: bool = False
    entrypoint: tuple[str, ...] | None = None
    shm_mib: int | None = None
    cache: bool = True
    user: str | None = None
    profiles: dict[str, ProfileSettings] = {}
    args: tuple[str, ...] = ()
    env: dict[str, str] = {}
    argv: tuple[str, ...] = ()
    base_url: str | None = None
    api_key: SecretStr | None = None
    launches: tuple[str, ...] = ("process",)
    endpoints: tuple[str, ...] | None = None
    tokens_per_s: dict[str, tuple[float, float]] = {"cpu": (200.0, 40.0)}
    load_s: int = 10
    request_timeout_s: int = 600
    health_path: str | None = None
    metrics_path: str | None = None
    metrics: dict[str, str] = {}
