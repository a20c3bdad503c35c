"""Engine profiles before vLLM itself: each option of each profile is parsed by `vllm serve`'s own parser, and served.

    python -m tests.system.vllm_profiles --python VLLM_PYTHON --model FOLDER [--serve WORK] [--record FILE]

`--record` writes what `make test` holds the broker's tables against (tests/workers/vllm_options.json). Ends with one JSON
line; exit 1 when vLLM understands something otherwise than was meant, with the reasons on standard error.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.system.vllm_serving import TEMPLATE, serve_and_ask
from workers.engine_profile import Adapter, EngineProfile, KvOffload, Speculation
from workers.engines.vllm import LORA_RANKS, OPTIONS, VLLM
from workers.fit import QUANTIZATION
from workers.profile import ModelProfile

MARK = "\x1e"
NAME = "public-name"
CONTEXT = 512
PREFIX = 2  # "vllm", "serve": what follows is the parser's


@dataclass(frozen=True, slots=True)
class Case:
    """One profile, and the values that vLLM must read out of its command line."""

    options: EngineProfile
    want: Mapping[str, Any]
    config: bool = False


def cases(folder: str) -> Iterator[Case]:
    """Every option with every value that its type has, alone, and some together."""
    for value in (1, 2, 8):
        yield Case(EngineProfile(tensor_parallel=value), {"tensor_parallel_size": value})
        yield Case(EngineProfile(pipeline_parallel=value), {"pipeline_parallel_size": value})
    for dtype in ("auto", "bfloat16", "float16", "float32"):
        yield Case(EngineProfile(dtype=dtype), {"dtype": dtype}, config=dtype in ("bfloat16", "float32"))
    for name, word in (OPTIONS["quantization"].names or {}).items():
        yield Case(EngineProfile(quantization=name), {"quantization": word})
    for cache in ("auto", "bfloat16", "fp8", "fp8_e4m3", "fp8_e5m2", "nvfp4"):
        yield Case(EngineProfile(kv_cache_dtype=cache), {"kv_cache_dtype": cache})
    for on in (True, False):
        yield Case(
            EngineProfile(prefix_caching=on), {"enable_prefix_caching": on, "config.prefix_caching": on}, config=True
        )
        yield Case(EngineProfile(chunked_prefill=on), {"enable_chunked_prefill": on})
    yield Case(
        EngineProfile(max_num_seqs=17, max_num_batched_tokens=1024),
        {
            "max_num_seqs": 17,
            "max_num_batched_tokens": 1024,
            "config.max_num_seqs": 17,
            "config.max_num_batched_tokens": 1024,
        },
        config=True,
    )
    yield Case(EngineProfile(gpu_memory_utilization=0.85), {"gpu_memory_utilization": 0.85})
    yield Case(EngineProfile(eager=True), {"enforce_eager": True})
    yield Case(EngineProfile(), {"enforce_eager": False, "served_model_name": [NAME], "max_model_len": CONTEXT})
    yield from _speculation(folder)
    yield Case(
        EngineProfile(kv_offload=KvOffload(gib=3)), {"kv_offloading_size": 3.0, "kv_offloading_backend": "native"}
    )
    yield Case(
        EngineProfile(kv_offload=KvOffload(gib=3, backend="lmcache")),
        {"kv_transfer_config.kv_connector": "LMCacheConnectorV1", "kv_transfer_config.kv_role": "kv_both"},
    )
    for rank in LORA_RANKS:
        yield Case(
            EngineProfile(adapter=Adapter(weights=folder, rank=rank)),
            {
                "enable_lora": True,
                "max_lora_rank": rank,
                "served_model_name": [f"{NAME}.base"],
                "lora_modules.0.name": NAME,
                "lora_modules.0.path": folder,
            },
        )
    template = str(TEMPLATE)
    yield Case(EngineProfile(chat_template=template), {"chat_template": template})
    for backend in OPTIONS["structured_outputs"].names or {}:
        yield Case(
            EngineProfile(structured_outputs=backend),
            {"structured_outputs_config.backend": backend, "config.structured_outputs": backend},
            config=True,
        )
    yield Case(EngineProfile(batch_invariant=True), {"env.VLLM_BATCH_INVARIANT": True})


def _speculation(folder: str) -> Iterator[Case]:
    for method in ("ngram", "suffix", "draft_model", "eagle", "eagle3", "mtp", "medusa", "mlp_speculator"):
        draft = folder if method in ("draft_model", "eagle", "eagle3", "medusa", "mlp_speculator") else None
        yield Case(
            EngineProfile(
                speculation=Speculation(method=method, tokens=3, model=draft, lookup=4 if method == "ngram" else None)
            ),
            {
                "speculative_config.method": method,
                "speculative_config.num_speculative_tokens": 3,
                **(
                    {"config.speculation": "ngram", "speculative_config.prompt_lookup_max": 4}
                    if method == "ngram"
                    else {}
                ),
            },
            config=method == "ngram",
        )


# What the broker refuses before it rents, and vLLM after: each must be refused by vLLM, too.
REFUSED = (
    ("dtype that it does not have", ["--dtype", "float9"]),
    ("a rank without room", ["--enable-lora", "--max-lora-rank", "7"]),
    ("fewer tokens a step than sequences", ["--max-num-batched-tokens", "8", "--max-num-seqs", "16"]),
    (
        "a context that fits into no step",
        ["--max-num-batched-tokens", "256", "--max-num-seqs", "4", "--no-enable-chunked-prefill"],
    ),
    ("speculation without a draft", ["--speculative-config", '{"method": "eagle", "num_speculative_tokens": 2}']),
    ("structured outputs by nobody", ["--structured-outputs-config", '{"backend": "llguidance"}']),
    ("a cache format that it does not have", ["--kv-cache-dtype", "fp7"]),
)


def judge(python: Path, rows: Sequence[Mapping[str, Any]], timeout_s: int = 600) -> list[dict[str, Any]]:
    """vLLM's answers, one a row, after what it says of itself. Raises CalledProcessError when it ends badly."""
    environment = {
        **{name: os.environ[name] for name in ("HOME", "TMPDIR") if name in os.environ},
        "PATH": f"{python.parent}:/usr/local/bin:/usr/bin:/bin",
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "OMP_NUM_THREADS": "1",
    }
    words = "".join(json.dumps(row) + "\n" for row in rows)
    script = Path(__file__).with_name("vllm_judge.py")
    ran = subprocess.run(
        [str(python), str(script)],
        input=words,
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        timeout=timeout_s,
    )
    return [json.loads(row.partition(MARK)[2]) for row in ran.stdout.split("\n") if MARK in row]


def row(case: Case, folder: str) -> dict[str, Any]:
    profile = ModelProfile(id=NAME, engine="vllm", weights=folder, context=CONTEXT, options=case.options)
    spec = VLLM.spec(profile)
    argv = [part.replace("{host}", "127.0.0.1").replace("{port}", "1234") for part in spec["argv"][PREFIX:]]
    return {"argv": argv, "env": spec["env"], "config": case.config}


def differences(case: Case, answer: Mapping[str, Any]) -> Iterator[str]:
    """What vLLM read otherwise than was meant."""
    if "error" in answer:
        yield f"{case.options.set_fields}: vLLM refuses it: {answer['error']}"
        return
    for name, wanted in case.want.items():
        found: Any = answer["values"]
        whole, *deeper = [name] if name.startswith(("config.", "env.")) else name.split(".")
        found = found.get(whole)
        for part in deeper:
            found = found[int(part)] if isinstance(found, list) else (found or {}).get(part)
        if found != wanted:
            yield f"{case.options.set_fields}: vLLM reads {name} as {found!r}, meant was {wanted!r}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", type=Path, required=True, help="a Python that has vLLM")
    parser.add_argument("--model", type=Path, required=True, help="a folder with a small model")
    parser.add_argument("--serve", type=Path, metavar="WORK", help="serve one profile for real, in this folder")
    parser.add_argument("--record", type=Path, help="write the parser's options to this file")
    given = parser.parse_args()
    folder = str(given.model.resolve())
    asked = list(cases(folder))
    refused = [
        {"argv": [folder, "--max-model-len", str(CONTEXT), *words], "env": {}, "config": True} for _, words in REFUSED
    ]
    told, *answers = judge(given.python.absolute(), [*(row(case, folder) for case in asked), *refused])
    wrong = [each for case, answer in zip(asked, answers, strict=False) for each in differences(case, answer)]
    for (what, words), answer in zip(REFUSED, answers[len(asked) :], strict=True):
        wrong += [] if "error" in answer else [f"{what}: vLLM takes {words}, so the broker need not refuse it"]
    wrong += list(hardware_differences(told["facts"]))
    if given.record:
        given.record.write_text(json.dumps(told, indent=1, sort_keys=True) + "\n")
    served: dict[str, Any] = {}
    if given.serve:
        served = serve_and_ask(given.python.absolute(), given.model.resolve(), given.serve.resolve())
        wrong += served.pop("wrong")
    for each in wrong:
        print(f"profiles: {each}", file=sys.stderr)
    print(
        json.dumps(
            {
                "ok": not wrong,
                "profiles": len(asked),
                "refused": len(REFUSED),
                "options": len(told["options"]),
                **served,
            }
        )
    )
    return 1 if wrong else 0


def hardware_differences(facts: Mapping[str, Any]) -> Iterator[str]:
    """The least compute capability and the number formats that the broker counts with are those of vLLM's sources."""
    for name, word in (OPTIONS["quantization"].names or {}).items():
        if name in QUANTIZATION and QUANTIZATION[name][1] != facts["least"][word]["capability"]:
            found = facts["least"][word]["capability"]
            yield f"{name}: vLLM needs compute capability {found}, the broker believes {QUANTIZATION[name][1]}"
        takes_float32 = "float32" in facts["least"][word]["dtypes"]
        if takes_float32 != (name == "compressed-tensors"):
            yield f"{name}: whether it computes in float32 is otherwise than the broker believes"


if __name__ == "__main__":
    sys.exit(main())
