"""A language model of some megabytes with random weights, made in a second: for tests of the real llama.cpp server.

`python tiny_gguf.py FILE`. It writes nonsense, but through the real tokenizer, template, batching and HTTP server.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import gguf
import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

LAYERS, HIDDEN, HEADS, FEED_FORWARD, CONTEXT = 2, 128, 4, 256, 2048
_CORPUS = (
    "The broker rents machines where the policy allows it and pays for them by the second.",
    "A batch is cut into shards, a shard into lines, and every line is answered once.",
    "Capital cities: Paris, Berlin, Madrid, Rome, Vienna, Lisbon, Athens, Warsaw.",
    "0 1 2 3 4 5 6 7 8 9 one two three four five six seven eight nine ten",
)
_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")


def write_tiny_gguf(path: Path, seed: int = 7) -> Path:
    """Write the model to `path`; the same seed gives the same weights."""
    tokenizer = _tokenizer()
    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_name("tiny-random")
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(FEED_FORWARD)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(HIDDEN // HEADS)
    writer.add_vocab_size(len(vocabulary))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([token for token, _ in vocabulary])
    control = {index for token, index in vocabulary if token in _SPECIAL}
    kinds = [gguf.TokenType.CONTROL if index in control else gguf.TokenType.NORMAL for _, index in vocabulary]
    writer.add_token_types(kinds)
    writer.add_token_merges(_merges(tokenizer))
    writer.add_bos_token_id(tokenizer.token_to_id("<|im_start|>"))
    writer.add_eos_token_id(tokenizer.token_to_id("<|im_end|>"))
    writer.add_add_bos_token(False)
    writer.add_chat_template(_TEMPLATE)
    for name, shape in _tensors(len(vocabulary)):
        # a zlib-stable name for the stream, so that adding a tensor does not change the others
        generator = np.random.default_rng([seed, *name.encode()])
        is_norm = name.endswith("norm.weight")
        values = np.ones(shape) if is_norm else generator.standard_normal(shape) * 0.08
        writer.add_tensor(name, values.astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _tokenizer() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=list(_SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_CORPUS, trainer)
    return tokenizer


def _merges(tokenizer: Tokenizer) -> list[str]:
    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    return [merge if isinstance(merge, str) else " ".join(merge) for merge in merges]


def _tensors(vocabulary: int) -> list[tuple[str, tuple[int, ...]]]:
    square, up, down = (HIDDEN, HIDDEN), (FEED_FORWARD, HIDDEN), (HIDDEN, FEED_FORWARD)
    tensors: list[tuple[str, tuple[int, ...]]] = [("token_embd.weight", (vocabulary, HIDDEN))]
    for layer in range(LAYERS):
        block = f"blk.{layer}."
        tensors += [(f"{block}{name}.weight", (HIDDEN,)) for name in ("attn_norm", "ffn_norm")]
        tensors += [(f"{block}attn_{name}.weight", square) for name in ("q", "k", "v", "output")]
        tensors += [(f"{block}ffn_{name}.weight", up) for name in ("gate", "up")]
        tensors.append((f"{block}ffn_down.weight", down))
    return [*tensors, ("output_norm.weight", (HIDDEN,)), ("output.weight", (vocabulary, HIDDEN))]


if __name__ == "__main__":
    write_tiny_gguf(Path(sys.argv[1]))
