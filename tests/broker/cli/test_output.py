"""What reaches a pipe, and what reaches a terminal."""

from __future__ import annotations

import io
import os
import pty

import pytest

from broker.cli.output import table, usd

ROWS = [("a" * 200, "1"), ("b\tc\x1b[31m", "2")]


def test_a_piped_table_is_tsv_whole_and_without_control_characters(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich would take this for a terminal
    stream = io.StringIO()
    table(("name", "count"), ROWS, stream)
    assert stream.getvalue().split("\n") == ["name\tcount", "a" * 200 + "\t1", "b c [31m\t2", ""]


def test_a_terminal_gets_a_table_and_no_control_character_of_others() -> None:
    controller, terminal = pty.openpty()
    with os.fdopen(terminal, "w") as stream:
        table(("name", "count"), [("b\x1b[31mred [bold]x[/bold]", "2")], stream)
        stream.flush()
        shown = os.read(controller, 10_000).decode()
    os.close(controller)
    assert "\x1b[31m" not in shown, "a name must not colour the terminal"
    assert "[bold]x[/bold]" in shown, "a name is text, not markup"
    assert "\t" not in shown


@pytest.mark.parametrize(
    ("amount", "text"),
    [
        ("0", "$0.00"),
        ("12.500000000", "$12.50"),
        ("0.000123400", "$0.0001234"),  # cents would say that it was free
        ("1000.000000000", "$1000.00"),
        ("0.000000001", "$0.000000001"),
        ("-3", "-$3.00"),
        (None, "-"),
    ],
)
def test_amounts_are_shown_exactly(amount: str | None, text: str) -> None:
    assert usd(amount) == text
