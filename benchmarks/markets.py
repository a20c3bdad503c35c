"""What the price book costs, and whether one bad market delays the others.

`poll`: 100,000 offers of one market stored into a fresh book (cold) and once more unchanged, with their history, on SQLite;
CPU-seconds raw and calibrated by the JSON loop of `benchmarks.calibrate` (C17: what it would be on the machine whose loop takes
0.278 s). `cheapest`: the ten cheapest offers that may be chosen of what `broker offers --gpu h100
--country DE --pricing spot --usable --limit 10` asks, of the same book, milliseconds; `cheapest_of_all` the same of any device
and place. `fleet`: markets polled over HTTP from a slow loopback server, one of which never answers and one says Retry-After; how
long after the slowest healthy answer the last healthy one was committed, as a ratio.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from aiohttp import web
from sqlalchemy import select

from benchmarks.calibrate import calibrate
from broker.control.poll import MarketPoll
from broker.database import Database, sqlite_url
from broker.migrate import upgrade
from broker.provider_set import Providers
from broker.services import Services
from broker.settings import ControlSettings, Settings
from markets import price_book
from markets.facts.accelerators import chips
from markets.facts.regions import located, regions
from markets.instants import micros
from markets.offer import Accelerator, Offer, OfferKey
from markets.price_search import Wanted
from markets.provider.api import ProviderApi, Reach
from markets.tables import PollRow

REFERENCE_JSON_S = 0.278
NOON = datetime(2026, 11, 27, 12, tzinfo=UTC)
QUERIES = 200


def made(count: int, at: datetime) -> Iterator[Offer]:
    """Offers as a big marketplace has them: every device in every region, under asks of their own."""
    places = [region for provider, region in regions() if provider == "gcp"]
    devices = [chip for chip in chips().values() if chip.kind == "nvidia"]
    for number in range(count):
        chip, region = devices[number % len(devices)], places[number // len(devices) % len(places)]
        price = Decimal(40 + number % 977) / 100
        yield Offer(
            key=OfferKey("bench", region, None, f"ask-{number}", chip.name, 1, "spot" if number % 2 else "on_demand"),
            launch="vm",
            accelerator=Accelerator(chip.kind, chip.name, chip.form, chip.memory_mib, 1),
            currency="USD",
            price=price,
            observed_at=at,
            source="benchmark",
            raw_sha256="00",
            components={"machine": price},
            capacity=number % 5,
            raw={"machine": f"{price} per hour and instance"},
            **located("gcp", region, observed_at=at).fields(),
        )


async def book(count: int, folder: Path, calibration: dict[str, float]) -> dict[str, Any]:
    database = Database(sqlite_url(folder / "book.db"))
    await upgrade(database.url)
    scale = REFERENCE_JSON_S / calibration["json_cpu_s"]
    found: dict[str, Any] = {"offers": count}
    for name, at in (("cold", NOON), ("unchanged", NOON + timedelta(minutes=5))):
        offers = list(made(count, at))
        began = time.process_time()
        async with database.transaction() as session:
            stored = await price_book.store_offers(session, "bench", offers, now_us=micros(at))
        spent = time.process_time() - began
        found[f"{name}_cpu_s"] = round(spent, 2)
        found[f"{name}_calibrated_s"] = round(spent * scale, 2)
        found[f"{name}_changes"] = stored.changes
    found["cheapest_ms"] = await _cheapest(database, Wanted(gpu="h100", country="DE", pricing="spot"))
    found["cheapest_of_all_ms"] = await _cheapest(database, Wanted())
    await database.close()
    return found


async def _cheapest(database: Database, wanted: Wanted) -> dict[str, float]:
    wall, cpu = [], []
    now_us = micros(NOON + timedelta(minutes=5))
    for _ in range(QUERIES):
        async with database.transaction() as session:
            began, spent = time.perf_counter(), time.process_time()
            found = await price_book.cheapest(
                session,
                wanted,
                now_us=now_us,
                max_age_s={},
                default_max_age_s=900,
            )
            cpu.append((time.process_time() - spent) * 1000)
            wall.append((time.perf_counter() - began) * 1000)
        assert found
    p99 = sorted(wall)[int(QUERIES * 0.99)]
    return {"p50": round(statistics.median(wall), 2), "p99": round(p99, 2), "cpu_p50": round(statistics.median(cpu), 2)}


class HttpSource:
    """A market of the slow server, asked through the adapters' own client."""

    def __init__(self, name: str, url: str) -> None:
        self.name, self._api = name, ProviderApi(name, Reach(url, timeout_s=30))

    async def offers(self) -> list[Offer]:
        answer = await self._api.get(f"/{self.name}")
        count = answer["offers"].whole()
        return [replace(each, key=replace(each.key, market=self.name)) for each in made(count, datetime.now(UTC))]

    async def close(self) -> None:
        await self._api.close()


async def fleet(folder: Path, *, markets: int, offers: int, slowest_s: float) -> dict[str, Any]:
    database = Database(sqlite_url(folder / "fleet.db"))
    await upgrade(database.url)
    waits = {f"m{number}": slowest_s * (number + 1) / markets for number in range(markets)}
    answered: dict[str, float] = {}

    async def answer(request: web.Request) -> web.Response:
        name = request.path.strip("/")
        if name == "hung":
            await asyncio.sleep(60)
            return web.Response(status=504)
        if name == "limited":
            return web.Response(status=429, headers={"Retry-After": "30"})
        await asyncio.sleep(waits.get(name, 0))
        answered[name] = time.perf_counter()
        return web.json_response({"offers": offers})

    app = web.Application()
    app.router.add_get("/{market}", answer)
    runner = web.AppRunner(app, shutdown_timeout=0.1)  # the hung answer is not waited for at the end
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    sources = {name: HttpSource(name, f"http://127.0.0.1:{port}") for name in (*waits, "hung", "limited")}
    settings = Settings(data=folder, control=ControlSettings(poll_s=60))
    stand_in = SimpleNamespace(
        settings=settings,
        markets=sources,
        providers=Providers(),
        database=database,
        nudge=lambda loop: None,
        market=sources.get,
    )
    committed: dict[str, float] = {}
    began = time.perf_counter()

    async def poll(name: str) -> None:
        await MarketPoll(cast(Services, stand_in), name, sources[name]).step()
        committed[name] = time.perf_counter() - began

    tasks = {name: asyncio.create_task(poll(name)) for name in sources}
    await asyncio.wait([task for name, task in tasks.items() if name != "hung"])
    still_hung = not tasks["hung"].done()
    tasks["hung"].cancel()
    await asyncio.wait(tasks.values())
    async with database.transaction() as session:
        rows = {row.market: row for row in await session.scalars(select(PollRow))}
    for source in sources.values():
        await source.close()
    await runner.cleanup()
    await database.close()
    last, slowest = max(committed[name] for name in waits), max(answered.values()) - began
    return {
        "markets": markets,
        "offers_each": offers,
        "slowest_answer_s": round(slowest, 2),
        "last_commit_s": round(last, 2),
        "ratio": round(last / slowest, 2),
        "hung_still_waits": still_hung,
        "limited_again_in_s": round(((rows["limited"].again_us or 0) - (rows["limited"].failed_us or 0)) / 1e6),
    }


def measure(count: int, markets: int, slowest_s: float) -> dict[str, Any]:
    calibration = calibrate()
    with tempfile.TemporaryDirectory() as folder:
        return {
            "poll": asyncio.run(book(count, Path(folder), calibration)),
            "fleet": asyncio.run(fleet(Path(folder), markets=markets, offers=200, slowest_s=slowest_s)),
            "calibration": {name: round(value, 4) for name, value in calibration.items()},
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print one JSON object (the default)")
    parser.add_argument("--offers", type=int, default=100_000)
    parser.add_argument("--markets", type=int, default=12)
    parser.add_argument("--slowest-s", type=float, default=2.0)
    given = parser.parse_args()
    print(json.dumps(measure(given.offers, given.markets, given.slowest_s)))


if __name__ == "__main__":
    main()
    sys.exit(0)
