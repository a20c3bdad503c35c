"""Networks of their own for processes of a test, and cables to them that the kernel cuts: Linux's network namespaces.

`python tests/support/islands.py COMMAND…` runs a command in a network of its own, with nothing but a loopback: there its
cables meet no other network of this machine, and whoever is not root may lay them, too. Nobody is left there once the command
has ended. Where the machine does not let us it says what is missing and ends with status 1.

Nothing has to be tidied after a run that was killed. A network has no name and lives as long as its holder and whoever works
in it; the holder ends with the process that made it, and takes with it who still works there; cables end with the network.
Only cables have names, which the kernel keeps apart, and their addresses follow from these: any number of runs go on side by
side.
"""

from __future__ import annotations

import ipaddress
import json
import os
import random
import select
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from itertools import chain
from pathlib import Path
from typing import IO

# Set aside for tests between networks (RFC 2544): two addresses for each cable.
ADDRESSES = ipaddress.IPv4Network("198.18.0.0/15")
CABLES = ADDRESSES.num_addresses // 2
# Some VPNs and containers' programs use these addresses, too. A wider route than this is one to everywhere.
WIDE = 8
IPV6 = Path("/proc/sys/net/ipv6")
TRIES = 50
# What these commands do takes milliseconds; this is for a kernel that is taking many networks down.
PATIENCE_S = 60
PROGRAMS = {"ip": "iproute2", "tc": "iproute2", "unshare": "util-linux", "nsenter": "util-linux"}
NEEDS = "networks of their own need Linux, iproute2, util-linux, and root or (with make) user namespaces"
SWEEP = """
for each in /proc/[0-9]*; do
  [ "$each" != "/proc/$$" ] && [ "$each/ns/net" -ef "/proc/$$/ns/net" ] && kill -9 "${each#/proc/}"
done 2> /dev/null
"""
# Once its standard input ends it kills who still works in its network: brokers of a run that was killed.
HOLDER = f"ip link set lo up && echo up && cat\n{SWEEP}\nexit 0"
# Likewise once the command has ended, by itself or killed: its databases, provider and agents.
UP = ("sh", "-c", f'ip link set lo up || exit\ntrap : INT TERM HUP\n"$@"\nstatus=$?\n{SWEEP}\nexit $status', "--")


class NoNetwork(RuntimeError):
    """This machine does not let us make a network, or no cable to it."""


class Island:
    """A network of its own, with nothing but a loopback. `command` runs something there; nobody is left there after `close`."""

    def __init__(self) -> None:
        check_programs()
        # A session of its own: what ends a run from the keyboard must find the network until the run has tidied up.
        self._holder = subprocess.Popen(
            ["unshare", "--net", "sh", "-c", HOLDER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        told = _pipe(self._holder.stdout)
        if not select.select([told], [], [], PATIENCE_S)[0]:
            self._holder.kill()
        if told.readline() != b"up\n":
            self._holder.kill()
            said = _pipe(self._holder.stderr).read().decode().strip()
            self.close()
            raise NoNetwork(f"{said or 'unshare said nothing'}; {NEEDS}")

    @property
    def pid(self) -> int:
        """Of a process in this network."""
        return self._holder.pid

    def command(self, *words: str) -> list[str]:
        """`words` as a command that runs there; the process is what `words` name and no other, so that signals reach it."""
        return ["nsenter", f"--net=/proc/{self.pid}/ns/net", "--", *words]

    def close(self) -> None:
        _pipe(self._holder.stdin).close()
        try:
            self._holder.wait(PATIENCE_S)
        finally:
            self._holder.kill()
            _pipe(self._holder.stdout).close()
            _pipe(self._holder.stderr).close()


class Cable:
    """Joins this network, by its address `here`, and the island's, `there`. From the island `service` is reached by this
    cable: `here`, or that of another island's cable, so that all islands call a service by one address.

    `cut` is an outage: the kernel drops every packet in both directions and neither side is told, until `mend`.
    Connections outlive it when whoever holds them has the patience.
    """

    def __init__(self, island: Island, service: str | None = None) -> None:
        self._island, self._is_cut = island, False
        self._lock = threading.Lock()
        number = self._plug()
        self.here, self.there = map(str, _ends(number))
        self.service = service or self.here
        # no IPv6: nothing travels, and is dropped, but what somebody sends
        quiet = f"link set {self.name} addrgenmode none\n" if IPV6.exists() else ""
        _run(["ip", "-batch", "-"], f"{quiet}addr add {self.here}/31 dev {self.name}\nlink set {self.name} up\n")
        far = f"{quiet}addr add {self.there}/31 dev {self.name}\nlink set {self.name} up\n"
        if self.service != self.here:
            far += f"route add {self.service}/32 via {self.here}\n"
        _run(island.command("ip", "-batch", "-"), far)

    def cut(self) -> None:
        """One that is cut stays so."""
        with self._lock:
            if not self._is_cut:
                self._both("replace", "root", "blackhole")
            self._is_cut = True

    def mend(self) -> int:
        """How many packets the outage has dropped. One that is whole stays so."""
        with self._lock:
            if not self._is_cut:
                return 0
            said = [json.loads(each) for each in self._both("show", "root", told="-s -j")]
            self._both("del", "root")
            self._is_cut = False
        return sum(int(queue["drops"]) for queues in said for queue in queues)

    def close(self) -> None:
        """Unplug it. One whose island has ended is no more."""
        subprocess.run(["ip", "link", "del", self.name], capture_output=True, check=False, timeout=PATIENCE_S)

    def _plug(self) -> int:
        """A number that no other cable and no other network of this machine has. Whose name is taken is told so by the kernel."""
        routed = _routed()
        for _ in range(TRIES):
            number = random.randrange(CABLES)
            if any(end in network for end in _ends(number) for network in routed):
                continue
            self.name = f"brk{number}"
            peer = ["peer", "name", self.name, "netns", str(self._island.pid)]
            made = _try(["ip", "link", "add", self.name, "type", "veth", *peer])
            if made.returncode == 0:
                return number
            if "File exists" not in made.stderr:
                raise NoNetwork(f"{made.stderr.strip()}; {NEEDS}")
        raise NoNetwork(
            f"{TRIES} addresses of {ADDRESSES} for a cable were taken (ip -4 route show table all): run it with make,"
            " which takes a network of its own"
        )

    def _both(self, act: str, *how: str, told: str = "") -> list[str]:
        """What `tc` says at both ends."""
        command = ["tc", *told.split(), "qdisc", act, "dev", self.name, *how]
        return [_run(self._island.command(*command)), _run(command)]


class Sites:
    """`count` islands, each with a cable of its own for each of `services`; all of them call a service by one address.

    `cables` of a service are in the order of `islands`.
    """

    def __init__(self, count: int, services: Iterable[str]) -> None:
        self.cables: dict[str, list[Cable]] = {service: [] for service in services}
        self.islands: list[Island] = []
        with ExitStack() as built:
            for _ in range(count):
                island = Island()
                built.callback(island.close)
                self.islands.append(island)
                for cables in self.cables.values():
                    cable = Cable(island, cables[0].service if cables else None)
                    built.callback(cable.close)
                    cables.append(cable)
            self._open = built.pop_all()

    def address(self, service: str) -> str:
        """Where whatever serves the islands must listen in this network."""
        return self.cables[service][0].service

    def mend(self) -> None:
        for cable in chain.from_iterable(self.cables.values()):
            cable.mend()

    def close(self) -> None:
        self._open.close()


def check_programs() -> None:
    """Raises NoNetwork, which names the program that this machine lacks, and its package."""
    for program, package in PROGRAMS.items():
        if shutil.which(program) is None:
            raise NoNetwork(f"{program} is not installed (Debian: {package}); {NEEDS}")


def apart(command: Sequence[str]) -> list[str]:
    """`command` as one that runs in a network of its own. Raises NoNetwork where the machine does not let us."""
    check_programs()
    own = ["unshare", *(() if os.geteuid() == 0 else ("--map-current-user", "--keep-caps")), "--net", *UP]
    tried = _try([*own, "true"])
    if tried.returncode:
        raise NoNetwork(f"{tried.stderr.strip()}; {NEEDS}")
    return [*own, *command]


def _ends(number: int) -> tuple[ipaddress.IPv4Address, ipaddress.IPv4Address]:
    """A cable's addresses, here and there."""
    first = ADDRESSES.network_address + 2 * number
    return first, first + 1


def _routed() -> list[ipaddress.IPv4Network]:
    """The networks that this one has ways to; those to everywhere left out."""
    routes = json.loads(_run(["ip", "-4", "-json", "route", "show", "table", "all"]) or "[]")
    named = (ipaddress.IPv4Network(each["dst"]) for each in routes if each["dst"] != "default")
    return [network for network in named if network.prefixlen >= WIDE]


def _run(command: list[str], lines: str = "") -> str:
    done = _try(command, lines)
    if done.returncode:
        raise NoNetwork(f"{' '.join(command)}: {done.stderr.strip()}; {NEEDS}")
    return done.stdout


def _try(command: list[str], lines: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, input=lines, capture_output=True, text=True, check=False, timeout=PATIENCE_S)


def _pipe(stream: IO[bytes] | None) -> IO[bytes]:
    assert stream is not None
    return stream


def main(command: Sequence[str]) -> None:
    try:
        words = apart(command)
    except NoNetwork as refused:
        sys.exit(f"no network of its own for `{' '.join(command)}`: {refused}")
    os.execvp(words[0], words)


if __name__ == "__main__":
    main(sys.argv[1:])
