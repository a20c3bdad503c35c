"""Engine profiles: what each option becomes on an engine's command line, and what is refused before anything is rented."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from markets.offer import Accelerator, AcceleratorKind
from tests.system.vllm_profiles import cases
from workers.engine_profile import DEFAULT, Adapter, EngineProfile, KvOffload, Speculation
from workers.engines import SERVERS, engine_spec, findings
from workers.engines.vllm import OPTIONS
from workers.errors import BadProfile
from workers.fit import misfit
from workers.profile import ModelProfile

RECORDED = json.loads(Path(__file__).with_name("vllm_options.json").read_text())
DIGEST = "registry/engine@sha256:" + "0" * 64


def profile(engine: Any = "vllm", **options: Any) -> ModelProfile:
    return ModelProfile(id="m", engine=engine, weights="/models/m", options=EngineProfile(**options))


def argv(each: ModelProfile) -> list[str]:
    return list(engine_spec(each)["argv"])


def follows(words: list[str], flag: str) -> str:
    return words[words.index(flag) + 1]


@pytest.mark.parametrize(
    "case", list(cases("/models/m")), ids=lambda case: "+".join(case.options.set_fields) or "default"
)
def test_vllm_0_32_has_every_flag_that_a_profile_writes_with_that_value(case: Any) -> None:
    """The recording is of its own parser; `.ci/vllm` asks the parser itself what it reads."""
    words = argv(ModelProfile(id="m", engine="vllm", weights="/models/m", options=case.options))[3:]
    for place, word in enumerate(words):
        if not word.startswith("--"):
            continue
        known = RECORDED["options"].get(word)
        assert known is not None, f"vLLM 0.32 has no {word}"
        has_value = place + 1 < len(words) and not words[place + 1].startswith("--")
        assert has_value == known["takes"]
        if known["choices"]:
            assert words[place + 1] in known["choices"]


def test_what_vllms_parser_does_not_restrict_is_among_what_its_sources_have() -> None:
    assert set((OPTIONS["quantization"].names or {}).values()) <= set(RECORDED["facts"]["quantization"])
    methods = {case.options.speculation.method for case in cases("/m") if case.options.speculation}
    assert methods <= set(RECORDED["facts"]["speculative_methods"])


def test_every_option_has_a_place_in_vllms_table() -> None:
    assert {each.name for each in fields(EngineProfile)} - {"emulate"} == set(OPTIONS)


def test_an_adapter_answers_under_the_models_public_name() -> None:
    each = replace(profile(adapter=Adapter(weights="/adapters/a", rank=32)), serves="my-tune")
    assert follows(argv(each), "--served-model-name") == "my-tune.base"
    assert follows(argv(each), "--lora-modules") == "my-tune=/adapters/a"


def test_batch_invariance_and_lmcache_are_environment() -> None:
    assert engine_spec(profile(batch_invariant=True))["env"]["VLLM_BATCH_INVARIANT"] == "1"
    env = engine_spec(profile(kv_offload=KvOffload(gib=8, backend="lmcache")))["env"]
    assert (env["LMCACHE_LOCAL_CPU"], env["LMCACHE_MAX_LOCAL_CPU_SIZE"]) == ("True", "8")


def test_the_driver_starts_with_what_a_profile_runs_at_once() -> None:
    assert engine_spec(profile(max_num_seqs=2000))["concurrency"] == {"start": 2000, "max": 4000}


@pytest.mark.parametrize(
    ("engine", "options", "said"),
    [
        ("vllm", {"quantization": "awq", "dtype": "float32"}, "bfloat16 or float16"),
        ("vllm", {"speculation": Speculation(method="eagle", tokens=2)}, "needs speculation.model"),
        ("vllm", {"speculation": Speculation(method="ngram", tokens=0)}, "at least 1"),
        ("vllm", {"speculation": Speculation(method="suffix", tokens=1, lookup=3)}, "is for method 'ngram'"),
        (
            "vllm",
            {"batch_invariant": True, "speculation": Speculation(method="suffix", tokens=1)},
            "exclude each other",
        ),
        ("vllm", {"adapter": Adapter(weights="/a", rank=7)}, "has room for 1, 8, 16"),
        ("vllm", {"max_num_seqs": 64, "max_num_batched_tokens": 32}, "less than max_num_seqs 64"),
        ("vllm", {"max_num_batched_tokens": 1024, "chunked_prefill": False}, "less than context 2048"),
        ("vllm", {"structured_outputs": "llguidance"}, "choose one of 'auto', 'xgrammar'"),
        ("vllm", {"tensor_parallel": 0}, "tensor_parallel is 0"),
        ("vllm", {"gpu_memory_utilization": 1.5}, "it is a share"),
        ("vllm", {"kv_offload": KvOffload(gib=0)}, "kv_offload.gib is 0"),
        ("vllm-tpu", {"quantization": "nvfp4"}, "choose one of 'awq', 'fp8'"),
        ("vllm-tpu", {"kv_offload": KvOffload(gib=4)}, "vLLM TPU has no kv_offload"),
        ("vllm-neuron", {"quantization": "fp8"}, "vLLM Neuron has no quantization"),
        (
            "sglang",
            {"speculation": Speculation(method="medusa", tokens=2)},
            "SGLang has no speculation.method 'medusa'",
        ),
        ("sglang", {"adapter": Adapter(weights="/a")}, "SGLang has no adapter"),
        (
            "sglang",
            {"dtype": "bfloat16", "structured_outputs": "guidance"},
            "SGLang has no structured_outputs 'guidance'",
        ),
        ("sglang", {"kv_offload": KvOffload(gib=4), "tensor_parallel": 2}, "of each accelerator"),
        ("trtllm", {"quantization": "fp8"}, "TensorRT-LLM has no quantization"),
        ("llamacpp", {"prefix_caching": True}, "takes no prefix_caching"),
    ],
)
def test_what_an_engine_would_refuse_is_refused_with_how_to_mend_it(engine: Any, options: Any, said: str) -> None:
    found = list(findings(profile(engine, **options)))
    assert [each for each in found if said in each], found
    assert len(found) == 1, found


def test_all_that_is_wrong_is_said_at_once() -> None:
    each = replace(profile(tensor_parallel=0, structured_outputs="none"), args=("--host=::", "-tp", "2"))
    with pytest.raises(BadProfile) as refused:
        engine_spec(each)
    for said in ("'m'", "--host=::", "tensor_parallel is 0", "'none'", "say again what tensor_parallel"):
        assert said in str(refused.value)


@pytest.mark.parametrize(
    ("image", "changes", "said"),
    [
        (None, {}, "need 'image'"),
        ("vllm/vllm-openai:v0.32.0", {}, "a tag moves"),
        ("vllm/vllm-openai:v0.32.0", {"image_tag_may_move": True}, None),
        (DIGEST, {}, None),
        ("sha256:" + "0" * 64, {}, None),  # an image of the host itself
    ],
)
def test_an_image_is_named_by_digest(image: str | None, changes: dict[str, Any], said: str | None) -> None:
    found = list(findings(replace(profile(), launches=("container",), image=image, **changes)))
    assert [said in each for each in found] == ([True] if said else [])


@pytest.mark.parametrize(
    ("engine", "said"),
    [
        ("sglang", "-m sglang.launch_server --model-path /models/m --served-model-name m --host {host} --port {port}"),
        ("trtllm", "trtllm-serve serve /models/m --served_model_name m --backend pytorch --host {host} --port {port}"),
        ("vllm-tpu", "vllm serve /models/m --served-model-name m --host {host} --port {port}"),
        ("vllm-neuron", "vllm serve /models/m --served-model-name m --host {host} --port {port}"),
    ],
)
def test_other_engines_keep_the_same_contract(engine: Any, said: str) -> None:
    words = argv(profile(engine, tensor_parallel=4, max_num_seqs=32))
    assert said in " ".join(words)
    assert {"4", "32"} <= set(words)
    assert engine_spec(profile(engine))["health_path"] == "/health"


def test_sglang_writes_the_same_options_in_its_own_words() -> None:
    words = argv(
        profile(
            "sglang",
            speculation=Speculation(method="eagle3", tokens=3, model="/d"),
            prefix_caching=False,
            kv_cache_dtype="fp8",
        )
    )
    assert follows(words, "--speculative-algorithm") == "EAGLE3"
    assert follows(words, "--speculative-num-draft-tokens") == "4"
    assert "--disable-radix-cache" in words
    assert follows(words, "--kv-cache-dtype") == "fp8_e4m3"


def test_a_profile_says_its_precision() -> None:
    assert EngineProfile(quantization="nvfp4").precision == "nvfp4"
    assert EngineProfile(dtype="bfloat16").precision == "bf16"
    assert DEFAULT.precision is None


@pytest.mark.parametrize(
    ("engine", "options", "kind", "name", "count", "said"),
    [
        ("vllm", {"tensor_parallel": 4}, "nvidia", "h100", 1, "needs 4 accelerators"),
        ("vllm", {"tensor_parallel": 2, "pipeline_parallel": 2}, "nvidia", "h100", 4, None),
        ("vllm", {"tensor_parallel": 2}, "none", "cpu", 0, "the offer has 0x cpu"),
        ("vllm", {}, "none", "cpu", 0, None),
        ("vllm", {"quantization": "fp8"}, "nvidia", "a100-sxm4-80gb", 1, "has no fp8, which needs 8.9; emulate = true"),
        ("vllm", {"quantization": "fp8", "emulate": True}, "nvidia", "a100-sxm4-80gb", 1, None),
        # vLLM refuses below 7.5 whatever the kernels
        ("vllm", {"quantization": "fp8", "emulate": True}, "nvidia", "v100", 1, "needs 7.5"),
        ("vllm", {"quantization": "fp8"}, "nvidia", "L40S", 1, None),
        ("vllm", {"quantization": "nvfp4"}, "nvidia", "h100", 1, "has no nvfp4, which needs 10.0"),
        ("vllm", {"quantization": "nvfp4"}, "nvidia", "b200", 1, None),
        ("vllm", {"quantization": "nvfp4"}, "amd", "mi300x", 1, "NVIDIA's format"),
        ("vllm", {"kv_cache_dtype": "fp8"}, "nvidia", "a10g", 1, "keeps no KV cache in fp8"),
        ("vllm", {"batch_invariant": True}, "nvidia", "t4", 1, "batch-invariant kernels need"),
        # nobody knows it here: the operator gave it a speed
        ("vllm", {"quantization": "fp8"}, "nvidia", "z900", 1, None),
        ("vllm", {}, "tpu", "v5e", 8, "vLLM does not run on tpu"),
        ("vllm-tpu", {"tensor_parallel": 8}, "tpu", "v5e", 8, None),
        ("trtllm", {}, "amd", "mi300x", 1, "TensorRT-LLM does not run on amd"),
        ("llamacpp", {}, "none", "cpu", 0, None),
    ],
)
def test_an_offer_that_cannot_compute_a_profile_says_why(
    engine: Any, options: Any, kind: AcceleratorKind, name: str, count: int, said: str | None
) -> None:
    found = misfit(profile(engine, **options), Accelerator(kind=kind, name=name, count=count))
    assert (found is None) == (said is None), found
    assert said is None or said in (found or "")


@pytest.mark.parametrize(
    ("engine", "image", "kind", "runs"),
    [
        ("vllm", "vllm/vllm-openai@sha256:00", "nvidia", True),
        ("vllm", "vllm/vllm-openai@sha256:00", "amd", False),
        ("vllm", "docker.io/vllm/vllm-openai:v0.11", "gaudi", False),
        ("vllm", "registry.example:5000/vllm/vllm-openai@sha256:00", "amd", False),  # a mirror of it
        ("vllm", "rocm/vllm@sha256:00", "amd", True),
        ("vllm", "vllm/vllm-openai-rocm@sha256:00", "amd", True),
        ("vllm", "vllm/vllm-openai-rocm@sha256:00", "nvidia", False),  # the other way round, an H100 for nothing
        ("vllm", "rocm/vllm@sha256:00", "none", False),
        ("vllm", "vault.example/gaudi/vllm-hpu@sha256:00", "amd", False),
        ("vllm", "vault.example/gaudi/vllm-hpu@sha256:00", "gaudi", True),
        ("sglang", "lmsysorg/sglang:v0.5-rocm700-mi30x", "nvidia", False),
        ("sglang", "lmsysorg/sglang:v0.5-cu129", "amd", False),
        ("sglang", "lmsysorg/sglang:v0.5-rocm700-mi30x", "amd", True),
        ("vllm", "vllm/vllm-openai@sha256:00", "trainium", False),
        ("vllm", "vllm/vllm-openai@sha256:00", "tpu", False),
        ("vllm-neuron", "public.ecr.aws/neuron/pytorch-inference-vllm-neuronx@sha256:00", "trainium", True),
        ("vllm-tpu", "vllm/vllm-tpu@sha256:00", "tpu", True),
        ("vllm-tpu", "vllm/vllm-tpu@sha256:00", "nvidia", False),
    ],
)
def test_an_image_is_placed_on_no_other_makers_accelerators_than_it_is_built_for(
    engine: Any, image: str, kind: AcceleratorKind, runs: bool
) -> None:
    """A MI300X by the hour with vLLM's own image boots, pulls 10 GB and fails: hours of the dearest machine for nothing."""
    given = replace(profile(engine), image=image, image_tag_may_move=True)
    found = misfit(given, Accelerator(kind=kind, name="mi300x", count=1))
    assert (found is None) == runs, found


def test_every_server_names_its_image_and_what_it_runs_on() -> None:
    assert all(server.image and server.runs_on for server in SERVERS.values())
