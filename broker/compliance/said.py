"""Who proposed, approved, rejected or withdrew what, as signed records: that two people decided is evidence like what followed
from it, and an export shows it without the database."""

from __future__ import annotations

from typing import Literal

import msgspec
from sqlalchemy.ext.asyncio import AsyncSession

from broker.compliance.decisions import record
from broker.compliance.tables import Proposal
from solver.residency import Decision, Reason


class Said(msgspec.Struct, frozen=True, kw_only=True):
    """One principal's word on a proposal, whose body has this sha256. A withdrawal is a proposal of its own: `subject` is what
    it takes back."""

    proposal: str
    kind: str
    subject: str
    sha256: str
    word: Literal["proposed", "approved", "rejected"]
    principal: str


def word_on(said: Said) -> Decision:
    """Pure: what the record says."""
    reason = Reason(rule_id="lifecycle", field=said.kind, wanted=said.word, found=said.sha256, code=said.word)
    return Decision(outcome="deny" if said.word == "rejected" else "allow", reasons=(reason,))


async def seal_said(
    session: AsyncSession,
    secret: bytes,
    proposal: Proposal,
    word: Literal["proposed", "approved", "rejected"],
    by: str,
    now_us: int,
) -> None:
    """Keep it, in the transaction in which it is said. The record's `batch` is the proposal's id."""
    said = Said(
        proposal=proposal.id,
        kind=proposal.kind,
        subject=proposal.subject,
        sha256=proposal.sha256,
        word=word,
        principal=by,
    )
    await record(
        session,
        secret,
        point="policy",
        kind="said",
        batch=proposal.id,
        rental=None,
        offer_key=None,
        policy_hash="",
        policy=None,
        facts=said,
        decision=word_on(said),
        at_us=now_us,
    )
