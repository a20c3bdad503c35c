"""A spot machine with a metadata service at 169.254.169.254, in a network of its own; needs root or user namespaces."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.aws
ROOT = Path(__file__).parents[2]
UNSHARE = ("unshare", "-n") if os.geteuid() == 0 else ("unshare", "-rn")


async def preempted(folder: Path, action: str) -> dict[str, Any]:
    if shutil.which("unshare") is None or shutil.which("ip") is None:
        pytest.skip("unshare or ip is not installed (Debian: util-linux, iproute2)")
    process = await asyncio.create_subprocess_exec(
        *UNSHARE, sys.executable, "-m", "tests.support.preempted_host", str(folder), action,
        cwd=ROOT, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    out, err = await process.communicate()
    assert process.returncode == 0, err.decode()
    found: dict[str, Any] = json.loads(out)
    return found


@pytest.mark.parametrize(("action", "source"), [("interruption", "spot terminate"), ("rebalance", "rebalance")])
async def test_a_spot_notice_is_one_event_and_what_is_finished_is_committed_before_the_end(
    tmp_path: Path, action: str, source: str
) -> None:
    seen = await preempted(tmp_path, action)
    assert seen["events"] == [source]
    assert seen["statuses"] == [0, 0]
    assert seen["goodbyes"] == ["notice", "stop"]
    assert 0 < seen["told_s"][0] <= 120
    assert seen["gone_after_s"] < 120
    assert seen["commits_in_window"] == 1 and 0 < seen["saved"] < 300
    assert seen["done"] == 300
    assert seen["saved_and_done_again"] == 0, "what was committed before the end is not done again elsewhere"
    assert set(seen["outcomes"]) == {"committed"}
