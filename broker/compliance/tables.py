"""The tables of compliance: what was proposed, who decided, what was decided about work, on which facts.

Append-only, but for `Grace`, which is what running work may still do, and `Whereabouts`: broker/compliance/triggers.py makes
the database refuse everything else. What is in force follows from proposals and their decisions (lifecycle.py); no row says so.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import JSON, BigInteger, Column, LargeBinary, String, UniqueConstraint
from sqlmodel import Field, SQLModel

from broker.tables import micros


class Proposal(SQLModel, table=True):
    """What somebody with the role compliance proposes. `kind`: policy, waiver, break_glass, project, model; `subject` is the
    policy's, project's or model's name, `body` what the kind needs (lifecycle.py), `sha256` of its canonical JSON."""

    __tablename__ = "broker_proposal"
    id: str = Field(primary_key=True)
    kind: str = Field(index=True)
    subject: str = Field(index=True)
    body: dict[str, Any] = Field(sa_column=Column(JSON, nullable=False))
    sha256: str
    reason: str
    proposer: str
    proposed_us: int = micros()


class Verdict(SQLModel, table=True):
    """One principal's word on a proposal; each has one."""

    __tablename__ = "broker_verdict"
    __table_args__ = (UniqueConstraint("proposal", "principal", name="broker_verdict_once"),)
    id: str = Field(primary_key=True)
    proposal: str = Field(index=True)
    outcome: str
    principal: str
    decided_us: int = micros()


class FactsRow(SQLModel, table=True):
    """Facts that a decision was made on, by their hash: the exact JSON."""

    __tablename__ = "broker_facts"
    hash: str = Field(primary_key=True)
    body: bytes = Field(sa_column=Column(LargeBinary, nullable=False))


class DecisionRow(SQLModel, table=True):
    """Where a sealed decision is, for questions: `seq` is its leaf in the stream `decisions`."""

    __tablename__ = "broker_decision"
    seq: int = Field(sa_column=Column(BigInteger, primary_key=True, autoincrement=False))
    at_us: int = micros()
    point: str
    kind: str = Field(default="evaluation", sa_column=Column(String, nullable=False, server_default="evaluation"))
    batch: str = Field(index=True)
    rental: str | None = None
    offer_key: str | None = None
    outcome: str
    policy_hash: str
    facts_hash: str


class Whereabouts(SQLModel, table=True):
    """What was sealed last of where a rental is that has work of a batch: another `place` is sealed anew. No evidence itself,
    it only says when there is something new to seal."""

    __tablename__ = "broker_whereabouts"
    batch: str = Field(primary_key=True)
    rental: str = Field(primary_key=True)
    place: str
    since_us: int = micros()


class Grace(SQLModel, table=True):
    """Until when running leases of a batch may go on as an earlier policy allowed: the deadline of a change of policy."""

    __tablename__ = "broker_grace"
    batch: str = Field(primary_key=True)
    policy_hash: str
    until_us: int = micros()
