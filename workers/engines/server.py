"""What all engines that serve the OpenAI API from a command have in common; each engine is a table of this kind.

The server listens on loopback only and is told the model's public name. What the profile says is written by the table's
options; an option that the table lacks is refused, never dropped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath
from typing import Any

from markets.offer import AcceleratorKind
from workers.engine_profile import DEFAULT, EngineProfile
from workers.errors import BadProfile
from workers.profile import ModelProfile

_DTYPES = {"bf16": "bfloat16", "bfloat16": "bfloat16", "fp16": "float16", "float16": "float16"}
_DTYPES |= {"fp32": "float32", "float32": "float32"}


@dataclass(frozen=True, slots=True)
class Option:
    """How one field of a profile is written: `flag value`, with the engine's own `names` where it has others.

    `words` and `env` write a value otherwise. `flags` are the flags that `args` may then not repeat.
    """

    flag: str | None = None
    names: Mapping[Any, str] | None = None
    words: Callable[[Any], Sequence[str]] | None = None
    env: Callable[[Any], Mapping[str, str]] | None = None
    flags: tuple[str, ...] = ()

    def written(self, value: Any) -> list[str]:
        if self.words is not None:
            return list(self.words(value))
        return [] if self.flag is None else [self.flag, str(value if self.names is None else self.names[value])]

    @property
    def all_flags(self) -> tuple[str, ...]:
        return (*self.flags, *([self.flag] if self.flag else []))


def switch(on: str, off: str | None = None) -> Option:
    """A flag without a value."""
    return Option(words=lambda value: [on] if value else [off] if off else [], flags=(on, *([off] if off else [])))


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """One engine. `command` may name {weights} {name} {context}; `options` are by field of EngineProfile.

    `runs_on` are the kinds of accelerators; `image` where it is published. `reserved` flags are the broker's. `phases` are
    regular expressions, with the seconds as their group, of what the engine writes about its own start. `refusals` says
    which combinations the engine itself would refuse, or would silently not do. `first_guess` and `most_in_flight` are requests.
    `media_flag` names the hosts, one or more, that the engine may fetch media from; it is one of `reserved`.
    """

    title: str
    image: str
    runs_on: frozenset[AcceleratorKind]
    command: tuple[str, ...]
    options: Mapping[str, Option]
    reserved: tuple[str, ...]
    forbidden_env: Mapping[str, str] = field(default_factory=dict)
    revision_flag: str | None = None
    media_flag: str | None = None
    env: Mapping[str, str] = field(default_factory=dict)
    health_path: str = "/health"
    metrics_path: str | None = None
    metrics: Mapping[str, str] = field(default_factory=dict)
    phases: Mapping[str, str] = field(default_factory=dict)
    refusals: Callable[[EngineProfile, ModelProfile], Iterator[str]] = lambda options, profile: iter(())
    first_guess: int = 64
    most_in_flight: int = 1024

    def spec(self, profile: ModelProfile, media_hosts: Sequence[str] = ()) -> dict[str, Any]:
        """The agent's `engine` object. Raises BadProfile naming everything that is wrong."""
        wrong = list(self.wrong(profile))
        if wrong:
            raise BadProfile(f"model {profile.id!r}: {'; '.join(wrong)}")
        options = self.effective(profile)
        argv, env = self._translated(options, profile)
        # Lines that name other hosts are refused before; without hosts, all that name any are.
        argv += [self.media_flag, *media_hosts] if self.media_flag and media_hosts else []
        return {
            "argv": [*argv, *profile.args],
            "env": {**self.env, **env, **_offline(profile.weights or ""), **profile.env},
            "base_url": None,
            "health_path": profile.health_path or self.health_path,
            # a profile's load_s is what the planner counts with; a slow disk or a first compilation takes much longer
            "start_timeout_s": 600 + 10 * profile.load_s,
            "stop_grace_s": 15,
            "concurrency": {
                "start": max(profile.parallel, self.first_guess, options.max_num_seqs or 0),
                "max": max(profile.parallel, self.most_in_flight, 2 * (options.max_num_seqs or 0)),
            },
            "request_timeout_s": profile.request_timeout_s,
            "metrics_path": profile.metrics_path or self.metrics_path,
            "metrics": dict(profile.metrics or self.metrics),
            "headers": {},
            "served_model": None,
            "phases": dict(self.phases),
        }

    def effective(self, profile: ModelProfile) -> EngineProfile:
        """The profile's options, with what its `precision` implies where they say nothing of it.

        Number formats have a flag of their own; `fp8` quantises on loading; a quantised checkpoint says so itself.
        """
        options = profile.options
        if options.dtype is None and profile.precision in _DTYPES:
            options = replace(options, dtype=_DTYPES[profile.precision])  # type: ignore[arg-type]
        if options.quantization is None and profile.precision == "fp8" and "quantization" in self.options:
            options = replace(options, quantization="fp8")
        return options

    def wrong(self, profile: ModelProfile) -> Iterator[str]:
        """Everything that the broker or the engine would refuse, each with how to mend it."""
        if not profile.weights:
            yield f"engine {profile.engine} needs 'weights', a folder or a name on the Hugging Face hub"
        if profile.revision and not self.revision_flag:
            yield f"{self.title} cannot be told a revision ({profile.revision}); fetch it into a folder and name that"
        written_twice = [arg for arg in profile.args if arg.partition("=")[0] in self.reserved]
        if written_twice:
            yield f"args {written_twice} are set by the broker (loopback only, its own media hosts); leave them out"
        for name, why in self.forbidden_env.items():
            if profile.env.get(name, "0") != "0":
                yield f"env {name} {why}; leave it out"
        options = self.effective(profile)
        for name in options.set_fields:
            yield from self._wrong_field(name, getattr(options, name), profile)
        yield from _wrong_numbers(options)
        yield from self.refusals(options, profile)

    def _wrong_field(self, name: str, value: object, profile: ModelProfile) -> Iterator[str]:
        if name == "emulate":
            return
        option = self.options.get(name)
        if option is None:
            known = ", ".join(sorted(self.options))
            yield f"{self.title} has no {name} (is {value!r}) that the broker can set; leave it out, it has {known}"
            return
        if option.names is not None and value not in option.names:
            known = ", ".join(map(repr, option.names))
            yield f"{self.title} has no {name} {value!r}; choose one of {known}"
        repeated = [arg for arg in profile.args if arg.partition("=")[0] in option.all_flags]
        if repeated:
            yield f"args {repeated} say again what {name} = {value!r} says; leave them out"

    def _translated(self, options: EngineProfile, profile: ModelProfile) -> tuple[list[str], dict[str, str]]:
        name = f"{profile.public_name}.base" if options.adapter else profile.public_name
        fill = {"{weights}": profile.weights or "", "{name}": name, "{context}": str(profile.context)}
        argv = [fill.get(part, part) for part in self.command]
        argv += [self.revision_flag, profile.revision] if self.revision_flag and profile.revision else []
        env: dict[str, str] = {}
        for each, option in self.options.items():
            value = getattr(options, each)
            if value == getattr(DEFAULT, each):
                continue
            argv += [part.replace("{name}", profile.public_name) for part in option.written(value)]
            env |= option.env(value) if option.env else {}
        return argv, env


def _wrong_numbers(options: EngineProfile) -> Iterator[str]:
    """Numbers that no engine takes."""
    for name in ("tensor_parallel", "pipeline_parallel", "max_num_seqs", "max_num_batched_tokens"):
        value = getattr(options, name)
        if value is not None and value < 1:
            yield f"{name} is {value}; it must be at least 1"
    if options.gpu_memory_utilization is not None and not 0 < options.gpu_memory_utilization <= 1:
        yield f"gpu_memory_utilization is {options.gpu_memory_utilization}; it is a share, above 0 and at most 1"
    if options.speculation is not None and options.speculation.tokens < 1:
        yield f"speculation.tokens is {options.speculation.tokens}; it must be at least 1"
    if options.kv_offload is not None and options.kv_offload.gib < 1:
        yield f"kv_offload.gib is {options.kv_offload.gib}; it must be at least 1"


def _offline(weights: str) -> dict[str, str]:
    return {"HF_HUB_OFFLINE": "1"} if PurePosixPath(weights).is_absolute() else {}
