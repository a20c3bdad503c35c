"""The pulse, when nobody feels it."""

from __future__ import annotations

import asyncio

import aiohttp
import pytest

from workers.agent.heartbeat import patience_s
from workers.agent.wire import NotNow, Wire


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
    assert patience_s(interval_s) == patient_s
