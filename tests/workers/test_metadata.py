"""What clouds announce inside of a machine, and the one event that an agent makes of it."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.support.agent_process import until
from tests.support.fake_metadata import FakeMetadata
from workers.agent.dead_man import tell_alive
from workers.agent.metadata import (
    Announced,
    AwsMetadata,
    Unreadable,
    asker,
    aws_action,
    aws_rebalance,
    azure_events,
    gcp_preempted,
)
from workers.agent.notices import notices

NOW = datetime(2026, 11, 22, 10, tzinfo=UTC).timestamp()


@pytest.mark.parametrize(
    ("read", "text", "announced"),
    [
        (aws_action, '{"action": "terminate", "time": "2026-11-22T10:01:58Z"}', Announced(NOW + 118, "spot terminate")),
        # hibernating ends our work as well
        (aws_action, '{"action": "hibernate", "time": "2026-11-22T10:00:30Z"}', Announced(NOW + 30, "spot hibernate")),
        # the machine's clock is an hour behind: no more than the promised two minutes are believed
        (aws_action, '{"action": "stop", "time": "2026-11-22T11:00:00Z"}', Announced(NOW + 120, "spot stop")),
        # it says that an end is likely, not when: the notice itself may come at any moment
        (aws_rebalance, '{"noticeTime": "2026-11-22T09:59:00Z"}', Announced(NOW + 120, "rebalance")),
        (gcp_preempted, "TRUE", Announced(NOW + 30, "preempted")),
        (gcp_preempted, "FALSE\n", None),
        (azure_events, '{"DocumentIncarnation": 1, "Events": []}', None),
        (azure_events, '{"Events": [{"EventType": "Reboot", "NotBefore": ""}]}', None),
        (
            azure_events,
            '{"Events": [{"EventType": "Preempt", "NotBefore": "Sun, 22 Nov 2026 10:00:30 GMT"}]}',
            Announced(NOW + 30, "preempt"),
        ),
        # it has begun: there is no time left to name
        (azure_events, '{"Events": [{"EventType": "Preempt", "NotBefore": ""}]}', Announced(NOW, "preempt")),
    ],
)
def test_what_is_announced(read: Callable[[str, float], Any], text: str, announced: Announced | None) -> None:
    assert read(text, NOW) == announced


@pytest.mark.parametrize(
    ("read", "text"),
    [
        (aws_action, "<html>"),
        (aws_action, '{"action": "terminate"}'),
        (aws_action, '{"action": "terminate", "time": "2026-11-22T10:01:58"}'),
        (aws_rebalance, "[]"),
        (gcp_preempted, "yes"),
        (azure_events, '{"Events": "none"}'),
        (azure_events, '{"Events": [{"EventType": "Preempt", "NotBefore": "soon"}]}'),
    ],
)
def test_what_cannot_be_read_is_said_and_is_no_notice(read: Callable[[str, float], Any], text: str) -> None:
    with pytest.raises(Unreadable):
        read(text, NOW)


@pytest.fixture
async def imds() -> AsyncIterator[FakeMetadata]:
    async with FakeMetadata() as fake:
        yield fake


async def test_the_questions_carry_a_token_and_an_expired_one_is_fetched_anew(imds: FakeMetadata) -> None:
    async with aiohttp.ClientSession() as session:
        metadata = AwsMetadata(session, imds.address)
        assert await metadata.ask(NOW) is None
        imds.forget()
        assert await metadata.ask(NOW) is None
        assert imds.asked.count("/latest/api/token") == 2
        imds.rebalance = {"noticeTime": "2026-11-22T09:59:00Z"}
        assert await metadata.ask(NOW) == Announced(NOW + 120, "rebalance")
        imds.action = {"action": "terminate", "time": "2026-11-22T10:01:00Z"}
        assert await metadata.ask(NOW) == Announced(NOW + 60, "spot terminate")


async def test_a_service_that_is_not_there_is_unreadable(imds: FakeMetadata) -> None:
    async with aiohttp.ClientSession() as session:
        with pytest.raises(Unreadable, match="status 404"):
            await asker("gcp", session, imds.address)(NOW)
        with pytest.raises(Unreadable, match=r"127\.0\.0\.1:1"):
            await asker("azure", session, "http://127.0.0.1:1")(NOW)


async def test_one_event_comes_of_all_announcements_and_later_ones_only_shorten_it(tmp_path: Path) -> None:
    told = iter([None, 120.0, 500.0, None, 60.0])

    async def ask(now: float) -> Announced | None:
        left_s = next(told, None)
        if left_s == 60.0:
            (tmp_path / "notice.json").write_text(json.dumps({"at": now}))
        return None if left_s is None else Announced(now + left_s, "told")

    seen: list[float] = []
    async with asyncio.timeout(30):
        async for at in notices(tmp_path, ask, ask_s=0):
            seen.append(at - time.monotonic())
            if len(seen) == 3:
                break
    assert 90 < seen[0] <= 120 and 30 < seen[1] <= 60 and seen[2] <= 0


async def test_the_file_of_the_outer_switch_is_touched_only_while_the_broker_answers(tmp_path: Path) -> None:
    alive, answered_at, looks = tmp_path / "alive", 0.0, 0

    def last_answer_at() -> float:
        nonlocal looks
        looks += 1
        return answered_at

    telling = asyncio.create_task(tell_alive(alive, last_answer_at, every_s=0))
    await until(lambda: looks > 5, "it looks")
    assert not alive.exists(), "nobody has answered yet"
    answered_at = 1.0
    await until(alive.exists, "the broker has answered")
    telling.cancel()
