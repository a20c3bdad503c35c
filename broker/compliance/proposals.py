"""Proposals and verdicts in the database: what may be proposed, who may decide, and what is in force now."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, Literal

import structlog
from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col
from ulid import ULID

from broker.approvals import objection
from broker.budget_tables import Team, TeamOfProject
from broker.compliance.lifecycle import (
    HOUR_US,
    MAX_BREAK_GLASS_US,
    SUPERSEDED,
    WITHDRAWABLE,
    Kind,
    ProposalNotFound,
    ProposalRefused,
    Standing,
    State,
    VerdictRefused,
    approved_at,
    sha256_of,
    sha256_of_rule,
    standing,
    state_of,
    steady,
    withdrawals,
)
from broker.compliance.loudness import tell_of_break_glass
from broker.compliance.tables import Proposal, Verdict
from broker.database import remembered
from solver.residency.classes import DATA_CLASSES
from solver.residency.document import read_document

log = structlog.get_logger()
Outcome = Literal["approved", "rejected"]
Body = Mapping[str, Any]
_IN_FORCE = "compliance.in_force"
_SAID_HERE = "compliance.said_here"


async def everything(session: AsyncSession) -> tuple[Sequence[Proposal], Sequence[Verdict]]:
    """All proposals in their order, and all verdicts."""
    proposals = (await session.scalars(select(Proposal).order_by(col(Proposal.id)))).all()
    return proposals, (await session.scalars(select(Verdict))).all()


async def in_force(session: AsyncSession, at_us: int) -> Standing:
    """What is in force at `at_us`, with where projects are in the tree."""
    known = await _standing(session, at_us)
    query = select(col(TeamOfProject.project), col(Team.org), col(Team.name)).join(
        Team, col(TeamOfProject.team) == col(Team.name)
    )
    nodes = {project: f"{org}/{team}/{project}" for project, org, team in (await session.execute(query)).all()}
    mark = sha256_of({"in_force": known.mark, "nodes": nodes})[:16]
    return replace(known, nodes=nodes, mark=mark)


@dataclass(frozen=True, slots=True)
class _Kept:
    """What was in force of these proposals and verdicts, from when until when; `until_us` None: until something is said."""

    said: tuple[Any, ...]
    from_us: int
    until_us: int | None
    standing: Standing


async def _standing(session: AsyncSession, at_us: int) -> Standing:
    """What is in force, put together again only when somebody has said something since, or a moment has come.

    Whether anybody has is asked each time: what is approved or withdrawn at one broker holds at the others with their next
    question. Proposals and verdicts are never edited, so how many there are and which is the last names them.
    """
    if session.info.get(_SAID_HERE):  # not committed yet, perhaps never: for this transaction alone
        return standing(*await everything(session), at_us)
    said = await _said(session)
    kept: _Kept | None = remembered(session).get(_IN_FORCE)
    if (
        kept is None
        or kept.said != said
        or at_us < kept.from_us
        or (kept.until_us is not None and at_us >= kept.until_us)
    ):
        proposals, verdicts = await everything(session)
        if await _said(session) != said:
            return standing(proposals, verdicts, at_us)  # somebody's word came in between; the next question keeps it
        from_us, until_us = steady(proposals, verdicts, at_us)
        kept = _Kept(said, from_us, until_us, standing(proposals, verdicts, at_us))
        remembered(session)[_IN_FORCE] = kept
    return kept.standing


async def _said(session: AsyncSession) -> tuple[Any, ...]:
    query = select(
        select(func.count()).select_from(Proposal).scalar_subquery(),
        select(func.max(col(Proposal.id))).scalar_subquery(),
        select(func.count()).select_from(Verdict).scalar_subquery(),
        select(func.max(col(Verdict.id))).scalar_subquery(),
    )
    return tuple((await session.execute(query)).one())


async def in_force_once(session: AsyncSession, at_us: int) -> Standing:
    """The same, put together once a transaction and moment: for who asks about many leases and changes nothing of it."""
    known: dict[int, Standing] = session.info.setdefault(_IN_FORCE, {})
    if at_us not in known:
        known[at_us] = await in_force(session, at_us)
    return known[at_us]


def ask_anew(session: AsyncSession) -> None:
    """What others have said since is heard by the next `in_force_once` of this transaction, whatever moment it is asked of."""
    session.info.pop(_IN_FORCE, None)


async def states(session: AsyncSession, at_us: int) -> list[tuple[Proposal, State, list[Verdict]]]:
    """Each proposal with how far it is and who said what."""
    proposals, verdicts = await everything(session)
    mine: dict[str, list[Verdict]] = {each.id: [] for each in proposals}
    for word in verdicts:
        mine[word.proposal].append(word)
    rivals: dict[tuple[str, str], list[tuple[Proposal, int]]] = {}
    for each in proposals:
        when = approved_at(each, mine[each.id])
        is_rejected = any(word.outcome == "rejected" for word in mine[each.id])
        if each.kind in SUPERSEDED and when is not None and when <= at_us and not is_rejected:
            rivals.setdefault((each.kind, each.subject), []).append((each, when))
    taken_back = withdrawals(proposals)
    told = []
    for each in proposals:
        others = rivals.get((each.kind, each.subject), ())
        told.append((each, state_of(each, mine[each.id], others, at_us, taken_back.get(each.id)), mine[each.id]))
    return told


async def propose(
    session: AsyncSession, kind: Kind, subject: str, body: Body, *, reason: str, by: str, now_us: int
) -> Proposal:
    """Put it up for decision by others. Raises ProposalRefused."""
    await _CHECKS[kind](session, subject, body, now_us)
    if kind == "waiver":
        rules = (await in_force(session, now_us)).policies[subject][0].rules
        body = {**body, "rule_sha256": next(sha256_of_rule(each) for each in rules if each.id == body["rule"])}
    proposal = Proposal(
        id=f"proposal_{ULID()}",
        kind=kind,
        subject=subject,
        body=dict(body),
        sha256=sha256_of(body),
        reason=reason,
        proposer=by,
        proposed_us=now_us,
    )
    session.info[_SAID_HERE] = True
    session.add(proposal)
    await session.flush()
    level = log.error if kind == "break_glass" else log.info
    level("compliance.proposed", proposal=proposal.id, kind=kind, subject=subject, proposer=by)
    if kind == "break_glass":
        await tell_of_break_glass(session, proposal, "proposed", now_us)
    return proposal


async def withdraw(session: AsyncSession, proposal_id: str, *, reason: str, by: str, now_us: int) -> Proposal:
    """Take back a waiver, a break-glass or a model's approval, whose it may be: it lets nothing pass any more, at once. Nothing
    is edited, the withdrawal stands beside it. Raises ProposalNotFound, VerdictRefused."""
    target = await session.get(Proposal, proposal_id, with_for_update=True)
    if target is None:
        raise ProposalNotFound(f"there is no proposal {proposal_id!r}")
    state = next(how_far for each, how_far, _ in await states(session, now_us) if each.id == proposal_id)
    if target.kind not in WITHDRAWABLE:
        raise VerdictRefused(
            f"proposal {proposal_id} is of kind {target.kind}: what narrows is not taken back by one person; "
            "propose another version, which a second person approves"
        )
    if state not in ("proposed", "approved", "active"):
        raise VerdictRefused(f"proposal {proposal_id} is {state}; there is nothing to take back")
    body = {"proposal": proposal_id, "kind": target.kind, "of": target.subject}
    made = await propose(session, "withdrawal", proposal_id, body, reason=reason, by=by, now_us=now_us)
    log.warning("compliance.withdrawn", proposal=proposal_id, kind=target.kind, subject=target.subject, by=by)
    if target.kind == "break_glass":
        await tell_of_break_glass(session, target, "withdrawn", now_us)
    return made


async def decide(session: AsyncSession, proposal_id: str, outcome: Outcome, *, by: str, now_us: int) -> Proposal:
    """One principal's word. Raises ProposalNotFound, VerdictRefused."""
    proposal = await session.get(Proposal, proposal_id, with_for_update=True)
    if proposal is None:
        raise ProposalNotFound(f"there is no proposal {proposal_id!r}")
    if against := objection(approver=by, proposer=proposal.proposer):
        raise VerdictRefused(f"proposal {proposal_id}: {against}")
    verdicts = (await session.scalars(select(Verdict).where(col(Verdict.proposal) == proposal_id))).all()
    if any(each.outcome == "rejected" for each in verdicts) or approved_at(proposal, verdicts) is not None:
        raise VerdictRefused(f"proposal {proposal_id} is decided: {', '.join(each.outcome for each in verdicts)}")
    if any(each.principal == by for each in verdicts):
        raise VerdictRefused(f"proposal {proposal_id}: {by!r} has approved it already; another principal must as well")
    if outcome == "approved":
        await _CHECKS[proposal.kind](session, proposal.subject, proposal.body, now_us)
    session.info[_SAID_HERE] = True
    session.add(Verdict(id=f"verdict_{ULID()}", proposal=proposal_id, outcome=outcome, principal=by, decided_us=now_us))
    await session.flush()
    if proposal.kind == "break_glass":
        said = [*verdicts, Verdict(id="", proposal=proposal_id, outcome=outcome, principal=by, decided_us=now_us)]
        is_open = outcome == "approved" and approved_at(proposal, said) is not None
        await tell_of_break_glass(session, proposal, "active" if is_open else outcome, now_us)
    level = log.error if proposal.kind == "break_glass" else log.info
    level(f"compliance.{outcome}", proposal=proposal_id, kind=proposal.kind, subject=proposal.subject, by=by)
    return proposal


async def _policy(session: AsyncSession, subject: str, body: Body, now_us: int) -> None:
    reading = read_document(str(body["text"]))
    if reading.document is None:
        raise ProposalRefused(f"policy {subject}: {reading.errors[0]}")
    if reading.document.name != subject:
        raise ProposalRefused(f"the document's policy is {reading.document.name!r}, not {subject!r}")
    for each, state, _ in await states(session, now_us):
        if (each.kind, each.subject) != ("policy", subject) or state in ("rejected", "proposed"):
            continue
        if int(each.body["version"]) >= reading.document.version:
            message = f"policy {subject}: version {each.body['version']} was approved; what is approved is not edited"
            raise ProposalRefused(f"{message}; propose it as version {int(each.body['version']) + 1}")


async def _waiver(session: AsyncSession, subject: str, body: Body, now_us: int) -> None:
    rules = await _rules_of(session, subject, now_us)
    if body["rule"] not in rules:
        raise ProposalRefused(f"policy {subject} has no rule {body['rule']!r}; it has {', '.join(rules)}")
    if int(body["until_us"]) <= now_us:
        raise ProposalRefused("a waiver must end, and not in the past: give a time that lies ahead")


async def _break_glass(session: AsyncSession, subject: str, body: Body, now_us: int) -> None:
    await _rules_of(session, subject, now_us)
    if not 0 < int(body["for_us"]) <= MAX_BREAK_GLASS_US:
        raise ProposalRefused(f"break-glass lasts {MAX_BREAK_GLASS_US // HOUR_US} hours at most")


async def _rules_of(session: AsyncSession, subject: str, now_us: int) -> list[str]:
    policies = (await in_force(session, now_us)).policies
    if subject not in policies:
        known = ", ".join(policies) or "none"
        raise ProposalRefused(f"no policy {subject!r} is in force (in force: {known})")
    return [rule.id for rule in policies[subject][0].rules]


async def _project(session: AsyncSession, subject: str, body: Body, now_us: int) -> None:
    if body["data_class"] not in DATA_CLASSES:
        raise ProposalRefused(f"data class {body['data_class']!r} is none of {', '.join(DATA_CLASSES)}")
    if str(body["node"]).split("/")[-1] != subject:
        raise ProposalRefused(f"the path of project {subject!r} in the tree ends in its name: org/team/{subject}")


async def _withdrawal(session: AsyncSession, subject: str, body: Body, now_us: int) -> None:
    """Whether there is something to take back `withdraw` has asked."""


async def _model(session: AsyncSession, subject: str, body: Body, now_us: int) -> None:
    if int(body["until_us"]) <= now_us:
        raise ProposalRefused("an approval must end, and not in the past: give a time that lies ahead")


_CHECKS: Mapping[str, Callable[[AsyncSession, str, Body, int], Any]] = MappingProxyType(
    {
        "policy": _policy,
        "waiver": _waiver,
        "break_glass": _break_glass,
        "project": _project,
        "model": _model,
        "withdrawal": _withdrawal,
    }
)
