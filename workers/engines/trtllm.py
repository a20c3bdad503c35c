"""TensorRT-LLM's OpenAI server, `trtllm-serve`, PyTorch back-end. Unverified against the live engine: it needs a GPU.

Arguments: nvidia.github.io/TensorRT-LLM/commands/trtllm-serve.html. The rest of its options stand in a YAML file
(`--extra_llm_api_options`, in `args`); quantisation is the checkpoint's. `/metrics` is JSON of its iterations, not
Prometheus, so the driver steers by answers alone.
"""

from __future__ import annotations

from workers.engines.server import Option, Server, switch

TRTLLM = Server(
    title="TensorRT-LLM",
    image="nvcr.io/nvidia/tensorrt-llm/release",
    runs_on=frozenset({"nvidia"}),
    command=(
        *("trtllm-serve", "serve", "{weights}", "--served_model_name", "{name}", "--backend", "pytorch"),
        *("--host", "{host}", "--port", "{port}", "--max_seq_len", "{context}"),
    ),
    options={
        "tensor_parallel": Option("--tp_size"),
        "pipeline_parallel": Option("--pp_size"),
        "kv_cache_dtype": Option("--kv_cache_dtype", names={"auto": "auto", "fp8": "fp8", "nvfp4": "nvfp4"}),
        "chunked_prefill": switch("--enable_chunked_prefill"),
        "max_num_seqs": Option("--max_batch_size"),
        "max_num_batched_tokens": Option("--max_num_tokens"),
        "gpu_memory_utilization": Option("--kv_cache_free_gpu_memory_fraction", flags=("--free_gpu_memory_fraction",)),
    },
    reserved=("--host", "--port", "--served_model_name", "--backend"),
)
