"""The driver by itself, where a defect of the agent must be played."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from random import Random
from typing import Any

import aiohttp
import pytest

from tests.workers.test_exchange import spec
from workers.agent.driver import Driver
from workers.agent.engine import Engine
from workers.agent.errors import EngineFailed
from workers.agent.exchange import Answer, NoAnswer, Outcome, Pending
from workers.agent.leases import HeldLease
from workers.agent.lines import Line
from workers.agent.pool import Pool


class Hands:
    """An exchange that hands over what it is given."""

    def __init__(self, outcome: Outcome) -> None:
        self.outcome = outcome

    def post(self, url: str, body: bytes, on_end: Callable[[Outcome], None]) -> Pending:
        return asyncio.get_running_loop().call_soon(on_end, self.outcome)

    def close(self) -> None: ...


@pytest.mark.parametrize(
    "outcome",
    [
        RuntimeError("a defect of ours"),
        Answer(200, None, None, None),  # type: ignore[arg-type]  # a defect that shows only when the answer is judged
    ],
)
async def test_a_defect_ends_the_driver_and_never_leaves_a_line_in_flight_for_ever(
    outcome: Outcome, tmp_path: Path
) -> None:
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: None)
    pool = Pool(max_attempts=3)
    lease = HeldLease("s", 1, "n", 60.0, "/v1/completions", "/parts", time.monotonic())
    lease.admit([Line(0, "c", b"{}", 8)], {}, alone_from=2)
    pool.add(lease, time.monotonic())
    engine_spec = spec("http://127.0.0.1:1")
    async with aiohttp.ClientSession() as session:
        driver = Driver(
            spec=engine_spec,
            engine=Engine(engine_spec, session, tmp_path),
            exchange=Hands(outcome),
            pool=pool,
            on_finished=lambda: None,
            has_room=lambda: True,
        )
        with pytest.raises((RuntimeError, AttributeError)):
            await asyncio.wait_for(driver.run(), 20)


class Endpoint:
    """A token endpoint that answers the n-th request as `says` tells."""

    def __init__(self, says: Callable[[int, bytes], Outcome]) -> None:
        self.says = says
        self.asked = 0

    def post(self, url: str, body: bytes, on_end: Callable[[Outcome], None]) -> Pending:
        self.asked += 1
        return asyncio.get_running_loop().call_soon(on_end, self.says(self.asked, body))

    def close(self) -> None: ...


class Bought:
    """A driver that buys `lines` lines at `endpoint`. Its pauses take no time: they move its own clock."""

    def __init__(
        self, endpoint: Endpoint, session: aiohttp.ClientSession, folder: Path, lines: int = 20, at_once: int = 4
    ) -> None:
        self.at = 1000.0
        self.lines = lines
        self.lease = HeldLease("s", 1, "n", 1e9, "/v1/completions", "/parts", self.at)
        self.lease.admit([Line(idx, f"c{idx}", b"%d" % idx, 8) for idx in range(lines)], {}, alone_from=2)
        pool = Pool(max_attempts=3)
        pool.add(self.lease, self.at)
        self.ended = asyncio.Event()
        limits: dict[str, Any] = {
            "limits": {"tokens_per_minute": 10**9},
            "patience_s": 300.0,
            "concurrency_start": at_once,
            "concurrency_max": at_once,
        }
        bought = replace(spec("http://127.0.0.1:1"), **limits)
        self.driver = Driver(
            spec=bought,
            engine=Engine(bought, session, folder),
            exchange=endpoint,
            pool=pool,
            on_finished=self.look,
            has_room=lambda: True,
            clock=lambda: self.at,
            later=self.pass_by,
        )

    @property
    def charged(self) -> int:
        """Attempts that lines were charged, whether they have their end or not."""
        return sum(self.lease.blame().values()) + sum(each.attempts - 1 for each in self.lease.finished)

    def look(self) -> None:
        if len(self.lease.finished) == self.lines:
            self.ended.set()

    def pass_by(self, seconds: float, then: Callable[[], None]) -> None:
        def move() -> None:
            self.at += seconds
            then()

        asyncio.get_running_loop().call_soon(move)

    async def run(self) -> list[str]:
        """Until each line has its end; EngineFailed as the driver raises it."""
        running = asyncio.create_task(self.driver.run())
        ended = asyncio.create_task(self.ended.wait())
        try:
            await asyncio.wait({running, ended}, return_when=asyncio.FIRST_COMPLETED, timeout=60)
            if running.done():
                running.result()
            assert ended.done(), "not all lines came to an end"
            return [line.status for line in self.lease.finished]
        finally:
            running.cancel()
            ended.cancel()


FINE = Answer(200, b'{"choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 1}}', None, None)


@pytest.mark.parametrize(
    "outage",
    [
        *(Answer(status, b"<html>", None, None) for status in (200, 404, 408, 429, 500, 502, 503, 504, 529)),
        NoAnswer("unconnected", "refused"),
        NoAnswer("broken", "reset"),
        NoAnswer("overdue", "no answer within 1 s"),
    ],
    ids=str,
)
async def test_an_endpoints_outage_fails_no_line_and_isolates_none(outage: Outcome, tmp_path: Path) -> None:
    endpoint = Endpoint(lambda asked, body: outage if asked <= 30 else FINE)
    async with aiohttp.ClientSession() as session:
        bought = Bought(endpoint, session, tmp_path)
        assert await bought.run() == ["completed"] * 20
    assert bought.at > 1003, "no pause was made between the refusals"
    assert (bought.lease.suspects, bought.charged) == (deque(), 0)


@pytest.mark.parametrize("status", [429, 404, 503, 500, 529])
async def test_an_endpoint_that_answers_nothing_for_five_minutes_is_given_up_and_no_line_is_charged(
    status: int, tmp_path: Path
) -> None:
    endpoint = Endpoint(lambda asked, body: Answer(status, b"{}", None, None))
    async with aiohttp.ClientSession() as session:
        bought = Bought(endpoint, session, tmp_path)
        with pytest.raises(EngineFailed, match=f"no line was answered for .*{status}"):
            await bought.run()
    assert 1300 <= bought.at < 1400
    assert (bought.lease.finished, bought.lease.blame()) == ([], {})
    assert endpoint.asked < 200, "asked without a pause"


async def test_an_endpoints_wish_to_be_left_alone_for_minutes_is_kept(tmp_path: Path) -> None:
    endpoint = Endpoint(lambda asked, body: Answer(429, b"", None, "200") if asked <= 4 else FINE)
    async with aiohttp.ClientSession() as session:
        bought = Bought(endpoint, session, tmp_path)
        assert await bought.run() == ["completed"] * 20
    assert bought.at == 1200


async def test_an_endpoints_wish_as_a_date_is_kept_too(tmp_path: Path) -> None:
    at = format_datetime(datetime.now(UTC) + timedelta(seconds=200), usegmt=True)
    endpoint = Endpoint(lambda asked, body: Answer(503, b"", None, at) if asked <= 4 else FINE)
    async with aiohttp.ClientSession() as session:
        bought = Bought(endpoint, session, tmp_path)
        assert await bought.run() == ["completed"] * 20
    assert 1100 < bought.at <= 1201  # the test may take some of it


BAD = Answer(500, b"", None, None)


@pytest.mark.parametrize(
    ("lines", "poison", "at_once"), [(200, {3}, 4), (200, {3}, 1), (10, {0, 4, 9}, 4), (40, {7, 8}, 1)]
)
async def test_a_line_that_fails_while_others_are_answered_gets_its_end_and_holds_none_up(
    lines: int, poison: set[int], at_once: int, tmp_path: Path
) -> None:
    endpoint = Endpoint(lambda asked, body: BAD if int(body) in poison else FINE)
    async with aiohttp.ClientSession() as session:
        bought = Bought(endpoint, session, tmp_path, lines, at_once)
        await bought.run()
    assert {each.idx for each in bought.lease.finished if each.status == "failed"} == poison
    assert bought.at < 1300, "its end took longer than an outage may"


@pytest.mark.parametrize("seed", range(3))
async def test_an_outage_of_every_second_request_fails_no_line(seed: int, tmp_path: Path) -> None:
    """One of two machines behind an endpoint is broken: each line fails now and then, and is asked again."""
    chance = Random(seed)
    endpoint = Endpoint(lambda asked, body: BAD if asked <= 300 and chance.random() < 0.5 else FINE)
    async with aiohttp.ClientSession() as session:
        bought = Bought(endpoint, session, tmp_path, lines=200)
        assert await bought.run() == ["completed"] * 200


async def test_the_last_line_is_charged_once_by_each_executor_that_gives_up_for_it(tmp_path: Path) -> None:
    """Else a single line that an endpoint cannot answer would be asked until its deadline."""
    endpoint = Endpoint(lambda asked, body: BAD)
    async with aiohttp.ClientSession() as session:
        bought = Bought(endpoint, session, tmp_path, lines=1)
        with pytest.raises(EngineFailed, match="no line was answered for"):
            await bought.run()
    assert bought.lease.blame() == {0: 1}
