"""The real agent with the real llama.cpp server, on a random model of a few megabytes."""

from __future__ import annotations

import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.support.agent_process import until
from tests.support.fake_broker import request_line
from tests.support.tiny_gguf import write_tiny_gguf
from tests.workers.conftest import StartAgent, StartBroker
from workers.profile import ModelProfile

pytest.importorskip("xllamacpp", reason="the extra 'local' is not installed")


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> ModelProfile:
    weights = write_tiny_gguf(tmp_path_factory.mktemp("weights") / "tiny.gguf")
    return ModelProfile(
        id="tiny", engine="llamacpp", weights=str(weights), context=256, parallel=4, args=("--threads", "1")
    )


async def test_a_batch_is_written_by_llamacpp_and_its_tokens_are_the_engines(
    tiny_model: ModelProfile, start_broker: StartBroker, start_agent: StartAgent
) -> None:
    broker = await start_broker(tiny_model)
    lines = [request_line(f"c-{n}", f"tell me about {n}", max_tokens=4 + n, temperature=0) for n in range(12)]
    lines[7]["body"]["messages"][0]["content"] = "far too long " * 400
    broker.add_shard(lines)
    agent = await start_agent(broker, tiny_model)
    assert await agent.exit_status(60) == 0, agent.stderr()
    assert len(broker.done) == 12
    for idx, line in broker.done.items():
        if idx == 7:
            continue
        body = line["line"]["response"]["body"]
        usage = broker.usage[idx]
        assert usage[:4] == [idx, "completed", body["usage"]["prompt_tokens"], body["usage"]["completion_tokens"]]
        assert 0 < usage[3] <= 4 + idx
        assert usage[6] is False
    refused = broker.done[7]
    assert refused["status"] == "failed"
    assert refused["line"]["response"]["status_code"] == 400
    assert "context" in refused["line"]["response"]["body"]["error"]["message"]


@pytest.mark.parametrize(
    ("endpoint", "body"),
    [
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "say hello"}], "max_tokens": 5}),
        ("/v1/completions", {"prompt": "say hello", "max_tokens": 5}),
        ("/v1/responses", {"input": "say hello", "max_output_tokens": 5}),  # counts input_tokens, not prompt_tokens
        ("/v1/embeddings", {"input": "say hello"}),  # counts no completion
    ],
)
async def test_each_endpoint_of_a_batch_is_answered_and_metered_by_the_engine(
    tiny_model: ModelProfile, start_broker: StartBroker, start_agent: StartAgent, endpoint: str, body: dict[str, Any]
) -> None:
    profile = replace(tiny_model, endpoints=(endpoint,), args=("--threads", "1", "--pooling", "mean"))
    broker = await start_broker(profile)
    request = {"method": "POST", "url": endpoint, "body": {"model": "tiny", **body}}
    broker.add_shard([{"custom_id": f"c-{n}", **request} for n in range(3)])
    agent = await start_agent(broker, profile)
    assert await agent.exit_status(60) == 0, agent.stderr()
    assert {line["line"]["response"]["status_code"] for line in broker.done.values()} == {200}, agent.stderr()
    usage = broker.usage[0]
    assert usage[2] > 0, "prompt tokens"
    assert usage[3] == 0 if endpoint == "/v1/embeddings" else 0 < usage[3] <= 5, "completion tokens"
    assert usage[6] is False, "counted by the engine, not estimated"


async def test_llamacpp_does_not_outlive_a_killed_agent(
    tiny_model: ModelProfile, start_broker: StartBroker, start_agent: StartAgent
) -> None:
    broker = await start_broker(tiny_model)
    shard = broker.add_shard([request_line(f"c-{n}", f"say {n}", max_tokens=200) for n in range(400)])
    agent = await start_agent(broker, tiny_model)
    await until(lambda: len(shard.in_flight) > 1, "several lines are in the engine")
    family = agent.engines()
    assert any("llamacpp" in process.cmdline() for process in family)
    agent.signal(signal.SIGKILL)
    await agent.exit_status()
    await until(lambda: not any(process.is_running() for process in family), "the engine is gone")


async def test_llamacpp_stops_when_told_with_requests_in_flight(
    tiny_model: ModelProfile, start_broker: StartBroker, start_agent: StartAgent, tmp_path: Path
) -> None:
    broker = await start_broker(tiny_model)
    shard = broker.add_shard([request_line(f"c-{n}", f"say {n}", max_tokens=200) for n in range(2000)])
    agent = await start_agent(broker, tiny_model)
    await until(lambda: len(shard.in_flight) > 1, "several lines are in the engine")
    agent.signal(signal.SIGTERM)
    assert await agent.exit_status() == 0, agent.stderr()
    assert agent.events("engine.stopped")[0]["killed"] is False, "it ended by itself, within its grace"
    assert 0 < len(broker.done) < 2000


async def test_missing_weights_are_named(start_broker: StartBroker, start_agent: StartAgent) -> None:
    profile = ModelProfile(id="tiny", engine="llamacpp", weights="/nowhere/tiny.gguf")
    broker = await start_broker(profile)
    agent = await start_agent(broker, profile)
    assert await agent.exit_status() == 5, agent.stderr()
    assert "/nowhere/tiny.gguf: no such file" in broker.goodbyes[0]["error"]
