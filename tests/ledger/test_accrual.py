"""Accrual: closed increments while it runs, the invoice's amount at the end, each second once."""

from __future__ import annotations

import dataclasses
from decimal import ROUND_HALF_EVEN, Decimal
from fractions import Fraction
from math import ceil
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy.ext.asyncio import AsyncSession

from broker.database import Database
from ledger import audit, budgets, holds
from ledger.accrual import Meter, accrue, billed_seconds, read_meter
from ledger.book import balances, entries, post
from ledger.errors import MalformedEvent, UnknownAccount
from ledger.event import Dims, Event, Exists, Line, Posted
from ledger.money import cost_of_seconds, from_nano, to_nano
from markets import meter as sandbox_meter

START = 1_795_305_600_000_000
SECOND = 1_000_000
METER = Meter(
    rental="rental_1",
    offer_key="sandbox/eu/-/a/cpu/0/spot",
    market="sandbox",
    pricing="spot",
    project="demo",
    batch="batch_1",
    price_nano_hour=3_600 * 1_000,  # 1,000 nano-USD a second
    started_us=START,
)


async def accrue_at(
    session: AsyncSession, seconds: float, *, final: bool = False, meter: Meter = METER
) -> Posted | Exists | None:
    until_us = START + round(seconds * SECOND)
    return await accrue(session, meter, until_us=until_us, final=final, actor="broker", recorded_at_us=until_us)


async def open_hold(session: AsyncSession, nano: int, hold_id: str = "h1") -> None:
    await holds.open_hold(
        session,
        hold_id=hold_id,
        nano=nano,
        project="demo",
        batch="batch_1",
        rental="rental_1",
        offer_key=METER.offer_key,
        occurred_at_us=START,
        actor="broker",
    )


async def void(session: AsyncSession, hold_id: str = "h1") -> None:
    await holds.void_hold(session, hold_id=hold_id, occurred_at_us=START, actor="broker")


async def expenses(session: AsyncSession) -> int:
    return sum(balance.nano for balance in await balances(session) if balance.account.startswith("Expenses:"))


async def owed(session: AsyncSession) -> int:
    return -sum(balance.nano for balance in await balances(session) if balance.account == "Liabilities:Accrued:Sandbox")


def invoice_nano(price_usd_hour: Decimal, elapsed_us: int, granularity_s: int, minimum_s: int) -> int:
    """What a provider writes on the invoice, worked out with other means: fractions for time, Decimal for money."""
    increments = ceil(Fraction(elapsed_us, 1_000_000) / granularity_s)
    seconds = max(minimum_s, increments * granularity_s) if elapsed_us else 0
    amount = (price_usd_hour * seconds / Decimal(3600)).quantize(Decimal("1e-9"), rounding=ROUND_HALF_EVEN)
    return int(amount * 10**9)


@pytest.mark.parametrize(
    ("elapsed_s", "granularity", "minimum", "running", "ended"),
    [
        (0, 1, 0, 0, 0),  # nothing happened
        (0, 1, 60, 0, 0),  # never ran: not even the minimum
        (0.000001, 1, 60, 0, 60),  # started and gone at once: the minimum is on the invoice
        (0.4, 1, 0, 0, 1),
        (1, 1, 0, 1, 1),  # exactly closed: no increment more
        (1.000001, 1, 0, 1, 2),
        (59, 60, 0, 0, 60),
        (61, 60, 0, 60, 120),
        (30, 1, 60, 60, 60),  # the minimum is due from the first closed increment
        (30, 60, 60, 0, 60),
        (61, 1, 60, 61, 61),
        (90, 60, 100, 100, 120),  # a minimum that is no multiple of the increment
        (-5, 1, 0, 0, 0),  # the provider's clock went backwards
        (-5, 1, 60, 0, 0),
    ],
)
def test_billed_seconds(elapsed_s: float, granularity: int, minimum: int, running: int, ended: int) -> None:
    until = START + round(elapsed_s * SECOND)
    assert billed_seconds(START, until, granularity, minimum, False) == running
    assert billed_seconds(START, until, granularity, minimum, True) == ended


@settings(deadline=None)
@given(st.integers(0, 10**12), st.integers(0, 10**12), st.integers(1, 7200), st.integers(0, 7200))
def test_an_accrual_never_runs_ahead_of_the_invoice_and_time_never_lowers_it(
    one: int, other: int, granularity: int, minimum: int
) -> None:
    early, late = sorted((one, other))
    running = [billed_seconds(0, until, granularity, minimum, False) for until in (early, late)]
    final = [billed_seconds(0, until, granularity, minimum, True) for until in (early, late)]
    assert running[0] <= running[1] <= final[1]
    assert running[0] <= final[0] <= final[1]
    assert final[0] - running[0] <= max(granularity, minimum)


def test_nonsense_increments_are_refused() -> None:
    with pytest.raises(ValueError, match="granularity 0"):
        billed_seconds(0, 1, 0, 0, True)


@settings(deadline=None)
@given(
    price=st.decimals("0.000000001", "99.999999999", places=9),
    granularity=st.sampled_from([1, 7, 60, 3600]),
    minimum=st.sampled_from([0, 1, 60, 100]),
    elapsed_us=st.integers(-(10**6), 10**11),
    final=st.booleans(),
)
def test_the_books_meter_like_the_sandbox_does(
    *, price: Decimal, granularity: int, minimum: int, elapsed_us: int, final: bool
) -> None:
    """Two implementations that share no code: the sandbox's invoice is the oracle for the ledger."""
    terms = sandbox_meter.Terms(price, granularity, minimum)
    theirs = sandbox_meter.billed_seconds(terms, START, START + elapsed_us, final=final)
    ours = billed_seconds(START, START + elapsed_us, granularity, minimum, final)
    assert ours == theirs
    assert from_nano(cost_of_seconds(to_nano(price), ours)) == sandbox_meter.amount(terms, theirs)


async def test_each_increment_is_booked_when_it_has_closed(books: Database) -> None:
    meter = dataclasses.replace(METER, granularity_s=60)
    async with books.transaction() as session:
        await open_hold(session, 10**9)
        assert await accrue_at(session, 59, meter=meter) is None
        assert isinstance(await accrue_at(session, 60, meter=meter), Posted)
        assert await expenses(session) == await owed(session) == 60_000
        assert isinstance(await accrue_at(session, 119, meter=meter), Exists)
        assert isinstance(await accrue_at(session, 190, meter=meter), Posted)
        assert await owed(session) == 180_000
        assert [entry.event.key for entry in await entries(session, kind="usage.accrue")] == [
            "accrue:rental_1:1:0-60:60000",
            "accrue:rental_1:2:60-180:180000",
        ]


async def test_polling_does_not_bill_again(books: Database) -> None:
    """litellm #36877, #37050: the cost of a finished job was booked on every poll."""
    async with books.transaction() as session:
        await open_hold(session, 10**9)
        final = await accrue_at(session, 42, final=True)
        assert final is not None
    for _ in range(5):
        async with books.transaction() as session:
            assert await accrue_at(session, 42, final=True) == Exists(entry_id=final.entry_id, seq=final.seq)
            assert await accrue_at(session, 41) is None
    async with books.transaction() as session:
        assert await owed(session) == 42_000
        assert len(await entries(session, kind="usage.accrue")) == 1


async def test_the_books_never_go_down_before_the_end(books: Database) -> None:
    async with books.transaction() as session:
        await open_hold(session, 10**9)
        await accrue_at(session, 100)
        assert await accrue_at(session, 50) is None  # an answer that came late
        assert await owed(session) == 100_000


async def test_a_lower_final_meter_is_a_correction_that_names_what_it_corrects(books: Database) -> None:
    async with books.transaction() as session:
        await open_hold(session, 10**9)
        await accrue_at(session, 100)
        await accrue_at(session, 90, final=True)
        (correction,) = await entries(session, kind="correction")
        assert correction.event.corrects == "accrue:rental_1:1:0-100:100000"
        assert await owed(session) == await expenses(session) == 90_000
        # an answer of before the end that arrives now changes nothing
        assert await accrue_at(session, 100) is None
        assert await owed(session) == 90_000


async def test_a_revised_final_meter_moves_the_books_back_and_forth(books: Database) -> None:
    async with books.transaction() as session:
        await open_hold(session, 10**9)
        for seconds in (90, 95, 90, 95):
            assert isinstance(await accrue_at(session, seconds, final=True), Posted)
            assert await owed(session) == seconds * 1_000


async def test_after_the_hold_is_resolved_only_a_final_reading_is_booked(books: Database) -> None:
    meter = dataclasses.replace(METER, minimum_s=60)
    async with books.transaction() as session:
        await open_hold(session, 10**9)
        await accrue_at(session, 1, meter=meter)
        assert isinstance(await accrue_at(session, 30, final=True, meter=meter), Exists)  # the minimum covers it
        await void(session)
        assert await accrue_at(session, 100, meter=meter) is None
        assert await owed(session) == 60_000


async def test_a_correction_by_a_person_is_not_undone_by_the_meter(books: Database) -> None:
    goodwill = Event(
        key="goodwill-1",
        kind="correction",
        occurred_at_us=START,
        actor="finance",
        dims=Dims(project="demo", rental="rental_1"),
        lines=(
            Line(account="Liabilities:Accrued:Sandbox", nano=500),
            Line(account="Expenses:Compute:Spot:Sandbox", nano=-500),
        ),
        corrects="accrue:rental_1:1:0-10:10000",
    )
    async with books.transaction() as session:
        await accrue_at(session, 10)
        await post(session, goodwill, recorded_at_us=START)
        await accrue_at(session, 20)
        assert await owed(session) == 20_000 - 500
        assert (await read_meter(session, "rental_1")).nano == 20_000


async def test_rentals_whose_ids_look_alike_have_meters_of_their_own(books: Database) -> None:
    async with books.transaction() as session:
        for rental in ("rental_1", "rental%1", "rental_11", "rental_1:1"):
            await accrue_at(session, 10, meter=dataclasses.replace(METER, rental=rental))
        assert await owed(session) == 40_000


async def test_an_accrual_is_charged_to_the_hold_then_to_the_budget_and_settled_at_the_end(books: Database) -> None:
    async def left(session: AsyncSession) -> int | None:
        return await budgets.remaining(session, "demo")

    async with books.transaction() as session:
        await budgets.grant(session, grant_id="g", project="demo", nano=100_000, occurred_at_us=START, actor="finance")
        await open_hold(session, 50_000)
        await accrue_at(session, 30)
        assert await left(session) == 50_000  # still set aside or used: 50,000
        found = await holds.hold(session, "h1")
        assert found is not None and (found.drawn_nano, found.remaining_nano) == (30_000, 20_000)
        await accrue_at(session, 60, final=True)
        assert await left(session) == 40_000  # 10,000 more than was held
        await void(session)
        assert await left(session) == 40_000
        await accrue_at(session, 55, final=True)  # the provider's meter comes out lower after all
        assert await left(session) == 45_000
        memo = {balance.account: balance.nano for balance in await balances(session)}
        assert memo["Memo:Spent:Demo"] == 55_000
        assert memo["Memo:Held:Demo"] == memo["Memo:Drawn:Demo"] == 0


async def test_a_rental_that_ends_cheaper_gives_the_rest_of_its_hold_back(books: Database) -> None:
    """delm #65: reservation and settlement, so that what was reserved and not used can be spent by others."""
    async with books.transaction() as session:
        await budgets.grant(session, grant_id="g", project="demo", nano=100_000, occurred_at_us=START, actor="finance")
        await open_hold(session, 100_000)
        await accrue_at(session, 30, final=True)
        await void(session)
        assert await budgets.remaining(session, "demo") == 70_000


async def test_a_price_or_pricing_that_cannot_be_metered_is_refused(books: Database) -> None:
    """Price 0 is unknown, never free (LiteLLM #37923: calls logged with spend 0, and budgets never fired)."""
    async with books.transaction() as session:
        for wrong in ({"price_nano_hour": 0}, {"granularity_s": 0}, {"minimum_s": -1}):
            with pytest.raises(MalformedEvent, match="rental_1"):
                await accrue_at(session, 10, meter=dataclasses.replace(METER, **wrong))  # type: ignore[arg-type]
        with pytest.raises(UnknownAccount):
            await accrue_at(session, 10, meter=dataclasses.replace(METER, pricing="gift"))


async def test_an_interval_belongs_to_the_month_in_which_it_closes(books: Database) -> None:
    december = 1_796_083_200_000_000
    meter = dataclasses.replace(METER, started_us=december - 30 * SECOND)
    async with books.transaction() as session:
        for until in (december - SECOND, december + SECOND):
            await accrue(session, meter, until_us=until, final=False, actor="broker", recorded_at_us=until)
        assert [entry.period for entry in await entries(session)] == ["2026-11", "2026-12"]


PRICES = st.decimals("0.000000001", "99.999999999", places=9)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    price=PRICES,
    granularity=st.sampled_from([1, 7, 60, 3600]),
    minimum=st.sampled_from([0, 1, 60, 100]),
    elapsed_us=st.integers(0, 3 * 3600 * SECOND),
    cuts=st.lists(st.integers(0, 3 * 3600 * SECOND), max_size=8),
    hold=st.integers(1, 10**11),
)
async def test_any_cut_into_intervals_in_any_order_sums_to_the_invoice(
    scratch: Any, *, price: Decimal, granularity: int, minimum: int, elapsed_us: int, cuts: list[int], hold: int
) -> None:
    """Readings at any times, late, early, repeated, some of after the end: the total is the invoice's, to the nano."""
    meter = dataclasses.replace(METER, price_nano_hour=int(price * 10**9), granularity_s=granularity, minimum_s=minimum)
    billed = invoice_nano(price, elapsed_us, granularity, minimum)

    async with scratch() as session:

        async def read(until_us: int, *, final: bool = False) -> None:
            for _ in range(2):
                until = START + until_us
                await accrue(session, meter, until_us=until, final=final, actor="broker", recorded_at_us=START)

        await open_hold(session, hold)
        for cut in cuts[::2]:
            await read(cut)
        await read(elapsed_us, final=True)
        await void(session)
        for cut in cuts[1::2]:
            await read(cut)
        assert await owed(session) == await expenses(session) == billed
        memo = {balance.account: balance.nano for balance in await balances(session)}
        assert memo.get("Memo:Spent:Demo", 0) == billed
        assert memo["Memo:Budget:Demo"] == -billed
        assert memo["Memo:Held:Demo"] == memo.get("Memo:Drawn:Demo", 0) == 0
        findings = await audit.check(session, ended_rentals={"rental_1"})
        assert [finding for finding in findings if finding.severity == "error"] == []


COMMANDS = st.lists(
    st.one_of(
        st.tuples(st.just("accrue"), st.integers(0, 200)),
        st.tuples(st.just("extend"), st.integers(1, 5)),
        st.tuples(st.just("open"), st.just(0)),
    ),
    max_size=8,
)


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(commands=COMMANDS, ended=st.integers(0, 200), repeats=st.lists(st.integers(0, 13), max_size=3))
async def test_commands_delivered_again_change_nothing(
    scratch: Any, commands: list[tuple[str, int]], ended: int, repeats: list[int]
) -> None:
    """At-least-once delivery: a history, and the same history with earlier commands again in between, end the same."""
    history = [*(c for c in commands if c[0] != "accrue" or c[1] <= ended), ("final", ended), ("void", 0)]

    async def run(delivered: list[tuple[str, int]]) -> tuple[object, ...]:
        async with scratch() as session:
            for command in [("open", 0), *delivered]:
                await _deliver(session, *command)
            findings = await audit.check(session, ended_rentals={"rental_1"})
            assert [finding for finding in findings if finding.severity == "error"] == []
            return tuple(await balances(session)), tuple(entry.event.key for entry in await entries(session))

    noisy: list[tuple[str, int]] = []
    for position, command in enumerate(history):
        noisy.append(command)
        noisy += [history[again] for again in repeats if again <= position]
    assert await run(noisy) == await run(history)


async def _deliver(session: AsyncSession, command: str, number: int) -> None:
    if command == "open":
        await open_hold(session, 100_000)
    elif command == "accrue":
        await accrue_at(session, number)
    elif command == "final":
        await accrue_at(session, number, final=True)
    elif command == "void":
        await void(session)
    else:
        await _extend(session, number)


async def _extend(session: AsyncSession, sequence: int) -> None:
    await holds.extend_hold(
        session, hold_id="h1", add_nano=sequence * 1_000, sequence=sequence, occurred_at_us=START, actor="broker"
    )
