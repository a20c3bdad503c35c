"""A batch that several profiles may serve: every plan chooses between them until something of it is at a machine."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace
from decimal import Decimal
from typing import Any

import pytest
from sqlalchemy import select, update
from sqlmodel import col

from broker.control.plan import Planner
from broker.control.snapshot import freeze
from broker.control.validate import Validator
from broker.tables import Project
from jobs.clock import db_now
from jobs.tables import Shard
from markets import price_book, rentals
from markets.offer import Accelerator, Offer
from solver.types import Plan, Snapshot, Variant
from tests.support.wire_agent import offer
from workers.profile import ModelProfile

DEAR, CHEAP = Decimal("0.05"), Decimal("0.03")


def profile(name: str, precision: str, accelerator: str, **more: Any) -> ModelProfile:
    return ModelProfile(
        id=name,
        engine="url",
        base_url="http://127.0.0.1:9",
        precision=precision,
        serves="tiny",
        tokens_per_s={accelerator: (40, 4)},
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


class Meanwhile:
    """The solver, while which something happens."""

    def __init__(self, solver: Any, happens: Callable[[], Awaitable[None]]) -> None:
        self.solver, self.happens = solver, happens

    async def solve(self, snapshot: Snapshot) -> Plan:
        plan: Plan = await self.solver.solve(snapshot)
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
