"""The doctor: what an operator would look at first, each finding with how to mend it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from broker.accounts import holders
from broker.api import health_shapes as shapes
from broker.api import outside, surroundings
from broker.api.health import database_problems, late_loops
from broker.api.registry import Call, Route, route
from broker.control.loops import LoopState
from broker.control.snapshot import listed_offers
from broker.database import as_of_now
from broker.house_accounts import held
from broker.leadership import THE_TERM
from broker.object_store import told
from broker.price_list import serves
from broker.replica_settings import differing, digests
from broker.services import Services
from broker.store_identity import refusal, standing_of
from broker.store_residency import store_facts
from broker.tables import Replica, Term, Worker
from jobs.clock import MICROSECONDS, db_now
from jobs.errors import StoreFailed, StoreUnfit
from jobs.store_check import check_store
from ledger.audit import check
from markets import price_book
from markets.held_account import HeldMarket
from markets.own_account import account_name
from markets.tables import RentalRow

# A broker that has been silent for so many times what costs a leader its lead is not counted any more.
SILENT_PATIENCES = 3


@dataclass(frozen=True)
class Doctor:
    """The route of one application; `loops` is the live mapping that the control loops keep."""

    loops: Mapping[str, LoopState]

    def routes(self) -> tuple[Route, ...]:
        async def doctor(call: Call) -> shapes.Doctor:
            """Check database, loops, object store, markets, models, workers, books, certificates, clocks, weights, quotas."""
            checks = [_database(await database_problems(call.services.database)), *_loops(self.loops)]
            checks.append(await _objects(call.services))
            checks += [surroundings.disk(call.services.settings.data)]
            checks += surroundings.images(call.services.settings.models)
            checks += [await surroundings.vault(call.services.vault)]
            checks += surroundings.callers(call.services.settings)
            checks += await _outside(call.services)
            async with call.services.database.transaction() as session:
                await as_of_now(session)
                checks.append(await _leader(session, call.services))
                checks += await _replicas(session, call.services)
                checks += await _markets(session, call.services)
                checks += await _house_accounts(session, call.services)
                checks += await _accounts(session, call)
                now_us = await db_now(session)
                checks.append(await outside.worker_certificates(session, now_us))
                project = call.caller.project
                checks += outside.quotas(await listed_offers(session, call.services, now_us=now_us, project=project))
                checks += await _models(session, call.services)
                checks += [await surroundings.clock(session), await surroundings.receivers(session)]
                checks += [await _workers(session), await _books(session)]
            return shapes.Doctor(ok=all(each.ok for each in checks), checks=checks)

        return (route("GET", "/v1/doctor", doctor, tag="admin", roles=("operator",)),)


def _database(problems: list[str]) -> shapes.Check:
    found = "; ".join(problems) or "answers, and its schema is this broker's"
    return shapes.Check(name="database", ok=not problems, found=found, mend="restart the broker" if problems else None)


def _loops(loops: Mapping[str, LoopState]) -> list[shapes.Check]:
    late = late_loops(loops, time.monotonic())
    checks = [shapes.Check(name="loops", ok=not late, found="; ".join(late) or f"{len(loops)} run on time",
                           mend="read the log for loop.defect, restart the broker" if late else None)]  # fmt: skip
    for name, state in sorted(loops.items()):
        if state.last_error is not None:
            checks.append(
                shapes.Check(name=f"loop {name}", ok=False, found=state.last_error, mend="see the log for loop.failed")
            )
    return checks


async def _objects(services: Services) -> shapes.Check:
    """Writes, reads and deletes two small objects, and sees that neither can be written twice."""
    settings = services.settings
    store, began = told(settings.objects, settings.data), time.monotonic()
    try:
        await check_store(services.store)
        other = refusal(await standing_of(services.database, services.store), store)
    except (StoreFailed, StoreUnfit) as failure:
        mend = "see the section `objects` of broker.toml, and whether the store is up and lets us in"
        return shapes.Check(name="objects", ok=False, found=f"{store}: {failure}", mend=mend)
    if other is not None:
        return shapes.Check(
            name="objects", ok=False, found=other, mend="restart this broker on the store that it names"
        )
    took = f"{time.monotonic() - began:.2f} s"
    way = "workers are sent there" if services.store.direct else "workers go through the broker"
    sealed = "sealed" if settings.objects.encryption else "what is new lies there in clear (objects.encryption)"
    facts = store_facts(settings, 0)
    place = (
        "its place is not stated (objects.country): residency does not ask" if facts is None else f"in {facts.country}"
    )
    return shapes.Check(
        name="objects",
        ok=True,
        found=f"{store}: names are given once (asked in {took}); {sealed}; {way}; {place}",
        mend=None,
    )


async def _leader(session: AsyncSession, services: Services) -> shapes.Check:
    """Who decides. A term that nobody has led yet means that no broker reaches the database long enough to be elected."""
    if not services.database.is_shared:
        return shapes.Check(name="leader", ok=True, found="this broker, the only one of its database", mend=None)
    term = await session.get_one(Term, THE_TERM)
    who = "this broker" if services.leadership.leads else f"{term.holder} at {term.url}"
    found = f"{who}, in term {term.term}" if term.since_us else "nobody was ever elected"
    standing = services.leadership.standing
    if standing.trouble is not None:
        found += f"; this broker is cut off: {standing.trouble}"
    ok = term.since_us is not None and standing.trouble is None
    mend = None if ok else "see the log for leader.cut_off; the database must allow one connection more for each broker"
    return shapes.Check(name="leader", ok=ok, found=found, mend=mend)


async def _replicas(session: AsyncSession, services: Services) -> list[shapes.Check]:
    """The brokers that were heard of just now, and in what they are set differently from this one."""
    if not services.database.is_shared:
        return []
    silent_us = round(SILENT_PATIENCES * services.settings.database.leader_patience_s * MICROSECONDS)
    heard = select(Replica).where(col(Replica.seen_us) >= await db_now(session) - silent_us)
    alive = (await session.scalars(heard.order_by(col(Replica.holder)))).all()
    mine = digests(services.settings)
    unlike = {each.holder: names for each in alive if (names := differing(mine, each.settings))}
    found = f"{len(alive)} brokers: " + ", ".join(each.holder for each in alive)
    found += "".join(f"; {holder} is set differently in {', '.join(names)}" for holder, names in unlike.items())
    mend = "give all brokers the same settings, and restart those that were changed" if unlike else None
    return [shapes.Check(name="replicas", ok=not unlike, found=found, mend=mend)]


async def _outside(services: Services) -> list[shapes.Check]:
    """What no database says: certificates, weights, and the clocks of those whom the broker speaks to."""
    authority = services.authority.certificate if services.authority else None
    checks = outside.certificates(services.settings.http, services.public_url, authority, datetime.now(UTC))
    checks += await asyncio.to_thread(outside.weights, services.models, services.settings.cache)
    own = services.settings.providers
    asked = [each.provider for each in await services.providers.standings() if each.is_asked]
    urls = [(own[each.name].url if each.name in own else None) or each.reach.base_url for each in asked]
    return [*checks, *await outside.clocks(outside.spoken_to(services.settings, urls))]


async def _house_accounts(session: AsyncSession, services: Services) -> list[shapes.Check]:
    """Whether the house's login is of the account that its machines run in; without an answer yet, nothing is rented."""
    rows = {row.market: row for row in await held(session)}
    checks = []
    for name, market in sorted(services.markets.items()):
        if not isinstance(market, HeldMarket):
            continue
        row = rows.get(name)
        if row is None:
            found, mend = "not known yet: nothing is rented", f"see what `market {name}` says; its provider must answer"
        elif row.other is not None:
            found = f"machines run in {row.account}, the login is of {row.other}: nothing is rented, listed or released"
            mend = f"a login of {row.account} in the settings, or `broker credentials give-up {name} {row.account}`"
        else:
            found, mend = f"held to {row.account}", None
        checks.append(shapes.Check(name=f"the house's account at {name}", ok=mend is None, found=found, mend=mend))
    return checks


async def _accounts(session: AsyncSession, call: Call) -> list[shapes.Check]:
    """The projects' own credentials with which machines are rented: whether their market lets them in."""
    polls = {poll.market: poll for poll in await price_book.polls(session)}
    checks = []
    for market, projects in (await holders(session, list(call.services.accounts.openers))).items():
        for project in projects:
            if call.caller.project not in (None, project):
                continue
            poll = polls.get(account_name(market, project))
            ok = poll is None or poll.error is None
            found = "not tried yet" if poll is None else poll.error or "its market lets them in"
            mend = None if ok else f"`broker credentials set {market} --project {project}`"
            checks.append(shapes.Check(name=f"credentials of {project} at {market}", ok=ok, found=found, mend=mend))
    return checks


async def _markets(session: AsyncSession, services: Services) -> list[shapes.Check]:
    polls = {poll.market: poll for poll in await price_book.polls(session)}
    now_us = await db_now(session)
    listed = await listed_offers(session, services, now_us=now_us)
    checks = []
    for name in sorted(services.markets):
        poll = polls.get(name)
        usable = sum(each.excluded is None and each.offer.capacity != 0 for each in listed if each.offer.market == name)
        if poll is None or poll.ok_us is None:
            found = f"never polled: {poll.error}" if poll else "never polled"
        else:
            found = f"polled {(now_us - poll.ok_us) // MICROSECONDS} s ago, {usable} offers can be rented"
            found += f"; the latest poll failed: {poll.error}" if poll.error else ""
        ok = poll is not None and poll.ok_us is not None and poll.error is None
        mend = None if ok else f"see whether the provider of {name} answers and our credentials are right"
        checks.append(shapes.Check(name=f"market {name}", ok=ok, found=found, mend=mend))
    return checks


async def _models(session: AsyncSession, services: Services) -> list[shapes.Check]:
    if not services.models:
        return [
            shapes.Check(
                name="models", ok=False, found="none is configured", mend="add a section [models.NAME] to broker.toml"
            )
        ]
    listed = await listed_offers(session, services, now_us=await db_now(session))
    checks = []
    for name, profile in sorted(services.models.items()):
        usable = sum(
            each.excluded is None and each.offer.capacity != 0 and serves(profile, each.offer) for each in listed
        )
        mend = (
            None
            if usable
            else "no offer fits its launches and tokens_per_s: see `broker offers` and the model's section"
        )
        checks.append(shapes.Check(name=f"model {name}", ok=usable > 0, found=f"{usable} offers can run it", mend=mend))
    return checks


async def _workers(session: AsyncSession) -> shapes.Check:
    open_ones = select(col(RentalRow.id)).where(
        col(RentalRow.state).in_(("intended", "creating", "running", "releasing"))
    )
    grouped = (
        select(col(Worker.state), func.count()).where(col(Worker.rental).in_(open_ones)).group_by(col(Worker.state))
    )
    counts = {state: int(count) for state, count in await session.execute(grouped)}
    found = ", ".join(f"{count} {state}" for state, count in sorted(counts.items())) or "no machine is rented"
    failed = counts.get("failed", 0)
    return shapes.Check(
        name="workers", ok=not failed, found=found, mend="see the error of their placements" if failed else None
    )


async def _books(session: AsyncSession) -> shapes.Check:
    errors = [each for each in await check(session) if each.severity == "error"]
    found = f"{errors[0].code} {errors[0].subject}: {errors[0].message}" if errors else "balanced, nothing found"
    mend = "stop posting and compare the export with a backup" if errors else None
    return shapes.Check(name="ledger", ok=not errors, found=found, mend=mend)
