"""Networks of their own for processes of a test, and cables to them that the kernel cuts. Linux's namespaces: needs root,
or the user namespace that `make` takes for others.

Nothing has to be tidied after a run that was killed: a network lives as long as its holder and whoever works in it, the
holder ends with the process that made it, and cables end with the network. Only cables have names, which the kernel keeps
apart, and their addresses follow from these: any number of runs go on side by side.
"""

from __future__ import annotations

import ipaddress
import random
import subprocess
from collections.abc import Iterable
from contextlib import ExitStack
from itertools import chain
from typing import IO

# Set aside for tests between networks (RFC 2544): two addresses for each cable.
ADDRESSES = ipaddress.ip_network("198.18.0.0/15")
CABLES = ADDRESSES.num_addresses // 2
TRIES = 50
NEEDS = "brokers in networks of their own need root (or `make`, which takes a user namespace), iproute2 and util-linux"
HOLDER = ("unshare", "--net", "sh", "-c", "ip link set lo up && echo up && exec cat")


class NoNetwork(RuntimeError):
    """This machine does not let us make a network, or no cable to it."""


class Island:
    """A network of its own, with nothing but a loopback. `command` runs something there."""

    def __init__(self) -> None:
        # A session of its own: what ends a run from the keyboard must find the network until the run has tidied up.
        self._holder = subprocess.Popen(
            HOLDER,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        if _pipe(self._holder.stdout).readline() != b"up\n":
            said = _pipe(self._holder.stderr).read().decode().strip()
            self.close()
            raise NoNetwork(f"{said}; {NEEDS}")

    @property
    def pid(self) -> int:
        """Of a process in this network."""
        return self._holder.pid

    def command(self, *words: str) -> list[str]:
        """`words` as a command that runs there; the process is what `words` name and no other, so that signals reach it."""
        return ["nsenter", f"--net=/proc/{self.pid}/ns/net", "--", *words]

    def close(self) -> None:
        _pipe(self._holder.stdin).close()
        self._holder.wait()
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
        number = self._plug()
        first = int(ADDRESSES.network_address) + 2 * number
        self.here, self.there = (str(ipaddress.ip_address(each)) for each in (first, first + 1))
        self.service = service or self.here
        _run(["ip", "-batch", "-"], f"addr add {self.here}/31 dev {self.name}\nlink set {self.name} up\n")
        far = f"addr add {self.there}/31 dev {self.name}\nlink set {self.name} up\n"
        if self.service != self.here:
            far += f"route add {self.service}/32 via {self.here}\n"
        _run(island.command("ip", "-batch", "-"), far)

    def cut(self) -> None:
        self._is_cut = True
        self._both("replace", "root", "blackhole")

    def mend(self) -> None:
        """One that is whole stays so."""
        if self._is_cut:
            self._both("del", "root")
        self._is_cut = False

    def close(self) -> None:
        """Unplug it. One whose island has ended is no more."""
        subprocess.run(["ip", "link", "del", self.name], capture_output=True, check=False)

    def _plug(self) -> int:
        """A number that no other cable has: whose name is taken is told so by the kernel."""
        for _ in range(TRIES):
            number = random.randrange(CABLES)
            self.name = f"brk{number}"
            peer = ["peer", "name", self.name, "netns", str(self._island.pid)]
            made = subprocess.run(
                ["ip", "link", "add", self.name, "type", "veth", *peer], capture_output=True, text=True, check=False
            )
            if made.returncode == 0:
                return number
            if "File exists" not in made.stderr:
                raise NoNetwork(f"{made.stderr.strip()}; {NEEDS}")
        raise NoNetwork(f"{TRIES} names for a cable were taken")

    def _both(self, act: str, *how: str) -> None:
        command = ["tc", "qdisc", act, "dev", self.name, *how]
        _run(self._island.command(*command))
        _run(command)


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


def _run(command: list[str], lines: str = "") -> None:
    done = subprocess.run(command, input=lines, capture_output=True, text=True, check=False)
    if done.returncode:
        raise NoNetwork(f"{' '.join(command)}: {done.stderr.strip()}; {NEEDS}")


def _pipe(stream: IO[bytes] | None) -> IO[bytes]:
    assert stream is not None
    return stream
