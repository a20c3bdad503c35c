"""What a scrape says while work goes on. Judges: Prometheus's own parser, and promtool where it is installed."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import time
from typing import Any

import aiohttp
import pytest
import structlog
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import event, text

from broker.control.loops import LoopState
from broker.metrics.catalogue import CATALOGUE
from broker.metrics.state import StateReader
from jobs.clock import MICROSECONDS
from tests.support.wire_agent import Agent, Rent, offer, running_batch


async def scrape(server: Any) -> str:
    answer = await server.call("GET", "/metrics")
    assert answer.status == 200
    return str(answer.raw.decode())


async def samples(server: Any) -> dict[tuple[str, ...], float]:
    """(name, labels' values) → value."""
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(await scrape(server))
        for sample in family.samples
    }


async def test_what_is_exposed_is_what_the_catalogue_says(server: Any) -> None:
    found = {
        family.name: (family.type, family.documentation)
        for family in text_string_to_metric_families(await scrape(server))
        if not family.name.startswith("process_")  # the client library's own, as docs/metrics.md says
    }
    assert found == {each.name.removesuffix("_total"): (each.kind, each.help) for each in CATALOGUE}


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool (Debian: prometheus) is missing")
async def test_promtool_reads_it(server: Any, ready: tuple[Agent, str]) -> None:
    exposed = await scrape(server)
    checked = await asyncio.to_thread(
        subprocess.run, ["promtool", "check", "metrics"], input=exposed.encode(), capture_output=True
    )
    # it also has opinions (exit 3), such as that a gauge is better in bytes than in USD; what it cannot read is exit 1
    assert checked.returncode in (0, 3), checked.stderr
    assert b"error while linting" not in checked.stderr


async def test_work_and_machines_are_counted_as_they_go(server: Any, ready: tuple[Agent, str]) -> None:
    agent, _ = ready
    before = await samples(server)
    assert before["broker_queue_lines", "pending"] == 4
    assert before["broker_rentals", "sandbox", "running"] == 1
    assert before["broker_workers", "ready"] == 1
    assert before["broker_rate_usd_per_hour", "sandbox"] > 0
    assert before["broker_deadline_nearest_seconds",] > 0
    lease = (await agent.lease())["lease"]
    assert (await samples(server))["broker_queue_lines", "leased"] == 4
    committed = await agent.work(lease, range(2))
    assert committed.json["outcome"] == "committed"
    after = await samples(server)
    assert after["broker_queue_lines", "leased"] == 2
    assert after["broker_lines_total", "completed"] == 2
    assert after["broker_leases_total",] == 1
    assert after["broker_commits_total", "committed"] == 1
    assert after["broker_part_bytes_total",] > 0


async def test_commits_are_counted_by_why_they_were_refused(server: Any, ready: tuple[Agent, str]) -> None:
    agent, _ = ready
    lease = (await agent.lease())["lease"]
    await agent.work(lease, range(2))
    await agent.work(lease, range(2), seq=1)
    await agent.commit(lease, {"key": "default/no/part"}, b"x", range(2, 3), seq=2)
    found = await samples(server)
    assert found["broker_commits_total", "rejected_overlap"] == 1
    assert found["broker_commits_total", "part_missing"] == 1


async def test_a_late_loop_lags(server: Any) -> None:
    server.loops["plan"] = LoopState(5.0, runs=3, last_end=time.monotonic() - 1000)
    server.loops["poll"] = LoopState(60.0, runs=3, last_end=time.monotonic())
    found = await samples(server)
    assert found["broker_loop_lag_seconds", "plan"] > 900
    assert found["broker_loop_lag_seconds", "poll"] == 0
    server.loops["plan"].stands_by = True
    found = await samples(server)
    assert found["broker_loop_lag_seconds", "plan"] == 0, "another broker runs it: it is not late here"
    assert found["broker_leader",] == 1


async def test_a_scrape_costs_the_same_however_much_there_was(server: Any, rent: Rent) -> None:
    """The number of queries is constant, and batches that ended long ago are not read again."""
    asked: list[str] = []
    event.listen(
        server.services.database.engine.sync_engine, "before_cursor_execute", lambda *each: asked.append(each[2])
    )
    await samples(server)
    first = len(asked)
    for _ in range(3):
        await running_batch(server, offer())
        await rent()
    asked.clear()
    await samples(server)
    assert len(asked) == first


async def test_totals_are_those_of_all_rows_whenever_they_were_read(server: Any) -> None:
    """A reader that has followed along says what a fresh one says, and reads no row again that was over long ago."""
    database, now_us = server.services.database, time.time_ns() // 1000
    following = StateReader((), 60)

    async def lines(reader: StateReader, hours: int) -> float:
        async with database.transaction() as session:
            state = await reader.read(session, now_us + hours * 3600 * MICROSECONDS)
        return state["broker_lines_total"]["completed",]

    async def becomes(batch: str, status: str, completed: int) -> None:
        change = text("UPDATE jobs_batch SET status = :status, completed = :completed WHERE id = :id")
        async with database.transaction() as session:
            await session.execute(change, {"status": status, "completed": completed, "id": batch})

    first, second = await running_batch(server, offer()), await running_batch(server, offer())
    await becomes(second, "completed", 4)
    assert await lines(following, 2) == 4
    await becomes(first, "in_progress", 3)
    assert await lines(following, 3) == await lines(StateReader((), 60), 3) == 7
    await becomes(first, "expired", 3)
    third = await running_batch(server, offer())
    assert await lines(following, 4) == await lines(StateReader((), 60), 4) == 7
    await becomes(third, "in_progress", 2)
    assert await lines(following, 5) == 9
    await becomes(first, "expired", 100)  # which never happens: it shows that the row is not read any more
    assert await lines(following, 6) == 9


async def test_events_of_a_request_say_which_one_it_is(server: Any) -> None:
    with structlog.testing.capture_logs(processors=[structlog.contextvars.merge_contextvars]) as events:
        answer = await server.call("POST", "/v1/files", headers={"x-request-id": "req-of-mine"}, data=form())
    assert answer.status == 200
    assert [each["request"] for each in events if each["event"] == "file.created"] == ["req-of-mine"]


def form() -> aiohttp.FormData:
    form = aiohttp.FormData()
    form.add_field("purpose", "batch")
    form.add_field("file", b"{}\n", filename="in.jsonl")
    return form
