"""Proposals of compliance over HTTP: policies, waivers, break-glass, classes of projects and approvals of models."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any

from broker.api.policies import understood
from broker.api.policy_shapes import (
    BreakGlassProposal,
    Decided,
    Difference,
    DryRun,
    DryRunRequest,
    ModelProposal,
    PolicyProposal,
    ProjectProposal,
    Proposals,
    Proposed,
    WaiverProposal,
    Withdrawal,
)
from broker.api.problems import not_found
from broker.api.registry import Call, Route, route
from broker.compliance import proposals
from broker.compliance.dry_run import DAY_US, as_offered, dry_run, placements
from broker.compliance.lifecycle import APPROVERS, HOUR_US, Kind, State
from broker.compliance.paths import data_paths
from broker.compliance.pinning import Repinner
from broker.compliance.said import seal_said
from broker.compliance.tables import Proposal, Verdict
from broker.compliance.trial import summary, tried
from broker.control.convert import facts_of
from broker.control.snapshot import listed_offers
from broker.keys import Role
from jobs.clock import MICROSECONDS, db_now
from ledger.money import to_nano
from solver.residency.document import read_document
from solver.residency.effective import effective

READERS: tuple[Role, ...] = ("compliance", "operator", "finance")
WRITERS: tuple[Role, ...] = ("compliance",)
ON_PROPOSAL = "/v1/compliance/proposals/{proposal_id}"


async def propose_policy(call: Call, body: PolicyProposal) -> Proposed:
    """Propose a policy document; another principal with the role compliance must approve it."""
    document = understood(read_document(body.text))
    asked = {
        "name": document.name,
        "version": document.version,
        "text": body.text,
        "nodes": body.nodes,
        "from_us": _micros(body.from_time),
        "drain_by_us": _micros(body.drain_by),
    }
    return await _propose(call, "policy", document.name, asked, body.reason)


async def propose_waiver(call: Call, body: WaiverProposal) -> Proposed:
    """Propose that a rule is not asked of some projects until a time."""
    asked = {"rule": body.rule, "projects": body.projects, "until_us": body.until * MICROSECONDS}
    return await _propose(call, "waiver", body.policy, asked, body.reason)


async def propose_break_glass(call: Call, body: BreakGlassProposal) -> Proposed:
    """Propose that a policy is not asked of some projects for some hours; two others must approve, and everybody hears of it."""
    asked = {"projects": body.projects, "for_us": body.hours * HOUR_US}
    return await _propose(call, "break_glass", body.policy, asked, body.reason)


async def propose_project(call: Call, body: ProjectProposal) -> Proposed:
    """Propose a project's place in the tree and the class of its data."""
    asked = {"node": body.node, "data_class": body.data_class}
    return await _propose(call, "project", body.project, asked, body.reason)


async def propose_model(call: Call, body: ModelProposal) -> Proposed:
    """Propose that some projects may use a model until a time."""
    asked = {"projects": body.projects, "until_us": body.until * MICROSECONDS}
    return await _propose(call, "model", body.model, asked, body.reason)


async def list_proposals(call: Call) -> Proposals:
    """All proposals with how far they are, oldest first."""
    of_the_house(call)
    async with call.services.database.transaction() as session:
        found = await proposals.states(session, await db_now(session))
    return Proposals(data=[_shape(*each) for each in found])


async def approve(call: Call) -> Proposed:
    """Approve a proposal of somebody else."""
    return await _decide(call, "approved")


async def reject(call: Call) -> Proposed:
    """Reject a proposal of somebody else."""
    return await _decide(call, "rejected")


async def withdraw(call: Call, body: Withdrawal) -> Proposed:
    """Take back a waiver, a break-glass or a model's approval: it lets nothing pass any more, and running work is asked anew."""
    of_the_house(call)
    async with call.services.database.transaction() as session:
        now_us = await db_now(session)
        made = await proposals.withdraw(
            session, call.path("proposal_id"), reason=body.reason, by=call.caller.name, now_us=now_us
        )
        await seal_said(session, call.services.secret, made, "proposed", call.caller.name, now_us)
        found = await proposals.states(session, now_us)
        shape = next(_shape(*each) for each in found if each[0].id == call.path("proposal_id"))
    await _reached(call)
    return shape


async def _reached(call: Call) -> None:
    """What has not ended is held against what is in force now, not when the next plan is solved."""
    await Repinner(call.services).step()
    call.services.nudge("plan")


async def diff(call: Call) -> Difference:
    """A proposed document beside the one of its policy that is in force."""
    of_the_house(call)
    async with call.services.database.transaction() as session:
        found = await proposals.states(session, await db_now(session))
    wanted = next((each for each, _, _ in found if each.id == call.path("proposal_id")), None)
    if wanted is None or wanted.kind != "policy":
        raise not_found("proposal_not_found", f"No proposal {call.path('proposal_id')!r} of a policy.")
    current = next(
        (
            each
            for each, state, _ in found
            if state == "active" and (each.kind, each.subject) == ("policy", wanted.subject)
        ),
        None,
    )
    before = "" if current is None else str(current.body["text"])
    label = "nothing" if current is None else f"{wanted.subject}@{current.body['version']}"
    proposed, name = str(wanted.body["text"]), f"{wanted.subject}@{wanted.body['version']}"
    lines = difflib.unified_diff(before.splitlines(), proposed.splitlines(), label, name, lineterm="")
    return Difference(
        proposal=wanted.id, policy=wanted.subject, against=None if current is None else label, diff="\n".join(lines)
    )


async def run_dry(call: Call, body: DryRunRequest) -> DryRun:
    """What a document would have meant for the placements of the last days, and means for the offers of now. Nothing changes."""
    of_the_house(call)
    document, settings = understood(read_document(body.text)), call.services.settings
    async with call.services.database.transaction() as session:
        now_us = await db_now(session)
        known = await proposals.in_force(session, now_us)
        past = await placements(session, call.services, known, now_us - body.days * DAY_US)
        listed = await listed_offers(session, call.services, now_us=now_us)
    records = []
    for each in listed:
        price = each.offer.price
        usable = each.excluded is None and price is not None and price > 0 and each.offer.currency == "USD"
        facts = facts_of(each.offer, data_paths(settings, now_us, each.offer.launch))
        nano = to_nano(price) if usable and price is not None else 0
        records.append(({"key": str(each.offer.key), "accelerator": each.offer.accelerator.name}, nano, facts))
    told = dry_run(document, body.nodes, past, as_offered(records), now_us)
    policy = effective(
        [document], data_class=settings.residency.default_class, project=body.nodes[0].strip("*/") or "default"
    )
    return DryRun(
        **told,
        days=body.days,
        offers=summary(tried(policy, ((each["key"], facts) for each, _, facts in records), now_us)),
    )


async def _propose(call: Call, kind: Kind, subject: str, body: dict[str, Any], reason: str) -> Proposed:
    of_the_house(call)
    async with call.services.database.transaction() as session:
        now_us = await db_now(session)
        made = await proposals.propose(session, kind, subject, body, reason=reason, by=call.caller.name, now_us=now_us)
        await seal_said(session, call.services.secret, made, "proposed", call.caller.name, now_us)
        return _shape(made, "proposed", [])


def of_the_house(call: Call) -> None:
    """Policies are of all projects. Raises 404 for a key of one: its compliance speaks for that project alone."""
    if call.caller.project is not None:
        raise not_found(
            "compliance_not_found",
            "Policies and their evidence are for keys of all projects (`broker keys create … --all-projects`).",
        )


async def _decide(call: Call, outcome: proposals.Outcome) -> Proposed:
    of_the_house(call)
    async with call.services.database.transaction() as session:
        now_us = await db_now(session)
        made = await proposals.decide(session, call.path("proposal_id"), outcome, by=call.caller.name, now_us=now_us)
        await seal_said(session, call.services.secret, made, outcome, call.caller.name, now_us)
        found = await proposals.states(session, now_us)
        shape = next(_shape(*each) for each in found if each[0].id == made.id)
    await _reached(call)
    return shape


def _micros(seconds: int | None) -> int | None:
    return None if seconds is None else seconds * MICROSECONDS


def _shape(proposal: Proposal, state: State, verdicts: Sequence[Verdict]) -> Proposed:
    return Proposed(
        id=proposal.id,
        kind=proposal.kind,
        subject=proposal.subject,
        state=state,
        version=proposal.body.get("version"),
        nodes=list(proposal.body.get("nodes") or ()),
        sha256=proposal.sha256,
        reason=proposal.reason,
        proposer=proposal.proposer,
        proposed_at=proposal.proposed_us // MICROSECONDS,
        needs=APPROVERS[proposal.kind],
        verdicts=[
            Decided(principal=each.principal, outcome=each.outcome, at=each.decided_us // MICROSECONDS)
            for each in verdicts
        ],
        body=proposal.body,
    )


ROUTES: tuple[Route, ...] = (
    route("GET", "/v1/compliance/proposals", list_proposals, tag="compliance", roles=READERS),
    route("POST", "/v1/compliance/policies", propose_policy, tag="compliance", roles=WRITERS, errors=(422,)),
    route("POST", "/v1/compliance/waivers", propose_waiver, tag="compliance", roles=WRITERS, errors=(422,)),
    route("POST", "/v1/compliance/break-glass", propose_break_glass, tag="compliance", roles=WRITERS, errors=(422,)),
    route("POST", "/v1/compliance/projects", propose_project, tag="compliance", roles=WRITERS, errors=(422,)),
    route("POST", "/v1/compliance/models", propose_model, tag="compliance", roles=WRITERS, errors=(422,)),
    route("POST", f"{ON_PROPOSAL}/approve", approve, tag="compliance", roles=WRITERS, errors=(422,)),
    route("POST", f"{ON_PROPOSAL}/reject", reject, tag="compliance", roles=WRITERS, errors=(422,)),
    route("POST", f"{ON_PROPOSAL}/withdraw", withdraw, tag="compliance", roles=WRITERS, errors=(422,)),
    route("GET", f"{ON_PROPOSAL}/diff", diff, tag="compliance", roles=READERS),
    route("POST", "/v1/compliance/dry-run", run_dry, tag="compliance", roles=READERS),
)  # fmt: skip
