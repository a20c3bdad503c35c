"""A pause in the middle of a real batch: its machine is given back, nothing is run twice, and it goes on where it was."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support import real_broker as support

pytestmark = [pytest.mark.flows, pytest.mark.timeout(300)]
LINES = 120


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Any]:
    with support.real_broker(tmp_path) as running:
        yield running


def turn(broker: Any, batch: str, what: str) -> dict[str, Any]:
    return dict(broker.openai.post(f"/batches/{batch}/{what}", cast_to=object))


def test_a_paused_batch_gives_its_machine_back_and_goes_on_without_repeating_a_line(broker: Any) -> None:
    batch = broker.submit(LINES)
    committed = lambda: broker.batch(batch)["x_broker"]["counts"]["completed"]  # noqa: E731
    broker.until("some lines are committed", lambda: committed() >= 10)
    assert turn(broker, batch, "pause")["x_broker"]["paused"] is True
    broker.until("its machines are given back", lambda: all(m["state"] == "ended" for m in broker.machines()))
    done = committed()
    assert done < LINES, "it was paused too late to show anything"
    assert broker.executions() == done, "what was in flight was finished and kept"
    paused = broker.batch(batch)["x_broker"]
    assert (paused["waiting"]["on"], paused["waiting"]["eta_basis"]) == ("paused", "relaxed")
    turn(broker, batch, "resume")
    ended = broker.ended(batch)
    assert (ended["status"], ended["request_counts"]["completed"]) == ("completed", LINES)
    assert broker.executions() == LINES, "no line was run twice"
    assert len({placement["rental"] for placement in ended["x_broker"]["placements"]}) >= 2
