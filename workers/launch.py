"""What a fresh machine runs first: the agent, with its configuration beside it."""

from __future__ import annotations

import ipaddress
import json
import re
import sys
from dataclasses import replace
from typing import Literal
from urllib.parse import urlsplit

from markets.docker_run import CACHE
from markets.market import Download, MachineStart
from markets.offer import Launch
from workers.agent.metadata import SOURCES
from workers.errors import BadProfile
from workers.package import AgentPackage, build_agent
from workers.profile import ModelProfile

_MOUNT = "/broker"
_STATE = "/state"
_AGENT = "agent.pyz"
_DIGEST = re.compile(r".+@sha256:[0-9a-f]{64}")
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
    market: str = "",
    failpoint: str | None = None,
    identity: Literal["certificate", "token"] = "token",
    broker_ca: str | None = None,
    python: str = sys.executable,
    package: AgentPackage | None = None,
) -> MachineStart:
    """The start of a worker for `profile`. `python` is used by process launches, the image's own by the others.

    `market` says whose metadata service announces interruptions. `identity`: how the worker is known after hello. `broker_ca`
    (PEM): what it trusts beside its system's authorities. `package` saves building the agent again. Raises
    BadProfile when the profile does not fit the launch kind, or a machine of the internet could not dial `broker_url`.
    """
    if launch not in profile.launches:
        raise BadProfile(
            f"model {profile.id!r} cannot be launched as {launch!r}, only as {', '.join(profile.launches)}"
        )
    package = package or build_agent()
    config = {
        "broker_url": broker_url,
        "rental_id": rental_id,
        "bootstrap_token": bootstrap_token,
        "dead_man_s": dead_man_s,
        "failpoint": failpoint,
        "metadata": market if market in SOURCES else None,
        "alive_file": f"{_STATE}/alive" if launch == "vm" else None,
        "identity": identity,
        "broker_ca": broker_ca,
    }
    files = {"agent.json": json.dumps(config, indent=1).encode(), _AGENT: package.content}
    if launch == "process":
        argv = (python, "{dir}/agent.pyz", "run", "--config", "{dir}/agent.json")
        return MachineStart(argv=argv, env=_PROCESS_ENV, files=files)
    if launch not in ("container", "vm"):
        raise BadProfile(f"model {profile.id!r}: no way is known to launch a worker as {launch!r}")
    if profile.image is None:
        raise BadProfile(f"model {profile.id!r}: a container launch needs 'image'")
    start = MachineStart(
        argv=(f"{_MOUNT}/agent.pyz", "run", "--config", f"{_MOUNT}/agent.json"),
        files=files,
        image=profile.image,
        shm_mib=profile.shm_mib,
        entrypoint=profile.entrypoint or ("python3",),
        env=_KEPT if profile.cache else {},
        cache=profile.cache,
        user=profile.user,
    )
    if launch == "container":
        return start
    return _vm(
        start,
        url=broker_url,
        rental_id=rental_id,
        token=bootstrap_token,
        profile=profile,
        sha256=package.sha256,
        ca=broker_ca,
        dead_man_s=dead_man_s,
    )


def _vm(
    start: MachineStart,
    *,
    url: str,
    rental_id: str,
    token: str,
    profile: ModelProfile,
    sha256: str,
    ca: str | None,
    dead_man_s: int,
) -> MachineStart:
    """The container of `start` on a whole machine, whose start-up document holds kilobytes: it fetches the agent."""
    if not _DIGEST.fullmatch(start.image or ""):
        raise BadProfile(
            f"model {profile.id!r}: a vm launch needs 'image' by digest (NAME@sha256:…), so that what runs is known; "
            f"it is {profile.image!r}"
        )
    if _is_this_machine(url):
        raise BadProfile(
            f"model {profile.id!r}: a rented machine cannot dial {url}; set http.public_url to an address that it can reach"
        )
    if urlsplit(url).scheme != "https":
        raise BadProfile(
            f"model {profile.id!r}: a rented machine would send its token and read prompts over {url}, in clear; set "
            "http.public_url to an https address"
        )
    agent = Download(f"{url.rstrip('/')}/worker/v1/rentals/{rental_id}/agent.pyz", sha256, token, ca)
    files = {name: content for name, content in start.files.items() if name != _AGENT}
    return replace(start, files=files, downloads={_AGENT: agent}, dead_man_s=dead_man_s)


def _is_this_machine(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host in ("", "localhost")
    return address.is_loopback or address.is_unspecified
