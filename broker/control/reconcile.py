"""The reconcile loop: what each market really has, beside what we believe; then the difference, carried out.

The sweep decides (pure, `markets/sweep.py`); this shell reads, acts, and never concludes anything from a list that failed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import structlog

from broker.control.draining import drain
from broker.keys import DEFAULT_PROJECT
from broker.services import Services
from broker.tables import Worker
from jobs.clock import db_now
from markets import rentals
from markets.errors import MarketsError, PartialList, RentalNotFound, RentalUnknown, StillReleasing
from markets.market import Market, Rental
from markets.own_account import holder_of, owner_mark
from markets.price_book import offer_of
from markets.refunds import free_if_interrupted_s
from markets.sweep import Action, Adopt, Alarm, MarkEnded, Memory, Release, Seen, SweepSettings, Verify, sweep
from markets.tables import OfferRow, RentalRow
from workers.profile import ModelProfile

log = structlog.get_logger()
SECOND_US = 1_000_000
# How long the pull of an engine's image may take: 10 GB at 17 MB/s. The single-use token of a machine lives 900 s.
IMAGE_S = 600
# A machine that its market interrupts ends about two minutes after the notice.
_AFTER_NOTICE_S = 60


@dataclass
class Reconciler:
    services: Services
    _started_us: int = 0
    _memory: dict[str, Memory] = field(default_factory=dict)
    _trouble: dict[str, str] = field(default_factory=dict)

    async def step(self) -> None:
        await self.services.accounts.refresh()
        every = {**self.services.markets, **self.services.accounts.opened}
        await asyncio.gather(*(self._market(name, market) for name, market in every.items()))
        await self._orphans()
        self.services.nudge("settle")

    async def _orphans(self) -> None:
        """Rentals of markets that are not configured any more can be neither seen nor released: their workers get no more
        work, and a person hears of it. They are settled when their market is back."""
        async with self.services.database.transaction() as session:
            now_us = await db_now(session)
            for row in await rentals.open_rentals(session):
                if self.services.market(row.market) is not None:
                    continue
                reason = f"market {row.market!r} is not configured any more; configure it until its rentals have ended"
                self._complain("rental.orphaned", reason, rental=row.id)
                if row.state == "intended":
                    await rentals.failed(session, row.id, error=reason, now_us=now_us)
                else:
                    await drain(session, row, reason, now_us)

    async def _market(self, name: str, market: Market) -> None:
        """One market; its failure is logged and hurts no other."""
        for rental_id in await self._leaving(name):
            await self._let_go(market, rental_id)
        listed: Sequence[Rental] | None = None
        is_complete = True
        try:
            async with asyncio.timeout(max(10.0, 2 * self.services.settings.control.reconcile_s)):
                listed = await market.rentals()
        except PartialList as cut:
            listed, is_complete = cut.found, False
            self._complain("reconcile.partial", f"{cut.code}: {cut}", market=name)
        except MarketsError as failure:
            self._complain("reconcile.failed", f"{failure.code}: {failure}", market=name)
        except TimeoutError:
            self._complain("reconcile.failed", "no answer in time", market=name)
        else:
            self._trouble.pop(name, None)
        await self._sweep(name, market, listed, is_complete=is_complete)

    def _complain(self, event: str, error: str, **subject: str) -> None:
        """Warn once for each new trouble of a market or rental: a host that is away for days is one event, not thousands."""
        (name,) = subject.values()
        if self._trouble.get(name) != error:
            self._trouble[name] = error
            log.warning(event, error=error, **subject)

    async def _sweep(self, name: str, market: Market, listed: Sequence[Rental] | None, *, is_complete: bool) -> None:
        """Compare with rows read *after* the list was asked for: an intent is older than its machine, so a machine
        without a row is really unknown."""
        async with self.services.database.transaction() as session:
            tags = [rental.tag for rental in listed or ()]
            known = await rentals.known_rentals(session, name, tags)
            now_us = await db_now(session)
        control = self.services.settings.control
        holder = holder_of(name)
        owner = self.services.owner if holder is None else owner_mark(self.services.owner, holder)
        settings = SweepSettings(owner, control.create_grace_s, control.max_kills_per_cycle)
        memory = self._memory.get(name, Memory())
        swept = sweep(known, listed, memory, now_us=now_us, settings=settings, is_complete=is_complete)
        self._memory[name] = swept.memory
        for action in swept.actions:
            await self._carry_out(market, action)

    async def _carry_out(self, market: Market, action: Action) -> None:
        match action:
            case Adopt(rental) | Seen(rental) | MarkEnded(rental):
                await self._observe(rental)
            case Verify(tag):
                await self._verify(market, tag)
            case Release(tag, why):
                if why != "asked":  # what we asked for ourselves is let go by `_market`
                    log.warning("sweep.release", rental=tag, why=why)
                    await self._let_go(market, tag)
            case Alarm(strange, released_now):
                log.error("sweep.alarm", strange=strange, released_now=released_now)

    async def _verify(self, market: Market, tag: str) -> None:
        if tag in self.services.renting:
            return  # the market is still making it: no list can have it yet
        try:
            rental = await market.rental(tag)
        except RentalNotFound:
            await self._never_was(tag)
        except MarketsError as failure:
            log.warning("sweep.unverified", rental=tag, error=f"{failure.code}: {failure}")
        else:
            await self._observe(rental)

    async def _leaving(self, name: str) -> list[str]:
        """The rentals whose release is asked for, also for machines whose worker is gone, failed, or has not been heard of
        for too long."""
        async with self.services.database.transaction() as session:
            now_us = await db_now(session)
            rows = await rentals.open_rentals(session, name)
            for row in rows:
                worker = await session.get(Worker, row.id)
                reason = silence(row, worker, now_us, self._since_us(now_us), self._patience_us(row))
                if reason and row.state == "running":
                    log.warning("rental.given_up", rental=row.id, reason=reason)
                    await rentals.request_release(session, row.id, reason=reason, now_us=now_us)
                    if worker is not None and worker.state == "awaited":
                        # a start that failed, so that the same offer is not rented again at once
                        worker.state, worker.error, worker.gone_us = "failed", reason, now_us
            return [row.id for row in rows if row.state == "releasing"]

    def _since_us(self, now_us: int) -> int:
        self._started_us = self._started_us or now_us
        return self._started_us

    def _patience_us(self, row: RentalRow) -> tuple[int, int]:
        """How long a worker may take to say hello, and how long it may be silent afterwards."""
        control = self.services.settings.control
        hello_s = hello_patience_s(row.facts, self.services.models.get(row.model), control.create_grace_s)
        return round(hello_s * SECOND_US), round(control.worker_silence_s * SECOND_US)

    async def _let_go(self, market: Market, rental_id: str) -> None:
        """Release and record the confirmed end. Not confirmed: accrual goes on, and the next round asks again."""
        try:
            async with asyncio.timeout(30):
                await market.release(rental_id)
                rental = await market.rental(rental_id)
        except RentalNotFound:
            await self._never_was(rental_id)
        except StillReleasing:
            log.info("release.unconfirmed", rental=rental_id)
        except (MarketsError, TimeoutError) as failure:
            self._complain("release.failed", f"{type(failure).__name__}: {failure}", rental=rental_id)
        else:
            self._trouble.pop(rental_id, None)
            await self._observe(rental)

    async def _never_was(self, rental_id: str) -> None:
        """The market has no such machine: it was never created, or it is long gone."""
        async with self.services.database.transaction() as session:
            try:
                row = await rentals.get(session, rental_id)
            except RentalUnknown:
                return
            now_us = await db_now(session)
            if row.started_us is None:
                await rentals.failed(session, rental_id, error=rentals.NEVER_HAD, now_us=now_us)
            else:
                await rentals.lost(session, rental_id, error="the market no longer knows it", now_us=now_us)

    async def _observe(self, rental: Rental) -> None:
        """Record what the market says. A machine that we knew nothing of has cost money all the same: once it has ended,
        it is recorded, and settled like any other, at the expense of the account's project, else of the default one."""
        async with self.services.database.transaction() as session:
            now_us = await db_now(session)
            try:
                await rentals.observe(session, rental, now_us=now_us)
            except RentalUnknown:
                log.warning("sweep.stranger", rental=rental.tag, state=rental.state, offer=str(rental.offer_key))
                if rental.state == "ended":
                    listed = await session.get(OfferRow, str(rental.offer_key))
                    offer = offer_of(listed) if listed else None
                    project = holder_of(rental.offer_key.market) or DEFAULT_PROJECT
                    await rentals.record_leaked(session, rental, offer, project=project, now_us=now_us)


def hello_patience_s(facts: Mapping[str, Any], profile: ModelProfile | None, grace_s: float) -> float:
    """Seconds that a machine may take to boot, and to pull its image: engines' are 10 GB and more. `facts` are the offer's."""
    pulls = profile is not None and profile.image is not None and facts["launch"] != "process"
    return (facts.get("boot_s") or 0) + grace_s + (IMAGE_S if pulls else 0)


def silence(
    row: RentalRow, worker: Worker | None, now_us: int, since_us: int, patience_us: tuple[int, int]
) -> str | None:
    """Why a running rental's worker is given up, or None. Pure.

    `patience_us` is how long it may take to say hello and how long it may be silent. `since_us` is when this broker
    started to listen: nobody is blamed for what he said while the broker was down.
    """
    hello_us, silent_us = patience_us
    if worker is None or worker.state == "awaited":
        waited_us = now_us - max(row.created_us, since_us)
        return f"no worker said hello within {waited_us // SECOND_US} s" if waited_us > hello_us else None
    if worker.state == "failed":
        return f"its worker failed: {worker.error or 'no reason given'}"
    if worker.state == "gone":
        return None if is_left_to_market(row, worker, now_us) else "its worker said goodbye"
    quiet_us = now_us - max(worker.seen_us or row.created_us, since_us)
    return f"its worker has been silent for {quiet_us // SECOND_US} s" if quiet_us > silent_us else None


def is_left_to_market(row: RentalRow, worker: Worker, now_us: int) -> bool:
    """Whether a machine that its market announced to take is left to it. Pure.

    AWS asks nothing for a spot machine that it interrupts in its first hour, and everything when the customer ends it first
    (runs-on #365). A notice that nothing follows (a rebalance recommendation) costs a minute more, no longer.
    """
    if worker.notice_us is None or row.started_us is None or row.pricing != "spot":
        return False
    if worker.notice_us - row.started_us >= free_if_interrupted_s(row.market) * SECOND_US:
        return False
    return now_us < worker.notice_us + SECOND_US * _AFTER_NOTICE_S
