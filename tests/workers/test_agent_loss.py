"""Losing machines, links and acknowledgements: no line is lost, none counts twice, and nothing is left running."""

from __future__ import annotations

import base64
import signal
from pathlib import Path

import psutil
import pytest

from tests.support.agent_process import scripted_profile, until
from tests.support.fake_broker import request_line
from tests.support.scripted_engine import executions
from tests.workers.conftest import StartAgent, StartBroker


def is_gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


async def test_the_engine_does_not_outlive_a_killed_agent_and_another_finishes(
    start_broker: StartBroker, start_agent: StartAgent, tmp_path: Path
) -> None:
    log = tmp_path / "executions"
    child = tmp_path / "child"
    # the engine ignores SIGTERM and has a child in a session of its own, as engines with worker processes do
    profile = scripted_profile(
        "--log", str(log), "--latency", "0.05", "--ignore-sigterm", "--child", str(child), parallel=2
    )
    part = {"lines": 3, "seconds": 30, "bytes": 1_000_000}
    broker = await start_broker(profile, engine={"stop_grace_s": 1, "concurrency": {"start": 2, "max": 2}}, part=part)
    # six lines that are answered, then two that are in flight for as long as the first engine lives: it comes to a rest
    # (longest lines are started first)
    prompts = [f"{'STUCK' if n in (6, 7) else 'say'} {n} ".ljust(100 - 2 * n, ".") for n in range(24)]
    broker.add_shard([request_line(f"c-{n}", prompt) for n, prompt in enumerate(prompts)])
    first = await start_agent(broker, profile)
    await until(lambda: sum(executions(log).values()) == 8, "six lines are answered, two are in flight")
    await until(lambda: len(broker.done) > 6 - 3, "what makes a part is committed")
    family = first.engines()
    assert len(family) >= 3, "guard, engine and the engine's child"
    assert int(child.read_text()) in {process.pid for process in family}
    first.signal(signal.SIGKILL)
    assert await first.exit_status() == -signal.SIGKILL
    await until(lambda: all(is_gone(process.pid) for process in family), "the whole family is gone")
    done_before, started_before = len(broker.done), sum(executions(log).values())
    broker.expire_leases()
    second = await start_agent(broker, profile, rental_id="rental_2")
    assert await second.exit_status(60) == 0, second.stderr()
    assert len(broker.done) == 24
    assert broker.outcomes["rejected_overlap"] == 0
    lost = started_before - done_before
    assert 2 <= lost < 3 + 2, "what was in flight is done again, and what did not make a part yet; nothing else"
    assert sum(executions(log).values()) == 24 + lost


async def test_a_sealed_shard_of_a_killed_agent_goes_on_under_another_key_and_no_key_or_prompt_is_written_down(
    start_broker: StartBroker, start_agent: StartAgent, tmp_path: Path
) -> None:
    """What is sealed at the store is open in the agent's memory only, and the successor's parts have a key of their own."""
    profile = scripted_profile("--latency", "0.02", parallel=2)
    part = {"lines": 3, "seconds": 30, "bytes": 1_000_000}
    broker = await start_broker(profile, part=part, seal_key=b"canary key of thirty-two bytes..")
    shard = broker.add_shard([request_line(f"c-{n}", f"canary prompt {n} {'x' * 7_000}") for n in range(24)])
    first = await start_agent(broker, profile, failpoint="agent.after_put:3")
    assert await first.exit_status(60) == -signal.SIGKILL
    done = len(broker.done)
    assert 0 < done < 24
    broker.expire_leases()
    second = await start_agent(broker, profile, rental_id="rental_2")
    assert await second.exit_status(60) == 0, second.stderr()
    assert (len(broker.done), broker.violations) == (24, [])
    assert {commit["epoch"] for commit in broker.commits} == {1, 2}
    assert broker.hellos[0]["seals"] == [1]
    written = b"".join(
        file.read_bytes() for each in (first, second) for file in each.folder.rglob("*") if file.is_file()
    )
    lease = [broker.lease_key(shard, epoch) for epoch in (1, 2)]
    for secret in (broker.seal_key, *lease):
        assert secret is not None
        for form in (secret, secret.hex().encode(), base64.b64encode(secret)):
            assert form not in written
    assert b"canary prompt" not in written
    assert all(content.startswith(b"brkseal") for content in broker.objects.values())


async def test_a_sealed_shard_that_was_tampered_with_is_let_go_and_never_run(
    start_broker: StartBroker, start_agent: StartAgent, tmp_path: Path
) -> None:
    log = tmp_path / "executions"
    profile = scripted_profile("--log", str(log))
    broker = await start_broker(profile, seal_key=bytes(32))
    shard = broker.add_shard([request_line(f"c-{n}", f"say {n}") for n in range(4)])
    sealed = bytearray(broker.sealed_input(shard))
    sealed[100] ^= 1
    broker.objects[f"in/{shard.shard_id}"] = bytes(sealed)
    agent = await start_agent(broker, profile)
    await until(lambda: agent.events("lease.unusable"), "the shard does not open")
    assert "not those that were sealed" in agent.events("lease.unusable")[0]["error"]
    assert executions(log) == {}
    assert not broker.done


@pytest.mark.parametrize("delivered_bytes", [0, 1_000_000])
@pytest.mark.parametrize("point", ["agent.before_put", "agent.after_put:2"])
async def test_a_part_without_a_commit_never_happened(
    start_broker: StartBroker, start_agent: StartAgent, point: str, delivered_bytes: int
) -> None:
    """And one that is counted, of which the machine never heard, is not done again."""
    profile = scripted_profile(parallel=2)
    part = {"lines": 4, "seconds": 30, "bytes": 1_000_000, "delivered_bytes": delivered_bytes}
    broker = await start_broker(profile, part=part)
    # what is delivered while the second part's answer is on its way is not counted: all 24 lines were, in 2 of 24 runs
    broker.faults["delivery"] = ["answer", "answer", *["hang"] * 24]
    broker.add_shard([request_line(f"c-{n}", f"say {n}") for n in range(24)])
    first = await start_agent(broker, profile, failpoint=point)
    assert await first.exit_status() == -signal.SIGKILL
    assert len(broker.done) < 24
    broker.faults.clear()
    broker.expire_leases()
    second = await start_agent(broker, profile, rental_id="rental_2")
    assert await second.exit_status(60) == 0, second.stderr()
    assert sorted(broker.done) == list(range(24))


async def test_a_lost_acknowledgement_is_asked_for_again_and_counts_once(
    start_broker: StartBroker, start_agent: StartAgent
) -> None:
    profile = scripted_profile()
    broker = await start_broker(profile)
    # and a permission to write that ran out (403) is asked for anew
    broker.faults = {"commit": ["drop", "drop"], "put": ["drop", 403], "hello": ["drop"], "target": ["drop"]}
    broker.add_shard([request_line(f"c-{n}", f"say {n}") for n in range(8)])
    agent = await start_agent(broker, profile)
    assert await agent.exit_status(60) == 0, agent.stderr()
    assert broker.outcomes["replayed"] == 2
    assert len(broker.done) == 8


async def test_a_part_goes_with_its_commit_and_is_asked_for_again_when_the_answer_is_lost(
    start_broker: StartBroker, start_agent: StartAgent
) -> None:
    profile = scripted_profile()
    part = {"lines": 4, "seconds": 30, "bytes": 1_000_000, "delivered_bytes": 1_000_000}
    broker = await start_broker(profile, part=part)
    broker.faults = {"delivery": ["drop", 503]}
    broker.add_shard([request_line(f"c-{n}", f"say {n}") for n in range(8)])
    agent = await start_agent(broker, profile)
    assert await agent.exit_status(60) == 0, agent.stderr()
    assert (len(broker.done), broker.outcomes["replayed"]) == (8, 1)
    assert (broker.calls["target"], broker.calls["put"], broker.calls["commit"]) == (0, 0, 0)


@pytest.mark.parametrize(
    ("faults", "delivered_bytes"),
    [
        ([404] * 9, 1_000_000),  # another broker of a rolling upgrade, which has no such route
        ([413] * 9, 1_000_000),  # a proxy that takes no such body
        ([], 10),  # larger than what is taken at once
        ([], None),  # a broker that never heard of it
    ],
)
async def test_a_part_that_is_not_taken_at_once_goes_the_long_way(
    start_broker: StartBroker, start_agent: StartAgent, faults: list[int | str], delivered_bytes: int | None
) -> None:
    profile = scripted_profile()
    part = {"lines": 4, "seconds": 30, "bytes": 1_000_000}
    broker = await start_broker(profile, part=part | ({"delivered_bytes": delivered_bytes} if delivered_bytes else {}))
    broker.faults = {"delivery": faults}
    broker.add_shard([request_line(f"c-{n}", f"say {n}") for n in range(8)])
    agent = await start_agent(broker, profile)
    assert await agent.exit_status(60) == 0, agent.stderr()
    assert len(broker.done) == 8
    assert broker.calls["put"] == broker.calls["commit"] >= 1


async def test_lines_that_another_has_done_are_dropped_and_the_rest_sent_again(
    start_broker: StartBroker, start_agent: StartAgent
) -> None:
    profile = scripted_profile(parallel=2)
    broker = await start_broker(profile, part={"lines": 6, "seconds": 30, "bytes": 1_000_000})
    shard = broker.add_shard([request_line(f"c-{n}", f"say {n}") for n in range(6)])

    def commit_of_a_zombie() -> None:
        for idx in (1, 4):
            shard.done[idx] = {"idx": idx, "status": "completed", "line": {}}

    # a zombie of an earlier epoch gets two of them committed while this part is on its way
    broker.hooks["put"] = commit_of_a_zombie
    agent = await start_agent(broker, profile)
    assert await agent.exit_status(60) == 0, agent.stderr()
    assert broker.outcomes == {"rejected_overlap": 1, "committed": 1}
    assert [commit["lines"] for commit in broker.commits] == [[[0, 6]], [[0, 1], [2, 4], [5, 6]]]
    assert [commit["seq"] for commit in broker.commits] == [0, 1], "an outcome is final for its seq"
    assert broker.counters["wasted_completion_tokens"] == 4


async def test_what_was_finished_under_a_lost_lease_is_still_offered(
    start_broker: StartBroker, start_agent: StartAgent, tmp_path: Path
) -> None:
    log = tmp_path / "executions"
    profile = scripted_profile("--log", str(log), "--latency", "0.05", parallel=1)
    broker = await start_broker(profile, part={"lines": 100, "seconds": 60, "bytes": 1_000_000}, heartbeat_s=0.1)
    broker.engine["concurrency"] = {"start": 1, "max": 1}
    shard = broker.add_shard([request_line(f"c-{n}", f"say {n}") for n in range(100)])
    agent = await start_agent(broker, profile)
    await until(lambda: len(executions(log)) >= 3, "some lines are finished")
    shard.holder, shard.expires_at = "rental_x", 1e12  # taken away
    await until(lambda: broker.outcomes["committed_superseded"], "the finished lines arrive")
    counted = len(broker.done)
    assert 2 <= counted < 100, "the lease was lost, so the rest is not started"
    shard.holder = None
    assert await agent.exit_status(60) == 0, agent.stderr()
    assert len(broker.done) == 100


async def test_a_batch_that_takes_no_more_answers_is_let_go(
    start_broker: StartBroker, start_agent: StartAgent, tmp_path: Path
) -> None:
    log = tmp_path / "executions"
    profile = scripted_profile("--log", str(log), "--latency", "0.02", parallel=1)
    broker = await start_broker(profile, part={"lines": 2, "seconds": 30, "bytes": 1_000_000})
    broker.engine["concurrency"] = {"start": 1, "max": 1}
    broker.add_shard([request_line(f"c-{n}", f"say {n}") for n in range(2000)])
    broker.is_terminal = True
    agent = await start_agent(broker, profile)
    await until(lambda: agent.events("lease.closed"), "the lease is closed")
    assert sum(executions(log).values()) < 1000
    broker.shards.clear()
    assert await agent.exit_status(60) == 0, agent.stderr()


async def test_answers_that_were_bought_for_a_batch_that_has_ended_are_told_to_the_last(
    start_broker: StartBroker, start_agent: StartAgent, tmp_path: Path
) -> None:
    """They were dropped with the lease: the endpoint charged for them, and the books knew nothing of it."""
    log = tmp_path / "executions"
    profile = scripted_profile("--log", str(log), "--latency", "0.02", parallel=8)
    broker = await start_broker(profile, part={"lines": 2, "seconds": 30, "bytes": 1_000_000})
    broker.engine["concurrency"] = {"start": 8, "max": 8}
    broker.engine["limits"] = {"tokens_per_minute": 100_000_000}
    broker.add_shard([request_line(f"c-{n}", f"say {n}") for n in range(2000)])
    broker.is_terminal = True
    agent = await start_agent(broker, profile)
    await until(lambda: agent.events("lease.closed"), "the lease is closed")
    told = {idx for each in broker.commits for start, stop in each["lines"] for idx in range(start, stop)}
    assert len(told) == sum(executions(log).values()) < 1000
    broker.shards.clear()
    assert await agent.exit_status(60) == 0, agent.stderr()


async def test_a_broker_that_is_away_for_a_while_costs_nothing_but_time(
    start_broker: StartBroker, start_agent: StartAgent, tmp_path: Path
) -> None:
    log = tmp_path / "executions"
    profile = scripted_profile("--log", str(log), "--latency", "0.02")
    broker = await start_broker(profile)
    broker.add_shard([request_line(f"c-{n}", f"say {n}") for n in range(30)])
    agent = await start_agent(broker, profile)
    await until(lambda: executions(log), "work has begun")
    broker.is_away = True
    await until(lambda: len(executions(log)) == 30, "the lines at hand are worked off meanwhile")
    broker.is_away = False
    assert await agent.exit_status(60) == 0, agent.stderr()
    assert len(broker.done) == 30
    assert set(executions(log).values()) == {1}


async def test_nothing_is_started_under_a_lease_that_is_not_renewed(
    start_broker: StartBroker, start_agent: StartAgent, tmp_path: Path
) -> None:
    log = tmp_path / "executions"
    profile = scripted_profile("--log", str(log), "--latency", "0.05", parallel=1)
    broker = await start_broker(profile, lease_ttl_s=1.0)
    broker.engine["concurrency"] = {"start": 1, "max": 1}
    broker.add_shard([request_line(f"c-{n}", f"say {n}") for n in range(2000)])
    await start_agent(broker, profile)
    await until(lambda: executions(log), "work has begun")
    broker.is_away = True
    # it runs dry: the count of executions comes to a rest far below the number of lines
    seen = [-1]

    def at_rest() -> bool:
        seen.append(sum(executions(log).values()))
        return len(seen) > 40 and seen[-1] == seen[-40]

    await until(at_rest, "no line is started any more")
    assert seen[-1] < 200
    broker.is_away = False
    await until(lambda: sum(executions(log).values()) > seen[-1], "work goes on after the renewal")


async def test_tokens_are_renewed_on_the_way(start_broker: StartBroker, start_agent: StartAgent) -> None:
    profile = scripted_profile("--latency", "0.05", parallel=2)
    broker = await start_broker(profile, rotate_tokens=True, heartbeat_s=0.1)
    broker.add_shard([request_line(f"c-{n}", f"say {n}") for n in range(60)])
    agent = await start_agent(broker, profile)
    assert await agent.exit_status(60) == 0, agent.stderr()
    assert len(broker.done) == 60
    assert len(broker.heartbeats) > 6, "the first tokens were no longer good"
