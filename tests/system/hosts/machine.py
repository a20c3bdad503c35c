"""What the rig asks of the machine that it runs on: packages, commands with a deadline, processes and control groups."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

_children: set[int] = set()  # process groups of the commands that run now
_stopped = threading.Event()
PATH = os.environ.get("PATH", "") + ":/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class RigError(RuntimeError):
    """The rig cannot do what was asked; the message says which step failed and shows the end of its output."""


def say(message: str) -> None:
    """Tell progress on stderr: stdout carries the one JSON document."""
    print(f"rig: {message}", file=sys.stderr, flush=True)


def run(command: Sequence[str], *, timeout: float, env: Mapping[str, str] | None = None) -> str:
    """Run to the end and return stdout; RigError on a bad exit or a missed deadline, with nothing left running."""
    if _stopped.is_set():
        raise RigError("stopped")
    child = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        start_new_session=True,
        env={**os.environ, "PATH": PATH, **(env or {})},
    )
    _children.add(child.pid)
    try:
        out, err = child.communicate(timeout=timeout)
    except BaseException as error:
        with suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.communicate()
        if isinstance(error, subprocess.TimeoutExpired):
            raise RigError(f"{' '.join(command)} did not end within {timeout:.0f} s") from None
        raise
    finally:
        _children.discard(child.pid)
    if child.returncode != 0:
        raise RigError(f"{' '.join(command)} exited with {child.returncode}: {(out + err)[-2000:].strip()}")
    return out


def stop_commands() -> None:
    """End the commands that run now, in all threads, and let no other start: the way out after SIGTERM or SIGINT."""
    _stopped.set()
    for group in list(_children):
        with suppress(ProcessLookupError):
            os.killpg(group, signal.SIGTERM)


def retry(step: Callable[[], object], *, attempts: int = 3, pause: float = 5.0) -> None:
    """Do a step that depends on a network: again after a pause when it fails, the last failure is raised."""
    for attempt in range(1, attempts + 1):
        try:
            step()
            return
        except RigError as error:
            if attempt == attempts or _stopped.is_set():
                raise
            say(f"attempt {attempt} of {attempts} failed, once more in {pause:.0f} s: {error}")
            time.sleep(pause)


def wait_until(ready: Callable[[], bool], *, timeout: float, what: str) -> None:
    """Poll until `ready`, RigError when it is not within `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while not ready():
        if time.monotonic() > deadline:
            raise RigError(f"{what} within {timeout:.0f} s: no")
        time.sleep(0.1)


def install_programs(programs: Mapping[str, str]) -> None:
    """Install the package of each program that is not there."""
    missing = {package for program, package in programs.items() if not shutil.which(program, path=PATH)}
    if missing:
        install_packages(sorted(missing))


def install_packages(packages: Sequence[str]) -> None:
    """Install packages of the distribution without starting any service of theirs."""
    say(f"apt installs {' '.join(packages)}")
    apt = ["apt-get", "-q", "-y", "-o", "DPkg::Lock::Timeout=120", "-o", "Acquire::Retries=3"]
    quiet = {"DEBIAN_FRONTEND": "noninteractive"}

    def install() -> None:
        run([*apt, "update"], timeout=180, env=quiet)
        run([*apt, "install", "--no-install-recommends", *packages], timeout=300, env=quiet)

    with _no_services():
        retry(install)


@contextmanager
def _no_services() -> Iterator[None]:
    """Forbid package scripts to start daemons, unless the machine already has a policy of its own."""
    policy = Path("/usr/sbin/policy-rc.d")
    if policy.exists():
        yield
        return
    policy.write_text("#!/bin/sh\nexit 101\n")
    policy.chmod(0o755)
    try:
        yield
    finally:
        policy.unlink(missing_ok=True)


def debian_source() -> tuple[str, str]:
    """The (address, suite) that this machine's apt takes its distribution from."""
    release = dict(re.findall(r'^(\w+)="?(.*?)"?$', Path("/etc/os-release").read_text(), re.MULTILINE))
    suite = release.get("VERSION_CODENAME", "")
    columns = "$(ORIGIN)|$(CODENAME)|$(COMPONENT)|$(REPO_URI)"
    for line in run(["apt-get", "indextargets", "--format", columns], timeout=60).splitlines():
        origin, codename, component, address = line.split("|")
        if origin in ("Debian", "Ubuntu") and codename == suite and component == "main":
            return address, suite
    raise RigError(f"apt knows no main source for {suite!r}")


def debian_python() -> str:
    """The version of the distribution's python3, as in "3.11"."""
    policy = run(["apt-cache", "policy", "python3-minimal"], timeout=60)
    found = re.search(r"Candidate:\s*(\d+\.\d+)", policy)
    if found is None:
        raise RigError(f"apt has no candidate for python3-minimal: {policy.strip()}")
    return found.group(1)


def processes() -> Iterator[tuple[int, int, list[str]]]:
    """All processes as (pid, parent's pid, arguments)."""
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        with suppress(OSError):
            arguments = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")
            parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            yield int(entry.name), parent, arguments


def alive(pid: int) -> bool:
    """Whether the process exists and is not a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def remove_cgroups(name: str) -> None:
    """Remove the empty control groups `name` of every hierarchy, innermost first."""
    root = Path("/sys/fs/cgroup")
    for top in [root / name, *root.glob(f"*/{name}")]:
        for folder, _, _ in os.walk(top, topdown=False):
            with suppress(OSError):
                Path(folder).rmdir()
