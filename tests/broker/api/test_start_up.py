"""How long machines took, from the worker's own words to the next plan."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

from jobs.clock import db_now
from markets import price_book
from markets.offer import Offer, OfferKey
from tests.support.wire_agent import Rent, confirm, conforms, offer, running_batch

SLOW_S = 800
TOLD = {"pull_s": 1200.5, "download_s": 80.0, "load_s": 12.25, "warm_up_s": 5.0, "start_s": 100.0, "first_line_s": 0.5}


def in_region(region: str, price: str, sku: str = "gpu-1") -> Offer:
    return replace(offer(sku=sku), key=OfferKey("sandbox", region, None, sku, "cpu", 0, "spot"), price=Decimal(price))


async def poll(server: Any, *offers: Offer) -> None:
    """The market is asked again, at the broker's time."""
    async with server.services.database.transaction() as session:
        now_us = await db_now(session)
        seen = [replace(each, observed_at=datetime.fromtimestamp(now_us / 1e6, UTC)) for each in offers]
        await price_book.store_offers(session, "sandbox", seen, now_us=now_us)


async def chosen(server: Any, input_lines: Any) -> str:
    body = {"input_file_id": await server.upload(input_lines(3)), "x_broker": {"residency": ["DE"]}}
    quoted = (await server.call("POST", "/v1/quotes", json=body)).json
    return str(quoted["chosen"][0]["offer_key"].split("/")[1])


async def start(server: Any, rent: Rent, of: Offer, after_s: float) -> None:
    """One whole life of a machine of which the worker says hello `after_s` after it was rented."""
    agent = await rent(of, batches=(await running_batch(server, of),))
    server.services.database.clock_offset_us += round(after_s * 1e6)
    assert (await agent.hello()).status == 200
    await agent.heartbeat("starting", timings={"pull_s": TOLD["pull_s"]})
    server.services.database.clock_offset_us += 110_000_000
    await agent.heartbeat("ready", timings={name: TOLD[name] for name in TOLD if name != "first_line_s"})
    await agent.heartbeat("ready", timings=TOLD)
    await confirm(server, agent, of, ended=True)


async def test_an_offer_that_boots_slowly_loses_against_a_dearer_one_once_that_was_seen(
    server: Any, rent: Rent, input_lines: Any
) -> None:
    """A constant made the cheaper region win for ever, and every machine of it idled for thirteen paid minutes."""
    slow, fast = in_region("slow", "0.050"), in_region("fast", "0.055")
    await poll(server, slow, fast)
    assert await chosen(server, input_lines) == "slow", "nothing is known yet: the price decides"
    await start(server, rent, slow, SLOW_S)
    await poll(server, slow, fast)
    assert await chosen(server, input_lines) == "fast"
    server.services.database.clock_offset_us += round(timedelta(days=8).total_seconds() * 1e6)
    fresh = [
        replace(each, evidence=tuple(replace(e, ttl=timedelta(days=30)) for e in each.evidence))
        for each in (slow, fast)
    ]
    await poll(server, *fresh)
    assert await chosen(server, input_lines) == "slow", "what was long ago is forgotten: it gets another chance"


async def test_every_phase_is_told_by_market_region_image_and_model(server: Any, rent: Rent) -> None:
    slow = in_region("slow", "0.050")
    await poll(server, slow)
    await start(server, rent, slow, SLOW_S)
    told = (await server.call("GET", "/v1/market/timings")).json["data"]
    assert [(each["market"], each["place"], each["image"], each["model"]) for each in told] == [
        ("sandbox", "slow", "", "tiny")
    ]
    one = told[0]
    assert one["observations"] == 1
    assert SLOW_S <= one["boot"]["newest"] < SLOW_S + 60
    newest = {name: one[name]["newest"] for name in ("pull", "download", "load", "warm_up", "ready", "first_line")}
    assert newest == {
        "pull": 1200.5,
        "download": 80.0,
        "load": 12.25,
        "warm_up": 5.0,
        "ready": 100.0,
        "first_line": 0.5,
    }


async def test_a_worker_that_tells_nonsense_breaks_nothing(server: Any, rent: Rent) -> None:
    slow = in_region("slow", "0.050")
    agent = await rent(slow, batches=(await running_batch(server, slow),))
    await agent.hello()
    assert (await agent.heartbeat("ready", timings={"load_s": -1})).status == 400
    assert (await agent.heartbeat("ready", timings={"load_s": 1e300, "mood": 3})).status == 200
    told = (await server.call("GET", "/v1/market/timings")).json["data"]
    assert told[0]["load"]["newest"] == 86_400


def test_the_wire_has_the_phases() -> None:
    beat: dict[str, Any] = {"state": "ready", "leases": [], "metrics": {}, "notice_in_s": None, "error": None}
    conforms("heartbeat.request", beat)
    conforms("heartbeat.request", json.loads(json.dumps(beat | {"timings": TOLD})))
