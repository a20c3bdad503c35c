"""Tab in the real shells."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from broker.owner import owner, take
from tests.support.command_line import ENVIRONMENT, Terminal, broker, prompts, submit

# The installed `broker`, as the scripts call it.
PATH = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
TO_LINE_START, TO_LINE_END = "\x01", "\x05"


def shell(name: str, home: Path, data: Path) -> dict[str, str]:
    """The environment of a shell with nobody's own settings; skipped (in CI: failed) where the shell is not installed."""
    if shutil.which(name) is None:
        pytest.skip(f"{name} is not installed (Debian: {name})")
    own = {"PATH": PATH, "HOME": str(home), "ZDOTDIR": str(home), "PS1": "> "}
    return ENVIRONMENT | own | {"BROKER_DATA": str(data), "BROKER_COMPLETION_S": "60"}


class Typist:
    """Somebody at an interactive shell that knows our completion."""

    def __init__(self, name: str, home: Path, data: Path) -> None:
        program = {"bash": ("bash", "--norc", "-i"), "zsh": ("zsh", "-f", "-i")}[name]
        self._terminal = Terminal(program=program, env=shell(name, home, data))
        begin = "autoload -U compinit; compinit -u; " if name == "zsh" else ""
        self._terminal.types(f'{begin}eval "$(broker completion {name})"; echo rea""dy\n')
        self._terminal.reads("ready")

    def tab(self, typed: str) -> str:
        """What becomes of `typed` when Tab is pressed: `echo` is put before it and Enter pressed, so that it is shown."""
        self._terminal.shown = ""
        self._terminal.types(f"{typed}\t{TO_LINE_START}echo '<<' {TO_LINE_END} '>>'\n")
        self._terminal.reads(" >>\r\n")
        return self._terminal.shown.rpartition("<< ")[2].partition(" >>")[0].strip()

    def leaves(self) -> None:
        self._terminal.types("exit\n")
        self._terminal.ended()


def by_fish(home: Path, data: Path, typed: str) -> list[str]:
    """What fish offers for `typed`, without descriptions."""
    env = shell("fish", home, data)
    folder = home / ".config" / "fish" / "completions"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "broker.fish").write_text(broker("completion", "fish").stdout)
    done = subprocess.run(
        ["fish", "-c", f'complete -C "{typed}"'], env=env, capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0 and done.stderr == "", done.stderr
    return [line.split("\t")[0] for line in done.stdout.splitlines()]


@pytest.mark.parametrize("name", ["bash", "zsh"])
def test_tab_completes_commands_options_and_batches(name: str, data: Path, tmp_path: Path) -> None:
    _, document = submit(data, prompts(tmp_path, "hello"), "--detach")
    batch_id = document["batch"]["id"]
    typist = Typist(name, tmp_path, data)
    assert typist.tab("broker st") == "broker status"
    assert typist.tab("broker submit --max-u") == "broker submit --max-usd"
    assert typist.tab(f"broker status {batch_id[:-1]}") == f"broker status {batch_id}"
    assert typist.tab("broker quote x --model scr") == "broker quote x --model scripted"
    typist.leaves()


def test_fish_offers_commands_options_and_batches(data: Path, tmp_path: Path) -> None:
    _, document = submit(data, prompts(tmp_path, "hello"), "--detach")
    assert by_fish(tmp_path, data, "broker st") == ["status"]
    assert by_fish(tmp_path, data, "broker submit --max-u") == ["--max-usd"]
    assert document["batch"]["id"] in by_fish(tmp_path, data, "broker status batch_")
    assert by_fish(tmp_path, data, "broker quote x --confidentiality ded") == ["dedicated"]


def asked(words: str, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """What bash's function asks of the program."""
    asking = {"_BROKER_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(len(words.split(" ")) - 1)}
    return subprocess.run(
        ["broker"], env=ENVIRONMENT | {"PATH": PATH} | asking | env,
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip


@pytest.mark.parametrize(
    "words", ["broker status batch_", "broker quote x --model s", "broker explain --data none batch_"]
)
def test_tab_starts_no_broker_and_says_nothing_of_what_goes_wrong(tmp_path: Path, words: str) -> None:
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "broker.toml").write_text("not = [toml")
    for folder in ("fresh", "broken"):
        found = asked(words, {"BROKER_DATA": str(tmp_path / folder)})
        assert (found.stdout.strip(), found.stderr) == ("", "")
        assert owner(tmp_path / folder) is None
    assert not (tmp_path / "fresh").exists()


def test_tab_does_not_wait_for_a_broker_that_says_nothing(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        ownership = take(tmp_path)
        ownership.announce(f"http://127.0.0.1:{silent.getsockname()[1]}", "key")
        found = asked("broker status batch_", {"BROKER_DATA": str(tmp_path)})
        ownership.close()
    assert (found.stdout.strip(), found.stderr) == ("", "")


def test_the_help_says_where_the_script_goes() -> None:
    shown = broker("completion", "--help").stdout
    for place in ("~/.bashrc", "~/.zshrc", "~/.config/fish/completions/broker.fish"):
        assert place in shown
    assert broker("completion", "tcsh").returncode == 2
