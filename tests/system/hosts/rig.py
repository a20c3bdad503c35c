"""Two rented hosts with SSH, a Docker engine each, and a real vLLM image: the rig of the last stage of CI.

    python tests/system/hosts/rig.py up --state DIR [--ca-key FILE]     one JSON document on stdout; safe to repeat
    python tests/system/hosts/rig.py crash --state DIR --host host-a    pull the plug of one host
    python tests/system/hosts/rig.py boot --state DIR --host host-a     and bring it back
    python tests/system/hosts/rig.py down --state DIR                   ends everything, keeps caches
    python tests/system/hosts/rig.py down --state DIR --purge           and the caches

Needs root and the right to mount, nothing else: see README.md beside this file.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from tests.system.hosts.host import Host
from tests.system.hosts.image import IMAGE, TINY_MODEL, Image
from tests.system.hosts.machine import RigError, install_programs, retry, run, say, stop_commands

PROGRAMS = {
    "dockerd": "docker.io",
    "docker": "docker.io",
    "sshd": "openssh-server",
    "ssh": "openssh-client",
    "mmdebstrap": "mmdebstrap",
}


class Rig:
    """Two hosts under the folder `state`. `ca_key` is the public key line of a certificate authority that may log in.

    With options in front (`cert-authority,restrict ssh-ed25519 …`) the line is taken as it is.
    """

    def __init__(self, state: Path, ca_key: str | None = None) -> None:
        """Describe the rig; nothing happens before `up`."""
        self.state = state.resolve()
        self.ca_key = ca_key
        self.hosts = [Host("host-a", self.state, 2201), Host("host-b", self.state, 2202)]
        self.image = Image(self.state)

    @property
    def admin_key(self) -> Path:
        """The private key file that logs in to both hosts."""
        return self.state / "admin_ed25519"

    def up(self) -> dict[str, object]:
        """Bring everything up, making only what is missing, and describe it."""
        if os.geteuid() != 0:
            raise RigError("the rig needs root: it starts Docker engines")
        self.state.mkdir(parents=True, exist_ok=True)
        with self._lock(), ThreadPoolExecutor(2) as pool:
            started = time.monotonic()
            built = self.image.id != ""
            install_programs(PROGRAMS)
            environment = None if built else pool.submit(self.image.make_environment)
            self._authorize()
            for host in self.hosts:
                host.boot()
                host.remove_containers()
            say(f"hosts are up after {time.monotonic() - started:.0f} s")
            if not all(self.image.loaded(host) for host in self.hosts):
                environment = environment or pool.submit(self.image.make_environment)
                system = pool.submit(self.image.make_system)
                system.result()
                environment.result()
                self.image.make_model()
                self.image.load(self.hosts)
            for host in self.hosts:
                self._check(host)
            say(f"up after {time.monotonic() - started:.0f} s")
            return self.describe()

    def trust(self, ca_key: str | None) -> None:
        """Let in certificates of this authority, and of no other; None: of none."""
        self.ca_key = ca_key
        if ca_key is None:
            (self.state / "ca.pub").unlink(missing_ok=True)
        self._authorize()

    def down(self, *, purge: bool = False) -> None:
        """End all processes, containers and mounts of the rig. Caches stay in the state folder unless `purge`."""
        if not self.state.exists():
            self._end_hosts()
            return
        with self._lock():
            self._end_hosts()
        if purge:
            shutil.rmtree(self.state)

    def host(self, name: str) -> Host:
        """The host called `name`."""
        return next(host for host in self.hosts if host.name == name)

    def describe(self) -> dict[str, object]:
        """What `up` prints: how to reach the hosts, and what their engines hold."""
        return {
            "hosts": [
                {
                    "name": host.name,
                    "address": "127.0.0.1",
                    "port": host.port,
                    "user": "root",
                    "host_key": host.host_key,
                    "home": str(host.folder / "home"),
                    "docker_host": host.docker_host,
                    "docker_pid": host.docker_pid(),
                    "init_pid": host.init_pid(),
                }
                for host in self.hosts
            ],
            "image": IMAGE,
            "image_id": self.image.id,
            "tiny_model": TINY_MODEL,
            "tiny_model_folder": str(self.image.model),
            "admin_key": str(self.admin_key),
            "state": str(self.state),
        }

    def _end_hosts(self) -> None:
        for host in self.hosts:
            host.shut_down()

    def _authorize(self) -> None:
        if not self.admin_key.exists():
            command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "rig-admin", "-f", str(self.admin_key)]
            run(command, timeout=20)
        remembered = self.state / "ca.pub"
        if self.ca_key:
            remembered.write_text(f"{self.ca_key.strip()}\n")
        keys = [self.admin_key.with_suffix(".pub").read_text().strip()]
        if remembered.exists():
            line = remembered.read_text().strip()
            keys.append(line if line.startswith("cert-authority") else f"cert-authority {line}")
        for host in self.hosts:
            host.authorize(keys)

    def _check(self, host: Host) -> None:
        """Log in by SSH and ask the engine that is seen from there for the image."""
        known = self.state / "known_hosts"
        known.write_text("".join(f"[127.0.0.1]:{h.port} {h.host_key}\n" for h in self.hosts))
        options = {"UserKnownHostsFile": known, "StrictHostKeyChecking": "yes", "BatchMode": "yes", "ConnectTimeout": 5}
        ssh = ["ssh", "-F", "none", "-i", str(self.admin_key), "-o", "IdentitiesOnly=yes", "-p", str(host.port)]
        ssh += [part for name, value in options.items() for part in ("-o", f"{name}={value}")]
        question = f"hostname && docker image inspect -f '{{{{.Id}}}}' {IMAGE}"

        def ask() -> None:
            answer = run([*ssh, "root@127.0.0.1", question], timeout=30).split()
            if answer != [host.name, self.image.id]:
                raise RigError(f"{host.name} answered {answer} by SSH, wanted its name and {self.image.id}")

        retry(ask, pause=1.0)

    @contextmanager
    def _lock(self) -> Iterator[None]:
        """One `up` or `down` at a time on a state folder; a second one waits its turn, bounded."""
        with (self.state / "lock").open("w") as file:
            deadline = time.monotonic() + 900
            while True:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() > deadline:
                        raise RigError(f"another rig command holds {self.state}") from None
                    time.sleep(0.5)
            yield


def _stop(number: int, frame: FrameType | None) -> None:
    """Leave in good order on SIGTERM and SIGINT; `down` ends the hosts that were up by then."""
    stop_commands()
    raise SystemExit(128 + number)


def main() -> int:
    """Run one command from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["up", "down", "crash", "boot"])
    parser.add_argument("--state", type=Path, required=True, help="folder for everything the rig makes")
    parser.add_argument("--ca-key", type=Path, help="file with the public key of an SSH certificate authority")
    parser.add_argument("--host", choices=["host-a", "host-b"], help="for crash and boot")
    parser.add_argument("--purge", action="store_true", help="down: also delete the state folder")
    arguments = parser.parse_args()
    if arguments.command in ("crash", "boot") and not arguments.host:
        parser.error(f"{arguments.command} needs --host")
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _stop)
    try:
        rig = Rig(arguments.state, arguments.ca_key.read_text() if arguments.ca_key else None)
        if arguments.command == "up":
            print(json.dumps(rig.up(), indent=2))
        elif arguments.command == "down":
            rig.down(purge=arguments.purge)
        elif arguments.command == "crash":
            rig.host(arguments.host).crash()
        else:
            rig.host(arguments.host).boot()
    except (RigError, OSError) as error:
        say(f"failed: {error}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
