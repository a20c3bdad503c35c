"""The pulse, when nobody feels it."""

from __future__ import annotations

import asyncio
import json
import time

import aiohttp
import pytest

from tests.support.agent_process import scripted_profile, until
from tests.support.fake_broker import request_line
from tests.workers.conftest import StartAgent, StartBroker
from workers.agent.heartbeat import first_patience_s, next_patience_s, pause_s
from workers.agent.leases import HeldLease
from workers.agent.wire import NotNow, Wire

BEAT_S, TTL_S, SILENCE_S = 15.0, 60.0, 60.0  # as the broker sets them by default


async def test_a_heartbeat_on_a_connection_that_hangs_is_given_up_and_the_next_reaches_another_broker() -> None:
    """A broker that is cut off takes the request and says nothing: the second connection comes to one that answers."""
    connections = 0

    async def broker(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        if connections > 1:
            writer.write(
                b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 15\r\n\r\n" + b'{"drain": true}'
            )
        await reader.read()  # until the agent hangs up
        writer.close()

    server = await asyncio.start_server(broker, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with server, aiohttp.ClientSession() as session:
        wire = Wire(session, f"http://127.0.0.1:{port}", "token")
        with pytest.raises(NotNow):
            await wire.heartbeat({}, within_s=0.1)
        assert await wire.heartbeat({}) == {"drain": True}
    assert connections == 2


# as the broker sets it by default, and as a test does: a busy broker is not asked again at once
@pytest.mark.parametrize(("interval_s", "patient_s"), [(15, 15), (0.5, 10)])
def test_a_heartbeat_waits_until_the_next_is_due_and_a_while_at_least(interval_s: float, patient_s: float) -> None:
    assert first_patience_s(interval_s) == patient_s


def waits(answers_after_s: float, heartbeats: int) -> list[tuple[float, bool]]:
    """So long each heartbeat waits for a broker that needs so long for every answer, and whether it is heard."""
    patience, in_vain, found = first_patience_s(BEAT_S), 0, []
    for _ in range(heartbeats):
        heard = answers_after_s < patience
        took = min(answers_after_s, patience)
        found.append((took, heard))
        in_vain = 0 if heard else in_vain + 1
        patience = next_patience_s(BEAT_S, patience, took, heard=heard, in_vain=in_vain)
    return found


@pytest.mark.parametrize(
    ("answers_after_s", "waited"),
    [
        (0.2, [(0.2, True)] * 5),  # a broker at ease
        (14, [(14, True)] * 5),
        (20, [(15, False), (15, False), (20, True), (20, True), (20, True)]),  # one at its limit is heard from then on
        (55, [(15, False), (15, False), (30, False), (55, True), (55, True)]),
        (1e9, [(15, False), (15, False), (30, False), (60, False), (60, False)]),  # none: no longer than other calls
    ],
)
def test_a_broker_that_needs_longer_than_a_beat_is_heard(
    answers_after_s: float, waited: list[tuple[float, bool]]
) -> None:
    assert waits(answers_after_s, 5) == waited


def test_two_connections_in_a_row_that_hang_cost_no_machine() -> None:
    """Of two brokers one is cut off. The other heard the heartbeat before, and gives the worker up 60 s after it."""
    sent_s = [0.0]
    for waited_s, _ in waits(1e9, 2):
        sent_s.append(sent_s[-1] + waited_s + pause_s(BEAT_S))
    assert sent_s[-1] < SILENCE_S - BEAT_S - 5, sent_s  # and the way there


def test_once_the_broker_is_quick_again_a_connection_that_hangs_is_given_up_as_soon_as_before() -> None:
    assert next_patience_s(BEAT_S, 60, 0.3, heard=True, in_vain=0) == BEAT_S


@pytest.mark.parametrize("took_s", [0.0, 14.9])  # refused at once, a connection that broke: that is no slow broker
def test_a_broker_that_is_away_is_not_waited_for_longer(took_s: float) -> None:
    assert next_patience_s(BEAT_S, BEAT_S, took_s, heard=False, in_vain=2) == BEAT_S


def test_however_long_a_heartbeat_waits_its_lease_starts_nothing_once_it_may_be_anothers() -> None:
    lease = HeldLease("shard_1", 1, "nonce", TTL_S, "/v1/chat/completions", "/put", renewed_at=0.0)
    hanging_until = sum(took for took, _ in waits(1e9, 4))
    assert hanging_until > TTL_S
    assert lease.may_start(47.9)
    assert not any(lease.may_start(now) for now in (48.0, TTL_S, hanging_until))


async def test_a_notice_is_told_though_a_heartbeat_hangs(start_broker: StartBroker, start_agent: StartAgent) -> None:
    profile = scripted_profile("--latency", "1", parallel=2)
    broker = await start_broker(profile, part={"lines": 1000, "seconds": 600, "bytes": 100_000_000})
    shard = broker.add_shard([request_line(f"c-{n}", f"say {n}") for n in range(500)])
    agent = await start_agent(broker, profile)
    await until(lambda: shard.in_flight, "work has begun")
    broker.faults["heartbeat"] = ["hang"]
    await until(lambda: not broker.faults["heartbeat"], "a heartbeat hangs")
    (agent.folder / "notice.json").write_text(json.dumps({"at": time.time() + 60}))
    assert await agent.exit_status() == 0, agent.stderr()
    assert [beat["notice_in_s"] for beat in broker.heartbeats if beat["notice_in_s"] is not None]
