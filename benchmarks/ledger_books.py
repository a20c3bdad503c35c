"""The books: batched postings per second beside raw inserts of the same rows, and how fast an export is verified.

Paired and interleaved: each round posts the same events through `ledger.book.post_many` and writes the same rows with plain SQL
through the driver, both into fresh books with the same tables and triggers, in transactions of the same size.
"""

from __future__ import annotations

import asyncio
import contextlib
import resource
import shutil
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import structlog
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from sqlalchemy import insert, select, text, update
from sqlmodel import SQLModel, col

from broker.database import Database, sqlite_url
from broker.migrate import upgrade
from ledger import seal
from ledger.book import post_many
from ledger.checkpoint import read_keys, verifier_key
from ledger.event import Dims, Event, Line
from ledger.sealed_export import Signer, seal_now, sign_manifest, write, write_manifest
from ledger.tables import Entry, Head, Posting, SealHead, SealLeaf
from ledger.verify import verify

NOW = 1_795_305_600_000_000
AT_ONCE = 1000
TABLES = (Entry, Posting, SealLeaf)


def events(count: int) -> list[tuple[Event, int]]:
    """Accruals of 200 rentals as the meter posts them: four lines, real and memo."""
    found = []
    for number in range(count):
        rental, nano = f"rental_{number % 200:026d}", 1000 + number
        found.append(
            (
                Event(
                    key=f"bench:{rental}:{number}",
                    kind="usage.accrue",
                    occurred_at_us=NOW + number * 1_000_000,
                    actor="broker.accrual",
                    dims=Dims(project="demo", rental=rental, offer_key="sandbox/eu/-/gpu/-/1/spot"),
                    lines=(
                        Line(account="Expenses:Compute:Spot:Sandbox", nano=nano),
                        Line(account="Liabilities:Accrued:Sandbox", nano=-nano),
                        Line(account="Memo:Spent:Demo", nano=nano),
                        Line(account="Memo:Budget:Demo", nano=-nano),
                    ),
                ),
                NOW + number * 1_000_000,
            )
        )
    return found


async def posted(url: str, wanted: Sequence[tuple[Event, int]]) -> float:
    """Wall seconds of posting them all."""
    database = Database(url)
    began = time.perf_counter()
    for at in range(0, len(wanted), AT_ONCE):
        async with database.transaction() as session:
            await post_many(session, wanted[at : at + AT_ONCE])
    took = time.perf_counter() - began
    await database.close()
    return took


async def rows_of(url: str) -> dict[str, list[dict[str, Any]]]:
    """What posting wrote, by table."""
    database = Database(url)
    found = {}
    async with database.transaction() as session:
        for table in TABLES:
            columns = SQLModel.metadata.tables[str(table.__tablename__)].columns
            found[str(table.__tablename__)] = [dict(row._mapping) for row in await session.execute(select(*columns))]
    await database.close()
    return found


async def inserted(url: str, rows: dict[str, list[dict[str, Any]]]) -> float:
    """Wall seconds of writing the same rows with SQLAlchemy Core's bulk inserts: no rules, no hashes, no lookups."""
    database = Database(url)
    entries = sorted(rows["ledger_entry"], key=lambda row: row["seq"])
    postings: dict[str, list[dict[str, Any]]] = {}
    for row in rows["ledger_posting"]:
        postings.setdefault(row["entry_id"], []).append(row)
    leaves = sorted(rows["ledger_seal"], key=lambda row: row["seq"])
    began = time.perf_counter()
    for at in range(0, len(entries), AT_ONCE):
        some = [{**row, "sealed": False} for row in entries[at : at + AT_ONCE]]
        async with database.transaction() as session:
            await session.execute(insert(Entry), some)
            await session.execute(insert(Posting), [line for row in some for line in postings[row["id"]]])
            between = col(Entry.seq).between(some[0]["seq"], some[-1]["seq"])
            await session.execute(update(Entry).where(between).values(sealed=True))
            await session.execute(update(Head).values(seq=some[-1]["seq"]))
            await session.execute(insert(SealLeaf), leaves[at : at + AT_ONCE])
            last = leaves[min(at + AT_ONCE, len(leaves)) - 1]
            head = update(SealHead).where(col(SealHead.stream) == "books").values(seq=last["seq"], hash=last["hash"])
            await session.execute(head)
    took = time.perf_counter() - began
    await database.close()
    return took


async def verified(url: str) -> dict[str, float]:
    """CPU seconds of verifying an export of these books."""
    signer = Signer("bench", Ed25519PrivateKey.generate())
    database = Database(url)
    folder = Path(tempfile.mkdtemp(prefix="broker-bench-"))
    try:
        async with database.transaction() as session:
            await seal_now(session, signer, "books", now_us=NOW)
        await write(database.transaction, folder)
        write_manifest(folder)
        sign_manifest(folder, signer)
        keys = read_keys(verifier_key(signer.key, signer.name))
        took = []
        for _ in range(3):
            began = time.process_time()
            verdict = verify(folder, keys)
            took.append(time.process_time() - began)
            if verdict.problems:
                raise RuntimeError(f"the benchmark's own books do not verify: {verdict.problems[0]}")
    finally:
        await database.close()
        shutil.rmtree(folder)
    return {"postings": verdict.postings, "cpu_s": min(took), "postings_per_cpu_s": verdict.postings / min(took)}


class _Urls:
    """Fresh migrated databases: SQLite files copied from a template, or databases of a PostgreSQL server."""

    def __init__(self, folder: Path, server: str | None) -> None:
        self._folder, self._server, self._made = folder, server, 0
        self._template = sqlite_url(folder / "template.db")
        if server is None:
            asyncio.run(upgrade(self._template))

    def fresh(self) -> str:
        self._made += 1
        if self._server is None:
            target = self._folder / f"{self._made}.db"
            shutil.copy(self._folder / "template.db", target)
            return sqlite_url(target)
        name = f"bench_{self._made}"
        asyncio.run(_create(self._server, name))
        url = f"{self._server.rpartition('/')[0]}/{name}"
        asyncio.run(upgrade(Database(url).url))
        return url


async def _create(server: str, name: str) -> None:
    database = Database(server)
    async with database.engine.connect() as connection:
        bare = await connection.execution_options(isolation_level="AUTOCOMMIT")
        await bare.execute(text(f"CREATE DATABASE {name}"))
    await database.close()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    before = structlog.get_config()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
    try:
        yield
    finally:
        structlog.configure(**before)


def measure(*, entries: int, rounds: int, server: str | None = None) -> dict[str, Any]:
    """Figures of the books on SQLite, or on the PostgreSQL server at the URL `server`."""
    wanted = events(entries)
    with tempfile.TemporaryDirectory(prefix="broker-bench-") as name, _quiet():
        urls = _Urls(Path(name), server)
        ours, raw = [], []
        rows: dict[str, list[dict[str, Any]]] = {}
        url = ""
        for _ in range(rounds):
            url = urls.fresh()
            ours.append(asyncio.run(posted(url, wanted)))
            rows = rows or asyncio.run(rows_of(url))
            raw.append(asyncio.run(inserted(urls.fresh(), rows)))
        lines = entries * 4
        return {
            "database": "sqlite" if server is None else "postgresql",
            "entries": entries,
            "postings_per_s": lines / statistics.median(ours),
            "raw_postings_per_s": lines / statistics.median(raw),
            "ratio_of_raw": statistics.median(r / o for r, o in zip(raw, ours, strict=True)),
            "verify": asyncio.run(verified(url)),
            "rss_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
            "streams": list(seal.STREAMS),
        }
