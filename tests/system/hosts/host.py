"""One rented host: an SSH server and a Docker engine of its own, on this machine, ended by ending one process.

The host has its own process, mount and hostname namespaces, home directory, engine storage and control group. It shares the
machine's network, so that a container with `--network host` reaches what listens on loopback here. Its first process is
`boot.sh`; killing that one is what pulling the plug of a rented machine looks like from outside.
"""

from __future__ import annotations

import hashlib
import os
import pwd
import shutil
import signal
import socket
import subprocess
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path

from tests.system.hosts.machine import PATH, RigError, alive, processes, remove_cgroups, run, wait_until

BOOT = Path(__file__).resolve().with_name("boot.sh")
# setsid --fork: the host outlives the command that boots it. Mounts made after unshare --mount are private to the host.
UNSHARE = ["setsid", "--fork", "unshare", "--mount", "--uts", "--pid", "--fork", "--kill-child", "--mount-proc"]

SSHD_CONFIG = """\
Port {port}
ListenAddress 127.0.0.1
HostKey {folder}/ssh_host_ed25519_key
PidFile none
UsePAM no
StrictModes no
UseDNS no
PermitRootLogin prohibit-password
PubkeyAuthentication yes
PasswordAuthentication no
KbdInteractiveAuthentication no
AuthorizedKeysFile {folder}/authorized_keys
Subsystem sftp internal-sftp
SetEnv DOCKER_HOST=unix://{socket}
MaxStartups 100:30:200
MaxSessions 100
LogLevel VERBOSE
"""


@dataclass
class Host:
    """The host `name` with its files under `state/name`; `state` may hold a host of an earlier, dead run."""

    name: str
    state: Path
    preferred_port: int
    folder: Path = field(init=False)
    tag: str = field(init=False)
    run_folder: Path = field(init=False)

    def __post_init__(self) -> None:
        """Derive the folders; the one for sockets is short because a unix socket's path may have 107 characters."""
        self.folder = self.state / self.name
        self.tag = f"broker-rig-{hashlib.sha256(os.fsencode(self.folder)).hexdigest()[:8]}"
        self.run_folder = Path("/run") / self.tag

    @property
    def docker_host(self) -> str:
        """The engine's address, for DOCKER_HOST."""
        return f"unix://{self.run_folder}/docker.sock"

    @property
    def port(self) -> int:
        """The port of the SSH server as configured at the last boot."""
        return int((self.folder / "port").read_text())

    @property
    def host_key(self) -> str:
        """The public key that the SSH server proves itself with, as `type base64`."""
        return " ".join((self.folder / "ssh_host_ed25519_key.pub").read_text().split()[:2])

    def docker(self, *arguments: str, timeout: float = 60) -> str:
        """Run the Docker client against this host's engine."""
        return run(["docker", "-H", self.docker_host, *arguments], timeout=timeout)

    def init_pid(self) -> int | None:
        """The pid of the host's first process, None when the host is down."""
        marked = [
            (pid, parent) for pid, parent, args in processes() if str(BOOT) in args and str(self.run_folder) in args
        ]
        pids = {pid for pid, _ in marked}
        return next((pid for pid, parent in marked if parent in pids), None)

    def docker_pid(self) -> int | None:
        """The pid of the host's dockerd as this machine sees it."""
        return next(
            (pid for pid, _, args in processes() if args[0].endswith("dockerd") and self.docker_host in args), None
        )

    def authorize(self, keys: list[str]) -> None:
        """Set what may log in; running SSH servers read it at each login."""
        self.folder.mkdir(parents=True, exist_ok=True)
        fresh = self.folder / "authorized_keys.new"
        fresh.write_text("".join(f"{key}\n" for key in keys))
        fresh.replace(self.folder / "authorized_keys")

    def healthy(self) -> bool:
        """Whether the host runs, its engine answers and its SSH server accepts connections."""
        if self.init_pid() is None:
            return False
        try:
            self.docker("version", "--format", "{{.Server.Version}}", timeout=20)
            socket.create_connection(("127.0.0.1", self.port), timeout=5).close()
        except (RigError, OSError):
            return False
        return True

    def boot(self) -> None:
        """Start the host unless it runs and is healthy; returns when engine and SSH server answer."""
        if self.healthy():
            return
        self.shut_down()
        self._write_files()
        with (self.folder / "boot.log").open("wb") as log:
            subprocess.run(
                [*UNSHARE, "sh", str(BOOT), str(self.run_folder), str(self.folder), self.name, f"/{self.tag}"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd="/",
                check=True,
                timeout=20,
                env={"PATH": PATH, "HOME": str(self.folder / "home"), "LANG": "C.UTF-8"},
            )
        try:
            wait_until(self.healthy, timeout=60, what=f"{self.name} has booted")
        except RigError as error:
            logs = "\n".join(self._tail(log) for log in ("boot.log", "dockerd.log", "sshd.log"))
            self.crash()
            raise RigError(f"{error}\n{logs}") from None

    def shut_down(self) -> None:
        """End the host and all that runs on it, containers removed; nothing when it is down. Never raises for a sick host."""
        init = self.init_pid()
        if init is not None:
            with suppress(RigError):
                self.remove_containers()
            with suppress(ProcessLookupError):
                os.kill(init, signal.SIGTERM)
            with suppress(RigError):
                wait_until(lambda: not alive(init), timeout=20, what=f"{self.name} has shut down")
        self.crash()

    def cut(self) -> None:
        """The host cannot be reached by SSH any more, and all else on it runs on. `crash` and `boot` bring it back."""
        init = self.init_pid()
        if init is None:
            raise RigError(f"{self.name} is down")
        inside = Path(f"/proc/{init}/ns/pid").readlink()
        for pid, _, args in list(processes()):
            with suppress(OSError):
                if Path(args[0].split(":")[0]).name == "sshd" and Path(f"/proc/{pid}/ns/pid").readlink() == inside:
                    os.kill(pid, signal.SIGKILL)

    def crash(self) -> None:
        """Pull the plug: every process of the host gets SIGKILL at once. Its disk stays, `boot` brings it back."""
        for pid, _, args in list(processes()):
            if str(BOOT) in args and str(self.run_folder) in args:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        wait_until(self._gone, timeout=30, what=f"{self.name} is gone")
        remove_cgroups(self.tag)
        shutil.rmtree(self.run_folder, ignore_errors=True)

    def remove_containers(self) -> None:
        """Remove all containers of the engine, running or not."""
        if containers := self.docker("ps", "-aq", timeout=20).split():
            self.docker("rm", "-f", "-v", *containers, timeout=60)

    def _gone(self) -> bool:
        return not any(alive(pid) for pid, _, args in processes() if any(str(self.run_folder) in arg for arg in args))

    def _write_files(self) -> None:
        home = self.folder / "home"
        home.mkdir(parents=True, exist_ok=True)
        self.run_folder.mkdir(mode=0o700, exist_ok=True)
        key = self.folder / "ssh_host_ed25519_key"
        if not key.exists():
            run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", self.name, "-f", str(key)], timeout=20)
        port = self._free_port()
        (self.folder / "port").write_text(str(port))
        settings = SSHD_CONFIG.format(port=port, folder=self.folder, socket=self.run_folder / "docker.sock")
        (self.folder / "sshd_config").write_text(settings)
        (self.folder / "daemon.json").write_text("{}")
        others = [user for user in pwd.getpwall() if user.pw_name != "root"]
        lines = [f"root:x:0:0:root:{home}:{pwd.getpwnam('root').pw_shell}"]
        lines += [f"{u.pw_name}:x:{u.pw_uid}:{u.pw_gid}:{u.pw_gecos}:{u.pw_dir}:{u.pw_shell}" for u in others]
        (self.folder / "passwd").write_text("".join(f"{line}\n" for line in lines))
        (self.folder / "shadow").write_text("".join(f"{n}:*:1::::::\n" for n in ["root", *(u.pw_name for u in others)]))

    def _free_port(self) -> int:
        """The port of the last boot, else the preferred one, else any, whichever is first found free."""
        last = [self.port] if (self.folder / "port").exists() else []
        for port in [*last, self.preferred_port, 0]:
            with closing(socket.socket()) as probe, suppress(OSError):
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(("127.0.0.1", port))
                return int(probe.getsockname()[1])
        raise RigError("no free port on 127.0.0.1")

    def _tail(self, name: str) -> str:
        log = self.folder / name
        return f"--- {name}\n{log.read_text(errors='replace')[-1500:]}" if log.exists() else ""
