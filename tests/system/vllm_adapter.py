"""Write a random LoRA adapter for a Llama's query projections: `python vllm_adapter.py MODEL FOLDER`, with vLLM's Python.

Seeded, of rank 8, and large enough to change what a tiny model says.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

RANK = 8


def write(model: Path, folder: Path) -> None:
    config = json.loads((model / "config.json").read_text())
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    out = heads * config.get("head_dim", hidden // heads)
    generator = torch.Generator().manual_seed(7)
    tensors = {}
    for layer in range(config["num_hidden_layers"]):
        name = f"base_model.model.model.layers.{layer}.self_attn.q_proj"
        tensors[f"{name}.lora_A.weight"] = torch.randn(RANK, hidden, generator=generator).to(torch.bfloat16)
        tensors[f"{name}.lora_B.weight"] = torch.randn(out, RANK, generator=generator).to(torch.bfloat16)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "adapter_model.safetensors")
    adapter = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": RANK,
        "lora_alpha": 2 * RANK,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": ["q_proj"],
        "base_model_name_or_path": str(model),
    }
    (folder / "adapter_config.json").write_text(json.dumps(adapter))


if __name__ == "__main__":
    write(Path(sys.argv[1]), Path(sys.argv[2]))
