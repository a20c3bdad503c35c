"""Polls: each market at its own pace; a failure backs off, refreshes nothing and delays nobody."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import text, update
from sqlalchemy.exc import DBAPIError, OperationalError

from broker.control.poll import MarketPoll, polls
from broker.control.snapshot import freeze
from broker.database import Database
from broker.leadership import Deposed
from broker.market_settings import ProviderSettings
from broker.price_ages import max_ages_s
from broker.provider_set import Providers
from markets import price_book
from markets.errors import NotAuthorized, RateLimited, Unavailable
from markets.instants import micros
from markets.offer import Offer
from markets.tables import OfferRow, PollRow

SECOND_US = 1_000_000


class Scripted:
    """A price source that answers what it was told to, one after another; None hangs."""

    def __init__(self, *answers: list[Offer] | Exception | None) -> None:
        self._answers, self.asked = list(answers), 0
        self.hangs = asyncio.Event()

    async def offers(self) -> list[Offer]:
        self.asked += 1
        answer = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
        if answer is None:
            self.hangs.set()
            await asyncio.Event().wait()
        if isinstance(answer, Exception):
            raise answer
        return answer or []

    async def close(self) -> None:
        """Nothing is open."""


def following(town: Any, name: str, source: Scripted, **provider: Any) -> MarketPoll:
    settings = town.services.settings.model_copy(update={"providers": {name: ProviderSettings(**provider)}})
    return polls(replace(town.services, markets={name: source}, settings=settings))[f"poll:{name}"]


async def turn_back(town: Any, **columns: Any) -> None:
    async with town.database.transaction() as session:
        await session.execute(update(PollRow).values(**columns))


async def test_a_market_that_hangs_delays_no_other(town: Any) -> None:
    good = Scripted([town.offer()])
    hung = Scripted(None)
    loops = polls(replace(town.services, markets={"hung": hung, "town": good}))
    waiting = asyncio.create_task(loops["poll:hung"].step())
    await hung.hangs.wait()
    await loops["poll:town"].step()
    assert [row.market for row in await town.rows(PollRow)] == ["town"]
    assert not waiting.done()
    waiting.cancel()
    await asyncio.wait([waiting])


async def test_a_failed_poll_never_refreshes_an_old_price(town: Any) -> None:
    source = Scripted([town.offer()], Unavailable("503"))
    poll = following(town, "town", source)
    await poll.step()
    (before,) = await town.rows(OfferRow)
    await poll.step()
    (after,), (row,) = await town.rows(OfferRow), await town.rows(PollRow)
    assert (after.observed_us, after.seen_us) == (before.observed_us, before.seen_us)
    assert (row.error, row.failures) == ("unavailable: 503", 1)


async def test_a_market_that_fails_is_asked_less_often_and_anew_once_it_answers(town: Any) -> None:
    source = Scripted(Unavailable("503"), Unavailable("503"), [town.offer()])
    poll = following(town, "town", source, poll_s=60)
    await poll.step()
    await poll.step()  # its time has not come
    assert source.asked == 1
    waits = []
    for _ in range(2):
        (row,) = await town.rows(PollRow)
        waits.append((row.again_us - row.failed_us) // SECOND_US)
        await turn_back(town, again_us=1)
        await poll.step()
    (row,) = await town.rows(PollRow)
    assert waits == [30, 90]
    assert (row.failures, row.again_us, row.error) == (0, None, None)


async def test_retry_after_is_obeyed_and_a_refused_log_in_is_not_hammered(town: Any) -> None:
    for failure, least_s in ((RateLimited(retry_after_s=77), 77), (NotAuthorized(), 570)):
        poll = following(town, failure.code, Scripted(failure), poll_s=60)
        await poll.step()
        row = await town.row(PollRow, failure.code)
        assert (row.again_us - row.failed_us) // SECOND_US == least_s


class Broken(Scripted):
    """A source with a defect of ours."""

    async def offers(self) -> list[Offer]:
        answer: dict[str, Offer] = {}
        return [answer["price"]]


@pytest.mark.parametrize("price", ["1e9999999999", "1e400", "1e30", "1e-30"])
async def test_a_price_that_no_column_holds_went_past_the_poll_and_the_market_looked_well(
    town: Any, price: str
) -> None:
    poll = following(town, "town", Scripted([town.offer(price=price), town.offer("two")]))
    await poll.step()
    (row,) = await town.rows(PollRow)
    if row.error is None:  # too small to be one: doubted, not believed
        assert (await town.row(OfferRow, str(town.offer().key))).quarantined
        return
    assert row.failures == 1 and row.again_us > row.failed_us and len(row.error) < 400
    assert row.error.startswith("bad answer: ")


async def test_a_defect_of_an_adapter_is_its_markets_failure_and_delays_its_next_poll(town: Any) -> None:
    poll = following(town, "town", Broken(), poll_s=60)
    await poll.step()
    (row,) = await town.rows(PollRow)
    assert (row.error, row.failures) == ("defect: KeyError: 'price'", 1)
    assert row.again_us > row.failed_us


@pytest.mark.parametrize(
    "trouble",
    [OperationalError("INSERT", {}, Exception("database is locked")), Deposed(mine=1, current=2)],
    ids=["locked", "deposed"],
)
async def test_the_brokers_own_trouble_is_not_held_against_a_market(town: Any, trouble: Exception) -> None:
    with pytest.raises(type(trouble)):
        await following(town, "town", Scripted(trouble)).step()
    assert not [row for row in await town.rows(PollRow) if row.failures]


async def test_each_market_has_its_own_interval_and_limit_of_age(town: Any) -> None:
    own = {"vast": ProviderSettings(poll_s=20), "lambda": ProviderSettings(max_age_s=40)}
    settings = town.services.settings.model_copy(update={"providers": own})
    read = Providers({"azure": Scripted([]), "vast": Scripted([])})
    services = replace(town.services, providers=read, settings=settings)
    ages = max_ages_s(services)
    assert (polls(services)["prices:azure"].every_s, polls(services)["prices:vast"].every_s) == (3600, 20)
    assert (ages["azure"], ages["vast"], ages["lambda"]) == (10_800, 60, 40)


async def test_what_is_only_followed_is_listed_and_not_planned_with(town: Any) -> None:
    shown = town.offer()
    await town.list_offers(shown)
    services = replace(town.services, markets={})
    async with town.database.transaction() as session:
        frozen = await freeze(session, services, now_us=micros(shown.observed_at + timedelta(seconds=1)))
        listed = await price_book.offers(session, now_us=micros(shown.observed_at), max_age_s={}, default_max_age_s=60)
    assert listed[0].excluded is None
    assert frozen.snapshot.offers == ()
    [apart] = frozen.snapshot.apart
    assert apart.count == 1 and "not among the markets to rent at" in (apart.example or "")


async def test_the_history_of_prices_cannot_be_rewritten(database: Database, town: Any) -> None:
    async with database.transaction() as session:
        await price_book.store_offers(session, "town", [town.offer()], now_us=1)
    with pytest.raises(DBAPIError, match="append-only"):
        async with database.transaction() as session:
            await session.execute(text("UPDATE markets_offer_change SET price_nano_hour = 1"))


async def test_the_brokers_own_snapshot_asks_for_no_start_that_would_never_come_due(town: Any) -> None:
    """An offer in use is sold out in the next snapshot: what waited for its end was planned elsewhere, dearer."""
    shown = town.offer()
    await town.list_offers(shown)
    async with town.database.transaction() as session:
        frozen = await freeze(session, town.services, now_us=micros(shown.observed_at + timedelta(seconds=1)))
    assert not frozen.snapshot.later_starts
