"""One owner of a data folder (contract C16), with real processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from broker.owner import CARD, Owned, owner, take, write_private

HOLDER = """
import sys, signal
from pathlib import Path
from broker.owner import take
ownership = take(Path(sys.argv[1]))
ownership.announce("http://127.0.0.1:4711", "brk_test")
print("taken", flush=True)
signal.sigwait({signal.SIGTERM})
ownership.close()
"""


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that owns tmp_path."""
    code = "import signal; signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})\n" + HOLDER
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert process.stdout.readline() == "taken\n"
        yield process
        process.kill()


def test_an_unowned_folder_has_no_owner(tmp_path: Path) -> None:
    assert owner(tmp_path / "never") is None
    take(tmp_path).close()
    assert owner(tmp_path) is None


def test_a_folder_that_is_made_is_its_owners_alone(tmp_path: Path) -> None:
    take(tmp_path / "new" / "data").close()
    assert (tmp_path / "new" / "data").stat().st_mode & 0o777 == 0o700


def test_the_owner_is_found_with_its_url_and_key(tmp_path: Path, holder: subprocess.Popen[str]) -> None:
    found = owner(tmp_path)
    assert found is not None
    assert (found.pid, found.url, found.key) == (holder.pid, "http://127.0.0.1:4711", "brk_test")


def test_a_second_owner_is_refused_and_told_who_has_it(tmp_path: Path, holder: subprocess.Popen[str]) -> None:
    with pytest.raises(Owned) as refused:
        take(tmp_path, patience_s=0)
    assert f"pid {holder.pid} at http://127.0.0.1:4711" in str(refused.value)
    assert owner(tmp_path) is not None, "the refused attempt must leave the owner's card alone"


def test_a_killed_owner_does_not_block_the_next_one(tmp_path: Path, holder: subprocess.Popen[str]) -> None:
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert (tmp_path / CARD).exists(), "killed: it could not clean up"
    assert owner(tmp_path) is None
    take(tmp_path).close()


def test_a_stale_card_whose_pid_is_alive_again_is_not_the_owner(tmp_path: Path, holder: subprocess.Popen[str]) -> None:
    """A pid is reused: the card of the dead owner names a process that lives, but is another one."""
    card = json.loads((tmp_path / CARD).read_text())
    (tmp_path / CARD).write_text(json.dumps(card | {"pid": os.getpid()}))
    found = owner(tmp_path)
    assert found is not None
    assert found.url is None, "the lock is held, but nobody knows by whom: wait until it says so"


def test_looking_for_the_owner_does_not_stop_one_that_starts(tmp_path: Path) -> None:
    ownership = take(tmp_path)
    assert owner(tmp_path) is not None
    ownership.close()
    for _ in range(50):
        assert owner(tmp_path) is None
        take(tmp_path, patience_s=0).close()


def test_the_card_and_the_key_are_for_the_owner_alone(tmp_path: Path) -> None:
    ownership = take(tmp_path)
    ownership.announce("http://127.0.0.1:1", "secret")
    write_private(tmp_path / "admin.key", "secret\n")
    modes = {file.name: file.stat().st_mode & 0o777 for file in tmp_path.iterdir()}
    ownership.close()
    assert set(modes.values()) == {0o600}, modes
