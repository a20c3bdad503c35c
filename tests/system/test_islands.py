"""What the other tests rely on when they cut a broker off: the outage is real, and nothing of it stays behind."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import psutil
import pytest

from tests.support.islands import Sites, apart

pytestmark = [pytest.mark.replicas, pytest.mark.timeout(120)]
ROOT = Path(__file__).resolve().parents[2]
# Says on its connection what it is told on its standard input.
SPEAKER = "import socket, sys\nto = socket.create_connection((sys.argv[1], int(sys.argv[2])))\n"
SPEAKER += "for line in sys.stdin.buffer:\n    to.sendall(line)"
MAKER = """
import json, subprocess, sys
from tests.support.islands import NoNetwork, Sites
try:
    sites = Sites(2, ("a", "b"))
except NoNetwork as refused:
    sys.exit(str(refused))
sleeper = subprocess.Popen(sites.islands[0].command("sleep", "600"))
cables = [cable for each in sites.cables.values() for cable in each]
cables[0].cut()
print(json.dumps({"cables": [cable.name for cable in cables], "sleeper": sleeper.pid}), flush=True)
sys.stdin.read()
"""


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


def test_a_run_that_was_killed_leaves_no_cable_and_nobody_behind_and_touches_no_other_run(sites: Sites) -> None:
    """Also where a broker of it is still at work, and in the middle of an outage."""
    run = subprocess.Popen([sys.executable, "-c", MAKER], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert run.stdin and run.stdout
    told = json.loads(run.stdout.readline())
    assert len(told["cables"]) == 4 and all(map(_is_there, told["cables"]))
    run.kill()
    run.wait()
    _until(lambda: _has_gone(told["sleeper"]), "its broker is gone")
    _until(lambda: not any(map(_is_there, told["cables"])), "its cables are gone")
    assert all(_is_there(cable.name) for cables in sites.cables.values() for cable in cables)
    run.stdin.close()
    run.stdout.close()


def test_what_an_outage_dropped_is_counted_and_one_that_met_nobody_dropped_nothing(sites: Sites) -> None:
    asked, unasked = sites.cables["a"]
    asked.cut()
    unasked.cut()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as speaker:
        speaker.sendto(b"hello", (asked.there, 9))
    assert asked.mend() > 0
    assert asked.mend() == 0
    assert unasked.mend() == 0


def test_of_a_command_that_was_killed_in_a_network_of_its_own_nobody_is_left() -> None:
    """And its status is told."""
    words = apart(["sh", "-c", "sleep 600 > /dev/null & echo $!; kill -9 $$"])
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 128 + signal.SIGKILL
    _until(lambda: _has_gone(int(done.stdout)), "what it had started is gone")


def test_addresses_that_this_machine_uses_are_left_alone() -> None:
    """Some VPNs route them: run in a network of its own, so that this machine's are not touched by the test, either."""
    script = 'ip addr add 198.18.0.1/15 dev lo && exec "$0" -c "$1"'
    done = subprocess.run(
        apart(["sh", "-c", script, sys.executable, MAKER]),
        cwd=ROOT,
        input="",
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "addresses of 198.18.0.0/15 for a cable were taken" in done.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    ("programs", "said"),
    [
        ((), "ip is not installed (Debian: iproute2)"),
        (("ip",), "tc is not installed (Debian: iproute2)"),
        (("ip", "tc"), "unshare is not installed (Debian: util-linux)"),
        # as in a container that may not
        (("ip", "tc", "unshare", "nsenter"), "unshare failed: Operation not permitted"),
    ],
)
def test_where_the_machine_lacks_something_a_user_is_told_what(
    tmp_path: Path, programs: tuple[str, ...], said: str
) -> None:
    for name in programs:
        program = tmp_path / name
        program.write_text("#!/bin/sh\necho 'unshare: unshare failed: Operation not permitted' >&2\nexit 1\n")
        program.chmod(0o755)
    command = [sys.executable, "tests/support/islands.py", "true"]
    done = subprocess.run(command, cwd=ROOT, env={"PATH": str(tmp_path)}, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert said in line


def _is_there(name: str) -> bool:
    return subprocess.run(["ip", "link", "show", name], capture_output=True, check=False).returncode == 0


def _has_gone(pid: int) -> bool:
    """Also where nobody has asked for its status yet."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def _until(condition: Callable[[], bool], what: str) -> None:
    give_up = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < give_up, f"not in a minute: {what}"
        time.sleep(0.05)
