"""A seed of chaos in every test run; the long run is `make chaos SEEDS=30`, a stage of its own in CI."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.system.chaos_schedule import draw, never_struck, planned

CHAOS = Path(__file__).with_name("chaos.py")
# A broker that dies after it rented, a killed and a frozen machine.
CHOSEN = 5


@pytest.mark.timeout(400)
def test_nothing_is_lost_doubled_leaked_or_misbooked() -> None:
    command = [sys.executable, str(CHAOS), "--seeds", "1", "--first", str(CHOSEN), "--workers", "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=380, check=False)
    assert done.stdout, done.stderr[-3000:]
    told = json.loads(done.stdout.splitlines()[-1])
    zero = dict.fromkeys(("lost", "duplicated", "leaked", "ledger_mismatches", "secrets_leaked"), 0)
    assert told == {"seeds": 1, **zero}, done.stderr[-3000:]


def test_a_kind_of_cut_that_never_cut_anything_is_noticed_in_a_run_of_many_seeds_and_not_in_one_of_few() -> None:
    many, few = ([draw(seed, None, "postgres") for seed in range(1, seeds + 1)] for seeds in (50, 3))
    struck = planned(many)
    assert {"ground:database.cut", "ground:store.cut", "ground:front.cut"} <= struck.keys()
    assert never_struck(planned(many), struck) == []
    struck["ground:store.cut"] = 0
    assert never_struck(planned(many), struck) == ["ground:store.cut"]
    assert never_struck(planned(few), Counter()) == []
