"""`agent.pyz llamacpp --model FILE …`: llama.cpp's own server in a process of its own, by way of `xllamacpp`.

It speaks the OpenAI API with continuous batching. The traps that shape this file: with as many threads as cores the
spinning threads starve each other on a busy machine (15 times slower), so one core is left free; threads made by the
server inherit the signal mask, so SIGTERM is blocked before it exists; and the library's own teardown never ends with
many requests in flight, so the process leaves by `os._exit`.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import os
import signal
import sys
from pathlib import Path
from typing import Any

from workers.agent.errors import BadConfig, Missing

# In the order of llama.cpp's enum llama_pooling_type.
POOLING = ("none", "mean", "cls", "last", "rank")


def main(argv: list[str]) -> int:
    """Serve until SIGTERM. Raises Missing without xllamacpp, BadConfig without the model file."""
    arguments = _arguments(argv)
    if importlib.util.find_spec("xllamacpp") is None:
        raise Missing(f"the Python at {sys.executable} has no module 'xllamacpp'; install it there (extra 'local')")
    if not arguments.model.is_file():
        raise BadConfig(f"--model {arguments.model}: no such file; the weights must be on this machine first")
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    server = _serve(arguments)
    print(f"llama.cpp serves {arguments.model.name} at {server.listening_address}", file=sys.stderr, flush=True)
    signal.sigwait({signal.SIGTERM})
    sys.stderr.flush()
    os._exit(0)


def _arguments(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="agent.pyz llamacpp")
    parser.add_argument("--model", type=Path, required=True, help="a GGUF file")
    parser.add_argument("--alias", default=None, help="the model's name in answers")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--parallel", type=int, default=8, help="requests computed together")
    parser.add_argument("--context", type=int, default=2048, help="tokens of prompt and answer for each of them")
    parser.add_argument("--embeddings", action="store_true", help="serve /v1/embeddings")
    parser.add_argument(
        "--pooling", choices=POOLING, default=None, help="how embeddings are pooled; default: the model's"
    )
    parser.add_argument("--threads", type=int, default=0, help="0: one less than there are cores")
    return parser.parse_args(argv)


def _serve(arguments: argparse.Namespace) -> Any:
    xllamacpp = importlib.import_module("xllamacpp")
    threads = arguments.threads or max(1, len(os.sched_getaffinity(0)) - 1)
    params = xllamacpp.CommonParams()
    params.model.path = str(arguments.model)
    if arguments.alias:
        params.model_alias = {arguments.alias}
    params.hostnames = [arguments.host]
    params.port = arguments.port
    params.n_parallel = arguments.parallel
    params.n_ctx = arguments.context * arguments.parallel
    params.cpuparams.n_threads = threads
    params.cpuparams_batch.n_threads = threads
    params.embedding = arguments.embeddings
    if arguments.pooling:
        params.pooling_type = POOLING.index(arguments.pooling)
    params.endpoint_metrics = True
    params.endpoint_slots = False
    # no cache of old prompts: a batch's prompts do not come back, and it would eat the machine's memory
    params.cache_ram_mib = 0
    params.ui = False
    return xllamacpp.Server(params)
