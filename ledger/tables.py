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


class Head(SQLModel, table=True):
    """One row, id 1: the number of the newest entry. Whoever writes to the books locks it first."""

    __tablename__ = "ledger_head"

    id: int = Field(primary_key=True)
    seq: int = _big()
