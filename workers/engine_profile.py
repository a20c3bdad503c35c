"""How an engine is run: the options that decide speed, memory and answers, typed and the same for every engine.

Each engine says in its own table (`workers/engines/`) how an option is written on its command line, and an option that
it does not have is refused. What no option here says goes into a model's `args` and `env`, unchecked.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import ClassVar, Literal

Dtype = Literal["auto", "bfloat16", "float16", "float32"]
# `fp8` quantises on loading, or reads a checkpoint that is FP8 already. The others name the checkpoint's format.
Quantization = Literal["fp8", "awq", "gptq", "nvfp4", "compressed-tensors"]
KvCacheDtype = Literal["auto", "bfloat16", "fp8", "fp8_e4m3", "fp8_e5m2", "nvfp4"]
SpeculativeMethod = Literal["ngram", "draft_model", "eagle", "eagle3", "mtp", "suffix", "medusa", "mlp_speculator"]
StructuredOutputs = Literal["auto", "xgrammar", "guidance", "outlines", "lm-format-enforcer", "llguidance", "none"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Speculation:
    """Speculative decoding: `method` proposes `tokens` at a time. `model` is the draft's or the head's weights.

    `lookup` is the longest run of tokens that `ngram` looks up in the prompt.
    """

    __pydantic_config__: ClassVar = {"extra": "forbid"}

    method: SpeculativeMethod
    tokens: int
    model: str | None = None
    lookup: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class KvOffload:
    """`gib` of the machine's memory keep the KV cache that no longer fits the accelerator (all accelerators together).

    `lmcache` needs the lmcache package in the image.
    """

    __pydantic_config__: ClassVar = {"extra": "forbid"}

    gib: int
    backend: Literal["native", "lmcache"] = "native"


@dataclass(frozen=True, slots=True, kw_only=True)
class Adapter:
    """A LoRA adapter: a folder or a hub name; all lines of the model are answered with it. `rank` is at least its own."""

    __pydantic_config__: ClassVar = {"extra": "forbid"}

    weights: str
    rank: int = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineProfile:
    """One way to run an engine. None leaves a choice to the engine.

    `tensor_parallel` × `pipeline_parallel` accelerators serve together; an offer with fewer is not eligible.
    `max_num_batched_tokens` is tokens a step, `gpu_memory_utilization` the share of an accelerator's memory. `chat_template` is a
    file where the engine runs. `structured_outputs` is the back-end that keeps answers to a grammar.

    `batch_invariant`: an answer at temperature 0 does not depend on what is computed beside it; what `reuse` of answers
    promises holds to the letter only with it (slower, and only where the engine has such kernels). `emulate` permits
    accelerators without hardware for the quantisation, on which an engine computes in a wider format.
    """

    tensor_parallel: int = 1
    pipeline_parallel: int = 1
    dtype: Dtype | None = None
    quantization: Quantization | None = None
    kv_cache_dtype: KvCacheDtype | None = None
    prefix_caching: bool | None = None
    chunked_prefill: bool | None = None
    max_num_seqs: int | None = None
    max_num_batched_tokens: int | None = None
    gpu_memory_utilization: float | None = None
    eager: bool = False
    speculation: Speculation | None = None
    kv_offload: KvOffload | None = None
    adapter: Adapter | None = None
    chat_template: str | None = None
    structured_outputs: StructuredOutputs | None = None
    batch_invariant: bool = False
    emulate: bool = False

    @property
    def accelerators(self) -> int:
        """How many serve together."""
        return self.tensor_parallel * self.pipeline_parallel

    @property
    def set_fields(self) -> tuple[str, ...]:
        """The names of what is not left at its default."""
        return tuple(each.name for each in fields(self) if getattr(self, each.name) != each.default)

    @property
    def precision(self) -> str | None:
        """What a batch's wish of that name is held against; None when the profile leaves it to the checkpoint."""
        return self.quantization or (None if self.dtype in (None, "auto") else _SHORT[self.dtype or ""])


_SHORT = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}
DEFAULT = EngineProfile()
