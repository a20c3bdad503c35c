"""SmolLM2-135M-Instruct in bf16 as a Hugging Face folder, made of the catalogue's GGUF: `python smollm2_folder.py GGUF FOLDER`.

Run it with the Python of the vLLM environment (torch, transformers, gguf). The weights carry the error of their 4 bits;
the arithmetic of serving them is that of the real model in bf16, which is what a benchmark needs.
"""

from __future__ import annotations

import sys
from pathlib import Path

import gguf
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast


def write(source: Path, folder: Path) -> None:
    """Write configuration, weights and tokenizer into `folder`."""
    read = AutoModelForCausalLM.from_pretrained(str(source.parent), gguf_file=source.name, dtype=torch.bfloat16)
    config = read.config.to_dict()
    config.pop("quantization_config", None)  # it would say GGUF, and such a model refuses to be saved
    model = LlamaForCausalLM(LlamaConfig(**config)).to(torch.bfloat16)
    model.load_state_dict(read.state_dict())
    model.save_pretrained(folder)
    fields = gguf.GGUFReader(source).fields
    _tokenizer(fields).save_pretrained(folder)


def _tokenizer(fields: dict[str, gguf.ReaderField]) -> PreTrainedTokenizerFast:
    """The byte-level BPE that the GGUF describes; `pre` "smollm" also keeps digits apart."""
    tokens = fields["tokenizer.ggml.tokens"].contents()
    kinds = fields["tokenizer.ggml.token_type"].contents()
    merges = [tuple(merge.split(" ")) for merge in fields["tokenizer.ggml.merges"].contents()]
    tokenizer = Tokenizer(models.BPE({token: index for index, token in enumerate(tokens)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    control = [token for token, kind in zip(tokens, kinds, strict=True) if kind == gguf.TokenType.CONTROL]
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in control])
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=tokens[fields["tokenizer.ggml.bos_token_id"].contents()],
        eos_token=tokens[fields["tokenizer.ggml.eos_token_id"].contents()],
        pad_token=tokens[fields["tokenizer.ggml.padding_token_id"].contents()],
        model_max_length=fields["llama.context_length"].contents(),
    )
    wrapped.chat_template = fields["tokenizer.chat_template"].contents()
    return wrapped


if __name__ == "__main__":
    write(Path(sys.argv[1]), Path(sys.argv[2]))
