"""Holds and budgets: set aside first, resolve once, never overcommit."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy.ext.asyncio import AsyncSession

from broker.database import Database
from ledger import audit, budgets, holds
from ledger.book import balances, entries, post
from ledger.errors import HoldExceeded, HoldResolved, HoldUnknown, KeyReused, LedgerError, MalformedEvent
from ledger.event import Dims, Event, Exists, Line, Posted

NOW = 1_795_305_600_000_000


async def grant(session: AsyncSession, nano: int, *, project: str = "demo", grant_id: str = "g1") -> Posted | Exists:
    return await budgets.grant(
        session, grant_id=grant_id, project=project, nano=nano, occurred_at_us=NOW, actor="finance"
    )


async def open_hold(session: AsyncSession, hold_id: str, nano: int, *, project: str = "demo") -> Posted | Exists:
    return await holds.open_hold(
        session,
        hold_id=hold_id,
        nano=nano,
        project=project,
        batch="batch_1",
        rental=f"rental_{hold_id}",
        offer_key="sandbox/eu/-/a/cpu/0/spot",
        occurred_at_us=NOW,
        actor="broker",
    )


async def extend(session: AsyncSession, hold_id: str, nano: int, sequence: int = 1) -> Posted | Exists:
    return await holds.extend_hold(
        session, hold_id=hold_id, add_nano=nano, sequence=sequence, occurred_at_us=NOW, actor="broker"
    )


async def void(session: AsyncSession, hold_id: str, at_us: int = NOW) -> Posted | Exists:
    return await holds.void_hold(session, hold_id=hold_id, occurred_at_us=at_us, actor="broker")


async def test_a_hold_takes_from_the_budget_and_gives_the_whole_remainder_back(books: Database) -> None:
    async with books.transaction() as session:
        await grant(session, 100)
        await open_hold(session, "h1", 60)
        assert await budgets.remaining(session, "demo") == 40
        await extend(session, "h1", 15)
        assert await budgets.remaining(session, "demo") == 25
        found = await holds.hold(session, "h1")
        assert found is not None
        assert (found.nano, found.remaining_nano, found.rental, found.resolved) == (75, 75, "rental_h1", None)
        assert await holds.open_holds(session, project="demo") == [found]
        await void(session, "h1")
        assert await budgets.remaining(session, "demo") == 100
        assert await holds.open_holds(session) == []
        resolved = await holds.hold(session, "h1")
        assert resolved is not None and (resolved.nano, resolved.remaining_nano, resolved.resolved) == (75, 0, "void")


async def test_a_hold_beyond_the_budget_is_refused_and_writes_nothing(books: Database) -> None:
    async with books.transaction() as session:
        await grant(session, 100)
        await open_hold(session, "h1", 100)
        with pytest.raises(HoldExceeded, match=r"asks for \$0\.000000001, project demo has \$0 left"):
            await open_hold(session, "h2", 1)
        with pytest.raises(HoldExceeded):
            await extend(session, "h1", 1)
        assert len(await entries(session)) == 2


async def test_there_is_one_enforcement_path_also_for_events_posted_by_hand(books: Database) -> None:
    """LiteLLM #26672: 99.10 spent with a budget of 30, because one way of attaching a budget was not enforced."""
    by_hand = Event(
        key="replayed-from-a-file",
        kind="hold.open",
        occurred_at_us=NOW,
        actor="replay",
        dims=Dims(project="demo"),
        lines=(Line(account="Memo:Held:Demo", nano=101), Line(account="Memo:Budget:Demo", nano=-101)),
        hold="h1",
    )
    async with books.transaction() as session:
        await grant(session, 100)
        with pytest.raises(HoldExceeded):
            await post(session, by_hand, recorded_at_us=NOW)


async def test_a_project_without_a_grant_has_no_limit_and_others_budgets_do_not_count(books: Database) -> None:
    async with books.transaction() as session:
        await grant(session, 5, project="poor")
        await open_hold(session, "h1", 10**15, project="rich")
        assert await budgets.remaining(session, "rich") is None
        assert await budgets.remaining(session, "poor") == 5


async def test_a_second_grant_adds_to_the_first_and_a_repeated_one_does_not(books: Database) -> None:
    async with books.transaction() as session:
        await grant(session, 100)
        assert isinstance(await grant(session, 100), Exists)
        assert await budgets.remaining(session, "demo") == 100
        await grant(session, 20, grant_id="g2")
        assert await budgets.remaining(session, "demo") == 120
        with pytest.raises(KeyReused):
            await grant(session, 200)


async def test_a_hold_is_resolved_exactly_once(books: Database) -> None:
    async with books.transaction() as session:
        await open_hold(session, "h1", 60)
        first = await void(session, "h1")
        assert await void(session, "h1") == Exists(entry_id=first.entry_id, seq=first.seq)
        with pytest.raises(HoldResolved):
            await void(session, "h1", at_us=NOW + 1)
        with pytest.raises(HoldResolved):
            await extend(session, "h1", 5)
        assert len(await entries(session)) == 2


async def test_a_hold_that_expired_cannot_be_voided(books: Database) -> None:
    expiry = Event(
        key="hold.expire:h1",
        kind="hold.expire",
        occurred_at_us=NOW,
        actor="broker",
        dims=Dims(project="demo"),
        lines=(Line(account="Memo:Budget:Demo", nano=60), Line(account="Memo:Held:Demo", nano=-60)),
        hold="h1",
    )
    async with books.transaction() as session:
        await open_hold(session, "h1", 60)
        await post(session, expiry, recorded_at_us=NOW)
        with pytest.raises(HoldResolved, match="expire"):
            await void(session, "h1")


async def test_a_resolution_that_keeps_something_back_is_refused(books: Database) -> None:
    partly = Event(
        key="hold.void:h1",
        kind="hold.void",
        occurred_at_us=NOW,
        actor="broker",
        dims=Dims(project="demo"),
        lines=(Line(account="Memo:Budget:Demo", nano=59), Line(account="Memo:Held:Demo", nano=-59)),
        hold="h1",
    )
    async with books.transaction() as session:
        await open_hold(session, "h1", 60)
        with pytest.raises(MalformedEvent, match="59 of the 60"):
            await post(session, partly, recorded_at_us=NOW)


async def test_what_was_never_opened_is_unknown(books: Database) -> None:
    async with books.transaction() as session:
        assert await holds.hold(session, "h9") is None
        with pytest.raises(HoldUnknown):
            await void(session, "h9")
        with pytest.raises(HoldUnknown):
            await extend(session, "h9", 5)


async def test_a_hold_cannot_be_opened_again_after_it_was_resolved(books: Database) -> None:
    async with books.transaction() as session:
        await open_hold(session, "h1", 60)
        await void(session, "h1")
        assert isinstance(await open_hold(session, "h1", 60), Exists)  # a late retry of the first opening
        with pytest.raises(KeyReused):
            await open_hold(session, "h1", 61)


@pytest.mark.parametrize("nano", [0, -1])
async def test_grants_holds_and_extensions_are_positive(books: Database, nano: int) -> None:
    async with books.transaction() as session:
        await open_hold(session, "h1", 60)
        with pytest.raises(MalformedEvent):
            await open_hold(session, "h2", nano)
        with pytest.raises(MalformedEvent):
            await extend(session, "h1", nano)
        with pytest.raises(MalformedEvent):
            await grant(session, nano)


async def test_concurrent_holds_never_overcommit_the_budget(books: Database) -> None:
    """LiteLLM #34732: concurrent requests all passed a budget check before any of them was counted."""
    asked = [7 + number % 5 for number in range(24)]
    async with books.transaction() as session:
        await grant(session, 100)

    async def place(number: int) -> int:
        try:
            async with books.transaction() as session:
                await open_hold(session, f"h{number}", asked[number])
                await asyncio.sleep(0)  # others run while this transaction is open
        except HoldExceeded:
            return 0
        return asked[number]

    got = await asyncio.gather(*(place(number) for number in range(len(asked))))
    async with books.transaction() as session:
        left = await budgets.remaining(session, "demo")
        assert left == 100 - sum(got)
        assert 0 <= left < max(asked)  # all that fits was given
        assert sum(found.remaining_nano for found in await holds.open_holds(session)) == sum(got)


COMMANDS = st.lists(
    st.one_of(
        st.tuples(st.just("grant"), st.integers(0, 2), st.integers(1, 50)),
        st.tuples(st.just("open"), st.integers(0, 4), st.integers(1, 60)),
        st.tuples(st.just("extend"), st.integers(0, 4), st.integers(1, 30)),
        st.tuples(st.just("void"), st.integers(0, 4), st.just(0)),
    ),
    max_size=18,
)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(commands=COMMANDS)
async def test_the_budget_is_what_was_granted_less_what_is_held_and_never_below_zero(
    scratch: Any, commands: list[tuple[str, int, int]]
) -> None:
    """Any commands in any order, refused ones included; the model is three dictionaries."""
    granted: dict[int, int] = {}
    held: dict[int, int] = {}
    resolved: set[int] = set()
    async with scratch() as session:
        for command, number, nano in commands:
            try:
                outcome = await _deliver(session, command, number, nano)
            except LedgerError:
                outcome = None
            if isinstance(outcome, Posted):
                if command == "grant":
                    granted[number] = nano
                elif command == "void":
                    resolved.add(number)
                    held.pop(number)
                else:
                    assert number not in resolved
                    held[number] = held.get(number, 0) + nano
            left = await budgets.remaining(session, "demo")
            assert left == (sum(granted.values()) - sum(held.values()) if granted else None)
            found = await holds.open_holds(session, project="demo")
            assert {hold.id: hold.remaining_nano for hold in found} == {f"h{n}": nano for n, nano in held.items()}
            # Below zero only by what was held while there was no budget yet.
            if left is not None and left < 0:
                assert not isinstance(outcome, Posted) or command in ("grant", "void")
        assert await audit.check(session) == []
        assert sum(balance.nano for balance in await balances(session)) == 0


async def _deliver(session: AsyncSession, command: str, number: int, nano: int) -> Posted | Exists:
    if command == "grant":
        return await grant(session, nano, grant_id=f"g{number}")
    if command == "open":
        return await open_hold(session, f"h{number}", nano)
    if command == "extend":
        return await extend(session, f"h{number}", nano, sequence=nano)
    return await void(session, f"h{number}")
