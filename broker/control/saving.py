"""What an answer that is reused saves: its tokens at the price that the batch was quoted, booked with the own part."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from broker.compliance.reuse import seal_reuse
from broker.tables import Quote
from jobs import own_parts
from jobs.clock import db_now
from jobs.own_parts import EPOCH, OwnPart
from jobs.tables import Batch, Part
from ledger import savings
from ledger.money import div_half_even, to_nano

ACTOR = "broker.reuse"


@dataclass(frozen=True, slots=True)
class Price:
    """What so many tokens were quoted at, in nano-USD. Without tokens the price is unknown, and nothing counts as saved."""

    nano: int = 0
    tokens: int = 0

    def of(self, tokens: int) -> int:
        """Nano-USD for `tokens`, rounded once, half to even.

        >>> Price(nano=1_000, tokens=3).of(2), Price().of(2)
        (667, 0)
        """
        return div_half_even(self.nano * tokens, self.tokens) if self.tokens else 0


def price_of(explanation: Mapping[str, Any]) -> Price:
    """The price in a quote's body; unknown where no plan was feasible.

    >>> price_of({"usd": "0.000001", "input_tokens": 3, "output_tokens": 1})
    Price(nano=1000, tokens=4)
    """
    if explanation["usd"] is None:
        return Price()
    return Price(to_nano(Decimal(explanation["usd"])), explanation["input_tokens"] + explanation["output_tokens"])


async def quoted_price(session: AsyncSession, batch_id: str) -> Price:
    """What the batch was quoted first. Unknown for a batch without a quote."""
    first = select(Quote).where(col(Quote.batch) == batch_id).order_by(col(Quote.created_us)).limit(1)
    quote: Quote | None = await session.scalar(first)
    return Price() if quote is None else price_of(quote.body)


async def commit(session: AsyncSession, secret: bytes, project: str, part: OwnPart) -> bool:
    """Make an own part count, book what it saved and seal from where its answers are, in the caller's transaction; False when it
    does not count (again)."""
    if await own_parts.commit(session, part) != "committed":
        return False
    await seal_reuse(session, secret, part)
    if part.saved.nano:
        await savings.save(
            session,
            key=_key(part.shard_id, part.seq),
            nano=part.saved.nano,
            project=project,
            batch=part.batch_id,
            occurred_at_us=await db_now(session),
            actor=ACTOR,
        )
    return True


async def take_back_withdrawn(session: AsyncSession, batch: Batch) -> None:
    """Own parts that turned out damaged saved nothing. Call it in the transaction that withdraws them; doing it again
    changes nothing."""
    withdrawn = select(Part).where(
        col(Part.batch_id) == batch.id, col(Part.epoch) == EPOCH, col(Part.withdrawn_us).is_not(None)
    )
    for part in (await session.scalars(withdrawn)).all():
        occurred_at_us = part.withdrawn_us or 0
        key = _key(part.shard_id, part.seq)
        await savings.take_back(session, key=key, occurred_at_us=occurred_at_us, actor=ACTOR)


def _key(shard_id: str, seq: int) -> str:
    return f"saving.reuse:{shard_id}:{seq}"
