"""A batch that several profiles may serve: every plan chooses between them until something of it is at a machine."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from decimal import Decimal
from typing import Any

import pytest
from sqlalchemy import event, select, text, update
from sqlmodel import col

from broker.budget_changes import Wanted, put
from broker.control import snapshot
from broker.control.plan import Planner
from broker.control.snapshot import freeze
from broker.control.validate import Validator
from broker.control.what_if import ask
from broker.tables import Approval, Assignment, Project, Quote, Waiting
from jobs.clock import db_now
from jobs.tables import Batch, Shard
from jobs.transitions import locked
from markets import price_book, rentals
from markets.offer import Accelerator, Offer
from solver.types import Held, Plan, Snapshot, Variant
from solver.what_if import WhatIf
from tests.support.databases import DIALECT
from tests.support.wire_agent import offer
from workers.profile import ModelProfile

DEAR, CHEAP = Decimal("0.05"), Decimal("0.03")


def profile(name: str, precision: str, accelerator: str, speed: int = 4, **more: Any) -> ModelProfile:
    return ModelProfile(
        id=name,
        engine="url",
        base_url="http://127.0.0.1:9",
        precision=precision,
        serves="tiny",
        tokens_per_s={accelerator: (10 * speed, speed)},
        **more,
    )


@pytest.fixture
async def waits(server: Any) -> Any:
    """`tiny` on the one machine, `tiny@fp8` on the other; both are sold out, and `batch` began with the first. Returns
    `prices(one, other)`, which lists the machines that have a price as free."""
    for each in (profile("tiny", "bf16", "cpu"), profile("tiny@fp8", "fp8", "L4")):
        server.services.models[each.id] = each
    server.services.markets["sandbox"] = None  # it is never asked here: no rental is made

    async def prices(one: Decimal | None, other: Decimal | None) -> None:
        small = Accelerator(kind="nvidia", name="L4", memory_mib=23_034, count=1)
        machines = offer(), replace(offer(sku="L4"), accelerator=small)
        listed: list[Offer] = [
            replace(each, price=price or DEAR, capacity=0 if price is None else 1)
            for each, price in zip(machines, (one, other), strict=True)
        ]
        async with server.services.database.transaction() as session:
            await price_book.store_offers(session, "sandbox", listed, now_us=await db_now(session))

    await prices(None, None)
    return prices


async def begun(server: Any, **wishes: Any) -> str:
    batch = await server.new_batch(x_broker=wishes)
    await Validator(server.services).step()
    return str(batch["id"])


async def state(server: Any, batch: str) -> tuple[str, list[str]]:
    """Which profile serves it, and those of the machines that are intended or there."""
    seen = (await server.call("GET", f"/v1/batches/{batch}")).json["x_broker"]
    async with server.services.database.transaction() as session:
        return seen["served_model"], [row.model for row in await rentals.open_rentals(session)]


async def alternatives(server: Any) -> list[tuple[Variant, ...]]:
    async with server.services.database.transaction() as session:
        frozen = await freeze(session, server.services, now_us=await db_now(session))
    return [work.alternatives for work in frozen.snapshot.works]


async def test_the_plan_takes_the_profile_whose_machine_is_cheaper_and_says_why(server: Any, waits: Any) -> None:
    batch = await begun(server)
    assert await state(server, batch) == ("tiny", [])
    await waits(DEAR, CHEAP)
    await Planner(server.services).step()
    assert await state(server, batch) == ("tiny@fp8", ["tiny@fp8"])
    told = (await server.call("GET", f"/v1/batches/{batch}/explain")).json
    chosen = {each["profile"]: each for each in told["variants"]}
    assert {name: each["chosen"] for name, each in chosen.items()} == {"tiny": False, "tiny@fp8": True}
    assert "tiny@fp8 (fp8) on" in chosen["tiny@fp8"]["sentence"]
    assert " instead of tiny (bf16) on" in chosen["tiny@fp8"]["sentence"]
    assert Decimal(chosen["tiny"]["usd"]) > Decimal(chosen["tiny@fp8"]["usd"])


async def test_a_batch_keeps_its_profile_once_a_machine_was_rented_for_it(server: Any, waits: Any) -> None:
    batch = await begun(server)
    await waits(None, DEAR)
    planner = Planner(server.services)
    await planner.step()
    await waits(CHEAP, DEAR)
    await planner.step()
    assert await state(server, batch) == ("tiny@fp8", ["tiny@fp8"])
    assert await alternatives(server) == [()]


async def test_a_batch_of_which_a_line_was_leased_has_no_alternatives(server: Any, waits: Any) -> None:
    batch = await begun(server)
    assert await alternatives(server) == [(Variant(model="tiny@fp8", precision="fp8"),)]
    async with server.services.database.transaction() as session:
        await session.execute(update(Shard).where(col(Shard.batch_id) == batch).values(epoch=1))
    assert await alternatives(server) == [()]


@pytest.mark.parametrize("wishes", [{"precision": ["bf16"]}, {"engine_profile": "tiny"}, {"reuse": True}])
async def test_what_the_submitter_did_not_allow_is_no_alternative(
    server: Any, waits: Any, wishes: dict[str, Any]
) -> None:
    """Nor where earlier answers are reused, whose model is pinned. However cheap the other machine is."""
    batch = await begun(server, **wishes)
    assert await alternatives(server) == [()]
    await waits(None, CHEAP)
    await Planner(server.services).step()
    assert await state(server, batch) == ("tiny", [])


@pytest.mark.parametrize(("max_usd", "is_free"), [(None, False), ("2", False), ("0.5", True)])
async def test_where_a_second_person_might_have_to_approve_the_plan_does_not_choose(
    server: Any, waits: Any, max_usd: str | None, is_free: bool
) -> None:
    batch = await begun(server, **({} if max_usd is None else {"max_usd": max_usd}))
    async with server.services.database.transaction() as session:
        project = await session.scalar(select(Project).where(col(Project.id) == "default"))
        project.approve_above_nano = 1_000_000_000
    assert [bool(each) for each in await alternatives(server)] == [is_free]
    await waits(None, CHEAP)
    await Planner(server.services).step()
    assert await state(server, batch) == (("tiny@fp8", ["tiny@fp8"]) if is_free else ("tiny", []))


@pytest.mark.parametrize(
    ("quoted_nano", "max_usd", "is_free"),
    [
        (2_000_000_000, None, False),  # whoever approved $2 has not approved anything
        (2_000_000_000, "3", False),
        (2_000_000_000, "2", True),
        (None, None, True),  # who approved it knew that nobody could say what it costs
    ],
)
async def test_an_approval_is_of_what_its_approver_was_told(
    server: Any, waits: Any, quoted_nano: int | None, max_usd: str | None, is_free: bool
) -> None:
    """A dearer profile was free for what had been approved at the quote of a cheap one."""
    batch = await begun(server, **({} if max_usd is None else {"max_usd": max_usd}))
    async with server.services.database.transaction() as session:
        now_us = await db_now(session)
        await session.execute(update(Quote).where(col(Quote.batch) == batch).values(cost_nano=quoted_nano))
        project = await session.scalar(select(Project).where(col(Project.id) == "default"))
        project.approve_above_nano = 1_000_000_000
        who = {"kind": "batch", "subject": batch, "project": "default", "reason": "dear", "proposer": "a"}
        session.add(Approval(id="approval_1", created_us=now_us, outcome="approved", decided_by="b", **who))
    assert [bool(each) for each in await alternatives(server)] == [is_free]


class Meanwhile:
    """The solver, while which something happens."""

    def __init__(self, solver: Any, happens: Callable[[], Awaitable[None]]) -> None:
        self.solver, self.happens = solver, happens

    async def solve(self, asked: Snapshot) -> Plan:
        plan: Plan = await self.solver.solve(asked)
        await self.happens()
        return plan


async def test_a_choice_is_not_carried_out_for_a_batch_that_began_while_it_was_planned(
    server: Any, waits: Any, monkeypatch: Any
) -> None:
    """A lease of the other profile in between: two models would have answered one batch."""
    batch = await begun(server)
    await waits(DEAR, CHEAP)

    async def leased() -> None:
        async with server.services.database.transaction() as session:
            await session.execute(update(Shard).where(col(Shard.batch_id) == batch).values(epoch=1))

    services = replace(server.services, solver=Meanwhile(server.services.solver, leased))
    await Planner(services).step()
    assert await state(server, batch) == ("tiny", [])
    await Planner(server.services).step()
    assert await state(server, batch) == ("tiny", ["tiny"])


async def waiting(server: Any, batch: str) -> str | None:
    """What the plan says that a batch waits on."""
    async with server.services.database.transaction() as session:
        row = await session.get(Waiting, batch)
        return None if row is None else str(row.waiting_on)


async def test_a_choice_that_was_lost_leaves_the_batch_the_reason_that_it_waits_for(server: Any, waits: Any) -> None:
    """Its row was deleted, as if it had a place: then no plan had ever looked at it."""
    batch = await begun(server)
    planner = Planner(server.services)
    await planner.step()
    assert await waiting(server, batch) == "capacity"
    await waits(DEAR, CHEAP)

    async def leased() -> None:
        async with server.services.database.transaction() as session:
            await session.execute(update(Shard).where(col(Shard.batch_id) == batch).values(epoch=1))

    await Planner(replace(server.services, solver=Meanwhile(server.services.solver, leased))).step()
    assert await waiting(server, batch) == "capacity"


async def test_a_choice_whose_machine_was_refused_is_leased_by_no_machine_of_the_old_profile(
    server: Any, rent: Any
) -> None:
    """By fp8 on a new machine it costs $0.0007, by the machine that is there, at the same offer, $0.0545: while it waited for the
    money of the former, the latter took it."""
    server.services.models["tiny"] = profile("tiny", "auto", "cpu")
    place = replace(offer(), capacity=3, price=DEAR)
    async with server.services.database.transaction() as session:
        await price_book.store_offers(session, "sandbox", [place], now_us=await db_now(session))
    big = (await server.new_batch(lines=1500))["id"]
    small = (await server.new_batch(lines=3, x_broker={"precision": ["auto"]}))["id"]
    for _ in range(2):
        await Validator(server.services).step()
    agent = await rent(place, batches=(small,))
    await agent.hello()
    await agent.heartbeat()
    server.services.models["tiny@fp8"] = profile("tiny@fp8", "fp8", "cpu", speed=400)
    wanted = Wanted(1000 * 10**9, 1, "enforce", "total", ())
    async with server.services.database.transaction() as session:
        now_us = await db_now(session)
        await put(session, scope="project:default", unit="USD", project="default", wanted=wanted, by="f", now_us=now_us)
    planner = Planner(server.services)
    await planner.step()
    assert planner.plan is not None and [each.model for each in planner.plan.starts] == ["tiny@fp8"]
    async with server.services.database.transaction() as session:
        assert list(await session.scalars(select(col(Assignment.batch)))) == [small]
    assert await waiting(server, big) == "budget"
    assert (await agent.lease())["lease"]["batch_id"] == small


async def test_a_plan_that_gives_a_batch_another_profile_meets_whoever_ends_batches_in_no_ring(
    server: Any, waits: Any
) -> None:
    """The plan locked those that wait, then those that it gives another profile: with the latter locked by the tick, which goes
    on to the former, PostgreSQL ended one of the two."""
    chosen, waiter = sorted([await begun(server), await begun(server)])
    await waits(DEAR, CHEAP)
    database, has_begun = server.services.database, asyncio.Event()
    async with database.transaction() as session:
        await session.merge(Waiting(batch=waiter, plan="p", waiting_on="x", reasons=[], relaxations=[], since_us=1))

    async def tick() -> None:
        async with database.transaction() as session:
            await locked(session, chosen)
            has_begun.set()
            while DIALECT == "postgresql" and not await waits_for_lock():  # noqa: ASYNC110
                await asyncio.sleep(0.01)  # on SQLite the plan waits at its beginning
            await locked(session, waiter)

    async def waits_for_lock() -> bool:
        async with database.transaction() as session:  # its own, for PostgreSQL reads the activity once in each
            return bool(await session.scalar(text(WAITERS)))

    ticks = []

    async def begin_tick() -> None:
        ticks.append(asyncio.create_task(tick()))
        await has_begun.wait()

    await Planner(replace(server.services, solver=Meanwhile(server.services.solver, begin_tick))).step()
    await ticks[0]
    async with database.transaction() as session:
        assert set(await session.scalars(select(col(Batch.model)))) == {"tiny@fp8"}


ASKS = "language: 1\npolicy: p\nversion: 1\nrules:\n  - {id: a, effect: allow, when: {model: [tiny]}}\n"


async def test_a_policy_that_is_asked_about_is_told_what_each_profile_is(server: Any, waits: Any) -> None:
    """Only of the batch's own model anything was known: by the policy in question no other profile could serve it."""
    await begun(server)
    answer = await ask(server.services, WhatIf(policies={"*": ASKS}))
    [work] = answer.snapshot.works
    assert [each.facts and each.facts.name for each in work.alternatives] == ["tiny"]


async def test_a_queue_is_large_by_what_may_serve_its_works_and_is_then_planned_from_the_plan_before(
    server: Any, waits: Any, monkeypatch: Any
) -> None:
    """The works were counted, not their variants: the planner planned by classes, and anew each time, so machines changed."""
    batch = await begun(server)
    monkeypatch.setattr(snapshot, "SMALL", 2)  # one work, two variants, two offers
    before = Held(work_id=batch, offer_key="any", share_ppm=1_000_000)
    async with server.services.database.transaction() as session:
        frozen = await freeze(session, server.services, now_us=await db_now(session), held=(before,))
    assert frozen.snapshot.held == (before,)


async def test_quotes_are_read_before_the_head_of_the_books_is_locked(server: Any, waits: Any) -> None:
    """One query for each batch that changed its profile, while every hold of the house waited: 0.4 s of 400 batches."""
    both = [await begun(server), await begun(server)]
    await waits(DEAR, CHEAP)
    read = list[str]()

    def executes(_connection: Any, statement: Any, *_: Any) -> None:
        words = str(statement)
        read.extend(each for each in ("ledger_head", "broker_quote") if f"FROM {each}" in words)

    engine = server.services.database.engine.sync_engine
    event.listen(engine, "before_execute", executes)
    await Planner(server.services).step()
    event.remove(engine, "before_execute", executes)
    assert [(await state(server, batch))[0] for batch in both] == ["tiny@fp8"] * 2
    assert read.count("broker_quote") == 1 and read.index("broker_quote") < read.index("ledger_head")


WAITERS = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
