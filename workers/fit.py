"""Whether a profile can be served on what an offer has: enough accelerators, of a kind and an age that can compute it. Pure."""

from __future__ import annotations

import re
from functools import cache

from markets.offer import Accelerator
from workers.engines import SERVERS
from workers.engines.server import Server
from workers.profile import ModelProfile

# NVIDIA's compute capability by what offers call an accelerator: the first word that a name contains decides.
# Source: developer.nvidia.com/cuda-gpus.
CAPABILITY = (
    # the Ada workstation cards before "rtx 50" and "rtx 20", which they contain
    ("2000 ada", 89), ("4000 ada", 89), ("5000 ada", 89), ("rtx pro", 120), ("a4500", 86), ("quadro rtx 6000", 75),
    ("gb300", 103), ("b300", 103), ("gb200", 100), ("b200", 100), ("b100", 100), ("gh200", 90), ("h200", 90), ("h100", 90),
    ("h800", 90), ("h20", 90), ("rtx pro 6000", 120), ("rtx 50", 120), ("5090", 120), ("5080", 120), ("l40", 89),
    ("l20", 89), ("l4", 89), ("6000 ada", 89), ("4090", 89), ("4080", 89), ("rtx 40", 89), ("a100", 80), ("a800", 80),
    ("a30", 80), ("a10", 86), ("a40", 86), ("a16", 86), ("a2", 86), ("a4000", 86), ("a5000", 86), ("a6000", 86),
    ("3090", 86), ("3080", 86), ("rtx 30", 86), ("t4", 75), ("rtx 20", 75), ("2080", 75), ("v100", 70), ("p100", 60),
    ("p40", 61), ("p4", 61), ("m60", 52), ("k80", 37),
)  # fmt: skip
# Below the first, the accelerator has no such arithmetic; below the second, vLLM 0.32 refuses (`get_min_capability`; held
# against vLLM itself in `.ci/vllm`).
QUANTIZATION = {"fp8": (89, 75), "nvfp4": (100, 75), "awq": (75, 75), "gptq": (60, 60)}
KV_CACHE = {"fp8": 89, "fp8_e4m3": 89, "fp8_e5m2": 80, "nvfp4": 100}
BATCH_INVARIANT = 80
# Kinds that an engine runs on in another build than the one for NVIDIA.
_OTHER_BUILDS = frozenset({"amd", "gaudi"})
# What an image's name says of the only kind that it is built for.
_SAYS = {"rocm": "amd", "gaudi": "gaudi", "hpu": "gaudi"}


@cache
def capability(name: str) -> int | None:
    """10 × the compute capability of an NVIDIA accelerator, None when the name is not known.

    >>> capability("h100-sxm"), capability("NVIDIA A10G"), capability("l40s"), capability("something-new")
    (90, 86, 89, None)
    """
    plain = re.sub(r"[-_ ]+", " ", name.lower())
    return next((value for word, value in CAPABILITY if re.search(rf"(?<![a-z0-9]){word}", plain)), None)


def misfit(profile: ModelProfile, accelerator: Accelerator) -> str | None:
    """Why the profile cannot be served on this machine; None when nothing speaks against it.

    An accelerator whose name is not known here is the operator's word: only `tokens_per_s` brings it into a plan.
    """
    options, have = profile.options, f"{accelerator.count}x {accelerator.name}"
    server = SERVERS.get(profile.engine)
    if server is not None and accelerator.kind not in server.runs_on:
        return f"{profile.id}: {server.title} does not run on {accelerator.kind} ({accelerator.name})"
    if server and profile.image and accelerator.kind in _OTHER_BUILDS and _is_for_cuda(server, profile.image):
        return (
            f"{profile.id}: image {profile.image} is {server.title} built for CUDA and does not run on {accelerator.kind} "
            f"({accelerator.name}); a profile of its own may name one that is built for it"
        )
    only = _only_for(profile.image) if server and profile.image else None
    if server and only not in (None, accelerator.kind):
        return (
            f"{profile.id}: image {profile.image} is {server.title} built for {only} and does not run on {accelerator.kind} "
            f"({accelerator.name})"
        )
    if options.accelerators > max(1, accelerator.count):
        return (
            f"{profile.id}: needs {options.accelerators} accelerators (tensor_parallel {options.tensor_parallel} × "
            f"pipeline_parallel {options.pipeline_parallel}), the offer has {have}"
        )
    if server is None or accelerator.kind not in ("nvidia", "amd"):
        return None
    return _lacks(profile, accelerator) if accelerator.kind == "nvidia" else _not_on_amd(profile, accelerator)


def _only_for(image: str) -> str | None:
    """The kind of accelerator that the image says it is built for; None when it says nothing.

    >>> _only_for("lmsysorg/sglang:v0.5-rocm700-mi30x"), _only_for("vllm/vllm-openai:v0.32.0")
    ('amd', None)
    """
    return next((kind for word, kind in _SAYS.items() if word in image), None)


def _is_for_cuda(server: Server, image: str) -> bool:
    """Whether the image is the one that the engine's makers publish, or a mirror of it, and does not say that it is another
    build: vLLM's and SGLang's plain ones are for CUDA. A digest alone says nothing; `NAME:TAG@sha256:…` says both.

    >>> vllm, sglang = SERVERS["vllm"], SERVERS["sglang"]
    >>> [_is_for_cuda(vllm, image) for image in ("docker.io/vllm/vllm-openai@sha256:0", "vllm/vllm-openai-rocm:v1")]
    [True, False]
    >>> [_is_for_cuda(sglang, image) for image in ("lmsysorg/sglang:v0.5-cu129", "lmsysorg/sglang:v0.5-rocm700@sha256:0")]
    [True, False]
    """
    if _only_for(image):
        return False
    head, slash, last = image.partition("@")[0].rpartition("/")
    plain = f"{head}{slash}{last.partition(':')[0]}"
    return plain == server.image or plain.endswith(f"/{server.image}")


def _lacks(profile: ModelProfile, accelerator: Accelerator) -> str | None:
    options, found = profile.options, capability(accelerator.name)
    if found is None:
        return None
    quantization = options.quantization or ("fp8" if profile.precision == "fp8" else None)
    native, least = QUANTIZATION.get(quantization or "", (0, 0))
    if found < (least if options.emulate else native):
        permitted = "" if found < least else "; emulate = true permits kernels that compute in a wider format"
        return (
            f"{profile.id}: {accelerator.name} (compute capability {_dotted(found)}) has no {quantization}, which needs "
            + (f"{_dotted(least if options.emulate else native)}{permitted}")
        )
    needed = KV_CACHE.get(options.kv_cache_dtype or "", 0)
    if found < needed:
        return (
            f"{profile.id}: {accelerator.name} (compute capability {_dotted(found)}) keeps no KV cache in "
            f"{options.kv_cache_dtype}, which needs {_dotted(needed)}"
        )
    if options.batch_invariant and found < BATCH_INVARIANT:
        return (
            f"{profile.id}: batch-invariant kernels need compute capability {_dotted(BATCH_INVARIANT)}, "
            f"{accelerator.name} has {_dotted(found)}"
        )
    return None


def _not_on_amd(profile: ModelProfile, accelerator: Accelerator) -> str | None:
    """AMD's have no NVFP4. (FP8 is there from MI300 on; which name is how old is left to the operator.)"""
    if "nvfp4" in (profile.options.quantization, profile.options.kv_cache_dtype):
        return f"{profile.id}: {accelerator.name} has no nvfp4, which is NVIDIA's format"
    return None


def _dotted(value: int) -> str:
    return f"{value // 10}.{value % 10}"
