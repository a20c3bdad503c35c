"""Five seeds of chaos in every test run; the long run is `make chaos SEEDS=30`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

CHAOS = Path(__file__).with_name("chaos.py")


@pytest.mark.timeout(400)
@pytest.mark.parametrize("seed", range(1, 6))
def test_nothing_is_lost_doubled_leaked_or_misbooked(seed: int) -> None:
    command = [sys.executable, str(CHAOS), "--seeds", "1", "--first", str(seed), "--workers", "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=380, check=False)
    assert done.stdout, done.stderr[-3000:]
    told = json.loads(done.stdout.splitlines()[-1])
    zero = dict.fromkeys(("lost", "duplicated", "leaked", "ledger_mismatches", "secrets_leaked"), 0)
    assert told == {"seeds": 1, **zero}, done.stderr[-3000:]
