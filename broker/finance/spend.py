"""What was spent, by whatever it may be asked by: projects, providers, models, days, batches, tags. A projection of the books.

What a machine cost is its expenses, refunds taken off. Asked by batch or by a tag of batches, each machine's cost is divided
among the batches that it served, exactly; what no batch has is `-` and always shown.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import func, or_, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from broker.costs import _served, rental_shares
from broker.finance.books_read import market_in
from jobs.tables import Batch
from ledger.tables import Entry, Posting
from markets.tables import RentalRow

NONE = "-"
DAY_US = 86_400_000_000
HOUR_US = 3_600_000_000
KEYS = ("project", "provider", "model", "pricing", "region", "category", "rental", "batch", "day", "month")
TAG = "tag:"
_AT_ONCE = 500


@dataclass(frozen=True, slots=True)
class Cell:
    """Nano-USD of one rental (or of none) in one step of time and one category of expense."""

    step: int
    project: str | None
    rental: str | None
    account: str
    nano: int


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known of the rentals that cells name, and how each divides among batches."""

    rentals: Mapping[str, RentalRow]
    served: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    tags: Mapping[str, Mapping[str, str]] = field(default_factory=dict)


class UnknownKey(ValueError):
    """Spend cannot be asked by this."""

    code = "unknown_key"


async def cells(
    session: AsyncSession, *, since_us: int, until_us: int, step_us: int = DAY_US, project: str | None = None
) -> list[Cell]:
    """The spend of [since, until) in steps since 1970, summed by the database."""
    step = (col(Entry.occurred_at_us) // step_us).label("step")
    query = (
        select(step, col(Entry.project), col(Entry.rental), col(Posting.account), func.sum(col(Posting.nano)))
        .join(Posting, col(Posting.entry_id) == col(Entry.id))
        .where(
            col(Entry.occurred_at_us) >= since_us,
            col(Entry.occurred_at_us) < until_us,
            col(Posting.unit) == "USD",
            or_(col(Posting.account).startswith("Expenses:"), col(Posting.account).startswith("Income:Refunds:")),
        )
        .group_by(step, col(Entry.project), col(Entry.rental), col(Posting.account))
    )
    if project is not None:
        query = query.where(col(Entry.project) == project)
    rows = (await session.execute(query)).all()
    return [Cell(int(at), owner, rental, account, int(nano)) for at, owner, rental, account, nano in rows if nano]


async def facts_of(session: AsyncSession, found: Sequence[Cell], keys: Sequence[str]) -> Facts:
    """Read what the keys need."""
    ids = sorted({cell.rental for cell in found if cell.rental})
    rentals: dict[str, RentalRow] = {}
    for at in range(0, len(ids), _AT_ONCE):
        query = select(RentalRow).where(col(RentalRow.id).in_(ids[at : at + _AT_ONCE]))
        rentals |= {row.id: row for row in await session.scalars(query)}
    if not any(key == "batch" or key.startswith(TAG) for key in keys):
        return Facts(rentals)
    served: dict[str, Mapping[str, Any]] = {}
    for at in range(0, len(ids), _AT_ONCE):
        served |= await _served(session, ids[at : at + _AT_ONCE])
    batches = sorted({b for each in served.values() for b in each} | {
        b for row in rentals.values() for b in row.purpose.get("batches", ())
    })  # fmt: skip
    tags: dict[str, Mapping[str, str]] = {}
    for at in range(0, len(batches), _AT_ONCE):
        wishes = select(col(Batch.id), col(Batch.wishes)).where(col(Batch.id).in_(batches[at : at + _AT_ONCE]))
        tags |= {batch: (wish or {}).get("tags") or {} for batch, wish in (await session.execute(wishes)).all()}
    return Facts(rentals, served, tags)


def check_keys(keys: Sequence[str]) -> None:
    """Raises UnknownKey."""
    for key in keys:
        if key not in KEYS and not (key.startswith(TAG) and len(key) > len(TAG)):
            raise UnknownKey(f"spend by {key!r}: one of {', '.join(KEYS)} or tag:NAME is meant")


def grouped(
    found: Sequence[Cell], facts: Facts, keys: Sequence[str], *, step_us: int = DAY_US
) -> dict[tuple[str, ...], int]:
    """Nano-USD by the values of the keys; the values sum to all of `found`, exactly. Pure."""
    sums: dict[tuple[str, ...], int] = defaultdict(int)
    for cell in found:
        for batch, nano in _shares(cell, facts, keys).items():
            sums[tuple(_value(key, cell, batch, facts, step_us) for key in keys)] += nano
    return dict(sums)


def by_tag(found: Sequence[Cell], facts: Facts) -> dict[tuple[str, str], list[Cell]]:
    """The cells by the (name, value) of every tag that a batch carries, each cut to what those batches bear of it: what
    `grouped` says of `tag:NAME`, for all names in one pass. `facts` were read for `batch`. Lines' own tags stand in files,
    beside prompts, and are not looked at; what no tag has is in none. Pure."""
    split: dict[tuple[str, str], list[Cell]] = defaultdict(list)
    for cell in found:
        for batch, nano in _shares(cell, facts, ("batch",)).items():
            for tag in facts.tags.get(batch, {}).items():
                split[tag].append(replace(cell, nano=nano))
    return split


def _shares(cell: Cell, facts: Facts, keys: Sequence[str]) -> dict[str, int]:
    """The cell's amount by batch, where the keys ask for batches."""
    row = facts.rentals.get(cell.rental or "")
    if row is None or not any(key == "batch" or key.startswith(TAG) for key in keys):
        return {NONE: cell.nano}
    shares = rental_shares(abs(cell.nano), dict(facts.served.get(row.id, {})), row.purpose.get("batches", []))
    return {batch: nano if cell.nano > 0 else -nano for batch, nano in shares.items()} or {NONE: cell.nano}


def _value(key: str, cell: Cell, batch: str, facts: Facts, step_us: int) -> str:
    if key.startswith(TAG):
        return facts.tags.get(batch, {}).get(key.removeprefix(TAG), NONE)
    if key in ("day", "month"):
        moment = datetime.fromtimestamp(cell.step * step_us // 1_000_000, UTC)
        return moment.strftime("%Y-%m-%d" if key == "day" else "%Y-%m")
    row = facts.rentals.get(cell.rental or "")
    direct = {"project": cell.project, "rental": cell.rental, "batch": batch, "category": category_of(cell.account)}
    if key in direct:
        return direct[key] or NONE
    if row is None:
        return market_in(cell.account) if key == "provider" else NONE
    of_row = {"provider": row.market, "model": row.model, "pricing": row.pricing, "region": row.offer_key.split("/")[1]}
    return of_row[key] or NONE


def category_of(account: str) -> str:
    """What kind of cost an account is.

    >>> category_of("Expenses:Compute:Spot:Aws"), category_of("Expenses:Lost:Preempted:Aws"), category_of("Income:Refunds:Aws")
    ('compute', 'lost', 'refund')
    """
    parts = account.split(":")
    return "refund" if parts[0] == "Income" else parts[1].lower()


def usd_sums(sums: Mapping[tuple[str, ...], int]) -> list[tuple[tuple[str, ...], int]]:
    """Dearest first."""
    return sorted(sums.items(), key=lambda each: (-each[1], each[0]))
