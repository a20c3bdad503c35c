"""What the other tests rely on when they cut a broker off: the outage is real, and nothing of it stays behind."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.support.islands import Sites

pytestmark = [pytest.mark.replicas, pytest.mark.timeout(120)]
ROOT = Path(__file__).resolve().parents[2]
# Says on its connection what it is told on its standard input.
SPEAKER = "import socket, sys\nto = socket.create_connection((sys.argv[1], int(sys.argv[2])))\n"
SPEAKER += "for line in sys.stdin.buffer:\n    to.sendall(line)"
MAKER = "import sys\nfrom tests.support.islands import Sites\nsites = Sites(2, ('a', 'b'))\n"
MAKER += "print(*(cable.name for cables in sites.cables.values() for cable in cables), flush=True)\nsys.stdin.read()"


@pytest.fixture
def sites() -> Iterator[Sites]:
    with closing(Sites(2, ("a", "b"))) as made:
        yield made


def test_a_cut_cable_is_silent_alone_and_its_connections_outlive_the_outage(sites: Sites) -> None:
    with socket.create_server((sites.address("a"), 0)) as server:
        server.settimeout(30)
        address = (sites.address("a"), str(server.getsockname()[1]))
        for number, island in enumerate(sites.islands):
            speaker = subprocess.Popen(island.command(sys.executable, "-c", SPEAKER, *address), stdin=subprocess.PIPE)
            assert speaker.stdin
            heard, (host, _) = server.accept()
            assert host == sites.cables["a"][number].there
            sites.cables["a"][number].cut()
            sites.cables["b"][number].cut()
            sites.cables["b"][number].mend()
            speaker.stdin.write(b"hello\n")
            speaker.stdin.close()
            heard.settimeout(0.3)
            with pytest.raises(TimeoutError):
                heard.recv(100)
            sites.cables["a"][number].mend()
            heard.settimeout(60)
            assert heard.recv(100) == b"hello\n"
            assert heard.recv(100) == b""
            heard.close()
            assert speaker.wait(60) == 0


def test_signals_reach_the_command_itself(sites: Sites) -> None:
    process = subprocess.Popen(sites.islands[0].command("sleep", "600"))
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == -signal.SIGTERM


def test_a_run_that_was_killed_leaves_no_cable_behind() -> None:
    run = subprocess.Popen([sys.executable, "-c", MAKER], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert run.stdin and run.stdout
    names = run.stdout.readline().decode().split()
    assert len(names) == 4 and all(map(_is_there, names))
    run.kill()
    run.wait()
    give_up = time.monotonic() + 60
    while any(map(_is_there, names)):
        assert time.monotonic() < give_up, f"{names} are still there"
        time.sleep(0.05)
    run.stdin.close()
    run.stdout.close()


def _is_there(name: str) -> bool:
    return subprocess.run(["ip", "link", "show", name], capture_output=True, check=False).returncode == 0
