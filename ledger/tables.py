"""The tables of the books. Append-only: ledger/triggers.py makes the database itself refuse everything else."""

from __future__ import annotations

from typing import Any

from sqlalchemy import BigInteger, CheckConstraint, Column, ForeignKey, Index, LargeBinary, String, text
from sqlmodel import Field, SQLModel

_RESOLVES = text("kind IN ('hold.void', 'hold.expire')")
_OPENS = text("kind = 'hold.open'")


def _big(**options: Any) -> Any:
    return Field(sa_column=Column(BigInteger, nullable=False, **options))


class Entry(SQLModel, table=True):
    """One transaction. `payload` is `event.encode(event)`, byte for byte; the other columns repeat it for queries.

    `seq` counts from 1 without gaps. `sealed` turns true once, when the postings are complete and balance.
    """

    __tablename__ = "ledger_entry"
    __table_args__ = (
        Index("ux_ledger_entry_hold_resolved", "hold", unique=True, sqlite_where=_RESOLVES, postgresql_where=_RESOLVES),
        Index("ux_ledger_entry_hold_opened", "hold", unique=True, sqlite_where=_OPENS, postgresql_where=_OPENS),
        # a meter reads the newest entry of its rental, whatever the number of them
        Index("ix_ledger_entry_rental_seq", "rental", "seq"),
    )

    id: str = Field(primary_key=True)
    seq: int = _big(unique=True)
    key: str = Field(unique=True)
    kind: str = Field(index=True)
    occurred_at_us: int = _big()
    recorded_at_us: int = _big()
    period: str
    actor: str
    project: str | None = Field(default=None, index=True)
    batch: str | None = Field(default=None, index=True)
    rental: str | None = None
    offer_key: str | None = None
    attempt: int | None = None
    corrects: str | None = None
    hold: str | None = Field(default=None, index=True)
    payload: bytes = Field(sa_column=Column(LargeBinary, nullable=False))
    sha256: str
    sealed: bool = False


class Posting(SQLModel, table=True):
    """One line of an entry: `nano` > 0 is a debit, < 0 a credit."""

    __tablename__ = "ledger_posting"
    __table_args__ = (CheckConstraint("nano <> 0", name="ck_ledger_posting_nano"),)

    entry_id: str = Field(sa_column=Column(String, ForeignKey("ledger_entry.id"), primary_key=True))
    line: int = Field(primary_key=True)
    account: str = Field(index=True)
    unit: str
    nano: int = _big()


class HoldState(SQLModel, table=True):
    """What the entries of one hold add up to: a cache, written with them, that the audit recomputes.

    Without it every accrual would sum all earlier accruals of its rental.
    """

    __tablename__ = "ledger_hold"

    id: str = Field(primary_key=True)
    project: str = Field(index=True)
    batch: str | None = None
    rental: str | None = Field(default=None, index=True)
    offer_key: str | None = None
    nano: int = _big()
    drawn_nano: int = _big()
    remaining_nano: int = _big()
    opened_seq: int = _big()
    opened_at_us: int = _big()
    resolved: str | None = Field(default=None, index=True)
    unit: str = Field(default="USD", sa_column=Column(String, nullable=False, server_default="USD"))
    # the nodes above the project that it counts against, by spaces: its whole life long, wherever the project moves
    scopes: str = Field(default="", sa_column=Column(String, nullable=False, server_default=""))


class Head(SQLModel, table=True):
    """One row, id 1: the number of the newest entry. Whoever writes to the books locks it first."""

    __tablename__ = "ledger_head"

    id: int = Field(primary_key=True)
    seq: int = _big()


class SealLeaf(SQLModel, table=True):
    """One leaf of a sealed stream: the exact bytes, and where they stand in the chain (ledger/seal.py)."""

    __tablename__ = "ledger_seal"

    stream: str = Field(primary_key=True)
    seq: int = Field(sa_column=Column(BigInteger, primary_key=True, autoincrement=False))
    payload: bytes = Field(sa_column=Column(LargeBinary, nullable=False))
    prev: str
    hash: str


class SealHead(SQLModel, table=True):
    """One row a stream: its newest leaf, and the roots of its full subtrees. Whoever appends locks it first."""

    __tablename__ = "ledger_seal_head"

    stream: str = Field(primary_key=True)
    seq: int = _big()
    hash: str
    peaks: bytes = Field(sa_column=Column(LargeBinary, nullable=False))


class CheckpointRow(SQLModel, table=True):
    """A signed checkpoint that was written outside the database, too: `note` is its text (ledger/checkpoint.py)."""

    __tablename__ = "ledger_checkpoint"

    stream: str = Field(primary_key=True)
    size: int = Field(sa_column=Column(BigInteger, primary_key=True, autoincrement=False))
    root: str
    note: str
    at_us: int = _big()


class Lot(SQLModel, table=True):
    """What is left of one purchase of a unit: a cache of the entries, like `HoldState`. First in, first out by `seq`.

    `nano` of `unit` were bought for `cost_nano` of `cost_unit`, `left_nano` and `left_cost_nano` are not spent yet.
    """

    __tablename__ = "ledger_lot"

    unit: str = Field(primary_key=True)
    seq: int = Field(sa_column=Column(BigInteger, primary_key=True, autoincrement=False))
    cost_unit: str
    nano: int = _big()
    cost_nano: int = _big()
    left_nano: int = _big()
    left_cost_nano: int = _big()
    bought_us: int = _big()


class Rate(SQLModel, table=True):
    """What one `unit` was worth in `quote` at `at_us`, by whose word. `rate` is a decimal. Never changed. Of several words about
    one time the newest counts: the one with the highest `word`."""

    __tablename__ = "ledger_rate"

    unit: str = Field(primary_key=True)
    quote: str = Field(primary_key=True)
    at_us: int = Field(sa_column=Column(BigInteger, primary_key=True, autoincrement=False))
    source: str = Field(primary_key=True)
    rate: str
    word: int = Field(default=0, sa_column=Column(BigInteger, nullable=False, server_default="0"))


class ScopeUse(SQLModel, table=True):
    """What counts against a node of the budget tree: a cache of the entries that name it in `scopes`, or its project.

    `window` is `held` (what open holds set aside now), `all`, or a month (what was accrued in it).
    """

    __tablename__ = "ledger_scope_use"

    scope: str = Field(primary_key=True)
    unit: str = Field(primary_key=True)
    window: str = Field(primary_key=True)
    nano: int = _big()
