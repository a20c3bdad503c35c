"""What people read before they run a command: its help, and the README."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import fields
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import typer

from broker.cli import exits
from broker.cli.main import app
from broker.cli.wishes import WishOptions
from tests.support.command_line import quick

README = (Path(__file__).parents[3] / "README.md").read_text(encoding="utf-8")


def commands(group: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    for name, command in group.commands.items():
        yield (*path, name), command
        if hasattr(command, "commands"):
            yield from commands(command, (*path, name))


ALL = dict(commands(typer.main.get_command(app)))


@pytest.mark.parametrize("path", ALL, ids=" ".join)
def test_every_command_and_every_option_says_what_it_is(path: tuple[str, ...]) -> None:
    command = ALL[path]
    assert command.help, "a command without a docstring"
    unexplained = [each.name for each in command.params if not getattr(each, "hidden", False) and not each.help]
    assert not unexplained


def test_help_is_shown_and_is_no_failure() -> None:
    shown = quick("webhooks", "create", "--help")
    assert shown.returncode == 0
    assert "Where to POST to" in shown.stdout


def test_the_version_is_that_of_the_installed_distribution() -> None:
    told = quick("--version")
    assert (told.returncode, told.stdout) == (0, f"broker {version('compute-broker')}\n")


@pytest.mark.parametrize("path", ALL, ids=" ".join)
def test_the_readme_names_every_command(path: tuple[str, ...]) -> None:
    row = next((line for line in README.splitlines() if re.search(rf"`{path[0]}\b", line)), "")
    assert re.search(rf"\b{path[-1]}\b", row), f"the README's table has no {' '.join(path)}"


def test_the_readme_explains_every_exit_code() -> None:
    codes = {value for name, value in vars(exits).items() if name.isupper() and isinstance(value, int)}
    explained = {int(code) for code in re.findall(r"^\| (\d+) \|", README, re.MULTILINE)}
    assert codes <= explained


def test_the_readme_names_every_wish() -> None:
    options = {f"--{field.name.replace('_', '-')}" for field in fields(WishOptions)}
    assert {option for option in options if not re.search(rf"{option}\b", README)} == set()
