"""How long machines really took from renting to the first token, and what that says of the next one.

Every worker that becomes ready is one observation of (market, place, image, model). Planning asks for a cautious value: a
machine that is late misses the deadline and costs money while it does nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Select, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from broker.control.convert import DEFAULT_BOOT_S, hardware
from broker.tables import StartUp, Worker
from markets.offer import Offer
from markets.offer_record import offer_from_record
from markets.tables import RentalRow
from solver.types import Timings
from workers.profile import ModelProfile

SECOND_US = 1_000_000
# Older ones are forgotten: a market that was slow gets another chance, since nothing is measured where nothing is rented.
REMEMBERED_US = 7 * 86_400 * SECOND_US
READ_AT_MOST = 2_000
WINDOW = 20
QUANTILE = 0.75
# With fewer observations the prior, what the market or the settings say, counts as one more.
ENOUGH = 4
# What the agent tells (workers/agent/timings.py), and where it is kept.
_PHASES = {
    "pull_s": "pull_ms",
    "download_s": "download_ms",
    "load_s": "load_ms",
    "warm_up_s": "warm_up_ms",
    "first_line_s": "first_line_ms",
}


@dataclass(frozen=True, slots=True)
class Observed:
    """One start: milliseconds from renting to hello (the image's pull included), and from hello to ready."""

    market: str
    place: str
    image: str
    model: str
    hardware: str
    boot_ms: int
    ready_ms: int


@dataclass(frozen=True, slots=True)
class Estimate:
    """Seconds, from how many observations, of what: the narrowest group that has any, `prior` without."""

    seconds: int
    observations: int
    of: str


@dataclass(frozen=True, slots=True)
class StartUps:
    """What was observed, newest first, grouped so that a question costs a look-up. See `grouped`."""

    boots: Mapping[tuple[str, ...], Sequence[int]] = field(default_factory=dict)
    readies: Mapping[tuple[str, ...], Sequence[int]] = field(default_factory=dict)

    def boot(self, offer: Offer, profile: ModelProfile) -> Estimate:
        """From renting to hello, image pull included."""
        prior_s = offer.boot_s if offer.boot_s is not None else DEFAULT_BOOT_S[offer.launch]
        image = profile.image or ""
        keys = ((offer.key.provider, place(offer), image), (offer.key.provider, image))
        return _narrowest(self.boots, keys, ("market, region and image", "market and image"), prior_s)

    def ready(self, offer: Offer, profile: ModelProfile) -> Estimate:
        """From hello until the engine is healthy: download, load, warm-up."""
        image, what = profile.image or "", hardware(offer)
        keys = ((offer.key.provider, place(offer), image, profile.id, what), (image, profile.id, what))
        return _narrowest(
            self.readies, keys, ("market, region, image and model", "image, model and hardware"), profile.load_s
        )

    def timings(self, offer: Offer, profile: ModelProfile) -> Timings:
        """For the planner."""
        return Timings(boot_s=self.boot(offer, profile).seconds, load_s=self.ready(offer, profile).seconds)


def place(offer: Offer) -> str:
    """The region; where a market has none, the machine itself (own hosts)."""
    return offer.key.region or offer.key.sku


def cautious(newest: Sequence[float], prior: float) -> float:
    """The upper quartile of the newest observations; while they are few the prior is one of them.

    A quantile and not a mean: one machine that hung for an hour must not price a region out.

    >>> cautious([], 120), cautious([300], 5), cautious([10, 10, 10], 120), cautious([10, 3600, 11, 10, 12], 120)
    (120, 300, 10, 12)
    """
    window = newest[:WINDOW]
    return upper_quartile(window if len(window) >= ENOUGH else [*window, prior])


def upper_quartile(values: Sequence[float]) -> float:
    """The smallest value that at least three quarters of them do not exceed. ValueError without any."""
    if not values:
        raise ValueError("the quartile of nothing")
    return sorted(values)[math.ceil(QUANTILE * len(values)) - 1]


def grouped(observed: Iterable[Observed]) -> StartUps:
    """Observations, newest first, by each key that they may be asked for.

    What was seen in one place alone says nothing of another: were it believed there, a slow region would make all others
    look as slow, and none would ever be tried.
    """
    boots: dict[tuple[str, ...], list[int]] = {}
    readies: dict[tuple[str, ...], list[int]] = {}
    places: dict[tuple[str, ...], set[tuple[str, str]]] = {}
    for each in observed:
        what: tuple[str, ...] = (each.image, each.model, each.hardware)
        anywhere: tuple[str, ...] = (each.market, each.image)
        boots.setdefault((each.market, each.place, each.image), []).append(each.boot_ms)
        boots.setdefault(anywhere, []).append(each.boot_ms)
        readies.setdefault((each.market, each.place, *what), []).append(each.ready_ms)
        readies.setdefault(what, []).append(each.ready_ms)
        for wide in (anywhere, what):
            places.setdefault(wide, set()).add((each.market, each.place))
    for wide_key, seen_in in places.items():
        if len(seen_in) < 2:
            boots.pop(wide_key, None)
            readies.pop(wide_key, None)
    return StartUps(boots, readies)


async def start_ups(session: AsyncSession, now_us: int) -> StartUps:
    """What is remembered at `now_us`. Asked at every plan, so it reads columns and makes no rows of them."""
    names = ("market", "place", "image", "model", "accelerator", "boot_ms", "ready_ms")
    found = await session.execute(_remembered(select(*(col(getattr(StartUp, name)) for name in names)), now_us))
    return grouped(Observed(*row) for row in found)


async def newest(session: AsyncSession, now_us: int) -> Sequence[StartUp]:
    """The rows that are remembered, newest first."""
    return (await session.scalars(_remembered(select(StartUp), now_us))).all()


def _remembered(query: Select[Any], now_us: int) -> Select[Any]:
    since_us = now_us - REMEMBERED_US
    return (
        query.where(col(StartUp.observed_us) > since_us).order_by(col(StartUp.observed_us).desc()).limit(READ_AT_MOST)
    )


async def observe(
    session: AsyncSession, rental: RentalRow, worker: Worker, profile: ModelProfile | None, told: Mapping[str, float]
) -> None:
    """A worker that is ready told how long its phases took; later ones of it add what they know (the first line)."""
    if worker.ready_us is None or worker.hello_us is None:
        return
    row = await session.get(StartUp, rental.id)
    if row is None:
        offer = offer_from_record(rental.facts)
        row = StartUp(
            rental=rental.id,
            market=offer.key.provider,
            place=place(offer),
            image=(profile.image if profile else None) or "",
            model=rental.model,
            accelerator=hardware(offer),
            observed_us=worker.ready_us,
            boot_ms=max(0, worker.hello_us - worker.created_us) // 1000,
            ready_ms=_ms(told["start_s"]) if "start_s" in told else (worker.ready_us - worker.hello_us) // 1000,
        )
    for name, value in _phases(told):
        setattr(row, name, value)
    session.add(row)


def _phases(told: Mapping[str, float]) -> Iterator[tuple[str, int]]:
    for name, kept_as in _PHASES.items():
        if name in told:
            yield kept_as, _ms(told[name])


def _ms(seconds: float) -> int:
    # a day is more than any start takes; a worker's number must not overflow a column
    return round(1000 * min(max(seconds, 0.0), 86_400.0))


def _narrowest(
    groups: Mapping[tuple[str, ...], Sequence[int]],
    keys: Sequence[tuple[str, ...]],
    names: Sequence[str],
    prior_s: int,
) -> Estimate:
    for key, name in zip(keys, names, strict=True):
        if found := groups.get(key):
            seconds = math.ceil(cautious([ms / 1000 for ms in found[:WINDOW]], prior_s))
            return Estimate(seconds, min(len(found), WINDOW), name)
    return Estimate(prior_s, 0, "prior")
