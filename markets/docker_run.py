"""What `docker run` is told to start a worker: one pure function for hosts over SSH and for cloud-init alike.

A container is given what its engine needs and no more: its files read-only, a cache that outlives it, the shared memory
that it asks for, the accelerators of its offer, and no privilege that a program of its own does not need.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal

from markets.machine import TAG_VARIABLE
from markets.market import MachineStart
from markets.offer import Accelerator, AcceleratorKind

MOUNT = "/broker"
# Weights and what engines compile: the next worker on this host finds them again.
CACHE = "/cache"
PULLED = "pull.json"
# NCCL and pinned host memory want these (NVIDIA's and vLLM's documents name both).
_GPU_LIMITS = ("memlock=-1", "stack=67108864")


@dataclass(frozen=True, slots=True)
class Docker:
    """How containers are run on one host. `folder` may be relative to the user's home.

    `gpus`: give each container the host's accelerators, of the kind that its offer says (NVIDIA's if it does not);
    `devices` narrows NVIDIA's to these indices or UUIDs.
    """

    command: str = "docker"
    folder: str = ".broker"
    network: str | None = None
    gpus: bool = False
    devices: tuple[str, ...] = ()
    volumes: tuple[str, ...] = ()


def run_argv(
    docker: Docker,
    *,
    tag: str,
    owner: str,
    price: Decimal,
    start: MachineStart,
    home: str,
    accelerator: Accelerator | None = None,
) -> list[str]:
    """`docker run` for `start`: detached, named and labelled with the tag, files read-only at /broker (`{dir}`).

    `home` is the absolute path of `docker.folder` on the host; HOME/TAG/files holds the files, HOME/cache the cache.
    `accelerator` is the offer's. Raises ValueError without an image.
    """
    if not start.image:
        raise ValueError(f"rental {tag}: a container needs an image; the machine start names none")
    argv = [docker.command, "run", "-d", "--name", tag]
    for label, value in (("tag", tag), ("owner", owner), ("price", str(price))):
        argv += ["--label", f"broker.{label}={value}"]
    argv += ["--network", docker.network] if docker.network else []
    if docker.gpus:
        argv += device_args(accelerator or Accelerator(), docker.devices)
    argv += ["--security-opt", "no-new-privileges"]
    argv += ["--user", start.user] if start.user else []
    argv += ["--shm-size", f"{start.shm_mib}m"] if start.shm_mib else []
    caches = (f"{home}/cache:{CACHE}",) if start.cache else ()
    for volume in (f"{home}/{tag}/files:{MOUNT}:ro", *caches, *docker.volumes):
        argv += ["-v", volume]
    for name, value in {**start.env, TAG_VARIABLE: tag}.items():
        argv += ["-e", f"{name}={value.replace('{dir}', MOUNT)}"]
    entrypoint, *rest = start.entrypoint or (None,)
    argv += ["--entrypoint", entrypoint] if entrypoint is not None else []
    return [
        *argv,
        start.image,
        *(part.replace("{dir}", MOUNT) for part in (*[each for each in rest if each], *start.argv)),
    ]


def device_args(accelerator: Accelerator, devices: tuple[str, ...] = ()) -> list[str]:
    """The options that give a container its accelerators; `devices` are NVIDIA indices or UUIDs, none means all.

    NVIDIA's are docker's own (`--gpus`; its value is CSV, so several devices stand in quotes). The others are taken from
    the vendors' documents and unverified against the live hardware: AMD ROCm ("Running ROCm Docker containers"), Google
    Cloud TPU VM ("Run TPU workloads in a Docker container": privileged, host network), AWS Neuron ("Docker environment
    setup": one device file a chip), Intel Gaudi ("Docker installation": the habana runtime).

    >>> device_args(Accelerator(kind="nvidia", count=2), ("0", "1"))[:2]
    ['--gpus', '"device=0,1"']
    """
    nvidia = ["--gpus", f'"device={",".join(devices)}"' if devices else "all", *_limits()]
    by_kind: Mapping[AcceleratorKind, list[str]] = {
        "none": nvidia,
        "nvidia": nvidia,
        "amd": ["--device=/dev/kfd", "--device=/dev/dri", "--group-add=video", "--cap-add=SYS_PTRACE", *_limits()],
        "tpu": ["--privileged"],
        "trainium": [f"--device=/dev/neuron{number}" for number in range(accelerator.count)],
        "gaudi": ["--runtime=habana", "-e", "HABANA_VISIBLE_DEVICES=all", "--cap-add=SYS_NICE"],
    }
    return by_kind[accelerator.kind]


def pull_script(docker: Docker, *, tag: str, start: MachineStart, home: str) -> str:
    """POSIX shell before `docker run`: make the cache folder, pull the image where it is missing, note how long that took.

    HOME/TAG/files/pull.json gets `{"pull_ms": …}`, by the host's monotonic clock, for the agent to report; 0 when the
    image was there. A pull that fails is left to `docker run`, whose words are the better ones.
    """
    command, image = shlex.quote(docker.command), shlex.quote(start.image or "")
    files, cache = shlex.quote(f"{home}/{tag}/files"), shlex.quote(f"{home}/cache")
    lines = []
    if start.cache:
        # The container's user may be any. The folder above keeps the host's other users out.
        lines += [f"mkdir -p {cache} && chmod 1777 {cache}"]
    lines += [
        "up() { read -r s _ </proc/uptime && echo $((${s%.*} * 1000 + 1${s#*.} * 10 - 1000)); }",
        "began=$(up)",
        f"if {command} image inspect {image} >/dev/null 2>&1; then took=0",
        f"else {command} pull -q {image} >/dev/null 2>&1; took=$(($(up) - began)); fi",
        f"echo '{{\"pull_ms\": '$took'}}' >{files}/{PULLED}; chmod 644 {files}/{PULLED}",
    ]
    return "\n".join(lines)


def _limits() -> list[str]:
    return [part for limit in _GPU_LIMITS for part in ("--ulimit", limit)]
