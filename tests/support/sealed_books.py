"""Small books with a bit of everything, and their sealed export."""

from __future__ import annotations

from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from sqlalchemy.ext.asyncio import AsyncSession

from broker.database import Database
from ledger import holds, seal
from ledger.accrual import Meter, accrue
from ledger.book import post
from ledger.event import Dims, Event, Line
from ledger.sealed_export import Signer, seal_now, sign_manifest, write, write_manifest

NOW = 1_795_305_600_000_000
SIGNER = Signer("broker", Ed25519PrivateKey.from_private_bytes(bytes(range(32))))
METER = Meter(
    rental="rental_1",
    offer_key="sandbox/eu/-/gpu/-/1/spot",
    market="sandbox",
    pricing="spot",
    project="demo",
    batch=None,
    price_nano_hour=3_600_000,
    started_us=NOW,
)


def exchange(key: str, akt: int, cost: int) -> Event:
    return Event(
        key=key,
        kind="fx.buy",
        occurred_at_us=NOW,
        actor="finance",
        dims=Dims(),
        lines=(
            Line(account="Assets:Wallet:Akash", nano=akt, unit="AKT"),
            Line(account="Equity:FX:Liquidity:AKT", nano=-akt, unit="AKT"),
            Line(account="Equity:FX:Liquidity:AKT", nano=cost),
            Line(account="Assets:Bank:Main", nano=-cost),
        ),
    )


async def keep_books(session: AsyncSession) -> None:
    """A hold with two accruals and its end, and a purchase of AKT: five entries."""
    await holds.open_hold(
        session,
        hold_id="h1",
        nano=50_000,
        project="demo",
        batch=None,
        rental="rental_1",
        offer_key=METER.offer_key,
        occurred_at_us=NOW,
        actor="broker",
    )
    for seconds, final in ((10, False), (20, True)):
        until = NOW + seconds * 1_000_000
        await accrue(session, METER, until_us=until, final=final, actor="broker", recorded_at_us=until)
    await holds.void_hold(session, hold_id="h1", occurred_at_us=NOW, actor="broker")
    await post(session, exchange("fx-1", 10**10, 75 * 10**8), recorded_at_us=NOW)


async def export(books: Database, folder: Path) -> None:
    """Both streams with two checkpoints of the books and one of decisions, and a signed manifest."""
    async with books.transaction() as session:
        await keep_books(session)
        await seal_now(session, SIGNER, "books", now_us=NOW)
    async with books.transaction() as session:
        await post(session, exchange("fx-2", 10**9, 10**9), recorded_at_us=NOW)
        for decided in (b'{"decision":1}', b'{"decision":2}'):
            await seal.append(session, "decisions", decided)
        for stream in seal.STREAMS:
            await seal_now(session, SIGNER, stream, now_us=NOW)
    await write(books.transaction, folder)
    write_manifest(folder)
    sign_manifest(folder, SIGNER)
