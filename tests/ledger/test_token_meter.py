"""The meter of tokens: the price of all that was used, whatever the readings, their order and their repeats."""

from __future__ import annotations

from decimal import ROUND_HALF_EVEN, Decimal

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec import structs
from sqlalchemy.ext.asyncio import AsyncSession

from broker.database import Database
from ledger import audit, holds
from ledger.accrual import Meter
from ledger.book import balances, entries, post
from ledger.errors import MalformedEvent
from ledger.event import Exists, Facts, Posted
from ledger.token_meter import TokenRate, Used, accrue_tokens, cost_of_tokens, read_tokens
from ledger.units import NANO_PER_TOKEN
from ledger.waste import split_tokens

START = 1_795_305_600_000_000
METER = Meter(
    rental="rental_1", offer_key="town/-/-/m/tokens/0/token", market="town", pricing="token", project="demo", batch=None,
    price_nano_hour=1, started_us=START,
)  # fmt: skip
# 0.0375, 0.01 and 0.15 USD a million: less than a nano a token is no rounding of each token
RATE = TokenRate(37_500_000, 10_000_000, 150_000_000)


async def at(session: AsyncSession, used: Used, second: int = 1, *, final: bool = False) -> Posted | Exists | None:
    until_us = START + second * 1_000_000
    return await accrue_tokens(
        session, METER, RATE, used, until_us=until_us, final=final, actor="broker", recorded_at_us=until_us
    )


async def hold(session: AsyncSession, nano: int = 10**9) -> None:
    await holds.open_hold(
        session, hold_id="rental_1", nano=nano, project="demo", batch=None, rental="rental_1", offer_key=METER.offer_key,
        occurred_at_us=START, actor="broker",
    )  # fmt: skip


async def spent(session: AsyncSession) -> int:
    return sum(each.nano for each in await balances(session) if each.account.startswith("Expenses:"))


@given(
    st.integers(0, 10**7), st.integers(0, 10**7), st.integers(0, 10**7), st.integers(1, 10**11), st.integers(1, 10**11)
)
@settings(deadline=None)
def test_each_token_is_charged_in_one_class_and_the_whole_is_rounded_once(
    fresh: int, cached: int, out: int, price: int, out_price: int
) -> None:
    rate = TokenRate(price, max(1, price // 3), out_price)
    exact = Decimal(fresh * rate.input_nano + cached * rate.cached_nano + out * rate.output_nano) / 1_000_000
    assert cost_of_tokens(rate, Used(fresh + cached, cached, out)) == int(exact.to_integral_value(ROUND_HALF_EVEN))


@given(st.lists(st.integers(0, 400), min_size=1, max_size=8), st.randoms())
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
async def test_readings_in_any_order_and_number_book_what_was_used_once(scratch, counts, random) -> None:  # type: ignore[no-untyped-def]
    readings = [Used(3 * n, n, n) for n in counts] * 2
    random.shuffle(readings)
    async with scratch() as session:
        await hold(session)
        for second, used in enumerate(readings, 1):
            await at(session, used, second)
        await at(session, max(readings, key=lambda each: each.total), 99, final=True)
        assert await spent(session) == max(cost_of_tokens(RATE, each) for each in readings)


async def test_a_repeated_reading_is_there_already_and_nothing_comes_after_the_end(books: Database) -> None:
    async with books.transaction() as session:
        await hold(session)
        assert isinstance(await at(session, Used(100, 40, 20)), Posted)
        assert isinstance(await at(session, Used(100, 40, 20), 2), Exists)
        assert isinstance(await at(session, Used(200, 40, 20), 3, final=True), Posted)
        assert await at(session, Used(300, 40, 20), 4) is None
        reading = await read_tokens(session, "rental_1")
        assert (reading.tokens, reading.entries, reading.is_final) == (220, 2, True)
        assert reading.nano == cost_of_tokens(RATE, Used(200, 40, 20)) == await spent(session)
        booked = [each.event for each in await entries(session, kind="usage.accrue")]
        # a million tokens are 10^9 nano-units: the export's quantity
        assert [each.facts.quantity_nano for each in booked] == [120_000, 100_000]  # type: ignore[union-attr]


async def test_what_was_paid_for_in_vain_is_moved_and_the_books_hold(books: Database) -> None:
    async with books.transaction() as session:
        await hold(session)
        await at(session, Used(100_000, 0, 10_000), final=True)
        await split_tokens(session, METER, 1_500, occurred_at_us=START + 9, actor="broker", recorded_at_us=START + 9)
        await holds.void_hold(session, hold_id="rental_1", occurred_at_us=START + 9, actor="broker")
        found = {each.account: each.nano for each in await balances(session)}
        assert found["Expenses:Retried:Town"] == 1_500
        assert await spent(session) == cost_of_tokens(RATE, Used(100_000, 0, 10_000))
        assert await audit.check(session) == []


async def test_a_price_of_nothing_is_no_price(books: Database) -> None:
    async with books.transaction() as session:
        with pytest.raises(MalformedEvent, match="cannot be metered"):
            await accrue_tokens(
                session,
                METER,
                TokenRate(0, 1, 1),
                Used(1, 0, 1),
                until_us=START,
                final=False,
                actor="b",
                recorded_at_us=0,
            )


@pytest.mark.parametrize(("nano_more", "tokens_more"), [(7, 0), (0, 7)])
async def test_a_key_that_tells_another_total_than_was_booked_is_found_by_the_audit(
    books: Database, nano_more: int, tokens_more: int
) -> None:
    """The next accrual trusts it: a total too high keeps what was used from being booked, for ever."""
    async with books.transaction() as session:
        await hold(session)
        await at(session, Used(100, 40, 20))
        reading = await read_tokens(session, "rental_1")
        assert reading.newest is not None
        before = reading.newest.event
        key = f"tokens:rental_1:2:{220 + tokens_more}:{reading.nano * 2 + nano_more}"
        assert isinstance(before.facts, Facts)
        facts = structs.replace(before.facts, quantity_nano=100 * NANO_PER_TOKEN)
        forged = structs.replace(before, key=key, facts=facts)
        await post(session, forged, recorded_at_us=START + 9)
        findings = await audit.check(session)
        assert [finding.code for finding in findings] == ["meter_differs"]
        assert "rental_1" in findings[0].message
