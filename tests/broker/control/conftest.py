"""The control loops stepped by hand over a real database: a clock that is moved, a real solver process, a market without
machines that answers the typed errors of the contract."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select
from sqlmodel import col

from broker.compliance.pinning import store_policy
from broker.control.place import await_worker
from broker.credentials import Credentials
from broker.database import Database
from broker.failpoints import Failpoints
from broker.keyring import open_keyring
from broker.object_keys import ObjectKeys
from broker.sealed_store import SealedStore
from broker.services import Services
from broker.settings import ControlSettings, Settings, VaultSettings
from broker.tables import Assignment, Waiting, Worker
from broker.vault import Vault
from jobs import batches, files, ids
from jobs.clock import db_now
from jobs.objects import ObjectStore
from jobs.tables import Batch
from jobs.types import ShardSpec, Validation
from ledger.holds import open_hold
from markets import price_book, rentals
from markets.errors import Unavailable
from markets.market import Rental
from markets.offer import Accelerator, Evidence, Offer, OfferKey
from markets.tables import RentalRow
from solver.residency import compile_countries
from tests.support.lock_watch import watch_locks
from tests.support.planning import PlanningHere
from workers.profile import ModelProfile

MODEL = "tiny"
SECOND_US = 1_000_000


def offer(sku: str = "one", *, country: str = "DE", price: str = "3.60") -> Offer:
    """3.60 $/h: a second costs 0.001 $."""
    now = datetime.now(UTC)
    return Offer(
        key=OfferKey("town", None, None, sku, "cpu", 0, "on_demand"),
        launch="process",
        accelerator=Accelerator(),
        currency="USD",
        price=Decimal(price),
        observed_at=now,
        source="test",
        raw_sha256="0" * 64,
        country=country,
        capacity=4,
        boot_s=1,
        evidence=(Evidence("provider_api", "test", now, timedelta(days=1)),),
        location_tier="named_datacenter",
    )


class AbsentMarket:
    """A market that does not answer: every method raises the contract's `Unavailable`."""

    async def offers(self) -> list[Offer]:
        raise Unavailable

    rentals = rental = release = charges = offers

    async def rent(self, of: Offer, intent: Any) -> Rental:
        raise Unavailable


@dataclass
class Town:
    """One broker's rooms without its HTTP."""

    services: Services

    offer = staticmethod(offer)

    @property
    def database(self) -> Database:
        return self.services.database

    async def list_offers(self, *listed: Offer, market: str = "town") -> None:
        async with self.database.transaction() as session:
            await price_book.store_offers(session, market, list(listed), now_us=await db_now(session))

    async def batch(self, *, lines: int = 10, begun: bool = True, project: str = "default", **wishes: Any) -> str:
        """A batch whose lines take about 1 s each on one machine, begun unless said otherwise."""
        content = b"{}\n" * lines
        batch_id, file_id = ids.batch_id(), ids.file_id()
        stored = await self.services.store.put(f"{project}/files/{file_id}", content)
        async with self.database.transaction() as session:
            now_us = await db_now(session)
            await files.create(
                session,
                file_id=file_id,
                project=project,
                purpose="batch",
                filename="in.jsonl",
                size=len(content),
                sha256=stored.sha256,
                object_key=stored.key,
            )
            policy_hash = await store_policy(session, compile_countries(["DE"]), now_us)
            new = batches.NewBatch(
                id=batch_id,
                project=project,
                principal="somebody",
                input_file_id=file_id,
                endpoint="/v1/chat/completions",
                completion_window="24h",
                policy_hash=policy_hash,
                wishes=wishes,
            )
            await batches.create(session, new)
            if begun:
                await batches.begin(session, batch_id, validation(lines, len(content)))
        return batch_id

    async def rental(self, of: Offer, *, purpose: tuple[str, ...], ran_s: int = 0) -> str:
        """A machine with a worker at work, running for `ran_s` seconds, with its hold."""
        rental_id = f"rental_{ids.batch_id().removeprefix('batch_')}"
        now = datetime.now(UTC)
        seen = Rental(
            tag=rental_id,
            offer_key=of.key,
            state="running",
            price=of.price or Decimal(0),
            currency="USD",
            started_at=now - timedelta(seconds=ran_s),
            ended_at=None,
            seen_at=now,
        )
        async with self.database.transaction() as session:
            now_us = await db_now(session)
            await open_hold(
                session,
                hold_id=rental_id,
                nano=10**12,
                project="default",
                batch=None,
                rental=rental_id,
                offer_key=str(of.key),
                occurred_at_us=now_us,
                actor="test",
            )
            await rentals.record_intent(
                session,
                rental_id=rental_id,
                offer=of,
                project="default",
                model=MODEL,
                precision="auto",
                purpose={"batches": list(purpose)},
                now_us=now_us - ran_s * SECOND_US,
            )
            await rentals.mark_creating(session, rental_id, now_us=now_us)
            await await_worker(session, rental_id, "token", now_us)
            await rentals.observe(session, seen, now_us=now_us)
            worker = await session.get_one(Worker, rental_id)
            worker.state, worker.hello_us, worker.ready_us = "ready", now_us, now_us
        return rental_id

    async def assign(self, batch_id: str, of: Offer) -> None:
        async with self.database.transaction() as session:
            session.add(Assignment(batch=batch_id, offer_key=str(of.key), plan="plan_x", rank=0, cost_nano=0, end_us=0))

    async def row(self, table: type[Any], key: str) -> Any:
        async with self.database.transaction() as session:
            return await session.get(table, key)

    async def rows(self, table: type[Any]) -> list[Any]:
        async with self.database.transaction() as session:
            return list(await session.scalars(select(table)))

    async def assigned(self, batch_id: str) -> list[str]:
        async with self.database.transaction() as session:
            return list(
                await session.scalars(select(col(Assignment.offer_key)).where(col(Assignment.batch) == batch_id))
            )

    async def waiting(self, batch_id: str) -> Waiting | None:
        found: Waiting | None = await self.row(Waiting, batch_id)
        return found

    async def status(self, batch_id: str) -> str:
        return str((await self.row(Batch, batch_id)).status)

    async def intents(self) -> list[RentalRow]:
        return [row for row in await self.rows(RentalRow) if row.state == "intended"]


def validation(lines: int, size: int) -> Validation:
    """What a validator says of so many lines of ten output tokens each."""
    shard = ShardSpec(
        index=0,
        first_idx=0,
        lines=lines,
        start=0,
        stop=size,
        sha256="0" * 64,
        input_tokens=lines,
        output_tokens=10 * lines,
    )
    return Validation(
        findings=(),
        findings_total=0,
        model=MODEL,
        endpoint="/v1/chat/completions",
        lines=lines,
        input_tokens=lines,
        output_tokens=10 * lines,
        shards=(shard,),
    )


@pytest.fixture
async def town(
    request: pytest.FixtureRequest, database: Database, tmp_path: Path, object_store: ObjectStore
) -> AsyncIterator[Town]:
    profile = ModelProfile(
        id=MODEL, engine="url", base_url="http://127.0.0.1:9", tokens_per_s={"cpu": (1000, 10)}, load_s=1
    )
    vault = Vault(database, open_keyring(VaultSettings(), tmp_path))
    services = Services(
        settings=Settings(data=tmp_path, control=ControlSettings(accrue_s=1, reconcile_s=1, heartbeat_s=1)),
        database=database,
        store=SealedStore(object_store, ObjectKeys(database, vault)),
        markets={"town": AbsentMarket()},  # type: ignore[dict-item]
        models={MODEL: profile},
        solver=PlanningHere(),
        secret=b"a secret of thirty-two bytes....",
        failpoints=Failpoints(None),
        public_url="http://127.0.0.1",
        owner="test",
        vault=vault,
        credentials=Credentials(database, vault),
        wake={name: asyncio.Event() for name in ("validate", "plan", "place", "settle", "reconcile")},
    )
    if request.node.get_closest_marker("own_writes"):
        yield Town(services)
        return
    with watch_locks(database.engine):  # whatever the house does: no two transactions may come to wait in a ring
        yield Town(services)
