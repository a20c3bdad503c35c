"""Fixtures of the workers room: a broker to talk to and agents that end with the test."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.agent_process import AgentProcess
from tests.support.fake_broker import FakeBroker
from workers.engines import engine_spec
from workers.profile import ModelProfile

StartAgent = Callable[..., Awaitable[AgentProcess]]
StartBroker = Callable[..., Awaitable[FakeBroker]]


@pytest.fixture
async def start_broker() -> AsyncIterator[StartBroker]:
    """`await start_broker(profile, **settings)`: a fake broker that serves this model."""
    brokers: list[FakeBroker] = []

    async def start(profile: ModelProfile, *, engine: dict[str, Any] | None = None, **settings: Any) -> FakeBroker:
        broker = FakeBroker(engine=engine_spec(profile) | (engine or {}), **settings)
        await broker.__aenter__()
        brokers.append(broker)
        return broker

    yield start
    for broker in brokers:
        await broker.__aexit__()


@pytest.fixture
async def start_agent(tmp_path: Path, start_broker: StartBroker) -> AsyncIterator[StartAgent]:
    """`await start_agent(broker, profile, **options)`: a real agent; killed with its engine when the test ends."""
    agents: list[AgentProcess] = []

    async def start(broker: FakeBroker, profile: ModelProfile, **options: Any) -> AgentProcess:
        agent = await AgentProcess.start(tmp_path / f"machine-{len(agents)}", broker, profile, **options)
        agents.append(agent)
        return agent

    yield start
    for agent in agents:
        await agent.close()
