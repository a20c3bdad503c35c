"""The price book's memory: changes only, for ever until rolled up; and what is doubted is kept with the reason."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import delete, event, func, select
from sqlmodel import SQLModel

from broker.database import Database, sqlite_url
from markets import history, price_book, rentals
from markets.history import DAY_US, HOUR_US, Change, by_hour, day_of, spans
from markets.instants import micros
from markets.offer import Accelerator, Evidence, Offer, OfferKey
from markets.own_account import holder_of
from markets.price_search import Wanted
from markets.tables import ChangeRow, OfferRow, PollRow

NOON = datetime(2026, 11, 22, 12, tzinfo=UTC)
DAY = timedelta(days=1)


def offer(
    sku: str = "a",
    price: str = "1.50",
    *,
    at: datetime = NOON,
    market: str = "m",
    count: int = 1,
    capacity: int | None = None,
    gpu: str = "h100-sxm",
) -> Offer:
    return Offer(
        key=OfferKey(market, "eu", None, sku, gpu, count, "on_demand"),
        launch="vm",
        accelerator=Accelerator("nvidia", gpu, "sxm", 81_920, count),
        currency="USD",
        price=Decimal(price),
        observed_at=at,
        source="test",
        raw_sha256="00",
        country="DE",
        evidence=(Evidence("region_table", "test", at, DAY),),
        capacity=capacity,
    )


async def store(book: Database, offers: Sequence[Offer], at: datetime = NOON, market: str = "m") -> price_book.Stored:
    async with book.transaction() as session:
        return await price_book.store_offers(session, market, offers, now_us=micros(at))


async def told(book: Database, which: Offer, *, days: int = 10) -> list[Change]:
    async with book.transaction() as session:
        return await history.changes(
            session, str(which.key), from_us=micros(NOON - DAY), to_us=micros(NOON + days * DAY)
        )


async def test_only_changes_are_kept(book: Database) -> None:
    for hours, price, room in ((0, "1.50", 3), (1, "1.50", 3), (2, "1.40", 3), (3, "1.40", 0), (4, "1.40", 0)):
        at = NOON + timedelta(hours=hours)
        await store(book, [offer(price=price, at=at, capacity=room)], at)
    await store(book, [], NOON + timedelta(hours=5))
    found = [(each.state, each.price_nano_hour, each.capacity) for each in await told(book, offer())]
    assert found == [
        ("listed", 1_500_000_000, 3),
        ("listed", 1_400_000_000, 3),
        ("listed", 1_400_000_000, 0),
        ("gone", None, None),
    ]


async def test_an_unchanged_offer_is_as_new_as_its_last_observation(book: Database) -> None:
    later = NOON + timedelta(days=40)
    await store(book, [offer()])
    await store(book, [offer(at=later)], later)
    async with book.transaction() as session:
        (listed,) = await price_book.offers(session, now_us=micros(later), max_age_s={}, default_max_age_s=60)
    assert listed.offer == offer(at=later)
    assert (listed.excluded, listed.unlocated) == (None, None)  # its evidence was seen again, too


async def test_a_replayed_poll_changes_nothing(book: Database) -> None:
    offers = [offer(sku, "1.50") for sku in "abc"]
    await store(book, offers)
    before = await _rows(book)
    stored = await store(book, offers, NOON + timedelta(hours=1))
    assert stored.changes == 0 and await _rows(book) == before


async def _rows(book: Database) -> list[object]:
    async with book.transaction() as session:
        rows = (await session.scalars(select(OfferRow).order_by(OfferRow.key))).all()
        count = await session.scalar(select(func.count()).select_from(ChangeRow))
        return [count, *[row.model_dump() for row in rows]]


async def test_old_days_are_one_line_each_and_what_held_is_not_forgotten(book: Database) -> None:
    for hours, price in ((0, "1"), (6, "2"), (36, "4")):
        at = NOON + timedelta(hours=hours)
        await store(book, [offer(price=price, at=at)], at)
    now = NOON + 10 * DAY
    async with book.transaction() as session:
        written = await history.roll_up(session, now_us=micros(now), keep_days=5, keep_rolled_days=100)
        days = await history.days(session, str(offer().key), from_us=micros(NOON), to_us=micros(now))
    first, second, third = days[:3]
    assert (written, first.changes, first.min_nano, first.mean_nano, first.max_nano) == (
        5, 2, 10**9, 1_500_000_000, 2 * 10**9
    )  # fmt: skip
    assert (first.listed_ppm, second.mean_nano, third.mean_nano) == (500_000, 2 * 10**9, 4 * 10**9)
    (kept,) = await told(book, offer())
    assert kept.price_nano_hour == 4 * 10**9
    async with book.transaction() as session:
        assert await history.roll_up(session, now_us=micros(now), keep_days=5, keep_rolled_days=100) == 0


async def rolled_up(book: Database, now: datetime, **limits: int) -> list[int]:
    """How many days each round wrote."""
    rounds: list[int] = []
    while not rounds or rounds[-1]:
        async with book.transaction() as session:
            rounds.append(await history.roll_up(session, now_us=micros(now), keep_days=5, **limits))
    return rounds[:-1]


async def test_a_card_of_2020_was_rolled_up_for_each_day_since(book: Database) -> None:
    old = datetime(2020, 1, 1, tzinfo=UTC)
    for at, price in ((old, "1"), (old + DAY, "2")):
        await store(book, [offer(price=price, at=at)], at)
    assert await rolled_up(book, NOON, keep_rolled_days=30) == [24]
    async with book.transaction() as session:
        days = await history.days(session, str(offer().key), from_us=0, to_us=micros(NOON))
    assert {each.mean_nano for each in days} == {2 * 10**9}
    assert days[0].day_us >= micros(NOON - 30 * DAY)
    assert len(await told(book, offer())) == 1


async def test_a_roll_up_of_few_rows_at_a_time_says_the_same(book: Database) -> None:
    for hours in range(0, 120, 9):
        at = NOON + timedelta(hours=hours)
        await store(book, [offer(price=str(1 + hours % 4), at=at)], at)
    now = NOON + 12 * DAY
    async with book.transaction() as session:
        changes = await history.changes(session, str(offer().key), from_us=micros(NOON), to_us=micros(now))
    assert await rolled_up(book, now, keep_rolled_days=100, most_days=3) == [3, 3, 1]
    async with book.transaction() as session:
        days = await history.days(session, str(offer().key), from_us=micros(NOON), to_us=micros(now))
    expected = [history.day_of(str(offer().key), changes, each.day_us) for each in days]
    assert [each.model_dump() for each in days] == [each.model_dump() for each in expected]
    assert sum(each.changes for each in days) == 14
    assert len(await told(book, offer())) == 1


async def test_a_price_that_moved_more_often_than_sqlite_has_variables_is_rolled_up(book: Database) -> None:
    key, first = str(offer().key), micros(NOON)
    empty = dict.fromkeys(("input_nano", "output_nano", "capacity", "reason"))
    moves = [
        {"key": key, "at_us": first + n * 1_000_000, "state": "listed", "price_nano_hour": 10**9 + n} | empty
        for n in range(33_000)
    ]
    async with book.transaction() as session:
        await history.append_changes(session, moves)
    assert await rolled_up(book, NOON + 8 * DAY, keep_rolled_days=100) == [1, 2]
    (kept,) = await told(book, offer())
    assert kept.price_nano_hour == 10**9 + 32_999


async def test_offers_that_were_gone_for_long_are_forgotten_unless_a_machine_was_rented_there(book: Database) -> None:
    some = [offer("rented"), offer("gone"), offer("listed")]
    await store(book, some)
    await store(book, some[2:], NOON + DAY)
    async with book.transaction() as session:
        await rentals.record_intent(
            session, rental_id="rental_1", offer=some[0], project="p", model="m", precision="auto", purpose={},
            now_us=micros(NOON),
        )  # fmt: skip
    for now, forgotten in ((NOON + 91 * DAY, 0), (NOON + 91 * DAY + timedelta(hours=1), 1)):
        async with book.transaction() as session:
            assert await history.forget_gone(session, now_us=micros(now), keep_days=90) == forgotten
    async with book.transaction() as session:
        left = {row.key for row in await session.scalars(select(OfferRow))}
    assert left == {str(some[0].key), str(some[2].key)}
    assert await told(book, some[1])


@pytest.mark.parametrize(
    ("offers", "why"),
    [
        # one file mixes per-GPU and per-instance prices (denvr in becloudready's list)
        ([offer("one", "2.10"), offer("eight", "2.10", count=8)], "the price of one for 8"),
        ([offer("one", "249")], "outside of"),  # cents taken for dollars
        ([offer("one", "0.0001")], "outside of"),
    ],
)
async def test_a_unit_misread_is_quarantined(book: Database, offers: list[Offer], why: str) -> None:
    assert (await store(book, offers)).quarantined == 1
    async with book.transaction() as session:
        listed = await price_book.offers(session, now_us=micros(NOON), max_age_s={}, default_max_age_s=60)
    reasons = [each.excluded for each in listed if each.excluded]
    assert len(reasons) == 1 and why in reasons[0]


async def test_a_price_far_below_all_other_markets_is_quarantined_until_they_move(book: Database) -> None:
    for market, price in (("x", "2.0"), ("y", "2.4"), ("z", "3.0")):
        await store(book, [offer(price=price, market=market)], market=market)
    assert (await store(book, [offer(price="0.30")])).quarantined == 1
    assert (await store(book, [offer(price="0.97")])).quarantined == 0  # datacrunch's promotions were real


async def test_a_list_price_that_falls_by_half_is_believed_and_one_that_falls_tenfold_only_when_repeated(
    book: Database,
) -> None:
    """AWS p5 fell 44 % on 2025-06-23: that is news, not an error."""
    hours = [NOON + timedelta(hours=n) for n in range(4)]
    assert (await store(book, [offer(price="98.32", at=hours[0])], hours[0])).quarantined == 0
    assert (await store(book, [offer(price="55.04", at=hours[1])], hours[1])).quarantined == 0
    assert (await store(book, [offer(price="5.50", at=hours[2])], hours[2])).quarantined == 1
    assert (await store(book, [offer(price="5.50", at=hours[3])], hours[3])).quarantined == 0


async def test_the_cheapest_are_those_that_may_be_chosen(book: Database) -> None:
    sold_out, elsewhere = offer("s", "1.0", capacity=0), replace(offer("e", "1.1"), country="US")
    unproved = replace(offer("u", "1.2"), evidence=())
    eight = offer("8", "11.2", count=8)
    await store(book, [sold_out, elsewhere, unproved, eight, offer("a", "1.5"), offer("q", "0")])
    await store(book, [offer("x", "0.9", market="other~acme")], market="other~acme")
    wanted = Wanted(gpu="h100", country="DE", pricing="on_demand")
    async with book.transaction() as session:
        ages: dict[str, Any] = {"max_age_s": {"m": 60}, "default_max_age_s": 60}
        found = await price_book.cheapest(session, wanted, now_us=micros(NOON), **ages)
        own = await price_book.cheapest(session, wanted, now_us=micros(NOON), holder="acme", limit=1, **ages)
        stale = await price_book.cheapest(session, wanted, now_us=micros(NOON + DAY), **ages)
        others = await price_book.cheapest(session, Wanted(gpu="h200"), now_us=micros(NOON), **ages)
    assert [each.offer.key.sku for each in found] == ["a", "8"] and not any(each.excluded for each in found)
    assert [each.offer.key.sku for each in own] == ["x"]
    assert stale == others == []


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["1", "2", "3", "0"]),
            st.sampled_from([None, 0, 1]),
            st.sampled_from([0, 59, 60, 61]),
            st.sampled_from(["m", "card", "old-card", "n~acme"]),
            st.sampled_from(["h100-sxm", "h100-pcie", "l4"]),
        ),
        max_size=8,
    ),
    st.sampled_from([None, "acme"]),
    st.sampled_from(
        [
            Wanted(),
            Wanted(gpu="h100"),
            Wanted(gpu="h100", market="m"),
            Wanted(accelerators=["l4", "none"]),
            Wanted(gpu="x"),
        ]
    ),
    st.booleans(),
)
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
async def test_the_cheapest_are_the_first_of_all_that_may_be_chosen(
    book: Database,
    given_offers: list[tuple[str, int | None, int, str, str]],
    holder: str | None,
    wanted: Wanted,
    is_of_many: bool,
) -> None:
    """What the database finds by itself is what all of the book, read and judged one by one, has first; of many devices at once,
    too."""
    if is_of_many and wanted.accelerators:
        wanted = replace(wanted, accelerators=[*wanted.accelerators, *(f"other-{number}" for number in range(40))])
    by_market: dict[str, list[Offer]] = {"m": [], "card": [], "old-card": [], "n~acme": []}
    for number, (price, room, age, market, gpu) in enumerate(given_offers):
        at = NOON - timedelta(seconds=age)
        by_market[market].append(offer(f"s{number}", price, at=at, market=market, capacity=room, gpu=gpu))
    now_us = micros(NOON)
    async with book.transaction() as session:
        await session.execute(delete(OfferRow))
        for market, offers in by_market.items():
            await price_book.store_offers(session, market, offers, now_us=now_us)
        for market, until in (("card", now_us), ("old-card", now_us - 1)):
            (await session.get_one(PollRow, market)).card_until_us = until
        await session.flush()
        every = await price_book.offers(session, wanted=wanted, now_us=now_us, max_age_s={}, default_max_age_s=60)
        found = await price_book.cheapest(
            session, wanted, now_us=now_us, max_age_s={}, default_max_age_s=60, holder=holder, limit=3
        )
    may = [
        each
        for each in every
        if each.excluded is None and each.offer.capacity != 0 and holder_of(each.offer.market) in (None, holder)
    ]
    may.sort(key=lambda each: (each.offer.price, str(each.offer.key)))
    assert found == may[:3]


@pytest.mark.parametrize(
    ("wanted", "index"),
    [
        (Wanted(), "ix_markets_offer_price"),
        (Wanted(country="DE"), "ix_markets_offer_price"),
        (Wanted(market="m", pricing="spot"), "ix_markets_offer_price"),
        (Wanted(least_count=8), "ix_markets_offer_price"),
        (Wanted(gpu="h100"), "ix_markets_offer_cheapest"),
        (Wanted(gpu="h100", country="DE", pricing="spot"), "ix_markets_offer_cheapest"),
        (Wanted(gpu="h100", market="m"), "ix_markets_offer_cheapest"),
    ],
)
async def test_the_cheapest_were_sorted_out_of_the_whole_book(tmp_path: Path, wanted: Wanted, index: str) -> None:
    """59 ms of CPU at 100,000 offers of all devices and 12 of a few, each time that somebody looked; an index has them in the
    order of their prices."""
    book = Database(sqlite_url(tmp_path / "book.db"))
    async with book.engine.begin() as tables:
        await tables.run_sync(SQLModel.metadata.create_all)
    await store(book, [offer("a"), offer("b", gpu="h100-pcie")])
    asked: list[tuple[Any, Any]] = []

    def remember(_: Any, __: Any, statement: str, parameters: Any, ___: Any, ____: Any) -> None:
        asked.append((statement, parameters))

    event.listen(book.engine.sync_engine, "before_cursor_execute", remember)
    async with book.transaction() as session:
        await price_book.cheapest(session, wanted, now_us=micros(NOON), max_age_s={}, default_max_age_s=60)
        statement, parameters = asked[-1]
        connection = await session.connection()
        plan = (await connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters)).all()
    await book.close()
    assert [row[-1] for row in plan if index in row[-1]], plan
    # Only what has the same price as another is sorted, or the few that were found of each device.
    assert not [row for row in plan if row[-1] == "USE TEMP B-TREE FOR ORDER BY"] or wanted.gpu, plan


def test_a_pool_is_cheap_at_night_and_an_hour_without_a_price_is_not_free() -> None:
    midnight = micros(NOON) // DAY_US * DAY_US
    changes = [
        Change(midnight, "listed", 8, 1),
        Change(midnight + 6 * HOUR_US, "listed", 16, 0),
        Change(midnight + 12 * HOUR_US, "gone", None, None),
    ]
    profile = by_hour([(changes, 8)], midnight, midnight + DAY_US)
    assert [
        (each.mean_nano, each.listed_ppm, each.available_ppm) for each in (profile[0], profile[6], profile[12])
    ] == [
        (1, 1_000_000, 1_000_000),
        (2, 1_000_000, 0),
        (None, 0, 0),
    ]


moments = st.lists(st.integers(0, 3 * DAY_US), min_size=1, max_size=8, unique=True).map(sorted)


@given(moments, st.lists(st.one_of(st.none(), st.integers(1, 10**12)), min_size=8, max_size=8))
def test_spans_cover_all_that_is_known_and_a_mean_lies_between_its_extremes(
    at: list[int], prices: list[int | None]
) -> None:
    changes = [Change(when, "listed" if p else "gone", p, None) for when, p in zip(at, prices, strict=False)]
    covered = list(spans(changes, 0, 3 * DAY_US))
    assert sum(each.length_us for each in covered) == 3 * DAY_US - at[0]
    for day in range(3):
        row = day_of("k", changes, day * DAY_US)
        if row.mean_nano is not None and row.min_nano is not None and row.max_nano is not None:
            assert row.min_nano <= row.mean_nano <= row.max_nano
        assert 0 <= row.available_ppm <= row.listed_ppm <= 1_000_000
