"""The anomaly loop: what is wrong is kept and told once, whoever asks or not, and what people said of it stays."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import select
from sqlmodel import col

from broker.control.accrue import Accruer
from broker.control.anomalies import AnomalyWatch
from broker.finance.tables import AnomalyLabel, AnomalyRow
from broker.leadership import THE_TERM, fence
from broker.tables import Term
from jobs.clock import db_now
from jobs.tables import OutboxEvent
from ledger import book, commitments
from ledger.commitments import HOUR_US, Commitment
from ledger.errors import MalformedEvent
from ledger.event import Dims, Event, Facts, Line
from markets.tables import RentalRow


@pytest.fixture
async def dear(town: Any) -> str:
    """A machine whose hour costs more than the plan was made with."""
    of = town.offer()
    await town.list_offers(of)
    rental = await town.rental(of, purpose=("batch_x",), ran_s=60)
    async with town.database.transaction() as session:
        (await session.get_one(RentalRow, rental)).price_nano_hour *= 8
    return str(rental)


async def test_a_machine_dearer_than_quoted_is_told_once_by_webhook_whoever_asks(town: Any, dear: str) -> None:
    """dstack #1890: a bid of eight times what was shown. It was found only when somebody asked for that day."""
    watch = AnomalyWatch(town.services)
    for _ in range(3):
        await watch.step()
    async with town.database.transaction() as session:
        [row] = (await session.scalars(select(AnomalyRow))).all()
        [event] = (await session.scalars(select(OutboxEvent).where(col(OutboxEvent.kind) == "ledger.anomaly"))).all()
    assert (row.rule, row.scope) == ("charged_above_quote", f"rental:{dear}")
    assert (event.project, event.batch_id, event.payload["id"]) == ("default", row.id, row.id)
    assert event.payload["message"].endswith("its hour costs more than the plan was made with")


async def test_a_leader_finds_them_too(town: Any, dear: str) -> None:
    """On PostgreSQL each transaction of a leader's loop begins with its term; what had to come before that came after, and the
    loop said at every step that it had no database."""
    async with town.database.transaction() as session:
        term = (await session.get_one(Term, THE_TERM)).term
    await AnomalyWatch(replace(town.services, database=town.database.guarded(fence(term)))).step()
    async with town.database.transaction() as session:
        assert [row.scope for row in await session.scalars(select(AnomalyRow))] == [f"rental:{dear}"]


async def test_what_a_person_said_of_an_anomaly_stays_with_it(town: Any, dear: str) -> None:
    await AnomalyWatch(town.services).step()
    async with town.database.transaction() as session:
        [row] = (await session.scalars(select(AnomalyRow))).all()
        session.add(
            AnomalyLabel(id=row.id, label="planned", note="", labelled_us=await db_now(session), labelled_by="ada")
        )
    await AnomalyWatch(town.services).step()
    async with town.database.transaction() as session:
        assert len((await session.scalars(select(AnomalyRow))).all()) == 1
        assert (await session.get_one(AnomalyLabel, row.id)).label == "planned"


async def test_one_commitment_that_cannot_be_booked_stops_neither_the_others_nor_the_meters(
    town: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first that failed ended the round: nothing was amortised any more, and no machine was metered."""
    of = town.offer()
    await town.list_offers(of)
    batch = await town.batch()
    rental = await town.rental(of, purpose=(batch,), ran_s=60)
    async with town.database.transaction() as session:
        now_us = await db_now(session)
        for name in ("bad", "good"):
            await book.post(session, bought(name, now_us), recorded_at_us=now_us)
    whole = commitments.amortise

    async def amortise(session: Any, bought: Commitment, *rest: Any, **more: Any) -> Any:
        if bought.id == "bad":
            raise MalformedEvent("no account")
        return await whole(session, bought, *rest, **more)

    monkeypatch.setattr("broker.control.accrue.amortise", amortise)
    await Accruer(town.services).step()
    entries = await kinds(town)
    assert entries.count("commitment.amortise") == 1
    assert "usage.accrue" in entries, rental


def bought(name: str, now_us: int) -> Event:
    return Event(
        key=f"buy-{name}",
        kind="commitment.buy",
        occurred_at_us=now_us,
        actor="fin",
        dims=Dims(),
        lines=(
            Line(account=f"Assets:Commitments:{name.title()}", nano=10**9),
            Line(account="Liabilities:Payable:Aws", nano=-(10**9)),
        ),
        facts=Facts(commitment=name, market="aws", from_us=now_us - 2 * HOUR_US, until_us=now_us + 2 * HOUR_US),
    )


async def kinds(town: Any) -> list[str]:
    async with town.database.transaction() as session:
        return [each.event.kind for each in await book.entries(session)]
