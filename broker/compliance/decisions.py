"""Every decision about where work may be, as a signed record in the sealed stream `decisions`, replayable bit for bit.

A record holds our ids, hashes and codes only (contract C13): which policy and which facts, by hash, with the versions of
the group table and the evaluator, the outcome and the sha256 of the whole decision. Policies and facts are kept beside it
by their hashes; `replay` evaluates them again as of the record's time.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from sqlalchemy import select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from broker.compliance.tables import DecisionRow, FactsRow
from broker.tables import Policy
from ledger import seal
from solver.residency import Decision, Facts, evaluate, of_job
from solver.residency import Policy as ResidencyPolicy
from solver.residency.groups import TABLE
from solver.residency.types import EVALUATOR
from solver.types import Snapshot

Point = Literal["submit", "plan", "launch", "hello", "lease", "heartbeat", "policy", "deletion"]
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
    facts: Facts,
    decision: Decision,
    at_us: int,
) -> int:
    """Seal one decision, in the caller's transaction; its number in the stream."""
    body = msgspec.json.encode(facts)
    made = Record(
        version=1,
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
    await _keep(session, made.facts_sha256, body)
    text, key = msgspec.json.encode(made), signing_key(secret)
    signed = Signed(
        record=msgspec.Raw(text),
        key=key_id(key.public_key()),
        signature=base64.b64encode(key.sign(text)).decode(),
    )
    sealed = await seal.append(session, "decisions", msgspec.json.encode(signed))
    session.add(
        DecisionRow(
            seq=sealed.seq,
            at_us=at_us,
            point=point,
            batch=batch,
            rental=rental,
            offer_key=offer_key,
            outcome=decision.outcome,
            policy_hash=policy_hash,
            facts_hash=made.facts_sha256,
        )
    )
    return sealed.seq


def sha256_of(value: ResidencyPolicy | Decision | None) -> str:
    return hashlib.sha256(msgspec.json.encode(value, order="deterministic")).hexdigest()


async def _keep(session: AsyncSession, digest: str, body: bytes) -> None:
    if await session.get(FactsRow, digest) is not None:
        return
    try:
        async with session.begin_nested():
            session.add(FactsRow(hash=digest, body=body))
    except IntegrityError:
        return  # somebody stored the same facts since we looked; same hash, same facts


@dataclass(frozen=True, slots=True)
class Replayed:
    """What came of one record: `wrong` says what does not agree, None when it is the same bit for bit."""

    seq: int
    batch: str
    outcome: str
    wrong: str | None


async def replay(
    session: AsyncSession, secret: bytes, *, batch: str | None = None, after_seq: int = 0
) -> list[Replayed]:
    """Evaluate each record of the stream (of one batch) again, as of its time: at most 1,000 records after `after_seq`."""
    public = signing_key(secret).public_key()
    found = []
    for leaf in await seal.leaves(session, "decisions", after_seq=after_seq):
        signed = msgspec.json.decode(leaf.payload, type=Signed)
        made = msgspec.json.decode(signed.record, type=Record)
        if batch in (None, made.batch):
            found.append(Replayed(leaf.seq, made.batch, made.outcome, await _wrong(session, public, signed, made)))
    return found


async def _wrong(session: AsyncSession, public: Ed25519PublicKey, signed: Signed, made: Record) -> str | None:
    try:
        public.verify(base64.b64decode(signed.signature), bytes(signed.record))
    except InvalidSignature:
        return "the signature is not this broker's"
    if (made.evaluator, made.version) != (EVALUATOR, 1):
        return f"made by evaluator {made.evaluator}, record version {made.version}; replay it with the release that has these"
    kept = await session.get(FactsRow, made.facts_sha256)
    if kept is None or hashlib.sha256(kept.body).hexdigest() != made.facts_sha256:
        return "its facts are not kept, or were changed"
    row = await session.get(Policy, made.policy_hash)
    policy = None if row is None else msgspec.convert(row.body, ResidencyPolicy)
    if sha256_of(policy) != made.policy_sha256:
        return "its policy is not kept, or was changed"
    decision = judged(policy, msgspec.json.decode(kept.body, type=Facts), made.at_us)
    return None if sha256_of(decision) == made.decision_sha256 else f"it would be {decision.outcome} with other reasons"


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
    rows = await session.scalars(select(FactsRow).where(col(FactsRow.hash).in_(hashes)))
    return {row.hash: msgspec.json.decode(row.body, type=Facts) for row in rows}


def told(rows: Sequence[DecisionRow], facts: dict[str, Facts]) -> dict[str, Any]:
    """Where a batch ever was: machines that were given its input, and where its data lay, each with the evidence."""
    machines: dict[str, dict[str, Any]] = {}
    data: dict[tuple[str, str | None, str | None], dict[str, Any]] = {}
    for row in rows:
        known = facts.get(row.facts_hash)
        if known is None or row.point != "lease" or row.outcome != "allow" or row.rental is None:
            continue
        entry = machines.setdefault(
            row.rental,
            {
                "rental": row.rental,
                "offer": row.offer_key,
                "first_us": row.at_us,
                "held": ["input", "checkpoints", "output"],
            },
        )
        entry |= {
            "last_us": row.at_us,
            "decision": row.seq,
            "country": known.country,
            "subdivision": known.subdivision,
            "operator": known.operator,
            "jurisdictions": known.jurisdictions,
            "location_tier": known.location_tier,
            "evidence": msgspec.to_builtins(known.evidence),
        }
        for path in known.paths:
            data[path.path, path.country, path.operator] = {
                "path": path.path,
                "country": path.country,
                "operator": path.operator,
                "evidence": msgspec.to_builtins(path.evidence),
            }
    refused = [
        {"decision": row.seq, "at_us": row.at_us, "point": row.point, "rental": row.rental, "offer": row.offer_key}
        for row in rows
        if row.outcome == "deny"
    ]
    listed = list(machines.values())
    return {
        "machines": listed,
        "data_paths": list(data.values()),
        "countries": sorted({each["country"] or "unknown" for each in [*listed, *data.values()]}),
        "operators": sorted({each["operator"] or "unknown" for each in [*listed, *data.values()]}),
        "refused": refused,
    }


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
