"""What a fresh machine runs first: the agent, with its configuration beside it."""

from __future__ import annotations

import json
import sys

from markets.docker_run import CACHE
from markets.market import MachineStart
from markets.offer import Launch
from workers.errors import BadProfile
from workers.package import AgentPackage, build_agent
from workers.profile import ModelProfile

_MOUNT = "/broker"
# Nothing of the broker's own environment reaches a machine; a program needs this much to find others.
_PROCESS_ENV = {"PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": "{dir}", "LANG": "C.UTF-8"}
# In the container's cache: weights, and what engines compile for this hardware.
_KEPT = {
    "HF_HOME": f"{CACHE}/huggingface",
    "VLLM_CACHE_ROOT": f"{CACHE}/vllm",
    "TORCHINDUCTOR_CACHE_DIR": f"{CACHE}/inductor",
    "TRITON_CACHE_DIR": f"{CACHE}/triton",
}


def machine_start(
    *,
    launch: Launch,
    rental_id: str,
    broker_url: str,
    bootstrap_token: str,
    profile: ModelProfile,
    dead_man_s: int,
    failpoint: str | None = None,
    python: str = sys.executable,
    package: AgentPackage | None = None,
) -> MachineStart:
    """The start of a worker for `profile`. `python` is used by process launches, the image's own by container launches.

    `package` saves building the agent again. Raises BadProfile when the profile does not fit the launch kind.
    """
    if launch not in profile.launches:
        raise BadProfile(
            f"model {profile.id!r} cannot be launched as {launch!r}, only as {', '.join(profile.launches)}"
        )
    config = {
        "broker_url": broker_url,
        "rental_id": rental_id,
        "bootstrap_token": bootstrap_token,
        "dead_man_s": dead_man_s,
        "failpoint": failpoint,
    }
    files = {
        "agent.pyz": (package or build_agent()).content,
        "agent.json": json.dumps(config, indent=1).encode(),
    }
    if launch == "process":
        argv = (python, "{dir}/agent.pyz", "run", "--config", "{dir}/agent.json")
        return MachineStart(argv=argv, env=_PROCESS_ENV, files=files)
    if launch != "container":
        raise BadProfile(f"model {profile.id!r}: no way is known to launch a worker as {launch!r}")
    if profile.image is None:
        raise BadProfile(f"model {profile.id!r}: a container launch needs 'image'")
    return MachineStart(
        argv=(f"{_MOUNT}/agent.pyz", "run", "--config", f"{_MOUNT}/agent.json"),
        files=files,
        image=profile.image,
        shm_mib=profile.shm_mib,
        entrypoint=profile.entrypoint or ("python3",),
        env=_KEPT if profile.cache else {},
        cache=profile.cache,
        user=profile.user,
    )
