"""The budget tree at work: holds are refused by every node above, thresholds are told once, the breaker stops without loss."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from email.message import EmailMessage
from typing import Any

import pytest
from sqlalchemy import select
from sqlmodel import col

from broker.budget_changes import Wanted, put
from broker.budget_tables import BudgetAlert, BudgetRow, Team, TeamOfProject
from broker.budgets import Placement, admit, projects_in, use_of
from broker.control.accrue import Accruer
from broker.control.budget import BudgetKeeper
from broker.control.plan import Planner
from broker.control.settle import settle
from broker.mail import Letter, message_of
from broker.settings import MailSettings
from broker.tables import Project, Worker
from broker.token_holds import hold_tokens
from broker.tree_moves import Move, limits_left
from jobs.clock import db_now
from jobs.tables import Batch, OutboxEvent
from ledger import audit, limits, seal
from ledger.accrual import Meter, accrue
from ledger.errors import HoldExceeded, LimitExceeded
from ledger.holds import open_hold, void_hold
from ledger.units import NANO_PER_TOKEN
from markets import rentals
from markets.market import Rental

DOLLAR = 10**9


async def budget(town: Any, scope: str, dollars: float, **more: Any) -> str:
    """A budget in USD; project `default` where the scope is below one."""
    project = None if scope.startswith(("org:", "team:")) else "default"
    given = {"per_hour_nano": None, "mode": "enforce", "window": "total", "emails": ("fin@example.com",)} | more
    unit = given.pop("unit", "USD")
    async with town.database.transaction() as session:
        now_us = await db_now(session)
        wanted = Wanted(limit_nano=round(dollars * DOLLAR), **given)
        row, _ = await put(session, scope=scope, unit=unit, project=project, wanted=wanted, by="fin", now_us=now_us)
        return str(row.id)


async def tree(town: Any) -> None:
    async with town.database.transaction() as session:
        session.add(Team(name="ml", org="acme", created_us=1))
        session.add(TeamOfProject(project="default", team="ml"))


async def look(town: Any) -> None:
    await BudgetKeeper(town.services).step()


async def state(town: Any, budget_id: str) -> str:
    return str((await town.row(BudgetRow, budget_id)).state)


async def told(town: Any, kind: str) -> list[dict[str, Any]]:
    async with town.database.transaction() as session:
        query = select(OutboxEvent).where(col(OutboxEvent.kind) == kind).order_by(col(OutboxEvent.number))
        return [event.payload for event in await session.scalars(query)]


async def hold(town: Any, name: str, nano: int, **more: Any) -> bool:
    """A planner's hold: admitted, then opened, in one transaction."""
    try:
        async with town.database.transaction() as session:
            now_us = await db_now(session)
            scopes = await admit(session, Placement("default", (), nano, **more), now_us=now_us)
            await open_hold(session, hold_id=name, nano=nano, project="default", batch=None, rental=name, offer_key=None,
                            occurred_at_us=now_us, actor="planner", scopes=scopes)  # fmt: skip
    except HoldExceeded:
        return False
    return True


@pytest.mark.parametrize("scope", ["org:acme", "team:ml", "project:default"])
async def test_concurrent_planners_never_commit_more_than_any_node_above_has(town: Any, scope: str) -> None:
    """LiteLLM #34732: concurrent requests passed a budget that each of them had read. delm #65: overshoot by what was in
    flight. Twelve planners ask for $1 of $5 at once."""
    await tree(town)
    budget_id = await budget(town, scope, 5)
    held = await asyncio.gather(*(hold(town, f"hold-{number}", DOLLAR) for number in range(12)))
    assert sum(held) == 5
    async with town.database.transaction() as session:
        row = await session.get_one(BudgetRow, budget_id)
        use = await use_of(session, row, await db_now(session))
        assert (use.held_nano, use.limit_nano) == (5 * DOLLAR, 5 * DOLLAR)
        assert await audit.check(session) == []


@pytest.mark.own_writes
async def test_a_budget_is_enforced_on_whatever_level_it_is_attached(town: Any) -> None:
    """LiteLLM #26672: spent 99.10 with max_budget 30, because one way of attaching a budget was never asked."""
    await tree(town)
    await town.list_offers(town.offer())
    batch = await town.batch(lines=5, tags={"task": "sums"})
    for scope in ("org:acme", "team:ml", "project:default", f"batch:{batch}", "tag:default/task=sums"):
        await budget(town, scope, 0.001)
        async with town.database.transaction() as session:
            with pytest.raises(LimitExceeded, match=scope.partition(":")[0]):
                await admit(session, Placement("default", (batch,), DOLLAR), now_us=await db_now(session))
            row = await session.scalar(select(BudgetRow).where(col(BudgetRow.scope) == scope))
            await session.delete(row)


async def test_a_plan_beyond_the_tree_rents_nothing_and_the_batch_says_budget(town: Any) -> None:
    await tree(town)
    await town.list_offers(town.offer())
    await budget(town, "team:ml", 0.0001)
    batch = await town.batch(lines=5)
    await Planner(town.services).step()
    assert await town.intents() == []
    waiting = await town.waiting(batch)
    assert waiting is not None
    assert waiting.waiting_on == "budget"


async def test_what_a_project_moved_away_with_is_given_back_where_it_was_held(town: Any) -> None:
    await tree(town)
    await budget(town, "team:ml", 5)
    assert await hold(town, "h", DOLLAR)
    async with town.database.transaction() as session:
        (await session.get_one(TeamOfProject, "default")).team = "other"
        await void_hold(session, hold_id="h", occurred_at_us=await db_now(session), actor="x")
        assert (await limits.uses(session, "team:ml", "USD"))["held"] == 0
        assert await audit.check(session) == []


@pytest.mark.own_writes
async def test_what_is_charged_without_or_after_a_hold_counts_for_team_and_organisation_too(town: Any) -> None:
    """Late charges counted for the project alone: a leaked machine's, and a final reading that the provider revised."""
    await tree(town)
    now = datetime.now(UTC).replace(microsecond=0)
    leaked = Rental(
        tag="rental_leaked", offer_key=town.offer().key, state="ended", price=Decimal("3.60"), currency="USD",
        started_at=now - timedelta(seconds=60), ended_at=now, seen_at=now, end_reason="released",
    )  # fmt: skip
    async with town.database.transaction() as session:
        now_us = await db_now(session)
        await rentals.record_leaked(session, leaked, None, project="default", now_us=now_us)
        await settle(session, "rental_leaked", now_us=now_us)
    assert await hold(town, "rental_late", DOLLAR)
    async with town.database.transaction() as session:
        await void_hold(session, hold_id="rental_late", occurred_at_us=now_us, actor="x")
        (await session.get_one(TeamOfProject, "default")).team = "other"
        meter = Meter(
            "rental_late", "k", "town", "spot", "default", None, 36 * DOLLAR // 10, now_us, scopes=("team:other",)
        )
        until = now_us + 10 * 1_000_000
        await accrue(session, meter, until_us=until, final=True, actor="x", recorded_at_us=until)
        for scope in ("org:acme", "team:ml", "project:default"):
            assert (await limits.uses(session, scope, "USD"))["all"] == 70 * DOLLAR // 1000, scope
        assert await limits.uses(session, "team:other", "USD") == {}, "it was rented under another team"
        assert await audit.check(session) == []


async def test_each_threshold_is_told_once_whatever_happens_in_between(town: Any) -> None:
    budget_id = await budget(town, "project:default", 10)
    for name, nano in (("a", 4), ("b", 1), ("c", 3), ("d", 2)):
        assert await hold(town, name, nano * DOLLAR)
        await look(town)
        await look(town)
    percents = [(each["threshold"], each["percent"]) for each in await told(town, "budget.threshold")]
    assert percents == [(50, 50), (80, 80), (100, 100)]
    async with town.database.transaction() as session:
        rows = await session.scalars(select(BudgetAlert).where(col(BudgetAlert.budget) == budget_id))
        assert len(rows.all()) == 3


async def test_at_110_percent_machines_drain_and_each_change_is_sealed(town: Any) -> None:
    """What no hold foresaw: the limit came later than the machine. Its worker is asked to finish, and not cut off."""
    of = town.offer()
    await town.list_offers(of)
    batch = await town.batch(lines=5)
    rental = await town.rental(of, purpose=(batch,), ran_s=60)
    await Accruer(town.services).step()
    budget_id = await budget(town, "project:default", 0.05)
    await look(town)
    assert await state(town, budget_id) == "open"
    assert "budget of project:default" in (await town.row(Worker, rental)).drain_reason
    assert not await hold(town, "more", 1)
    async with town.database.transaction() as session:
        sealed = [leaf.payload for leaf in await seal.leaves(session, "decisions")]
    assert b'"from":"closed"' in sealed[0]
    assert b'"to":"open"' in sealed[0]


async def test_a_breaker_that_was_relieved_lets_one_machine_try_before_it_closes(town: Any) -> None:
    budget_id = await budget(town, "project:default", 2)
    assert await hold(town, "a", 2 * DOLLAR)
    await look(town)
    assert await state(town, budget_id) == "throttled"
    async with town.database.transaction() as session:
        row, now_us = await session.get_one(BudgetRow, budget_id), await db_now(session)
        row.limit_nano, row.relieved_us = 9 * DOLLAR, now_us
        await void_hold(session, hold_id="a", occurred_at_us=now_us, actor="x")
    await look(town)
    assert await state(town, budget_id) == "half_open"
    assert await hold(town, "b", DOLLAR)
    assert not await hold(town, "c", DOLLAR), "one at a time"
    async with town.database.transaction() as session:
        await void_hold(session, hold_id="b", occurred_at_us=await db_now(session), actor="x")
    await look(town)
    assert await state(town, budget_id) == "closed"


async def test_alert_only_tells_and_refuses_nothing(town: Any) -> None:
    await budget(town, "project:default", 1, mode="alert_only")
    assert await hold(town, "a", 5 * DOLLAR)
    await look(town)
    assert len(await told(town, "budget.threshold")) == 3


async def test_the_limit_of_an_hour_counts_what_runs_already(town: Any) -> None:
    of = town.offer()  # 3.60 $/h
    await town.list_offers(of)
    batch = await town.batch()
    await town.rental(of, purpose=(batch,), ran_s=1)
    await budget(town, "project:default", 5000, per_hour_nano=7 * DOLLAR)
    assert await hold(town, "a", DOLLAR, price_nano_hour=34 * DOLLAR // 10)
    assert not await hold(town, "b", DOLLAR, price_nano_hour=35 * DOLLAR // 10)


@pytest.mark.own_writes
async def test_a_budget_in_tokens_sets_the_most_that_a_batch_can_use_aside(town: Any) -> None:
    await budget(town, "project:default", 0, unit="MTOKEN")
    batch = await town.batch(lines=5)
    async with town.database.transaction() as session:
        row, now_us = await session.get_one(Batch, batch), await db_now(session)
        with pytest.raises(LimitExceeded, match="100 tokens were asked for"):
            await hold_tokens(session, row, 100, now_us=now_us, actor="x")
        found = await session.scalar(select(BudgetRow))
        found.limit_nano = 150 * NANO_PER_TOKEN
        await hold_tokens(session, row, 100, now_us=now_us, actor="x")
        row.status, row.used_input_tokens, row.used_output_tokens = "completed", 30, 40
    await look(town)
    async with town.database.transaction() as session:
        used = await limits.uses(session, "project:default", "MTOKEN")
        assert (used["held"], used["all"]) == (0, 70 * NANO_PER_TOKEN)
        assert await audit.check(session) == []


def test_a_letter_keeps_its_id_and_no_line_break_makes_a_header() -> None:
    letter = Letter(("a@example.com",), "x\r\nBcc: b@example.com", "text", "budget_1.all.50")
    message = message_of(MailSettings(host="localhost", sender="broker@example.com"), letter)
    assert isinstance(message, EmailMessage)
    assert message["Subject"] == "x Bcc: b@example.com"
    assert message["Bcc"] is None
    assert message["Message-ID"] == "<budget_1.all.50@example.com>"


class Mailbox:
    """A mail server on loopback: takes what it is sent, and refuses addresses that begin with `refused`."""

    def __init__(self) -> None:
        self.taken: list[str] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 here\r\n")
        to = ""
        while line := (await reader.readline()).decode().strip():
            verb = line[:4].upper()
            if verb == "RCPT":
                to = line.partition("<")[2].rstrip(">")
            if verb == "DATA":
                writer.write(b"354 go on\r\n")
                await reader.readuntil(b"\r\n.\r\n")
                self.taken.append(to)
            is_refused = verb == "RCPT" and to.startswith("refused")
            writer.write(
                b"550 no such mailbox\r\n" if is_refused else b"221 bye\r\n" if verb == "QUIT" else b"250 ok\r\n"
            )
            if verb == "QUIT":
                break
        writer.close()


async def test_one_address_that_is_not_taken_silences_no_other_budgets_mail(town: Any) -> None:
    """The first letter that failed ended the round, each time anew: an address with a line break, or one the server refuses."""
    mailbox = Mailbox()
    server = await asyncio.start_server(mailbox.serve, "127.0.0.1", 0)
    mail = MailSettings(
        host="127.0.0.1", port=server.sockets[0].getsockname()[1], sender="b@example.com", starttls=False
    )
    services = replace(town.services, settings=town.services.settings.model_copy(update={"mail": mail}))
    await tree(town)
    emails = ("broken@example.com\nBcc: x@example.com",), ("refused@example.com",), ("fin@example.com",)
    for scope, to in zip(("org:acme", "team:ml", "project:default"), emails, strict=True):
        await budget(town, scope, 10, emails=to)
    assert await hold(town, "a", 6 * DOLLAR)
    async with server:
        await BudgetKeeper(services).step()
        await BudgetKeeper(services).step()
    assert mailbox.taken == ["fin@example.com"], "once"


async def test_a_project_without_a_team_is_under_the_organisations_limit(town: Any) -> None:
    """Nodes above it were none: what nobody had put in a team yet spent past the limit of all."""
    async with town.database.transaction() as session:
        session.add(Team(name="ml", org="acme", created_us=1))
        session.add(Team(name="guests", org="other", created_us=2))
        session.add(Project(id="default", name="default", created_us=1))
    budget_id = await budget(town, "org:acme", 2)
    await budget(town, "org:other", 0)
    async with town.database.transaction() as session:
        with pytest.raises(LimitExceeded, match="org:acme"):
            await admit(session, Placement("default", (), 3 * DOLLAR), now_us=await db_now(session))
        assert await projects_in(session, await session.get_one(BudgetRow, budget_id)) == ["default"]
    assert await hold(town, "h", DOLLAR)
    async with town.database.transaction() as session:
        assert (await limits.uses(session, "org:acme", "USD"))["held"] == DOLLAR
        assert await limits_left(session, Move("project:default", None, "guests")) == ("org:acme",), "a second person"
        assert await limits_left(session, Move("project:default", None, "ml")) == ()
