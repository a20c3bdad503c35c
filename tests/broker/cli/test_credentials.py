"""Credentials from the command line: read from a file or standard input, and never said."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.command_line import quick

CANARY = "AKIA-canary-8c1f"


@pytest.mark.parametrize("text", [CANARY, f'["{CANARY}"]', f'{{"a": "{CANARY}"'])
def test_what_cannot_be_read_as_credentials_is_usage_and_not_shown(text: str, tmp_path: Path) -> None:
    file = tmp_path / "credentials.json"
    file.write_text(text)
    done = quick("credentials", "set", "aws", "--file", str(file), "--data", str(tmp_path))
    assert done.returncode == 2
    assert CANARY not in done.stdout + done.stderr


def test_login_is_for_a_broker_elsewhere(tmp_path: Path) -> None:
    done = quick("login", "--data", str(tmp_path))
    assert done.returncode == 2
    assert "--url" in done.stderr
    assert json.dumps(done.stdout) == '""'
