"""With one point of enforcement disabled alone, another still keeps a batch's input from a machine that the policy refuses by
the facts known at that moment: from the launch to the lease. What has only one point is counted as such."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import event, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from broker.api import worker
from broker.compliance.tables import DecisionRow
from broker.tables import Policy
from jobs.clock import db_now
from markets import price_book
from tests.support.compliance import SECOND_US, document, in_force
from tests.support.open_door import Unasked
from tests.support.wire_agent import Agent, Rent, offer, running_batch

HOUR_S = 3600

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


# -- what comes between: the release asks of its own moment


def between_grant_and_release(monkeypatch: pytest.MonkeyPatch, act: Callable[[AsyncSession], Awaitable[None]]) -> None:
    """Have `act` done once a lease is granted, before it is asked whether it may go out."""
    released = worker.released

    async def after(session: AsyncSession, *rest: Any) -> bool:
        await act(session)
        return await released(session, *rest)

    monkeypatch.setattr("broker.api.worker.released", after)


async def ready_under(server: Any, rent: Rent, body: str) -> Agent:
    """A machine in Germany that waits for work, under this policy."""
    await market_says(server, "DE")
    await in_force(server, body)
    await running_batch(server, offer())
    agent = await rent()
    assert (await agent.hello()).status == 200
    await agent.heartbeat()
    return agent


async def at_lease(server: Any) -> list[DecisionRow]:
    async with server.services.database.transaction() as session:
        asked = select(DecisionRow).where(col(DecisionRow.point) == "lease").order_by(col(DecisionRow.seq))
        return list(await session.scalars(asked))


async def the_date_comes(session: AsyncSession) -> None:
    session.info["clock_offset_us"] = 2 * HOUR_S * SECOND_US


async def the_listing_moves(session: AsyncSession) -> None:
    lie = offer()
    await price_book.store_offers(session, lie.market, [replace(lie, country="US")], now_us=await db_now(session))


@pytest.mark.parametrize("comes", [the_date_comes, the_listing_moves])
async def test_what_changes_between_grant_and_release_keeps_the_input(
    server: Any, rent: Rent, monkeypatch: pytest.MonkeyPatch, comes: Callable[[AsyncSession], Awaitable[None]]
) -> None:
    """A policy whose date came in between was not in force: the release asked of the moment before the candidates."""
    agent = await ready_under(server, rent, document("DE"))
    from_time = int(time.time()) + HOUR_S
    await in_force(server, document("DE, US" if comes is the_listing_moves else "US", 2), from_time=from_time)
    between_grant_and_release(monkeypatch, comes)
    assert (await agent.lease())["lease"] is None
    assert [each.outcome for each in await at_lease(server)] == ["deny"]


async def test_a_policy_approved_between_grant_and_release_keeps_the_input(
    server: Any, rent: Rent, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The machine got its lease by the policy that had been replaced, sealed after the pin to the new one with an earlier time.
    SQLite has one writer: there the approval is before the lease or after it."""
    agent = await ready_under(server, rent, document("DE"))
    done: list[str] = []

    async def approval(_: AsyncSession | None = None) -> None:
        if not done:
            done.append(await in_force(server, document("US", 2)))

    if server.services.database.is_shared:
        between_grant_and_release(monkeypatch, approval)
    else:
        await approval()
    assert (await agent.lease())["lease"] is None
    assert done
    assert "allow" not in [each.outcome for each in await at_lease(server)]
    async with server.services.database.transaction() as session:
        times = list(await session.scalars(select(col(DecisionRow.at_us)).order_by(col(DecisionRow.seq))))
    assert times == sorted(times)


async def test_policies_that_an_agent_brings_are_stored_at_the_end_and_in_one_order(server: Any, rent: Rent) -> None:
    """Two agents that brought two new policies in opposite orders, each stored as it was met, waited for each other."""
    lists = (["DE"], ["DE", "FR"], ["DE", "NL"], ["DE", "US"])
    agent = await rent(batches=tuple([await running_batch(server, offer(), residency=each) for each in lists]))
    await in_force(server, document("DE"), from_time=int(time.time()) + 60)  # until then nobody is pinned to it
    server.services.database.clock_offset_us += 90 * SECOND_US
    written: list[Any] = []

    def note(_connection: Any, _cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        if statement.startswith("INSERT INTO broker_policy"):
            rows = parameters if isinstance(parameters, list) else [parameters]
            written.append([row["hash"] if isinstance(row, dict) else row[0] for row in rows])
        elif statement.startswith(("INSERT INTO", "UPDATE")):
            written.append(statement.split()[2 if statement.startswith("INSERT") else 1])

    engine = server.services.database.engine.sync_engine
    event.listen(engine, "before_cursor_execute", note)
    assert (await agent.hello()).status == 200
    event.remove(engine, "before_cursor_execute", note)
    (policies,) = (each for each in written if isinstance(each, list))
    assert (len(policies), policies) == (4, sorted(policies))
    after = written[written.index(policies) + 1 :]
    assert set(after) <= {"broker_facts", "ledger_seal", "ledger_seal_head", "broker_decision"}, "all else comes before"
    async with server.services.database.transaction() as session:
        hashes = set(
            await session.scalars(select(col(DecisionRow.policy_hash)).where(col(DecisionRow.point) == "hello"))
        )
        kept = set(await session.scalars(select(col(Policy.hash))))
    assert set(policies) <= hashes - {""} <= kept, "what is sealed names what is kept"


async def test_a_hello_judges_what_the_machine_was_rented_for_and_not_the_queue(server: Any, rent: Rent) -> None:
    """Each hello judged and sealed every batch that waited at its offer: its cost grew with the queue."""
    mine = [await running_batch(server, offer(), residency=["DE"]) for _ in range(2)]
    queued = [await running_batch(server, offer(), residency=["DE"]) for _ in range(3)]
    agent = await rent(batches=tuple(mine))
    assert (await agent.hello()).status == 200
    assert sorted(set(await sealed_for(server, "hello"))) == sorted(mine)
    await agent.heartbeat()
    leased = [(await agent.lease())["lease"]["batch_id"] for _ in range(5)]
    assert set(leased) == {*mine, *queued}
    assert set(await sealed_for(server, "lease")) == {*mine, *queued}, "each is asked of before it is given out"
    assert set(await sealed_for(server, "lease", "address")) == {*mine, *queued}


async def test_a_hello_asks_of_the_queue_until_somebody_allows_the_machine(server: Any, rent: Rent) -> None:
    """What it was rented for may be forbidden there by now, or over: it may still serve others, or nobody."""
    mine = await running_batch(server, offer(), residency=["US"])
    queued = [await running_batch(server, offer(), residency=[each]) for each in ("FR", "DE", "DE")]
    assert (await (await rent(batches=(mine,))).hello()).status == 200
    assert set(await sealed_for(server, "hello", "evaluation")) == {mine, *sorted(queued)[:2]}
    nobodys = offer("FR", sku="fr")
    only = [await running_batch(server, nobodys, residency=["US"]) for _ in range(2)]
    refused = await (await rent(nobodys, batches=(only[0],))).hello()
    assert (refused.status, "all of its 2 batches" in str(refused.json)) == (403, True), refused.raw


async def sealed_for(server: Any, point: str, kind: str | None = None) -> list[str]:
    """The batches of the decisions at this point, in their order."""
    async with server.services.database.transaction() as session:
        asked = select(col(DecisionRow.batch)).where(col(DecisionRow.point) == point).order_by(col(DecisionRow.seq))
        return list(await session.scalars(asked if kind is None else asked.where(col(DecisionRow.kind) == kind)))
