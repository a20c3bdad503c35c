"""The word on one batch at one rental's place, with all facts that are known there: what every point of enforcement asks."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace
from datetime import datetime

import msgspec
from sqlalchemy.ext.asyncio import AsyncSession

from broker.compliance import decisions
from broker.compliance.decisions import Point, judged
from broker.compliance.hello import Seen, word_on
from broker.compliance.lifecycle import Standing
from broker.compliance.paths import data_paths
from broker.compliance.pinning import Change, change_of, model_facts, stored_policy
from broker.compliance.proposals import ask_anew, in_force_once
from broker.compliance.tables import Grace, Whereabouts
from broker.control.convert import facts_of
from broker.services import Services
from jobs.tables import Batch
from markets.offer import Evidence, Offer
from markets.offer_record import offer_from_record
from markets.price_book import offer_of
from markets.tables import OfferRow, RentalRow
from solver.residency import Decision, Facts, Reason, asks_model, digest, evaluate, of_job
from solver.residency import Policy as ResidencyPolicy

_READ, _POLICIES = "compliance.read", "compliance.policies"


@dataclass(frozen=True, slots=True)
class Judged:
    """A decision with what it was made on. `policy` None: the batch's policy is not stored, which permits nothing. `rented`:
    the same by what was known of the place when it was rented, where its market says something else now."""

    policy_hash: str
    policy: ResidencyPolicy | None
    facts: Facts
    decision: Decision
    rented: tuple[Facts, Decision] | None = None

    @property
    def is_allowed(self) -> bool:
        return self.decision.outcome == "allow"


async def judge(session: AsyncSession, services: Services, rental: RentalRow, batch: Batch, now_us: int) -> Judged:
    """The evaluator's word on this batch at this rental's place, now.

    Both by what was known of the place when it was rented and by what its market says of the same offer now: a listing
    that turns out to lie elsewhere takes the permission back, and a new one cannot give it to an old machine. By what is in
    force at this moment, also where the batch is not pinned to it yet.
    """
    change = await _change(session, services, batch, await in_force_once(session, now_us))
    policy_hash = batch.policy_hash if change is None else _new_policy(session, change.pin.policy)
    return await _judge(session, services, rental, batch, policy_hash, now_us)


def _new_policy(session: AsyncSession, policy: ResidencyPolicy) -> str:
    """Know a policy that no batch is pinned to yet; it is stored with what is sealed. Returns its hash."""
    policy_hash = digest(policy)
    _policies(session)[policy_hash] = policy
    decisions.keep_with_decisions(session, policy_hash, policy)
    return policy_hash


async def may_go_on(session: AsyncSession, services: Services, rental: RentalRow, batch: Batch, now_us: int) -> Judged:
    """The same for a lease that runs: until the deadline of a change of policy, the earlier policy's word counts, too."""
    now = await judge(session, services, rental, batch, now_us)
    if now.is_allowed:
        return now
    earlier, until_us = await _grace(session, services, batch, now_us)
    return now if now_us >= until_us else await _judge(session, services, rental, batch, earlier, now_us)


async def _grace(session: AsyncSession, services: Services, batch: Batch, now_us: int) -> tuple[str, int]:
    """The policy that what runs may still go by, and until when: also of a change that the batch is not pinned to yet."""
    known = await in_force_once(session, now_us)
    change = await _change(session, services, batch, known)
    if change is not None:
        earlier, until_us = batch.policy_hash, change.drain_by_us
    elif (grace := await session.get(Grace, batch.id)) is not None:
        earlier, until_us = grace.policy_hash, grace.until_us
    else:
        return batch.policy_hash, 0
    policy = await stored_policy(session, earlier)
    # what was withdrawn lets nothing pass at once, whatever time a change of policy gives
    return earlier, 0 if policy is None or holds_withdrawn(policy, known) else until_us


def holds_withdrawn(policy: ResidencyPolicy, known: Standing) -> bool:
    """Whether the policy lets something pass by a waiver or a broken glass that was withdrawn since it was put together. Pure."""
    windows = {
        (clause.layer.partition("@")[0], from_us, until_us)
        for clause in policy.clauses
        for from_us, until_us in (
            *((each.from_us, each.until_us) for each in clause.waived),
            (clause.from_us, clause.until_us),
        )
    }
    return not known.withdrawn.isdisjoint(windows)


async def _judge(
    session: AsyncSession, services: Services, rental: RentalRow, batch: Batch, policy_hash: str, now_us: int
) -> Judged:
    policy = await _policy(session, policy_hash)
    rented, offer = await _place(session, rental)
    then = await _facts(session, services, rented, batch, policy, now_us)
    if policy is None:
        return Judged(policy_hash, None, then, judged(None, then, now_us))
    decision = evaluate(policy, then, now_us)
    if decision.outcome == "deny" or offer is None:
        return Judged(policy_hash, policy, then, decision)
    now = await _facts(session, services, offer, batch, policy, now_us)
    return Judged(policy_hash, policy, now, evaluate(policy, now, now_us), None if now == then else (then, decision))


@dataclass
class _Read:
    """What judgements of one transaction have read: ten batches on one machine ask for the same ten times. `places` by rental:
    what was rented, and what is listed now. `changes` by all of a batch that its policy is made of."""

    places: dict[str, tuple[Offer, Offer | None]] = field(default_factory=dict)
    changes: dict[tuple[str, ...], Change | None] = field(default_factory=dict)


def forget(session: AsyncSession) -> None:
    """The next judgement in this transaction reads offers, projects' own rules and what is in force anew. To be judged at a
    moment read after this: at an earlier one, what has come into force since is not in force."""
    session.info.pop(_READ, None)
    ask_anew(session)


def _read(session: AsyncSession) -> _Read:
    found: _Read = session.info.setdefault(_READ, _Read())
    return found


def _policies(session: AsyncSession) -> dict[str, ResidencyPolicy]:
    found: dict[str, ResidencyPolicy] = session.info.setdefault(_POLICIES, {})
    return found


async def _policy(session: AsyncSession, policy_hash: str) -> ResidencyPolicy | None:
    """The stored policy of this hash, decoded once a transaction: what a hash names never changes."""
    kept = _policies(session)
    if policy_hash not in kept:
        found = await stored_policy(session, policy_hash)
        if found is None:
            return None
        kept[policy_hash] = found
    return kept[policy_hash]


async def _place(session: AsyncSession, rental: RentalRow) -> tuple[Offer, Offer | None]:
    """What was known of the place when it was rented, and what its market lists there now."""
    places = _read(session).places
    if rental.id not in places:
        listed = await session.get(OfferRow, rental.offer_key)
        # not its record: of an offer said unchanged only `observed_us` moves, and the record's evidence would run out here
        # while the plan, which reads the offer, goes on placing there
        offer = None if listed is None or listed.gone_us is not None else offer_of(listed)
        places[rental.id] = _renewed(offer_from_record(rental.facts), offer), offer
    return places[rental.id]


async def _change(session: AsyncSession, services: Services, batch: Batch, known: Standing) -> Change | None:
    wishes = batch.wishes or {}
    asks = [wishes.get(name) for name in ("data_class", "residency", "confidentiality")]
    made_of = (known.mark, batch.project, batch.policy_hash, msgspec.json.encode(asks).decode())
    changes = _read(session).changes
    if made_of not in changes:
        changes[made_of] = await change_of(session, services.settings, batch, known)
    return changes[made_of]


def _renewed(rented: Offer, listed: Offer | None) -> Offer:
    """What was known when it was rented, with the age of evidence that its market has given again for the same place.

    Without it every machine would be refused work a day (the evidence's ttl) after it was rented.
    """
    if listed is None or (listed.country, listed.subdivision) != (rented.country, rented.subdivision):
        return rented
    again = {(each.kind, each.source): each for each in listed.evidence}
    newer = (again.get((each.kind, each.source), each) for each in rented.evidence)
    evidence = tuple(max(old, new, key=_ends_at) for old, new in zip(rented.evidence, newer, strict=True))
    return replace(rented, evidence=evidence)


def _ends_at(evidence: Evidence) -> datetime:
    return evidence.observed_at + evidence.ttl


async def _facts(
    session: AsyncSession,
    services: Services,
    offer: Offer,
    batch: Batch,
    policy: ResidencyPolicy | None,
    now_us: int,
) -> Facts:
    place = facts_of(offer, data_paths(services.settings, now_us, offer.launch))
    model = None
    if policy is not None and asks_model(policy):
        known = await in_force_once(session, now_us)
        model = model_facts(services.models.get(batch.model or ""), services.settings, known, batch.project)
    return of_job(place, model, batch.expires_us)


async def seal(
    session: AsyncSession, services: Services, point: Point, rental: RentalRow, batch: Batch, word: Judged, now_us: int
) -> None:
    """Keep a decision as evidence, in the caller's transaction: an allow by all that it was made on, a no by what decided."""
    made = [(word.facts, word.decision)]
    if word.is_allowed and word.rented is not None:
        made.insert(0, word.rented)
    for facts, decision in made:
        await decisions.record(
            session,
            services.secret,
            point=point,
            batch=batch.id,
            rental=rental.id,
            offer_key=rental.offer_key,
            policy_hash=word.policy_hash,
            policy=word.policy,
            facts=facts,
            decision=decision,
            at_us=now_us,
        )


async def seal_seen(
    session: AsyncSession, services: Services, point: Point, rental: RentalRow, batch: str, what: Seen, now_us: int
) -> None:
    """Keep from where a machine called and what it showed, as held against its offer, in the caller's transaction."""
    await decisions.record(
        session,
        services.secret,
        point=point,
        kind="address",
        batch=batch,
        rental=rental.id,
        offer_key=rental.offer_key,
        policy_hash="",
        policy=None,
        facts=what,
        decision=word_on(what),
        at_us=now_us,
    )


async def is_elsewhere(
    session: AsyncSession, rental: RentalRow, batch: Batch, word: Judged, observed: str | None, now_us: int
) -> bool:
    """Whether the machine is somewhere else than when it was last sealed for this batch; from now on that is known."""
    places = [word.facts, *([word.rented[0]] if word.rented else [])]
    told = [
        [(each.country, each.subdivision, each.operator, each.jurisdictions, each.location_tier),
         [(path.path, path.country, path.operator) for path in each.paths]]
        for each in places
    ]  # fmt: skip
    place = hashlib.sha256(msgspec.json.encode([told, observed])).hexdigest()
    known = await session.get(Whereabouts, (batch.id, rental.id))
    if known is None:
        session.add(Whereabouts(batch=batch.id, rental=rental.id, place=place, since_us=now_us))
        return True
    if known.place == place:
        return False
    known.place, known.since_us = place, now_us
    session.add(known)
    return True


def missing_policy(policy_hash: str) -> Reason:
    """Why a batch without a stored policy may run nowhere."""
    return Reason(rule_id="-", field="policy", wanted=f"stored policy {policy_hash}", found="none", code="no_policy")
