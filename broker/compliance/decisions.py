"""Every decision about where work may be, as a signed record in the sealed stream `decisions`, replayable bit for bit.

A record holds our ids, hashes and codes only (contract C13): which policy and which facts, by hash, with the versions of
the group table and the evaluator, the outcome and the sha256 of the whole decision. Policies and facts are kept beside it
by their hashes; `replaying.replay` makes each again as of the record's time. What the facts are depends on the `kind`:

- `evaluation`: of a place (solver.residency.Facts), asked of the policy at the plan, launch, hello, lease, heartbeat;
- `store`: of the object store and the other data paths, asked when a batch begins;
- `pin`: which policy holds for a batch, when it is created and whenever that changes (pinning.Asked);
- `address`: from which country a machine calls and what it shows, held against its offer (hello.Seen);
- `deletion`: what of a batch was deleted, and which keys were destroyed (deletion.Deleted);
- `said`: who proposed, approved, rejected or withdrew what (said.Said); its `batch` is the proposal's id;
- `reuse`: which other batches' answers a part of the batch is made of (reuse.Reused);
- `key`: the receipt of a key that was destroyed (destruction.Receipt); its `batch` is whose key it was.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from sqlalchemy import select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from broker.compliance.tables import DecisionRow, FactsRow
from broker.database import at_the_end
from broker.tables import Policy
from ledger import seal
from solver.residency import Decision, Facts, evaluate, of_job
from solver.residency import Policy as ResidencyPolicy
from solver.residency.groups import TABLE
from solver.residency.types import EVALUATOR
from solver.types import Snapshot

Point = Literal["submit", "plan", "launch", "hello", "lease", "heartbeat", "policy", "deletion", "reuse"]
Kind = Literal["evaluation", "store", "pin", "address", "deletion", "key", "reuse", "said"]
VERSION = 2  # of records; 1 had evaluations only
AT_ONCE = 500  # hashes in one question to the database
_WAITING = "decisions to be sealed"
_NEW_POLICIES = "policies to be stored with them"
_PURPOSE = b"broker decision signatures v1"


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """One decision. `reasons` are (rule, field, code); what was wanted and found follows from policy and facts."""

    version: int
    at_us: int
    point: str
    batch: str
    rental: str | None
    offer_sha256: str | None
    policy_hash: str
    policy_sha256: str
    facts_sha256: str
    groups: str
    evaluator: int
    outcome: str
    reasons: tuple[tuple[str, str, str], ...]
    decision_sha256: str
    kind: str = "evaluation"


class Signed(msgspec.Struct, frozen=True, kw_only=True):
    """A leaf of the stream: the record's exact JSON, and an Ed25519 signature over its bytes (base64)."""

    record: msgspec.Raw
    key: str
    signature: str


def signing_key(secret: bytes) -> Ed25519PrivateKey:
    """The brokers' key for decisions: all brokers of a database have the same secret."""
    return Ed25519PrivateKey.from_private_bytes(hmac.new(secret, _PURPOSE, hashlib.sha256).digest())


def public_pem(secret: bytes) -> bytes:
    """What verifies the signatures: SubjectPublicKeyInfo in PEM."""
    return signing_key(secret).public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def key_id(public: Ed25519PublicKey) -> str:
    return hashlib.sha256(public.public_bytes(Encoding.Raw, PublicFormat.Raw)).hexdigest()[:16]


async def record(
    session: AsyncSession,
    secret: bytes,
    *,
    point: Point,
    batch: str,
    rental: str | None,
    offer_key: str | None,
    policy_hash: str,
    policy: ResidencyPolicy | None,
    facts: msgspec.Struct,
    decision: Decision,
    at_us: int,
    kind: Kind = "evaluation",
    told: Callable[[int], None] | None = None,
) -> None:
    """Have one decision sealed with the caller's transaction, at its end; `told` is called with its number in the stream.

    At the end, for whoever has the stream's head keeps all others waiting, and who judges many batches judges for long.
    """
    body = msgspec.json.encode(facts)
    made = Record(
        version=VERSION,
        kind=kind,
        at_us=at_us,
        point=point,
        batch=batch,
        rental=rental,
        offer_sha256=None if offer_key is None else hashlib.sha256(offer_key.encode()).hexdigest(),
        policy_hash=policy_hash,
        policy_sha256=sha256_of(policy),
        facts_sha256=hashlib.sha256(body).hexdigest(),
        groups=TABLE,
        evaluator=EVALUATOR,
        outcome=decision.outcome,
        reasons=tuple((each.rule_id, each.field, each.code) for each in decision.reasons),
        decision_sha256=sha256_of(decision),
    )
    text, key = msgspec.json.encode(made), signing_key(secret)
    signed = Signed(
        record=msgspec.Raw(text),
        key=key_id(key.public_key()),
        signature=base64.b64encode(key.sign(text)).decode(),
    )
    waiting: list[_Waiting] = session.info.setdefault(_WAITING, [])
    waiting.append(_Waiting(made, body, offer_key, msgspec.json.encode(signed), told))
    at_the_end(session, _WAITING, _seal_waiting)


def keep_with_decisions(session: AsyncSession, policy_hash: str, policy: ResidencyPolicy) -> None:
    """Have a policy that may not be stored yet stored with the transaction's decisions, if any of them names it.

    At the end and sorted, as facts are: of two agents that each brought two new policies, in opposite orders and as they
    came to them, each waited for what the other had written.
    """
    new: dict[str, ResidencyPolicy] = session.info.setdefault(_NEW_POLICIES, {})
    new[policy_hash] = policy


@dataclass(frozen=True, slots=True)
class _Waiting:
    """A decision of a transaction that has not ended: its record, facts and leaf."""

    record: Record
    facts: bytes
    offer_key: str | None
    leaf: bytes
    told: Callable[[int], None] | None


async def _seal_waiting(session: AsyncSession) -> None:
    """Seal the transaction's decisions in their order. All else is written before the head is locked; and policies and facts
    are written before it and in one order, for two transactions that add the same ones wait for each other."""
    waiting: list[_Waiting] = session.info.pop(_WAITING)
    await session.flush()
    named = {each.record.policy_hash: each.record.at_us for each in waiting}
    await _keep_policies(session, named)
    await _keep(session, {each.record.facts_sha256: each.facts for each in waiting})
    sealed = await seal.append_many(session, "decisions", [each.leaf for each in waiting])
    for each, leaf in zip(waiting, sealed, strict=True):
        made = each.record
        session.add(
            DecisionRow(
                seq=leaf.seq,
                at_us=made.at_us,
                kind=made.kind,
                point=made.point,
                batch=made.batch,
                rental=made.rental,
                offer_key=each.offer_key,
                outcome=made.outcome,
                policy_hash=made.policy_hash,
                facts_hash=made.facts_sha256,
            )
        )
        if each.told is not None:
            each.told(leaf.seq)


async def _keep_policies(session: AsyncSession, named: Mapping[str, int]) -> None:
    """Store policies that are not yet, of those that are `named` (with when)."""
    new: dict[str, ResidencyPolicy] = session.info.pop(_NEW_POLICIES, {})
    rows = {
        each: {"hash": each, "body": msgspec.to_builtins(policy), "created_us": named[each]}
        for each, policy in new.items()
        if each in named
    }
    await _add_missing(session, Policy, rows)


async def _keep(session: AsyncSession, facts: Mapping[str, bytes]) -> None:
    """Store facts that are not yet; same hash, same facts."""
    await _add_missing(session, FactsRow, {each: {"hash": each, "body": body} for each, body in facts.items()})


async def _add_missing(
    session: AsyncSession, table: type[Policy | FactsRow], rows: Mapping[str, Mapping[str, object]]
) -> None:
    """Insert the rows that are not there yet, by hash and in the order of their hashes."""
    hashes = sorted(rows)
    known = set[str]()
    for start in range(0, len(hashes), AT_ONCE):
        some = hashes[start : start + AT_ONCE]
        known |= set(await session.scalars(select(col(table.hash)).where(col(table.hash).in_(some))))
    missing = [dict(rows[each]) for each in hashes if each not in known]
    if missing:
        insert = (sqlite if session.get_bind().dialect.name == "sqlite" else postgresql).insert
        await session.execute(insert(table).on_conflict_do_nothing(), missing)


def sha256_of(value: ResidencyPolicy | Decision | None) -> str:
    return hashlib.sha256(msgspec.json.encode(value, order="deterministic")).hexdigest()


def judged(policy: ResidencyPolicy | None, facts: Facts, at_us: int) -> Decision:
    """The evaluator's word; what has no policy any more is denied."""
    return evaluate(policy or ResidencyPolicy(name="none-stored"), facts, at_us)


async def of_batch(session: AsyncSession, batch: str) -> Sequence[DecisionRow]:
    """All decisions about a batch, in their order."""
    rows = await session.scalars(
        select(DecisionRow).where(col(DecisionRow.batch) == batch).order_by(col(DecisionRow.seq))
    )
    return rows.all()


async def facts_by_hash(session: AsyncSession, hashes: Sequence[str]) -> dict[str, Facts]:
    found = await bodies_by_hash(session, hashes)
    return {each: msgspec.json.decode(body, type=Facts) for each, body in found.items()}


async def bodies_by_hash(session: AsyncSession, hashes: Sequence[str]) -> dict[str, bytes]:
    """What decisions were made on, as it was kept: what it is depends on the decision's kind."""
    found: dict[str, bytes] = {}
    for start in range(0, len(hashes), AT_ONCE):
        some = hashes[start : start + AT_ONCE]
        rows = await session.scalars(select(FactsRow).where(col(FactsRow.hash).in_(some)))
        found |= {row.hash: row.body for row in rows}
    return found


async def seal_planned(
    session: AsyncSession, secret: bytes, snapshot: Snapshot, offer_key: str, rental: str, batches: Sequence[str]
) -> None:
    """Keep why the plan may rent this offer for these batches: on the snapshot's own policies and facts, at its time."""
    offer = next(each for each in snapshot.offers if each.key == offer_key)
    for work in (each for each in snapshot.works if each.id in batches):
        facts = of_job(snapshot.facts[offer.facts_hash], snapshot.models.get(work.id), work.deadline_us)
        policy = snapshot.policies[work.policy_hash]
        await record(
            session,
            secret,
            point="plan",
            batch=work.id,
            rental=rental,
            offer_key=offer_key,
            policy_hash=work.policy_hash,
            policy=policy,
            facts=facts,
            decision=evaluate(policy, facts, snapshot.now_us),
            at_us=snapshot.now_us,
        )
