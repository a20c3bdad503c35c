"""A process as a machine: whole, found again, killed whole."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import psutil
import pytest

from markets.machine import Machine, Machines, processes_of
from markets.market import MachineStart
from tests.markets.rigs import until

SLEEP = MachineStart(argv=("sleep", "1000"))
FAMILY = """
import os, subprocess, sys, time
subprocess.Popen(["sleep", "1000"])
subprocess.Popen(["sleep", "1000"], start_new_session=True)
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        time.sleep(1000)
    os._exit(0)
print("up", flush=True)
time.sleep(1000)
"""


@pytest.fixture
async def machines(tmp_path: Path) -> AsyncIterator[Machines]:
    machines = Machines(tmp_path / "machines")
    yield machines
    for tag in machines.tags():
        await machines.kill(tag)


async def launch(machines: Machines, start: MachineStart, tag: str = "rental_1") -> Machine:
    machines.lay(tag, start, {"owner": "broker_1"})
    return await machines.launch(tag)


def ended(machines: Machines, tag: str = "rental_1") -> bool:
    return machines.look(tag).phase == "ended"


async def test_a_machine_sees_its_files_and_nothing_of_our_environment(
    machines: Machines, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET_OF_THE_BROKER", "s3cret")
    start = MachineStart(
        argv=("sh", "-c", 'cat "$WHERE/deep/hello.txt"; env'),
        env={"WHERE": "{dir}"},
        files={"deep/hello.txt": b"hello\n"},
    )
    await launch(machines, start)
    await until(lambda: ended(machines), "the shell ends")
    out = (machines.folder("rental_1") / "stdout.log").read_text()
    names = {line.partition("=")[0] for line in out.splitlines()[1:]}
    assert out.startswith("hello\n")
    assert "BROKER_RENTAL_TAG=rental_1" in out
    assert names <= {"PATH", "HOME", "LANG", "WHERE", "BROKER_RENTAL_TAG", "PWD", "SHLVL", "_", "OLDPWD", "LC_CTYPE"}


@pytest.mark.parametrize(
    ("argv", "status"),
    [
        (("true",), 0),
        (("sh", "-c", "exit 3"), 3),
        (("sh", "-c", "kill -9 $$"), -9),
        (("/no/such/program",), 127),
    ],
)
async def test_the_exit_status_is_recorded(machines: Machines, argv: tuple[str, ...], status: int) -> None:
    await launch(machines, MachineStart(argv=argv))
    await until(lambda: ended(machines), "the end is recorded")
    machine = machines.look("rental_1")
    assert machine.exit_status == status
    assert machine.started_us is not None and machine.ended_us is not None and machine.started_us <= machine.ended_us


async def test_launching_twice_starts_once_also_from_two_brokers(machines: Machines, tmp_path: Path) -> None:
    machines.lay("rental_1", SLEEP, {})
    other = Machines(tmp_path / "machines")
    first, second = await asyncio.gather(machines.launch("rental_1"), other.launch("rental_1"))
    assert first.pid == second.pid
    other.lay("rental_1", MachineStart(argv=("true",)), {})
    assert (await other.launch("rental_1")).pid == first.pid
    await until(lambda: len(processes_of("rental_1")) == 2, "one keeper, one process")


async def test_a_kill_leaves_nothing_not_even_what_left_the_process_group(machines: Machines) -> None:
    await launch(machines, MachineStart(argv=(sys.executable, "-c", FAMILY)))
    await until(lambda: len(processes_of("rental_1")) == 5, "keeper, main, two children, one daemon")
    machine = await machines.kill("rental_1")
    assert (machine.phase, machine.exit_status) == ("ended", -9)
    assert processes_of("rental_1") == []
    assert (await machines.kill("rental_1")).ended_us == machine.ended_us


async def test_when_the_main_process_dies_the_whole_machine_is_gone(machines: Machines) -> None:
    machine = await launch(machines, MachineStart(argv=(sys.executable, "-c", FAMILY)))
    await until(lambda: len(processes_of("rental_1")) == 5, "the family is up")
    assert machine.pid is not None
    os.kill(machine.pid, signal.SIGKILL)
    await until(lambda: ended(machines) and not processes_of("rental_1"), "children die with the machine")
    assert machines.look("rental_1").exit_status == -9


async def test_a_machine_is_found_again_by_a_new_broker(machines: Machines, tmp_path: Path) -> None:
    first = await launch(machines, SLEEP)
    found = Machines(tmp_path / "machines").look("rental_1")
    assert (found.phase, found.pid, found.started_us) == ("running", first.pid, first.started_us)


async def test_a_crash_between_laying_and_starting_costs_nothing(machines: Machines) -> None:
    machines.lay("rental_1", SLEEP, {})
    assert machines.look("rental_1").phase == "laid"
    assert processes_of("rental_1") == []
    assert (await machines.launch("rental_1")).phase == "running"


async def test_a_killed_keeper_takes_its_machine_along_and_the_end_is_recorded_once(machines: Machines) -> None:
    machine = await launch(machines, SLEEP)
    assert machine.pid is not None
    keeper = psutil.Process(machine.pid).parent()
    assert keeper is not None
    keeper.kill()
    await until(lambda: not processes_of("rental_1"), "no keeper, no machine, before anybody looks")
    end = machines.look("rental_1")
    assert (end.exit_status, end.error) == (None, "the machine's keeper was killed")
    assert machines.look("rental_1").ended_us == end.ended_us


async def test_a_tag_or_file_that_would_leave_the_folder_is_refused(machines: Machines) -> None:
    with pytest.raises(ValueError, match="plain name"):
        machines.look("../other")
    with pytest.raises(ValueError, match="outside"):
        machines.lay("rental_1", MachineStart(argv=("true",), files={"../x": b""}), {})
