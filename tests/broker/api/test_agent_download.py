"""The agent for machines that are started by a document too small to hold it."""

from __future__ import annotations

from typing import Any

from tests.support.wire_agent import Rent, offer, running_batch
from workers.package import build_agent


async def test_the_agent_is_given_for_the_rentals_unused_token_and_for_nothing_else(server: Any, rent: Rent) -> None:
    batch = await running_batch(server, offer())
    agent = await rent(batches=(batch,))
    path = f"/worker/v1/rentals/{agent.rental}/agent.pyz"
    given = await server.call("GET", path, key=agent.bootstrap)
    assert (given.status, given.raw) == (200, build_agent().content)
    for key in (None, "x" * 64, "admin"):
        assert (await server.call("GET", path, key=key)).status == 401
    assert (await server.call("GET", "/worker/v1/rentals/rental_x/agent.pyz", key=agent.bootstrap)).status == 401
    assert (await agent.hello()).status == 200, "fetching the agent has not used the token up"
    used = await server.call("GET", path, key=agent.bootstrap)
    assert (used.status, used.code) == (401, "bootstrap_used")


async def test_a_token_that_has_expired_fetches_nothing(server: Any, rent: Rent) -> None:
    await running_batch(server, offer())
    agent = await rent()
    server.services.database.clock_offset_us = 901 * 1_000_000
    assert (await server.call("GET", f"/worker/v1/rentals/{agent.rental}/agent.pyz", key=agent.bootstrap)).status == 401
