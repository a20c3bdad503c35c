"""Each way in which an agent ends, and what it leaves behind."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support.agent_process import scripted_profile, until
from tests.support.fake_broker import request_line
from tests.workers.conftest import StartAgent, StartBroker
from workers.package import build_agent

# every part is cut by the end, not by its size
NEVER = {"lines": 1000, "seconds": 600, "bytes": 100_000_000}


async def test_sigterm_drains_and_commits_what_is_finished(start_broker: StartBroker, start_agent: StartAgent) -> None:
    profile = scripted_profile("--latency", "0.05", parallel=2)
    broker = await start_broker(profile, part=NEVER)
    shard = broker.add_shard([request_line(f"c-{n}", f"say {n}") for n in range(500)])
    agent = await start_agent(broker, profile)
    await until(lambda: len(shard.in_flight) > 0 and len(broker.heartbeats) > 5, "work has begun")
    family = agent.engines()
    agent.signal(signal.SIGTERM)
    assert await agent.exit_status() == 0, agent.stderr()
    assert 2 <= len(broker.done) < 500
    assert broker.goodbyes == [{"reason": "drain", "error": None}]
    assert not any(process.is_running() for process in family)


async def test_an_order_to_drain_is_followed(start_broker: StartBroker, start_agent: StartAgent) -> None:
    profile = scripted_profile("--latency", "0.05", parallel=2)
    broker = await start_broker(profile, part=NEVER)
    shard = broker.add_shard([request_line(f"c-{n}", f"say {n}") for n in range(500)])
    agent = await start_agent(broker, profile)
    await until(lambda: shard.in_flight, "work has begun")
    broker.drain = True
    assert await agent.exit_status() == 0, agent.stderr()
    assert 2 <= len(broker.done) < 500
    assert broker.goodbyes[0]["reason"] == "drain"


async def test_an_interruption_notice_is_told_and_leaves_time_to_commit(
    start_broker: StartBroker, start_agent: StartAgent
) -> None:
    # one line would take longer than the machine has left: it is dropped, what is finished is saved
    profile = scripted_profile("--latency", "0.02", "--slow", "600", parallel=2)
    broker = await start_broker(profile, part=NEVER)
    lines = [request_line(f"c-{n}", "SLOW" if n == 5 else f"say {n}", max_tokens=1 if n == 5 else 8) for n in range(10)]
    shard = broker.add_shard(lines)
    agent = await start_agent(broker, profile)
    await until(lambda: shard.in_flight == [5], "only the slow line is left")
    (agent.folder / "notice.json").write_text("{half")
    await until(lambda: agent.events("notice.unreadable"), "a half-written notice is no notice")
    (agent.folder / "notice.json").write_text(json.dumps({"at": time.time() + 20}))
    assert await agent.exit_status() == 0, agent.stderr()
    assert sorted(broker.done) == [0, 1, 2, 3, 4, 6, 7, 8, 9]
    assert broker.goodbyes == [{"reason": "notice", "error": None}]
    told = [beat["notice_in_s"] for beat in broker.heartbeats if beat["notice_in_s"] is not None]
    assert told and 0 < told[0] <= 20


async def test_a_forgotten_machine_ends_itself(start_broker: StartBroker, start_agent: StartAgent) -> None:
    profile = scripted_profile("--latency", "0.05")
    broker = await start_broker(profile)
    shard = broker.add_shard([request_line(f"c-{n}", f"say {n}") for n in range(5000)])
    agent = await start_agent(broker, profile, dead_man_s=2)
    await until(lambda: shard.in_flight, "work has begun")
    family = agent.engines()
    broker.is_away = True
    assert await agent.exit_status() == 6, agent.stderr()
    assert not any(process.is_running() for process in family)


async def test_a_machine_that_nobody_ever_answers_ends_itself(
    start_broker: StartBroker, start_agent: StartAgent
) -> None:
    profile = scripted_profile()
    broker = await start_broker(profile)
    broker.is_away = True
    agent = await start_agent(broker, profile, dead_man_s=1)
    assert await agent.exit_status() == 6, agent.stderr()


async def test_a_revoked_machine_stops_at_once(start_broker: StartBroker, start_agent: StartAgent) -> None:
    profile = scripted_profile("--latency", "0.05")
    broker = await start_broker(profile)
    shard = broker.add_shard([request_line(f"c-{n}", f"say {n}") for n in range(5000)])
    agent = await start_agent(broker, profile)
    await until(lambda: shard.in_flight, "work has begun")
    family = agent.engines()
    broker.revoked.add("rental_1")
    assert await agent.exit_status() == 4, agent.stderr()
    assert not any(process.is_running() for process in family)


@pytest.mark.parametrize("status", [401, 403, 422])
async def test_a_machine_that_may_not_work_never_starts_its_engine(
    start_broker: StartBroker, start_agent: StartAgent, status: int
) -> None:
    profile = scripted_profile()
    broker = await start_broker(profile)
    broker.faults = {"hello": [status]}
    agent = await start_agent(broker, profile)
    assert await agent.exit_status() == 4, agent.stderr()
    assert not agent.events("engine.started")


async def test_a_machine_that_is_not_confirmed_yet_asks_again(
    start_broker: StartBroker, start_agent: StartAgent
) -> None:
    profile = scripted_profile()
    broker = await start_broker(profile)
    broker.faults = {"hello": [425, 425, 503, "refuse"]}
    broker.add_shard([request_line("c-0", "say")])
    agent = await start_agent(broker, profile)
    assert await agent.exit_status() == 0, agent.stderr()
    assert broker.calls["hello"] == 5
    assert len(broker.done) == 1


async def test_a_broker_that_refuses_every_part_is_a_defect_and_not_a_loop(
    start_broker: StartBroker, start_agent: StartAgent
) -> None:
    profile = scripted_profile()
    broker = await start_broker(profile, lease_ttl_s=0.5)
    broker.faults = {"commit": [400] * 50}
    broker.add_shard([request_line(f"c-{n}", f"say {n}") for n in range(4)])
    agent = await start_agent(broker, profile)
    assert await agent.exit_status() == 7, agent.stderr()


async def test_a_shard_with_other_bytes_than_the_lease_says_is_not_run(
    start_broker: StartBroker, start_agent: StartAgent
) -> None:
    profile = scripted_profile()
    broker = await start_broker(profile, lease_ttl_s=0.2)
    shard = broker.add_shard([request_line(f"c-{n}", f"say {n}") for n in range(4)])
    shard.lines = 5
    agent = await start_agent(broker, profile)
    assert await agent.exit_status() == 7, agent.stderr()
    assert "4 lines, the lease says 5" in agent.stderr()
    assert broker.done == {}


def test_without_aiohttp_it_says_what_is_missing(tmp_path: Path) -> None:
    agent = tmp_path / "agent.pyz"
    agent.write_bytes(build_agent().content)
    ran = subprocess.run(
        [sys.executable, "-I", "-S", str(agent), "run", "--config", "agent.json"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 3
    assert "aiohttp" in ran.stderr


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (None, "cannot be read"),
        ("{", "is not JSON"),
        ("[]", "must hold one JSON object"),
        ('{"broker_url": "http://x", "rental_id": "", "bootstrap_token": "t"}', "'rental_id'"),
        ('{"broker_url": "http://x", "rental_id": "r", "bootstrap_token": "t", "dead_man_s": -1}', "'dead_man_s'"),
        (
            '{"broker_url": "http://x", "rental_id": "r", "bootstrap_token": "t", "dead_man_s": 1, "failpoint": "no"}',
            "failpoint 'no' is not one of",
        ),
    ],
)
async def test_a_bad_configuration_is_named(tmp_path: Path, content: str | None, named: str) -> None:
    agent, config = tmp_path / "agent.pyz", tmp_path / "agent.json"
    agent.write_bytes(build_agent().content)
    if content is not None:
        config.write_text(content)
    ran = await asyncio.create_subprocess_exec(
        sys.executable, str(agent), "run", "--config", str(config), stderr=asyncio.subprocess.PIPE
    )
    _, stderr = await ran.communicate()
    assert ran.returncode == 2
    assert named in stderr.decode()
