"""`ledger verify` and `ledger replay` as a user runs them: files in, an exit status and words out."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from broker.cli.main import app
from ledger.checkpoint import verifier_key
from tests.ledger.test_replay import event
from tests.support.sealed_books import SIGNER, export

RUN = CliRunner()


@pytest.fixture
async def sealed(database: object, tmp_path: Path) -> Path:
    folder = tmp_path / "export"
    folder.mkdir()
    await export(database, folder)  # type: ignore[arg-type]
    (tmp_path / "key").write_text(verifier_key(SIGNER.key, SIGNER.name))
    return folder


def verify(target: Path, key: Path, *more: str) -> tuple[int, str]:
    done = RUN.invoke(app, ["ledger", "verify", str(target), "--public-key", str(key), *more])
    return done.exit_code, done.output


def test_a_sealed_export_verifies_as_a_folder_and_as_a_zip(sealed: Path) -> None:
    key = sealed.parent / "key"
    assert verify(sealed, key)[0] == 0
    packed = Path(shutil.make_archive(str(sealed.parent / "packed"), "zip", sealed))
    assert verify(packed, key) == (
        0,
        "6 of books, 2 of decisions; 22 postings, 3 checkpoints, 5 files\neverything is as it was signed\n",
    )
    kept = sealed.parent / "kept.txt"
    shutil.copy(sealed / "sealed" / "checkpoints.txt", kept)
    code, told = verify(sealed, key, "--checkpoints", str(kept))
    assert (code, "3 checkpoints that were kept outside" in told) == (0, True)
    assert verify(sealed, key, "--checkpoints", str(sealed.parent / "none"))[0] == 2
    chain = sealed / "sealed" / "books.chain"
    chain.write_text(chain.read_text().replace("a", "b", 1))
    code, told = verify(sealed, key)
    assert code == 1
    assert "sealed/books.chain: was changed" in told


def test_replay_tells_balances_and_names_bad_lines(tmp_path: Path) -> None:
    events = tmp_path / "events.jsonl"
    events.write_bytes(event("a") + b"\n" + event("b", unit="NOPE") + b"\n")
    # a process of its own: the command sets up logging for its process
    command = [sys.executable, "-m", "broker", "ledger", "replay", str(events), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    told = json.loads(done.stdout)
    assert done.returncode == 1
    assert told["balances"][0] == {"account": "Assets:Bank:Main", "unit": "USD", "amount": "-0.000000005"}
    assert [(each["line"], each["code"]) for each in told["refused"]] == [(2, "unknown_unit")]
    assert told["findings"] == []
