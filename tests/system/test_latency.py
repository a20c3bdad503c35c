"""A p95 that is wished for, from the request to the engine: the machine has as few requests at once as the plan said."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support import real_broker as support
from tests.support.scripted_engine import most_at_once

pytestmark = [pytest.mark.flows, pytest.mark.timeout(300)]


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Any]:
    with support.real_broker(tmp_path, latency=0.05) as running:
        yield running


def test_the_engine_never_has_more_requests_at_once_than_keep_the_p95_and_says_what_it_was(broker: Any) -> None:
    """By the settings' speed four at once take 1.3 s, two 1 s; the batch's one lease keeps the number that it began with."""
    log = broker.folder / "executions.log"
    batch = broker.submit(24, max_p95_ms=1_000)
    broker.until("the batch ends", lambda: broker.batch(batch)["status"] == "completed")
    ended = broker.batch(batch)
    assert (ended["status"], ended["request_counts"]["completed"]) == ("completed", 24)
    assert most_at_once(log) == 2  # the engine takes four, and is given more where nobody wishes for less
    assert ended["x_broker"]["max_p95_ms"] == 1_000
    assert ended["x_broker"]["p95_ms"] >= 47, "the engine takes 50 ms, and a percentile of counts is 2.5 % off at most"
