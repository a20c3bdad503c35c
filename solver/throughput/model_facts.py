"""What of a model decides its speed and its memory: from a table of well-known ones, or from a Hugging Face `config.json`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

# Bytes a weight, by precision. 4-bit formats keep a scale beside each group: 4.5 bits.
BYTES = {
    "fp32": 4.0, "bf16": 2.0, "fp16": 2.0, "fp8": 1.0, "int8": 1.0, "w8a8": 1.0, "q8_0": 1.06,
    "fp4": 0.5625, "nvfp4": 0.5625, "mxfp4": 0.53, "int4": 0.5625, "awq": 0.5625, "gptq": 0.5625, "q4_1": 0.625,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """`params_b` and `active_b` in 10⁹; `kv_elements` numbers kept of each token in all layers; `experts` of which each token
    uses `experts_used` (0 for a dense model). `native` is the precision that its weights are published in."""

    id: str
    params_b: float
    active_b: float
    kv_elements: int
    experts: int = 0
    experts_used: int = 0
    native: str = "bf16"

    @property
    def is_moe(self) -> bool:
        return self.experts > 0

    def weight_bytes(self, precision: str) -> float:
        return self.params_b * 1e9 * bytes_of(precision, self.native)

    def kv_bytes(self, precision: str) -> float:
        """Bytes of one token's keys and values. 16 bits whatever the weights have, which is what engines do by default."""
        return self.kv_elements * 2.0


def bytes_of(precision: str, native: str = "bf16") -> float:
    """Bytes a weight; what is not known is as wide as the weights are published (`auto`)."""
    return BYTES.get(precision.lower(), BYTES.get(native, 2.0))


def _dense(name: str, params_b: float, layers: int, kv_heads: int, head: int) -> ModelFacts:
    return ModelFacts(name, params_b, params_b, 2 * layers * kv_heads * head)


_KNOWN = (
    _dense("llama-3.1-8b", 8.03, 32, 8, 128), _dense("llama-3-8b", 8.03, 32, 8, 128),
    _dense("llama-3.1-70b", 70.6, 80, 8, 128), _dense("llama-3.3-70b", 70.6, 80, 8, 128),
    _dense("llama-3-70b", 70.6, 80, 8, 128), _dense("llama-3.1-405b", 405.9, 126, 8, 128),
    _dense("llama2-70b", 69.0, 80, 8, 128), _dense("llama-2-70b", 69.0, 80, 8, 128),
    _dense("llama-3.2-1b", 1.24, 16, 8, 64), _dense("llama-3.2-3b", 3.21, 28, 8, 128),
    _dense("mistral-7b", 7.25, 32, 8, 128), _dense("smollm2-135m", 0.135, 30, 3, 64),
    _dense("qwen2.5-0.5b", 0.49, 24, 2, 64), _dense("qwen2.5-7b", 7.62, 28, 4, 128),
    _dense("qwen2.5-14b", 14.8, 48, 8, 128), _dense("qwen2.5-32b", 32.8, 64, 8, 128),
    _dense("qwen2.5-72b", 72.7, 80, 8, 128), _dense("qwen3-8b", 8.19, 36, 8, 128),
    _dense("qwen3-14b", 14.8, 40, 8, 128), _dense("qwen3-32b", 32.8, 64, 8, 128),
    ModelFacts("mixtral-8x7b", 46.7, 12.9, 2 * 32 * 8 * 128, 8, 2),
    ModelFacts("qwen3-235b-a22b", 235.1, 22.2, 2 * 94 * 4 * 128, 128, 8),
    ModelFacts("qwen3-30b-a3b", 30.5, 3.3, 2 * 48 * 4 * 128, 128, 8),
    # latent attention: 512 + 64 numbers a token and layer
    ModelFacts("deepseek-r1", 671.0, 37.0, 61 * 576, 256, 8, "fp8"),
    ModelFacts("deepseek-v3", 671.0, 37.0, 61 * 576, 256, 8, "fp8"),
    ModelFacts("kimi-k2", 1026.0, 32.0, 61 * 576, 384, 8, "int4"),
    ModelFacts("glm-5", 744.0, 40.0, 78 * 576, 256, 8),
    ModelFacts("minimax-m2", 229.0, 10.0, 2 * 62 * 8 * 128, 256, 8, "fp8"),
    # every second layer sees 128 tokens only: counted as none
    ModelFacts("gpt-oss-120b", 116.8, 5.1, 36 * 8 * 64, 128, 4, "mxfp4"),
    ModelFacts("gpt-oss-20b", 20.9, 3.6, 24 * 8 * 64, 32, 4, "mxfp4"),
    # one layer in four attends; the others keep a state of fixed size
    ModelFacts("qwen3.5-397b-a17b", 397.0, 17.0, 2 * 15 * 2 * 256, 512, 10),
)  # fmt: skip
_BY_LENGTH = sorted(_KNOWN, key=lambda each: (-len(each.id), each.id))


@cache
def known_model(name: str) -> ModelFacts | None:
    """The table's model that a name means, such as `meta-llama/Llama-3.1-8B-Instruct`; None when there is none.

    >>> known_model("nvidia/Llama-3.1-8B-Instruct-FP8").id, known_model("deepseek-ai/DeepSeek-V3.1").id, known_model("gpt-2")
    ('llama-3.1-8b', 'deepseek-v3', None)
    """
    plain = re.sub(r"[_ ]+", "-", name.lower().rpartition("/")[2]).replace("meta-llama-", "llama-")
    return next(
        (each for each in _BY_LENGTH if re.search(rf"(?<![a-z0-9]){re.escape(each.id)}(?![0-9a-z])", plain)), None
    )


def from_config(name: str, config: Mapping[str, Any]) -> ModelFacts:
    """From the text of a `config.json`. Raises ValueError naming the field that is missing or no positive number.

    Layers of mixtures count as such from `first_k_dense_replace` on. Norms and biases are left out: a part in a thousand.
    """
    text = config.get("text_config", config)
    hidden, layers, vocabulary = (_number(text, field) for field in ("hidden_size", "num_hidden_layers", "vocab_size"))
    heads = _number(text, "num_attention_heads")
    kv_heads = text.get("num_key_value_heads") or heads
    head = text.get("head_dim") or hidden // heads
    experts = next((text[f] for f in ("num_local_experts", "n_routed_experts", "num_experts") if text.get(f)), 0)
    used = int(text.get("num_experts_per_tok") or 0) if experts else 0
    embeddings = vocabulary * hidden * (1 if text.get("tie_word_embeddings") else 2)
    attention = _attention(text, hidden, heads, kv_heads, head)
    dense = 3 * hidden * (text.get("intermediate_size") or 4 * hidden)
    expert = 3 * hidden * (text.get("moe_intermediate_size") or text.get("intermediate_size") or 0)
    shared = int(text.get("n_shared_experts") or 0) * expert
    first = int(text.get("first_k_dense_replace") or 0) if experts else layers
    sparse = layers - first
    common = embeddings + layers * attention + first * dense + sparse * shared
    kv = layers * (text["kv_lora_rank"] + text.get("qk_rope_head_dim", 64)) if text.get("kv_lora_rank") else 0
    return ModelFacts(
        id=name,
        params_b=(common + sparse * experts * expert) / 1e9,
        active_b=(common + sparse * used * expert) / 1e9,
        kv_elements=int(kv or 2 * layers * kv_heads * head),
        experts=int(experts),
        experts_used=used,
        native=_native(config),
    )


def _attention(text: Mapping[str, Any], hidden: int, heads: int, kv_heads: int, head: int) -> int:
    """Weights of one layer's attention."""
    if not text.get("kv_lora_rank"):
        return 2 * hidden * heads * head + 2 * hidden * kv_heads * head
    latent, rope = text["kv_lora_rank"], text.get("qk_rope_head_dim", 64)
    plain, value = text.get("qk_nope_head_dim", 128), text.get("v_head_dim", 128)
    query = text.get("q_lora_rank")
    queries = heads * (plain + rope)
    made = hidden * query + query * queries if query else hidden * queries
    return int(made + hidden * (latent + rope) + latent * heads * (plain + value) + heads * value * hidden)


def _native(config: Mapping[str, Any]) -> str:
    method = str((config.get("quantization_config") or {}).get("quant_method", ""))
    if method in BYTES:
        return method
    return "fp32" if str(config.get("torch_dtype") or config.get("dtype") or "") == "float32" else "bf16"


def _number(config: Mapping[str, Any], field: str) -> int:
    value = config.get(field)
    if not isinstance(value, int) or value <= 0:
        raise ValueError(f"config.json: {field} is {value!r}, not a positive number")
    return value
