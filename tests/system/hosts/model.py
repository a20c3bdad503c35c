"""Write a tiny random Llama in the Hugging Face format: `python model.py FOLDER`, with the Python of the vLLM environment.

Under two million weights, seeded, with a byte-level BPE tokenizer and a chat template: what it says is noise, but printable noise
that depends on the prompt, and vLLM loads and serves it exactly as it does a real model.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

SPECIAL = ["<pad>", "<s>", "</s>", "<|user|>", "<|assistant|>", "<|system|>"]
CHAT_TEMPLATE = (
    "{{ '<s>' }}{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] + '</s>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
CORPUS = [
    "The quick brown fox jumps over the lazy dog while the broker looks for a cheaper machine.",
    "What is the capital of France? The capital of France is Paris. Answer with one word, yes or no.",
    "Summarise the following text in two sentences and return JSON with the keys label and score.",
]


def write(folder: Path) -> None:
    """Write configuration, weights and tokenizer into `folder`."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=512, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>", model_max_length=2048
    )
    wrapped.chat_template = CHAT_TEMPLATE
    wrapped.save_pretrained(folder)

    torch.manual_seed(20)
    config = LlamaConfig(
        vocab_size=512,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        tie_word_embeddings=False,  # tied random weights only repeat the last token
        initializer_range=0.25,  # large enough for attention to carry the prompt into the answer
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        # Greedy answers take a token with a positive score, so these are never chosen: specials, and pieces of characters.
        for token in range(config.vocab_size):
            text = tokenizer.decode([token], skip_special_tokens=True)
            if token != config.eos_token_id and not (text.isascii() and text.isprintable() and text):
                model.lm_head.weight[token] = 0
    model.to(torch.bfloat16).save_pretrained(folder)


if __name__ == "__main__":
    write(Path(sys.argv[1]))
