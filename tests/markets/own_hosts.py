"""A host reached by a real sshd (Debian's openssh-server) with a docker command that we can examine."""

from __future__ import annotations

import getpass
import os
import shlex
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import psutil
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from markets.docker_run import Docker
from markets.hosts import HostsMarket, OwnHost
from markets.ssh import Authority, Target, Timeouts, new_authority_key
from tests.markets.rigs import OWNER

SSHD = shutil.which("sshd", path="/usr/sbin:/usr/local/sbin:/usr/bin")
FAKE = Path(__file__).with_name("fake_docker.sh")


@dataclass(frozen=True)
class HostRig:
    """One host. `docker_state` is the fake docker's folder; `sshd` the listener's process."""

    own: OwnHost
    authority: Authority
    folder: Path
    docker_state: Path
    sshd: subprocess.Popen[bytes]

    def market(self, *, owner: str = OWNER, timeouts: Timeouts | None = None, **changes: Any) -> HostsMarket:
        return HostsMarket([replace(self.own, **changes)], authority=self.authority, owner=owner, timeouts=timeouts)

    def asked(self, tag: str) -> list[str]:
        """The argv with which docker was really called: `run` and what follows."""
        for place in (self.docker_state / "containers" / tag, self.docker_state / f"removed-{tag}"):
            if (place / "asked").is_file():
                return ["run", *(place / "asked").read_text().split("\0")[:-1]]
        raise AssertionError(f"docker was never asked to run {tag}")

    def trap(self, name: str) -> Path:
        """Make the fake docker misbehave (`down`, `refuse`, `slow`) while the returned file is there."""
        file = self.docker_state / name
        file.touch()
        return file


@contextmanager
def host_in(folder: Path, *, slots: int = 3) -> Iterator[HostRig]:
    """A host that trusts a fresh authority. Needs sshd."""
    assert SSHD is not None
    folder.mkdir(parents=True)
    authority = Authority(new_authority_key())
    host_key = Ed25519PrivateKey.generate()
    (folder / "host_key").write_bytes(_pem(host_key))
    (folder / "host_key").chmod(0o600)
    (folder / "authorized_keys").write_text(authority.trust_line + "\n")
    docker_state = folder / "docker-state"
    docker_state.mkdir()
    docker = folder / "docker"
    docker.write_text(
        f'#!/bin/sh\nexport FAKE_DOCKER={shlex.quote(str(docker_state))}\nexec sh {shlex.quote(str(FAKE))} "$@"\n'
    )
    docker.chmod(0o755)
    port = _free_port()
    sshd = _start_sshd(folder, port)
    public = host_key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    target = Target("host-a", "127.0.0.1", port, getpass.getuser(), public.decode())
    settings = Docker(command=str(docker), folder=str(folder / "home" / "broker"), network="host")
    own = OwnHost(target, Decimal("0.25"), "DE", slots=slots, docker=settings)
    try:
        yield HostRig(own, authority, folder, docker_state, sshd)
    finally:
        for name in ("slow", "down"):
            (docker_state / name).unlink(missing_ok=True)
        for pid in docker_state.glob("containers/*/pid"):  # what a failed test left running
            if not (pid.parent / "code").exists():
                os.kill(int(pid.read_text()), signal.SIGKILL)
        end_sessions(sshd)
        sshd.kill()
        sshd.wait()


def end_sessions(sshd: subprocess.Popen[bytes]) -> None:
    """Kill the processes of all logins. One that was just closed may end by itself between the listing and the signal."""
    for session in psutil.Process(sshd.pid).children():
        with suppress(psutil.NoSuchProcess):
            session.kill()


def _start_sshd(folder: Path, port: int) -> subprocess.Popen[bytes]:
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)  # sshd's empty folder for its unprivileged half
    config = folder / "sshd_config"
    config.write_text(
        f"ListenAddress 127.0.0.1\nPort {port}\nHostKey {folder}/host_key\nAuthorizedKeysFile {folder}/authorized_keys\n"
        "StrictModes no\nUsePAM no\nPasswordAuthentication no\nPermitRootLogin prohibit-password\nPidFile none\n"
        "MaxStartups 100\nSubsystem sftp internal-sftp\n"
    )
    with (folder / "sshd.log").open("wb") as log:
        sshd = subprocess.Popen([str(SSHD), "-D", "-e", "-f", str(config)], stdin=subprocess.DEVNULL, stderr=log)
    deadline = time.monotonic() + 20
    while True:
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=1) as probe:
                assert probe.recv(4) == b"SSH-"
                return sshd
        except (ConnectionError, TimeoutError):
            assert sshd.poll() is None and time.monotonic() < deadline, (folder / "sshd.log").read_text()
            time.sleep(0.02)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _pem(key: Ed25519PrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
    )
