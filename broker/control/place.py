"""The place loop: turn intents into rentals. Intent first, unique tag, then create; what may have been created is looked
for by its tag before anything else happens."""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import dataclass
from decimal import Decimal

import structlog
from sqlalchemy.ext.asyncio import AsyncSession

from broker.control.settle import settle
from broker.control.snapshot import max_age_s
from broker.model_set import with_weights
from broker.services import Services
from broker.tables import Worker
from broker.token_buying import executor_profile, is_bought
from broker.worker_pool import pool, refusal
from jobs.clock import db_now
from jobs.state import starts_lines
from ledger.money import from_nano
from markets import rentals
from markets.errors import (
    Ambiguous,
    IllegalTransition,
    MarketsError,
    NoCapacity,
    NotAuthorized,
    PriceMoved,
    QuotaExceeded,
    RateLimited,
    Unavailable,
)
from markets.market import Intent, Market, Rental
from markets.offer_record import offer_from_record
from markets.own_account import provider_of
from markets.tables import RentalRow
from workers.errors import UnknownModel, WorkersError
from workers.launch import machine_start
from workers.profile import ModelProfile

log = structlog.get_logger()
SECOND_US = 1_000_000
# The market said that nothing was created: the intent is over.
REFUSALS = (NoCapacity, QuotaExceeded, PriceMoved, NotAuthorized)
# How long the single-use token of a fresh machine is good for: boot, image pull and a slow network included.
BOOTSTRAP_S = 900


@dataclass
class Placer:
    """The place step. `agent_failpoint` (chaos runs) goes to the first machine only: all of them dying is no schedule."""

    services: Services
    agent_failpoint: str | None

    async def step(self) -> None:
        async with self.services.database.transaction() as session:
            intended = [row.id for row in await rentals.open_rentals(session) if row.state == "intended"]
        if intended:
            await self.services.accounts.refresh()
        for rental_id in intended:
            await self._create(rental_id)

    async def _create(self, rental_id: str) -> None:
        token = secrets.token_hex(32)
        async with self.services.database.transaction() as session:
            now_us = await db_now(session)
            try:
                row = await rentals.mark_creating(session, rental_id, now_us=now_us)
            except IllegalTransition as changed:
                # a plan took the intent back since this round listed it; the other intents go on
                log.info("place.withdrawn", rental=rental_id, reason=str(changed))
                return
            await await_worker(session, rental_id, token, now_us)
            doubt = await _doubt(session, row, now_us, max_age_s(self.services))
            if doubt is None:
                # facts are read anew: what the plan was allowed by may have changed since
                batches = await pool(session, row)
                doubt = await refusal(session, self.services, row, batches, now_us, "launch")
            if doubt:
                # our own change of mind, not the offer's failure: it does not hold the offer back
                await rentals.request_release(session, rental_id, reason=doubt, now_us=now_us)
        if doubt:
            await self._over(rental_id, doubt)
            return
        market = self.services.market(row.market)
        if market is None:
            await self._over(rental_id, f"market {row.market!r} is not configured any more")
            return
        try:
            # process launches on this machine read the weights from here; a machine that waits for them costs money
            profile = self._profile(row.model)
            if is_bought(row):
                profile = executor_profile(profile)
            else:
                await with_weights(profile, self.services.settings.cache / "weights")
            intent = self._intent(row, profile, token)
        except WorkersError as missing:
            await self._over(rental_id, f"{missing.code}: {missing}")
            return
        rental = await self._rent(market, row, intent)
        if rental is None:
            return
        # the crash between create and record (SkyPilot, dstack leaked machines here): the sweeper finds it by its tag
        self.services.failpoints.reached("place.after_create")
        async with self.services.database.transaction() as session:
            await rentals.observe(session, rental, now_us=await db_now(session))

    async def _rent(self, market: Market, row: RentalRow, intent: Intent) -> Rental | None:
        offer = offer_from_record(row.facts)
        self.services.renting.add(row.id)
        try:
            return await market.rent(offer, intent)
        except REFUSALS as refused:
            await self._over(row.id, f"{refused.code}: {refused}")
        except (Ambiguous, Unavailable, RateLimited) as unknown:
            # the row stays `creating`; the reconcile loop finds the machine by its tag, or fails the intent after the grace
            log.warning("place.ambiguous", rental=row.id, offer=row.offer_key, error=f"{unknown.code}: {unknown}")
            self.services.nudge("reconcile")
        except MarketsError as failure:
            log.error("place.failed", rental=row.id, offer=row.offer_key, error=f"{failure.code}: {failure}")
            await self._over(row.id, f"{failure.code}: {failure}")
        finally:
            self.services.renting.discard(row.id)
        return None

    async def _over(self, rental_id: str, error: str) -> None:
        async with self.services.database.transaction() as session:
            now_us = await db_now(session)
            await rentals.failed(session, rental_id, error=error, now_us=now_us)
            await settle(session, rental_id, now_us=now_us)
        self.services.nudge("plan")

    def _profile(self, model: str) -> ModelProfile:
        profile = self.services.models.get(model)
        if profile is None:
            raise UnknownModel(f"model {model!r} is not configured any more")
        return profile

    def _intent(self, row: RentalRow, profile: ModelProfile, token: str) -> Intent:
        settings = self.services.settings
        failpoint, self.agent_failpoint = self.agent_failpoint, None
        start = machine_start(
            launch="process" if is_bought(row) else row.facts["launch"],
            rental_id=row.id,
            broker_url=self.services.public_url,
            identity="token" if self.services.authority is None else "certificate",
            broker_ca=self.services.broker_ca,
            bootstrap_token=token,
            profile=profile,
            dead_man_s=settings.control.dead_man_s,
            market=provider_of(row.market),
            failpoint=failpoint,
        )
        return Intent(tag=row.id, owner=self.services.owner, start=start, max_price=_ceiling(row))


async def _doubt(session: AsyncSession, row: RentalRow, now_us: int, max_age_s: int) -> str | None:
    """Why an intent must not be carried out any more: a broker that was down finds it with prices and facts of before."""
    age_s = (now_us - row.created_us) // SECOND_US
    if age_s > max_age_s:
        return f"the intent is {age_s} s old, its plan was made for at most {max_age_s} s; planned again"
    for batch in await pool(session, row):
        if starts_lines(batch.status, batch.ending, batch.paused_us):
            return None
    return "no batch needs it any more"


def _ceiling(row: RentalRow) -> Decimal:
    """The hourly price that the hold was computed with: a market that now asks for more answers PriceMoved."""
    return from_nano(row.price_nano_hour)


async def await_worker(session: AsyncSession, rental_id: str, token: str, now_us: int) -> None:
    """Expect an agent with this single-use token. Intents that survived a crash get a new token: only hashes are kept."""
    worker = await session.get(Worker, rental_id)
    if worker is None:
        worker = Worker(rental=rental_id, bootstrap_sha256="", created_us=now_us)
        session.add(worker)
    worker.bootstrap_sha256 = hashlib.sha256(token.encode()).hexdigest()
    worker.bootstrap_expires_us = now_us + BOOTSTRAP_S * SECOND_US
