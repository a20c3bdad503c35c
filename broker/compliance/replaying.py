"""Makes sealed decisions again, as of their times, and compares bit for bit."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from broker.compliance import deletion, destruction, hello, pinning, reuse, said
from broker.compliance.decisions import VERSION, Record, Signed, bodies_by_hash, sha256_of, signing_key
from broker.compliance.lifecycle import Standing, put_together
from broker.compliance.lifecycle import sha256_of as sha256_of_body
from broker.compliance.tables import Proposal
from broker.store_residency import word_on_store
from broker.tables import Policy
from ledger import seal
from solver.errors import SolverError
from solver.residency import Decision, Evaluator, Facts
from solver.residency import Policy as ResidencyPolicy
from solver.residency.groups import TABLE
from solver.residency.types import EVALUATOR

PAGE = 1000


@dataclass(frozen=True, slots=True)
class Replayed:
    """What came of one record: `wrong` says what does not agree, None when it is the same bit for bit."""

    seq: int
    batch: str
    outcome: str
    wrong: str | None


class Unlike(Exception):
    """A record cannot be made again as it is; the message says why."""


async def replay(
    session: AsyncSession, secret: bytes, *, batch: str | None = None, after_seq: int = 0
) -> list[Replayed]:
    """Make each record of the stream (of one batch) again, as of its time: at most 1,000 records after `after_seq`."""
    public = signing_key(secret).public_key()
    read = []
    for leaf in await seal.leaves(session, "decisions", after_seq=after_seq, limit=PAGE):
        if not leaf.payload.startswith(b'{"record":'):
            continue  # something else that was decided, e.g. a budget's breaker: the chain has it
        signed = msgspec.json.decode(leaf.payload, type=Signed)
        made = msgspec.json.decode(signed.record, type=Record)
        if batch in (None, made.batch):
            read.append((leaf.seq, signed, made))
    kept = await _kept(session, [made for _, _, made in read])
    return [Replayed(seq, made.batch, made.outcome, _wrong(kept, public, signed, made)) for seq, signed, made in read]


@dataclass(frozen=True, slots=True)
class _Kept:
    """What some records name, as it is kept now. `evaluators` are made once for each policy."""

    facts: dict[str, bytes]
    policies: dict[str, ResidencyPolicy]
    proposals: dict[str, Proposal]
    evaluators: dict[str, Evaluator] = field(default_factory=dict)

    def evaluator(self, policy_hash: str) -> Evaluator:
        if policy_hash not in self.evaluators:
            policy = self.policies.get(policy_hash) or ResidencyPolicy(name="none-stored")
            self.evaluators[policy_hash] = Evaluator(policy)
        return self.evaluators[policy_hash]


async def _kept(session: AsyncSession, records: Sequence[Record]) -> _Kept:
    facts = await bodies_by_hash(session, sorted({each.facts_sha256 for each in records}))
    policies: dict[str, ResidencyPolicy] = {}
    for policy_hash in sorted({each.policy_hash for each in records}):
        row = await session.get(Policy, policy_hash)
        if row is not None:
            policies[policy_hash] = msgspec.convert(row.body, ResidencyPolicy)
    proposals: dict[str, Proposal] = {}
    if any(each.kind == "pin" for each in records):
        proposals = {each.id: each for each in await session.scalars(select(Proposal).order_by(col(Proposal.id)))}
    return _Kept(facts, policies, proposals)


def _wrong(kept: _Kept, public: Ed25519PublicKey, signed: Signed, made: Record) -> str | None:
    try:
        public.verify(base64.b64decode(signed.signature), bytes(signed.record))
        decision = _again(kept, made, _body(kept, made))
    except InvalidSignature:
        return "the signature is not this broker's"
    except (Unlike, msgspec.DecodeError, SolverError) as unlike:
        return str(unlike)
    reasons = tuple((each.rule_id, each.field, each.code) for each in decision.reasons)
    if (decision.outcome, reasons) != (made.outcome, made.reasons) or sha256_of(decision) != made.decision_sha256:
        return f"it would be {decision.outcome} with other reasons"
    return None


def _body(kept: _Kept, made: Record) -> bytes:
    """What the record was made on, when it and its policy are those that it names. Raises Unlike."""
    if made.evaluator != EVALUATOR or made.version > VERSION:
        raise Unlike(
            f"made by evaluator {made.evaluator}, record version {made.version}; replay it with the release that has these"
        )
    body = kept.facts.get(made.facts_sha256)
    if body is None or hashlib.sha256(body).hexdigest() != made.facts_sha256:
        raise Unlike("its facts are not kept, or were changed")
    policy = kept.policies.get(made.policy_hash) if made.kind not in _FOUND else None
    if sha256_of(policy) != made.policy_sha256:
        raise Unlike("its policy is not kept, or was changed")
    return body


# What is not asked of a policy: the word follows from what was found alone.
_FOUND: Mapping[str, tuple[type, Callable[[Any], Decision]]] = MappingProxyType(
    {
        "address": (hello.Seen, hello.word_on),
        "deletion": (deletion.Deleted, deletion.word_on),
        "key": (destruction.Receipt, destruction.word_on),
        "reuse": (reuse.Reused, reuse.word_on),
        "said": (said.Said, said.word_on),
    }
)


def _again(kept: _Kept, made: Record, body: bytes) -> Decision:
    if made.kind in _FOUND:
        shape, word_on = _FOUND[made.kind]
        return word_on(msgspec.json.decode(body, type=shape))
    match made.kind:
        case "evaluation":
            return kept.evaluator(made.policy_hash).decide(msgspec.json.decode(body, type=Facts), made.at_us)
        case "store":
            policy = kept.policies.get(made.policy_hash) or ResidencyPolicy(name="none-stored")
            return word_on_store(policy, msgspec.json.decode(body, type=Facts), made.at_us)
        case "pin":
            return _pinned(kept, made, msgspec.json.decode(body, type=pinning.Asked))
    raise Unlike(f"a record of kind {made.kind!r}; replay it with the release that made it")


def _pinned(kept: _Kept, made: Record, asked: pinning.Asked) -> Decision:
    """The policy put together again from the proposals that were in force; it must have the hash that was pinned."""
    if made.groups != TABLE:
        raise Unlike(f"made with the group table {made.groups}; replay it with the release that has it")
    standing = _standing(kept, asked)
    compose = pinning.composed_anew if asked.is_anew else pinning.composed
    policy = compose(asked, standing)
    if sha256_of(policy) != made.policy_sha256:
        raise Unlike("another policy would be pinned")
    return pinning.word_on(policy)


def _standing(kept: _Kept, asked: pinning.Asked) -> Standing:
    active = []
    for proposal_id, sha256, approved_us in asked.active:
        proposal = kept.proposals.get(proposal_id)
        if proposal is None or sha256_of_body(proposal.body) != sha256:
            raise Unlike(f"proposal {proposal_id} is not kept, or was changed")
        active.append((proposal, approved_us))
    return put_together(active)
