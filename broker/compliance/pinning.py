"""Which policy holds for a batch: put together from what is in force, pinned when it is created, and pinned anew on a change.

A change takes effect at once for what starts; what runs may go on as before until the change's deadline, if it has one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import msgspec
import structlog
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from broker.api import shapes
from broker.compliance.decisions import Point, record
from broker.compliance.lifecycle import Standing, Subject
from broker.compliance.proposals import in_force
from broker.compliance.tables import Grace
from broker.services import Services
from broker.settings import Settings
from broker.tables import Policy, Project
from jobs import batches
from jobs.clock import db_now
from jobs.tables import Batch
from jobs.transitions import locked
from solver.errors import SolverError
from solver.residency import INTERNAL, Decision, ModelFacts, Reason, compile_countries, digest, with_confidentiality
from solver.residency import Policy as ResidencyPolicy
from solver.residency.classes import DATA_CLASSES, raised
from solver.residency.effective import concerns, effective
from workers.profile import ModelProfile

log = structlog.get_logger()
NO_POLICY = "no-policy"


def subject_of(standing: Standing, settings: Settings, project: str) -> Subject:
    """A project's place in the tree and class: as approved, else as its team's, and the settings' class."""
    node = standing.nodes.get(project, project)
    return standing.subjects.get(project) or Subject(node, settings.residency.default_class)


def holding(standing: Standing, settings: Settings, project: str) -> tuple[object, ...]:
    """What compliance has decided about a project, for comparison: class, documents and waivers that concern it."""
    subject = subject_of(standing, settings, project)
    labels = tuple(each.label for each in standing.documents(subject.node))
    waived = tuple(each for each in standing.waivers if concerns(each.projects, subject.node))
    return subject.data_class, labels, waived


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """All that a batch's policy is made of: with it, the pin is made again bit for bit (compliance/replaying.py).

    `own` are the project's own rules, `node` its place in the tree by its team, `active` the proposals in force (id, sha256,
    when approved). `is_anew`: wishes that mean nothing any more permit nothing, where a new batch is refused.
    """

    project: str
    default_class: str
    own: ResidencyPolicy
    node: str | None = None
    data_class: str | None = None
    residency: tuple[str, ...] = ()
    confidentiality: str | None = None
    active: tuple[tuple[str, str, int], ...] = ()
    is_anew: bool = False


@dataclass(frozen=True, slots=True)
class Pin:
    """Which policy holds for a batch, and of what it was made."""

    asked: Asked
    policy: ResidencyPolicy


async def policy_for(
    session: AsyncSession, settings: Settings, project: str, wishes: shapes.BatchWishes | None
) -> ResidencyPolicy:
    """What holds for a batch of these wishes now. Raises UnknownCountry, UnknownClass."""
    return (await pin_for(session, settings, project, wishes)).policy


async def pin_for(
    session: AsyncSession,
    settings: Settings,
    project: str,
    wishes: shapes.BatchWishes | None,
    standing: Standing | None = None,
    *,
    is_anew: bool = False,
) -> Pin:
    """What holds for a batch of these wishes now, and why. Raises UnknownCountry, UnknownClass, unless it is pinned anew."""
    known = standing or await in_force(session, await db_now(session))
    wished = wishes or shapes.BatchWishes()
    asked = Asked(
        project=project,
        default_class=settings.residency.default_class,
        own=await _own(session, project),
        node=known.nodes.get(project),
        data_class=wished.data_class,
        residency=tuple(wished.residency or ()),
        confidentiality=wished.confidentiality,
        active=known.active,
        is_anew=is_anew,
    )
    return Pin(asked, composed_anew(asked, known) if is_anew else composed(asked, known))


def composed_anew(asked: Asked, known: Standing) -> ResidencyPolicy:
    """What holds for a batch that is there already. Pure. Wishes that mean nothing any more beside what is in force permit
    nothing: a person hears of it."""
    try:
        return composed(asked, known)
    except SolverError as failure:
        least = composed(msgspec.structs.replace(asked, residency=()), known)
        if not least.layers and least.data_class is None:
            return least  # no document decides: its list stays pinned as it was compiled on the day
        log.error("policy.wishes_void", project=asked.project, error=f"{failure.code}: {failure}")
        return ResidencyPolicy(name=NO_POLICY, layers=least.layers, data_class=least.data_class)


def composed(asked: Asked, known: Standing) -> ResidencyPolicy:
    """The policy of a batch. Pure. Raises UnknownCountry, UnknownClass.

    The policies of the project's place in the tree and those that the job names, for the class of its data; where none is
    in force, the project's own rules, else class `internal`. Countries and confidentiality that the job asks for narrow it.
    """
    subject = known.subjects.get(asked.project) or Subject(asked.node or asked.project, asked.default_class)
    data_class = raised(subject.data_class, asked.data_class)
    named = [each for each in asked.residency if each in known.policies]
    documents = known.documents(subject.node, named)
    own = asked.own
    if documents:
        policy = effective(documents, data_class=data_class, project=subject.node, waivers=known.waivers)
    elif DATA_CLASSES.index(data_class) > DATA_CLASSES.index("internal"):
        # no rule allows it anywhere, and it says so
        policy = ResidencyPolicy(name=NO_POLICY, data_class=data_class)
    else:
        policy = own
    if own.name in asked.residency and policy != own:
        # a job that named the project's own rules keeps them beside whatever comes into force later
        policy = msgspec.structs.replace(policy, name=f"{policy.name}+{own.name}", rules=(*policy.rules, *own.rules))
    policy = _within(policy, [each for each in asked.residency if each not in named and each != own.name])
    return with_confidentiality(policy, asked.confidentiality) if asked.confidentiality else policy


async def _own(session: AsyncSession, project: str) -> ResidencyPolicy:
    """The project's own rules, else class `internal`: what holds while no document is in force."""
    row = await session.get(Project, project)
    return INTERNAL if row is None or row.policy is None else msgspec.convert(row.policy, ResidencyPolicy)


def _within(policy: ResidencyPolicy, countries: Sequence[str]) -> ResidencyPolicy:
    if not countries:
        return policy
    asked = compile_countries(countries)
    if policy == INTERNAL:
        return asked
    return msgspec.structs.replace(policy, name=f"{policy.name}+{asked.name}", rules=(*policy.rules, asked.rules[-1]))


async def stored_policy(session: AsyncSession, policy_hash: str) -> ResidencyPolicy | None:
    """The policy of this hash; None when it is not stored, which permits nothing."""
    row = await session.get(Policy, policy_hash)
    return None if row is None else msgspec.convert(row.body, ResidencyPolicy)


async def store_policy(session: AsyncSession, policy: ResidencyPolicy, now_us: int) -> str:
    """Keep the policy under its hash, so that what a batch is pinned to can never change. Returns the hash."""
    policy_hash = digest(policy)
    if await session.get(Policy, policy_hash) is None:
        try:
            async with session.begin_nested():
                session.add(Policy(hash=policy_hash, body=msgspec.to_builtins(policy), created_us=now_us))
        except IntegrityError:
            # Another request stored the same policy between our look and our write; same hash, same policy.
            log.info("policy.stored_elsewhere", policy=policy_hash)
    return policy_hash


def model_facts(
    profile: ModelProfile | None, settings: Settings, standing: Standing, project: str
) -> ModelFacts | None:
    """What policies may ask of the model that serves a project's batch."""
    if profile is None:
        return None
    stated = settings.models.get(profile.id.partition("@")[0])
    node = subject_of(standing, settings, project).node
    return ModelFacts(
        name=profile.serves or profile.id,
        publisher=stated.publisher if stated else None,
        licence=stated.licence if stated else None,
        is_costly=stated.costly if stated else None,
        approved_until_us=standing.approved_until_us(profile.serves or profile.id, node),
    )


@dataclass
class Repinner:
    """Pins what is at work anew when what is in force has changed. `mark` names what it was pinned to last."""

    services: Services
    mark: str | None = None
    changed: list[str] = field(default_factory=list)

    async def step(self) -> None:
        """Every batch that has not ended, when anything has changed since the last look."""
        async with self.services.database.transaction() as session:
            now_us = await db_now(session)
            known = await in_force(session, now_us)
            if known.mark == self.mark:
                return
            going = [each.id for each in await batches.active_batches(session, ["validating", "in_progress"])]
        self.changed = []
        for batch_id in going:
            async with self.services.database.transaction() as session:
                if await repin(session, self.services, batch_id, known, now_us):
                    self.changed.append(batch_id)
        self.mark = known.mark


async def repin(session: AsyncSession, services: Services, batch_id: str, known: Standing, now_us: int) -> bool:
    """Pin one batch to what is in force, and seal that. True when that is another policy than before."""
    batch: Batch = await locked(session, batch_id)
    change = await change_of(session, services.settings, batch, known)
    if change is None:
        return False
    pin, policy, before, until_us = change.pin, change.pin.policy, change.before, change.drain_by_us
    policy_hash = await store_policy(session, policy, now_us)
    if until_us > now_us:
        await session.merge(Grace(batch=batch.id, policy_hash=batch.policy_hash, until_us=until_us))
    elif (earlier := await session.get(Grace, batch.id)) is not None:
        await session.delete(earlier)  # it was another change's: this one gives no time
    log.warning(
        "policy.repinned", batch=batch.id, before=list(before), after=list(policy.layers), drain_by_us=until_us or None
    )
    batch.policy_hash = policy_hash
    session.add(batch)
    await seal_pin(session, services, "policy", batch.id, pin, now_us)
    return True


@dataclass(frozen=True, slots=True)
class Change:
    """What a batch must be pinned to now, the documents that it was pinned to, and until when what runs may go on as before."""

    pin: Pin
    before: tuple[str, ...]
    drain_by_us: int


async def change_of(session: AsyncSession, settings: Settings, batch: Batch, known: Standing) -> Change | None:
    """Whether what is in force is another policy than the batch is pinned to. None when it is the same."""
    pin = await pin_now(session, settings, batch, known)
    if digest(pin.policy) == batch.policy_hash:
        return None
    before = await _documents_of(session, batch.policy_hash)
    if before == () and not pin.policy.layers and pin.policy.data_class is None:
        return None  # lists of countries are pinned for good: they are compiled to codes on the day
    return Change(pin, before, _drain_by_us(pin.policy, before, known))


async def pin_now(session: AsyncSession, settings: Settings, batch: Batch, known: Standing) -> Pin:
    """What holds for the batch by what is in force."""
    wishes = shapes.BatchWishes.model_validate(batch.wishes or {})
    return await pin_for(session, settings, batch.project, wishes, known, is_anew=True)


async def seal_pin(session: AsyncSession, services: Services, point: Point, batch: str, pin: Pin, now_us: int) -> None:
    """Keep which policy holds for a batch and of what it was made, in the caller's transaction."""
    await record(
        session,
        services.secret,
        point=point,
        kind="pin",
        batch=batch,
        rental=None,
        offer_key=None,
        policy_hash=digest(pin.policy),
        policy=pin.policy,
        facts=pin.asked,
        decision=word_on(pin.policy),
        at_us=now_us,
    )


def word_on(policy: ResidencyPolicy) -> Decision:
    """What a pin says: the documents that hold, or the name of the rules where none does."""
    reason = Reason(
        rule_id=policy.name,
        field="policy",
        wanted=" ".join(policy.layers) or policy.name,
        found=digest(policy),
        code="pinned",
    )
    return Decision(outcome="deny" if policy.name == NO_POLICY else "allow", reasons=(reason,))


def _drain_by_us(policy: ResidencyPolicy, before: Sequence[str], known: Standing) -> int:
    """Until when what runs may go on as before: only if every document that is new to it gives time. 0: not at all."""
    new = [each for each in policy.layers if each not in before]
    return min((known.drain_by_us.get(each.partition("@")[0], 0) for each in new), default=0)


async def _documents_of(session: AsyncSession, policy_hash: str) -> tuple[str, ...]:
    row = await session.get(Policy, policy_hash)
    body: Mapping[str, object] = {} if row is None else row.body
    layers = body.get("layers") or ()
    return tuple(str(each) for each in layers) if isinstance(layers, list | tuple) else ()
