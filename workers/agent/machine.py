"""What this machine is, as it says hello."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
from pathlib import Path
from typing import Any

from workers.agent import VERSION, sealing
from workers.agent.log import event

_MIB = 1024 * 1024
_GPU_QUERY = ("--query-gpu=name,memory.total,driver_version", "--format=csv,noheader,nounits")
_GPU_TIMEOUT_S = 20


async def machine_facts(rental_id: str, pubkey: str, folder: Path) -> dict[str, Any]:
    """The body of hello (schemas/hello.request.json). `pubkey` binds the session to this process."""
    accelerators, driver = await _accelerators()
    return {
        "rental_id": rental_id,
        "pubkey": pubkey,
        "agent_version": VERSION,
        "hostname": socket.gethostname(),
        "pid": os.getpid(),
        "cpu_count": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        "memory_mib": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // _MIB,
        "disk_free_mib": shutil.disk_usage(folder).free // _MIB,
        "accelerators": accelerators,
        "driver": driver,
        "evidence": {},
        "seals": [sealing.FORMAT] if sealing.is_available() else [],
    }


async def _accelerators() -> tuple[list[dict[str, Any]], str | None]:
    """NVIDIA devices and their driver's version, by nvidia-smi; none where there is no such program."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return [], None
    child = await asyncio.create_subprocess_exec(
        program, *_GPU_QUERY, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL
    )
    try:
        output, _ = await asyncio.wait_for(child.communicate(), _GPU_TIMEOUT_S)
    except TimeoutError:
        child.kill()
        await child.wait()
        event("machine.accelerators_unknown", reason=f"{program} did not answer within {_GPU_TIMEOUT_S} s")
        return [], None
    return parse_accelerators(output.decode("utf-8", "replace"))


def parse_accelerators(text: str) -> tuple[list[dict[str, Any]], str | None]:
    """Rows of `name, MiB, driver`.

    >>> parse_accelerators("NVIDIA L4, 23034, 550.54.15\\n")
    ([{'name': 'NVIDIA L4', 'memory_mib': 23034}], '550.54.15')
    """
    accelerators, driver = [], None
    for row in text.splitlines():
        fields = [part.strip() for part in row.split(",")]
        if len(fields) == 3 and fields[1].isdigit():
            accelerators.append({"name": fields[0], "memory_mib": int(fields[1])})
            driver = fields[2]
    return accelerators, driver
