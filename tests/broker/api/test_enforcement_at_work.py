"""With one point of enforcement disabled alone, another still keeps a batch's input from a machine that the policy refuses by
the facts known at that moment: from the launch to the lease. What has only one point is counted as such."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from jobs.clock import db_now
from markets import price_book
from tests.support.open_door import Unasked
from tests.support.wire_agent import Agent, Rent, offer, running_batch

# Before input is given out, whatever is disabled: another point. An existing lease has its heartbeat alone.
POINTS = ("launch", "hello", "candidates", "release")


async def market_says(server: Any, country: str) -> None:
    lie = offer()
    async with server.services.database.transaction() as session:
        told = [replace(lie, country=country)]
        await price_book.store_offers(session, lie.market, told, now_us=await db_now(session))


def disable(monkeypatch: pytest.MonkeyPatch, point: str, server: Any) -> None:
    async def nothing(*_: Any) -> None:
        return None

    async def everything(session: Any, services: Any, rental: Any, now_us: int) -> Any:
        from broker.worker_pool import pool  # noqa: PLC0415

        return Unasked(each.id for each in await pool(session, rental))

    async def yes(*_: Any) -> bool:
        return True

    match point:
        case "hello":
            monkeypatch.setattr("broker.api.worker.refusal", nothing)
        case "candidates":
            monkeypatch.setattr("broker.api.worker.candidates", everything)
        case "release":
            monkeypatch.setattr("broker.api.worker.released", yes)
        case "heartbeat":
            monkeypatch.setattr("broker.api.worker.still_allowed", yes)


async def gets_input(agent: Agent, *, greeted: bool) -> bool:
    """Whether the machine is given any of a batch's input."""
    if not greeted and (await agent.hello()).status != 200:
        return False
    await agent.heartbeat()
    return (await agent.lease())["lease"] is not None


@pytest.mark.parametrize("greeted", [False, True], ids=["lies until it has started", "lies until it has said hello"])
@pytest.mark.parametrize("point", POINTS)
async def test_with_one_point_disabled_another_keeps_the_input(
    server: Any, rent: Rent, monkeypatch: pytest.MonkeyPatch, point: str, greeted: bool
) -> None:
    """`rent` passes the launch's check by: what comes after has to do without it in every case."""
    await market_says(server, "DE")
    await running_batch(server, offer(), residency=["DE"])
    agent = await rent()
    if greeted:
        assert (await agent.hello()).status == 200
    await market_says(server, "US")
    disable(monkeypatch, point, server)
    assert not await gets_input(agent, greeted=greeted)


async def test_with_all_of_them_disabled_the_input_would_be_given_out(
    server: Any, rent: Rent, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So the tests above prove the points and not the circumstances."""
    await market_says(server, "DE")
    await running_batch(server, offer(), residency=["DE"])
    agent = await rent()
    await market_says(server, "US")
    for point in POINTS:
        disable(monkeypatch, point, server)
    assert await gets_input(agent, greeted=False)


async def test_a_lease_that_runs_has_one_point_of_its_own(
    server: Any, rent: Rent, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The heartbeat ends it. Without it the lease goes on until the plan drains the machine: this is the one that is alone."""
    await market_says(server, "DE")
    await running_batch(server, offer(), residency=["DE"])
    agent = await rent()
    await agent.hello()
    await agent.heartbeat()
    lease = (await agent.lease())["lease"]
    held = {name: lease[name] for name in ("shard_id", "epoch", "nonce")} | {"in_flight": [], "suspects": {}}
    await market_says(server, "US")
    with monkeypatch.context() as patched:
        disable(patched, "heartbeat", server)
        assert (await agent.heartbeat(leases=[held])).json["lost"] == []
    assert (await agent.heartbeat(leases=[held])).json["lost"] == [lease["shard_id"]]
    assert (await agent.lease())["lease"] is None
