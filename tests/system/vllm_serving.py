"""One profile with much in it, served by a real `vllm serve` and asked: prefix cache, grammar, chat template, adapter.

The command line is the broker's own (`workers.engines`), and so is the log's reading (`workers.agent.timings`).
"""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from workers.agent.metrics import read_metrics
from workers.agent.timings import Timings
from workers.engine_profile import Adapter, EngineProfile
from workers.engines import engine_spec
from workers.profile import ModelProfile

NAME = "tuned"
START_S = 600
ANSWER_S = 120
GRAMMAR = r"(yes|no) [0-9]{3}"
# It adds twenty words to each prompt, which cost tokens: so one sees that it was used.
TEMPLATE = Path(__file__).with_name("vllm_template.jinja")
LONG = "The quick brown fox jumps over the lazy dog. " * 24  # more than one block of the cache (128 tokens on a CPU)


def serve_and_ask(python: Path, model: Path, work: Path) -> dict[str, Any]:
    """Facts of the run; `wrong` names every promise that was not kept. AssertionError when it does not come up."""
    adapter = work / "adapter"
    work.mkdir(parents=True, exist_ok=True)
    script = Path(__file__).with_name("vllm_adapter.py")
    subprocess.run([str(python), str(script), str(model), str(adapter)], check=True, timeout=300)
    options = EngineProfile(
        dtype="bfloat16",
        prefix_caching=True,
        max_num_seqs=4,
        max_num_batched_tokens=2048,
        eager=True,
        structured_outputs="xgrammar",
        chat_template=str(TEMPLATE),
        adapter=Adapter(weights=str(adapter), rank=8),
    )
    profile = ModelProfile(id=NAME, engine="vllm", weights=str(model), context=2048, options=options)
    spec = engine_spec(profile)
    with _running(python, spec, work / "vllm.log") as url:
        told = _asked(url, spec)
    timings = Timings(spec["phases"])
    timings.read((work / "vllm.log").read_text(errors="replace").split("\n"))
    told["phases"] = timings.known
    told["wrong"] += [] if {"load_s", "warm_up_s"} <= timings.known.keys() else [f"phases in the log: {timings.known}"]
    return told


def _asked(url: str, spec: Mapping[str, Any]) -> dict[str, Any]:
    wrong = []
    names = [each["id"] for each in _get(f"{url}/v1/models")["data"]]
    if sorted(names) != [NAME, f"{NAME}.base"]:
        wrong.append(f"the adapter has the public name and the base another: {names}")
    tuned, base = (_chat(url, name, LONG) for name in (NAME, f"{NAME}.base"))
    if tuned["text"] == base["text"]:
        wrong.append(f"the adapter changes what the model says: both say {tuned['text']!r}")
    plain = _post(f"{url}/tokenize", {"model": NAME, "prompt": LONG})["count"]
    if tuned["prompt_tokens"] < plain + 16:
        wrong.append(f"the chat template is used: {tuned['prompt_tokens']} prompt tokens, {plain} without it")
    if _chat(url, NAME, LONG)["text"] != tuned["text"]:
        wrong.append("temperature 0 says the same twice")
    answer = _chat(url, NAME, "Answer.", structured_outputs={"regex": GRAMMAR})["text"]
    if not re.fullmatch(GRAMMAR, answer):
        wrong.append(f"the grammar holds: {answer!r}")
    names_of = {"queries": "vllm:prefix_cache_queries_total", "hits": "vllm:prefix_cache_hits_total", **spec["metrics"]}
    with urllib.request.urlopen(f"{url}/metrics", timeout=ANSWER_S) as page:
        metrics = read_metrics(page.read().decode(), names_of)
    if not metrics.get("hits"):
        wrong.append(f"the repeated prompt was in the prefix cache: {metrics}")
    missing = sorted(set(spec["metrics"]) - set(metrics))
    if missing:
        wrong.append(f"vLLM has all metrics that the driver reads, not {missing}")
    return {"wrong": wrong, "prefix_hits": metrics.get("hits"), "answer": answer}


@contextmanager
def _running(python: Path, spec: Mapping[str, Any], log: Path) -> Iterator[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    argv = [part.replace("{host}", "127.0.0.1").replace("{port}", str(port)) for part in spec["argv"]]
    environment = {
        **{name: os.environ[name] for name in ("HOME", "TMPDIR") if name in os.environ},
        "PATH": f"{python.parent}:/usr/local/bin:/usr/bin:/bin",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "OMP_NUM_THREADS": "1",
        **spec["env"],
    }
    # `vllm` by its module: a command's first line may name a path of another machine
    program = [str(python), "-m", "vllm.entrypoints.cli.main", *argv[1:]]
    with log.open("wb") as out:
        server = subprocess.Popen(
            program, env=environment, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True
        )
    try:
        deadline = time.monotonic() + START_S
        while not _healthy(f"http://127.0.0.1:{port}{spec['health_path']}"):
            alive = server.poll() is None and time.monotonic() < deadline
            assert alive, f"vLLM does not come up: {log.read_text(errors='replace')[-3000:]}"
            time.sleep(0.3)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        try:
            server.wait(timeout=60)
        except subprocess.TimeoutExpired:
            os.killpg(server.pid, 9)
            server.wait()


def _healthy(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def _chat(url: str, model: str, text: str, **more: Any) -> dict[str, Any]:
    body = {"model": model, "messages": [{"role": "user", "content": text}], "max_tokens": 48, "temperature": 0, **more}
    told = _post(f"{url}/v1/chat/completions", body)
    return {"text": told["choices"][0]["message"]["content"], "prompt_tokens": told["usage"]["prompt_tokens"]}


def _post(url: str, body: Mapping[str, Any]) -> Any:
    asked = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(asked, timeout=ANSWER_S) as answer:
        return json.load(answer)


def _get(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=ANSWER_S) as answer:
        return json.load(answer)
