"""The real agent against a broker in memory and a scripted engine: what comes out of a batch."""

from __future__ import annotations

from pathlib import Path

from tests.support.agent_process import scripted_profile
from tests.support.fake_broker import request_line
from tests.support.scripted_engine import answer_text, executions, most_at_once
from tests.workers.conftest import StartAgent, StartBroker
from workers.agent.took import counts_of


async def test_every_line_is_answered_once_and_metered(
    start_broker: StartBroker, start_agent: StartAgent, tmp_path: Path
) -> None:
    log = tmp_path / "executions"
    profile = scripted_profile("--log", str(log))
    broker = await start_broker(profile)
    for shard in range(3):
        broker.add_shard([request_line(f"c-{shard}-{n}", f"say {shard} {n}") for n in range(12)], first_idx=shard * 12)
    agent = await start_agent(broker, profile)
    assert await agent.exit_status() == 0, agent.stderr()
    assert sorted(broker.done) == list(range(36))
    line = broker.done[13]["line"]
    assert line["custom_id"] == "c-1-1"
    assert line["response"]["body"]["choices"][0]["message"]["content"] == answer_text("say 1 1")
    assert broker.usage[13] == [13, "completed", 3, 2, 1, 1, False, 0]
    assert set(executions(log).values()) == {1}
    assert broker.goodbyes == [{"reason": "stop", "error": None}]
    assert broker.counters["requests"] == 36


async def test_lines_that_name_another_model_are_asked_under_the_engines_name(
    start_broker: StartBroker, start_agent: StartAgent
) -> None:
    """The broker chose another model that the batch accepts: the engine would refuse the name that the lines have."""
    profile = scripted_profile()
    broker = await start_broker(profile)
    broker.lease_model = "the-engines-name"
    broker.add_shard([request_line("c-1", "say 1")], first_idx=0)
    agent = await start_agent(broker, profile)
    assert await agent.exit_status() == 0, agent.stderr()
    assert broker.done[0]["line"]["response"]["body"]["model"] == "the-engines-name"


async def test_a_lease_with_a_limit_never_has_more_requests_in_the_engine_and_tells_how_long_they_took(
    start_broker: StartBroker, start_agent: StartAgent, tmp_path: Path
) -> None:
    log = tmp_path / "executions"
    profile = scripted_profile("--log", str(log), "--latency", "0.02")
    broker = await start_broker(profile)
    broker.lease_concurrency = 2
    for shard in range(2):
        broker.add_shard([request_line(f"c-{shard}-{n}", f"say {shard} {n}") for n in range(8)], first_idx=shard * 8)
    agent = await start_agent(broker, profile)
    assert await agent.exit_status() == 0, agent.stderr()
    assert sorted(broker.done) == list(range(16))
    assert most_at_once(log) == 2
    took = counts_of(broker.counters)
    assert sum(took.values()) == 16
    assert min(took) >= 61  # 1.05^61 is 19.6 ms: none was answered before the engine could
