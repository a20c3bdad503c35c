"""A worker's proof is good for one request: each is written down when it is used, for all brokers of the database.

Without it, whoever overheard a call behind a TLS proxy could make the same call again for as long as a proof may be old: a lease
asked for again gives out the prompts of its shard. A proof that was used is told 425, so that a worker whose call was sent
twice by a proxy makes it again with a new one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection

from sqlalchemy import delete
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from broker.tables import UsedProof
from broker.worker_binding import PROOF_AGE_US


async def use(session: AsyncSession, proofs: Collection[str], now_us: int) -> frozenset[str]:
    """Those that were not used before, and are now. A proof may lie ahead of our clock by as much as it may lie behind."""
    if not proofs:
        return frozenset()
    by_digest = {_digest(proof): proof for proof in proofs}
    insert = (sqlite if session.get_bind().dialect.name == "sqlite" else postgresql).insert
    rows = [{"proof": digest, "until_us": now_us + 2 * PROOF_AGE_US} for digest in sorted(by_digest)]
    # one order for all: two requests with the same two proofs must not wait for each other
    statement = insert(UsedProof).values(rows).on_conflict_do_nothing().returning(col(UsedProof.proof))
    return frozenset(by_digest[digest] for digest in await session.scalars(statement))


async def forget(session: AsyncSession, now_us: int) -> None:
    """Those that are too old to be shown again."""
    await session.execute(delete(UsedProof).where(col(UsedProof.until_us) < now_us))


def _digest(proof: str) -> str:
    return hashlib.sha256(proof.encode()).hexdigest()[:40]
