"""What one bad line may do to the others: nothing."""

from __future__ import annotations

import asyncio
import socket
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from aiohttp import web

from tests.support.agent_process import SCRIPTED, scripted_profile, until
from tests.support.fake_broker import FakeBroker, request_line
from tests.support.scripted_engine import executions
from tests.workers.conftest import StartAgent, StartBroker
from workers.profile import ModelProfile


def error_of(broker: FakeBroker, idx: int) -> dict[str, Any]:
    error: dict[str, Any] = broker.done[idx]["line"]["error"]
    return error


async def test_a_line_that_kills_the_engine_is_found_and_given_up_after_three_attempts(
    start_broker: StartBroker, start_agent: StartAgent, tmp_path: Path
) -> None:
    log = tmp_path / "executions"
    profile = scripted_profile("--log", str(log), "--latency", "0.02", parallel=4)
    broker = await start_broker(profile)
    # the poison is the longest and goes first, with three innocents beside it
    lines = [
        request_line(f"c-{n}", "POISON" if n == 5 else f"say {n}", max_tokens=9 if n == 5 else 8) for n in range(20)
    ]
    broker.add_shard(lines)
    agent = await start_agent(broker, profile)
    assert await agent.exit_status(60) == 0, agent.stderr()
    failed = [idx for idx, line in broker.done.items() if line["status"] == "failed"]
    assert failed == [5], "only the poison may fail, and nothing may be missing"
    assert len(broker.done) == 20
    assert error_of(broker, 5)["code"] == "worker_crash"
    assert broker.usage[5] == [5, "failed", 0, 0, 0, 3, False, 0]
    assert executions(log)["POISON"] == 3
    assert len(agent.events("engine.started")) == 4


async def test_two_poisons_in_one_shard_are_both_found(start_broker: StartBroker, start_agent: StartAgent) -> None:
    profile = scripted_profile("--latency", "0.01", parallel=8)
    broker = await start_broker(profile)
    broker.add_shard([request_line(f"c-{n}", f"POISON {n}" if n in (2, 3) else f"say {n}") for n in range(16)])
    agent = await start_agent(broker, profile)
    assert await agent.exit_status(60) == 0, agent.stderr()
    assert sorted(idx for idx, line in broker.done.items() if line["status"] == "failed") == [2, 3]
    assert len(broker.done) == 16


async def test_each_kind_of_bad_answer_ends_as_it_should(
    start_broker: StartBroker, start_agent: StartAgent, tmp_path: Path
) -> None:
    log = tmp_path / "executions"
    profile = scripted_profile("--log", str(log), parallel=4)
    broker = await start_broker(profile)
    prompts = ["fine", "ERROR500", "FLAKY", "BAD400", "GARBAGE", "NOUSAGE here", "DROP"]
    broker.add_shard([request_line(f"c-{n}", prompt) for n, prompt in enumerate(prompts)])
    agent = await start_agent(broker, profile)
    assert await agent.exit_status(60) == 0, agent.stderr()
    status = {prompt: broker.done[n]["status"] for n, prompt in enumerate(prompts)}
    assert status == {
        "fine": "completed",
        "ERROR500": "failed",
        "FLAKY": "completed",
        "BAD400": "failed",
        "GARBAGE": "failed",
        "NOUSAGE here": "completed",
        "DROP": "failed",
    }
    # a 4xx is the engine's last word: run once, its body kept
    assert broker.done[3]["line"]["response"]["status_code"] == 400
    assert broker.done[3]["line"]["response"]["body"]["error"]["code"] == "bad_request"
    assert broker.done[3]["line"]["error"] is None
    # the others had their three attempts and are dead letters
    assert [error_of(broker, n)["code"] for n in (1, 4, 6)] == ["engine_error"] * 3
    assert {prompt: executions(log)[prompt] for prompt in prompts} == {
        "fine": 1,
        "ERROR500": 3,
        "FLAKY": 2,
        "BAD400": 1,
        "GARBAGE": 3,
        "NOUSAGE here": 1,
        "DROP": 3,
    }
    # no usage from the engine: an estimate, and it says so
    assert broker.usage[5][6] is True
    assert broker.usage[5][2] > 0
    assert broker.usage[0][6] is False
    assert len(agent.events("engine.started")) == 1, "none of this is the engine's death"


async def test_a_line_without_an_answer_times_out_and_the_rest_goes_on(
    start_broker: StartBroker, start_agent: StartAgent
) -> None:
    profile = scripted_profile(parallel=4)
    broker = await start_broker(profile, engine={"request_timeout_s": 1}, max_attempts=2)
    # the hanging line goes first and the others are answered while it hangs: it is the line, not the engine
    broker.add_shard([request_line(f"c-{n}", "HANG" if n == 0 else f"say {n}", max_tokens=9 - n) for n in range(6)])
    agent = await start_agent(broker, profile)
    assert await agent.exit_status(60) == 0, agent.stderr()
    assert error_of(broker, 0)["code"] == "timeout"
    assert all(broker.done[n]["status"] == "completed" for n in range(1, 6))


async def test_an_engine_that_falls_silent_altogether_is_restarted(
    start_broker: StartBroker, start_agent: StartAgent, tmp_path: Path
) -> None:
    log = tmp_path / "executions"
    profile = scripted_profile("--log", str(log), parallel=4)
    broker = await start_broker(profile, engine={"request_timeout_s": 1}, max_attempts=2)
    broker.add_shard([request_line(f"c-{n}", f"HANG {n}" if n < 2 else f"say {n}", max_tokens=9 - n) for n in range(4)])
    # two in flight, both hang, nothing else is answered meanwhile
    broker.engine["concurrency"] = {"start": 2, "max": 2}
    agent = await start_agent(broker, profile)
    assert await agent.exit_status(60) == 0, agent.stderr()
    assert agent.events("engine.hung"), agent.stderr()
    assert len(agent.events("engine.started")) >= 2
    assert [broker.done[n]["status"] for n in range(4)] == ["failed", "failed", "completed", "completed"]


async def test_a_busy_engine_costs_no_attempts(start_broker: StartBroker, start_agent: StartAgent) -> None:
    profile = scripted_profile("--refuse-first", "20", parallel=4)
    broker = await start_broker(profile)
    broker.add_shard([request_line(f"c-{n}", f"say {n}") for n in range(10)])
    agent = await start_agent(broker, profile)
    assert await agent.exit_status(60) == 0, agent.stderr()
    assert {row[5] for row in broker.usage.values()} == {1}
    assert broker.counters["requests"] == 30
    assert broker.counters["retried"] == 20


async def test_an_engine_that_never_works_fails_the_machine_and_not_the_lines(
    start_broker: StartBroker, start_agent: StartAgent
) -> None:
    profile = scripted_profile(parallel=2)
    broker = await start_broker(profile)
    broker.add_shard([request_line(f"c-{n}", f"POISON {n}") for n in range(6)])
    agent = await start_agent(broker, profile)
    assert await agent.exit_status(60) == 5, agent.stderr()
    assert broker.done == {}, "nothing may be blamed on the lines of a machine that never answered"
    assert broker.goodbyes[0]["reason"] == "failed"
    assert "status 13" in broker.goodbyes[0]["error"]


async def test_an_engine_that_does_not_start_is_reported_with_its_last_words(
    start_broker: StartBroker, start_agent: StartAgent
) -> None:
    profile = scripted_profile("--die-at-start", "3")
    broker = await start_broker(profile)
    broker.add_shard([request_line("c-0", "say")])
    agent = await start_agent(broker, profile)
    assert await agent.exit_status(60) == 5, agent.stderr()
    assert "scripted death at start" in broker.goodbyes[0]["error"]
    assert broker.heartbeats[-1]["state"] == "failed"


async def test_a_wrong_key_for_a_running_endpoint_fails_the_machine_and_not_the_lines(
    start_broker: StartBroker, start_agent: StartAgent
) -> None:
    profile = scripted_profile("--key", "right")
    broker = await start_broker(profile, engine={"headers": {"Authorization": "Bearer wrong"}})
    broker.add_shard([request_line("c-0", "say")])
    agent = await start_agent(broker, profile)
    assert await agent.exit_status(60) == 5, agent.stderr()
    assert broker.done == {}
    assert "401" in broker.goodbyes[0]["error"]


async def test_a_line_that_already_killed_three_workers_is_not_run_again(
    start_broker: StartBroker, start_agent: StartAgent, tmp_path: Path
) -> None:
    log = tmp_path / "executions"
    profile = scripted_profile("--log", str(log))
    broker = await start_broker(profile)
    broker.add_shard([request_line(f"c-{n}", f"say {n}") for n in range(4)], suspects={1: 3, 2: 1})
    agent = await start_agent(broker, profile)
    assert await agent.exit_status(60) == 0, agent.stderr()
    assert error_of(broker, 1)["code"] == "worker_crash"
    assert executions(log) == {"say 0": 1, "say 2": 1, "say 3": 1}
    assert broker.usage[2][5] == 2, "the attempt that a former worker spent counts"


async def test_a_server_elsewhere_is_driven_by_aiohttp_with_the_same_verdicts(
    start_broker: StartBroker, start_agent: StartAgent, tmp_path: Path
) -> None:
    log = tmp_path / "executions"
    with socket.socket() as probe:
        probe.bind(("127.0.0.2", 0))  # not an address that the agent takes for its own machine's
        port = probe.getsockname()[1]
    server = await asyncio.create_subprocess_exec(
        sys.executable, str(SCRIPTED), "--host", "127.0.0.2", "--port", str(port), "--log", str(log), "--key", "secret"
    )
    try:
        url = f"http://127.0.0.2:{port}/v1"
        profile = ModelProfile(id="remote", engine="url", base_url=url, api_key="secret", parallel=4)
        broker = await start_broker(profile)
        prompts = ["fine", "ERROR500", "FLAKY", "BAD400", "DROP"]
        broker.add_shard([request_line(f"c-{n}", prompt) for n, prompt in enumerate(prompts)])
        agent = await start_agent(broker, profile)
        assert await agent.exit_status(60) == 0, agent.stderr()
    finally:
        server.kill()
        await server.wait()
    status = [broker.done[n]["status"] for n in range(len(prompts))]
    assert status == ["completed", "failed", "completed", "failed", "failed"]
    assert [executions(log)[prompt] for prompt in prompts] == [1, 3, 2, 1, 3]


async def test_a_stranger_at_the_engines_port_gets_no_line(
    start_broker: StartBroker, start_agent: StartAgent, tmp_path: Path
) -> None:
    """The port was free when it was chosen; before the engine listened, another program did, and said that it was healthy."""
    where, seen, asked = tmp_path / "port", tmp_path / "seen", list[str]()

    async def answer(request: web.Request) -> web.Response:
        asked.append(request.path)
        if len(asked) == 2:
            seen.touch()
        return web.json_response({}, status=200 if request.path == "/health" else 404)

    async def take_the_port() -> web.AppRunner:
        await until(where.exists, "the engine was started")
        app = web.Application()
        app.router.add_route("*", "/{any:.*}", answer)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", int(where.read_text())).start()
        return runner

    profile = scripted_profile(parallel=4)
    late = f"""
import os, pathlib, sys, time
where, seen = pathlib.Path({str(where)!r}), pathlib.Path({str(seen)!r})
if where.exists():
    os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
draft = where.with_suffix(".draft")
draft.write_text(sys.argv[-1])
draft.rename(where)
while not seen.exists():
    time.sleep(0.02)
sys.exit("address already in use")
"""
    profile = replace(profile, argv=(sys.executable, "-c", late, *profile.argv[1:]))
    broker = await start_broker(profile)
    broker.add_shard([request_line(f"c-{n}", f"say {n}") for n in range(8)])
    stranger = asyncio.create_task(take_the_port())
    agent = await start_agent(broker, profile)
    try:
        assert await agent.exit_status(60) == 0, agent.stderr()
    finally:
        await (await stranger).cleanup()
    assert set(asked) == {"/health"}
    assert [line["status"] for line in broker.done.values()] == ["completed"] * 8
    assert agent.events("engine.port_taken")
