"""Engines: from a model's profile to the `engine` object of the welcome (agent/schemas/hello.response.json).

One file an engine, each a pure function `spec` or a table (`server.Server`). All that the agent will ever know of an engine
is in its result.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from workers.engines import command, llamacpp, url
from workers.engines.server import Server
from workers.engines.sglang import SGLANG
from workers.engines.trtllm import TRTLLM
from workers.engines.vllm import VLLM, VLLM_NEURON, VLLM_TPU
from workers.errors import BadProfile
from workers.profile import ModelProfile

SERVERS: Mapping[str, Server] = MappingProxyType(
    {"vllm": VLLM, "vllm-tpu": VLLM_TPU, "vllm-neuron": VLLM_NEURON, "sglang": SGLANG, "trtllm": TRTLLM}
)
_OTHERS = {"llamacpp": llamacpp.spec, "url": url.spec, "command": command.spec}


def engine_spec(profile: ModelProfile, media_hosts: Sequence[str] = ()) -> dict[str, Any]:
    """The engine object for this profile; from `media_hosts` its requests may name media. Raises BadProfile, naming the model
    and everything that is wrong."""
    server = SERVERS.get(profile.engine)
    return server.spec(profile, media_hosts) if server else _OTHERS[profile.engine](profile)


def findings(profile: ModelProfile) -> Iterator[str]:
    """What is wrong with the profile, each with how to mend it; looked at before anything is rented."""
    server = SERVERS.get(profile.engine)
    if server is None and profile.options.set_fields:
        yield (
            f"engine {profile.engine} takes no {', '.join(profile.options.set_fields)}; say it in args, or serve the model "
            f"with {', '.join(SERVERS)}"
        )
    try:
        engine_spec(profile)
    except BadProfile as wrong:
        yield str(wrong).removeprefix(f"model {profile.id!r}: ")
    if {"container", "vm"} & set(profile.launches) and profile.image is None:
        place = f", published as {server.image}@sha256:…" if server else ""
        yield f"launches {', '.join(profile.launches)} need 'image', the engine's image by digest{place}"
    if profile.image and not _is_by_digest(profile.image) and not profile.image_tag_may_move:
        yield (
            f"image {profile.image!r} is a tag, and a tag moves: the same batch could run on two versions. Name its digest "
            f"(docker buildx imagetools inspect {profile.image}) or set image_tag_may_move = true"
        )


def _is_by_digest(image: str) -> bool:
    """By digest in a registry, or by the id that an image has on the host itself."""
    return "@sha256:" in image or image.startswith("sha256:")
