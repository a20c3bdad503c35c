"""How policies come into force: proposed → approved by another principal → active from a date → superseded. Nothing is edited.

Drafts are files (`policy validate`, `policy test`). What is in force at a moment follows from the proposals and the verdicts on
them, purely: `standing`. Waivers, break-glass, a project's class and place in the tree, and approvals of models go the same way.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from types import MappingProxyType
from typing import Any, ClassVar, Literal

import msgspec

from broker.compliance.tables import Proposal, Verdict
from solver.residency.document import Document, DocumentRule, read_document
from solver.residency.effective import Waiver, concerns, refusing

Kind = Literal["policy", "waiver", "break_glass", "project", "model", "withdrawal"]
State = Literal["proposed", "rejected", "approved", "active", "superseded", "expired", "withdrawn"]
HOUR_US = 3_600_000_000
MAX_BREAK_GLASS_US = 24 * HOUR_US
# What can be taken back: what lets more pass than the policies say. A policy or a project's class is superseded instead.
WITHDRAWABLE: tuple[Kind, ...] = ("waiver", "break_glass", "model")
# Of these one proposal of a subject is in force; of the others all are, side by side.
SUPERSEDED: tuple[Kind, ...] = ("policy", "project")
# How many others must approve. Break-glass opens what was closed for everybody's good reasons: two look. Taking back what let
# more pass narrows, and waits for nobody.
APPROVERS: Mapping[str, int] = MappingProxyType(
    {"policy": 1, "waiver": 1, "project": 1, "model": 1, "break_glass": 2, "withdrawal": 0}
)
DEFAULT_NODE = "*"


class ComplianceError(Exception):
    """Compliance refuses this."""

    code: ClassVar[str] = "compliance_error"

    def __init__(self, message: str | None = None) -> None:
        super().__init__(message or (self.__doc__ or "").strip().splitlines()[0])


class ProposalRefused(ComplianceError):
    """A proposal that cannot be made: what it says contradicts what is there."""

    code = "proposal_refused"


class ProposalNotFound(ComplianceError):
    """There is no such proposal."""

    code = "proposal_not_found"


class VerdictRefused(ComplianceError):
    """This principal may not decide about this proposal, or it is decided."""

    code = "verdict_refused"


@dataclass(frozen=True, slots=True)
class Subject:
    """A project's place in the tree and the class of its data."""

    node: str
    data_class: str


@dataclass(frozen=True)
class Standing:
    """What is in force at one moment. `mark` names it: another mark, and running work is judged anew.

    `nodes` is where projects are in the tree of organisations and teams; what was approved of a project (`subjects`) counts more.
    `active` are the proposals that it is made of: id, sha256 of the body, when it was approved. `withdrawn` are the windows
    of what was let pass and taken back: policy, from when, until when.
    """

    policies: Mapping[str, tuple[Document, tuple[str, ...]]] = field(default_factory=dict)
    drain_by_us: Mapping[str, int] = field(default_factory=dict)
    waivers: tuple[Waiver, ...] = ()
    subjects: Mapping[str, Subject] = field(default_factory=dict)
    models: tuple[tuple[str, str, int], ...] = ()
    nodes: Mapping[str, str] = field(default_factory=dict)
    mark: str = ""
    active: tuple[tuple[str, str, int], ...] = ()
    withdrawn: frozenset[tuple[str, int, int]] = frozenset()

    def documents(self, node: str, named: Iterable[str] = ()) -> list[Document]:
        """The policies of a project by its place in the tree, and those that a job names besides."""
        wanted = set(named)
        return [
            document
            for name, (document, nodes) in sorted(self.policies.items())
            if name in wanted or any(each == DEFAULT_NODE or concerns(each, node) for each in nodes)
        ]

    def approved_until_us(self, model: str, node: str) -> int | None:
        """Until when a model is approved for a project; None when it is not."""
        found = [until for name, nodes, until in self.models if name == model and concerns(nodes, node)]
        return max(found, default=None)


def state_of(
    proposal: Proposal,
    verdicts: Sequence[Verdict],
    rivals: Sequence[tuple[Proposal, int]],
    at_us: int,
    withdrawn_us: int | None = None,
) -> State:
    """How far a proposal is at `at_us`. `rivals` are approved proposals of the same kind and subject, with when they were."""
    if any(each.outcome == "rejected" for each in verdicts):
        return "rejected"
    if withdrawn_us is not None and at_us >= withdrawn_us:
        return "withdrawn"
    return _going(proposal, approved_at(proposal, verdicts), rivals, at_us)


def _going(proposal: Proposal, approved_us: int | None, rivals: Sequence[tuple[Proposal, int]], at_us: int) -> State:
    if approved_us is None or at_us < approved_us:
        return "proposed"
    from_us, until_us = window(proposal, approved_us)
    if at_us < from_us:
        return "approved"
    if until_us is not None and at_us >= until_us:
        return "expired"
    if proposal.kind in SUPERSEDED and any(
        each.id != proposal.id and _since(each) <= at_us and _order(each, when) > _order(proposal, approved_us)
        for each, when in rivals
    ):
        return "superseded"
    return "active"


def approved_at(proposal: Proposal, verdicts: Sequence[Verdict]) -> int | None:
    """When enough others had approved it; None before."""
    times = sorted(each.decided_us for each in verdicts if each.outcome == "approved")
    needed = APPROVERS[proposal.kind]
    if needed == 0:
        return proposal.proposed_us
    return times[needed - 1] if len(times) >= needed else None


def withdrawals(proposals: Iterable[Proposal]) -> Mapping[str, int]:
    """When each proposal was taken back that was, by its id."""
    found: dict[str, int] = {}
    for each in proposals:
        if each.kind == "withdrawal":
            found[each.subject] = min(each.proposed_us, found.get(each.subject, each.proposed_us))
    return found


def window(proposal: Proposal, approved_us: int) -> tuple[int, int | None]:
    """From when until when what was approved holds. It never holds before it was approved."""
    from_us = max(approved_us, int(proposal.body.get("from_us") or 0))
    if proposal.kind == "break_glass":
        return approved_us, approved_us + min(int(proposal.body["for_us"]), MAX_BREAK_GLASS_US)
    until_us = proposal.body.get("until_us")
    return from_us, None if until_us is None else int(until_us)


def _since(proposal: Proposal) -> int:
    return int(proposal.body.get("from_us") or 0)


def _order(proposal: Proposal, approved_us: int) -> tuple[int, int, str]:
    """Of policies the higher version counts; a project has none: there the word that was given last does."""
    return int(proposal.body.get("version") or 0), max(_since(proposal), approved_us), proposal.id


def standing(proposals: Sequence[Proposal], verdicts: Iterable[Verdict], at_us: int) -> Standing:
    """What is in force at `at_us`. Of a policy's approved versions the highest whose day has come."""
    by_proposal: dict[str, list[Verdict]] = {}
    for word in verdicts:
        by_proposal.setdefault(word.proposal, []).append(word)
    taken_back = withdrawals(proposals)
    approved: list[tuple[Proposal, int]] = []
    withdrawn: list[tuple[Proposal, int]] = []
    for each in proposals:
        words = by_proposal.get(each.id, [])
        approved_us = approved_at(each, words)
        if approved_us is None or approved_us > at_us or any(one.outcome == "rejected" for one in words):
            continue
        is_withdrawn = taken_back.get(each.id, at_us + 1) <= at_us
        (withdrawn if is_withdrawn else approved).append((each, approved_us))
    # asked at every lease, heartbeat and input, and proposals are kept for ever: nothing here may compare each with each
    rivals: dict[tuple[str, str], list[tuple[Proposal, int]]] = {}
    for each, approved_us in approved:
        if each.kind in SUPERSEDED:
            rivals.setdefault((each.kind, each.subject), []).append((each, approved_us))
    active = [
        (each, approved_us)
        for each, approved_us in approved
        if _going(each, approved_us, rivals.get((each.kind, each.subject), ()), at_us) == "active"
    ]
    return replace(put_together(active), withdrawn=_windows(withdrawn))


def steady(proposals: Sequence[Proposal], verdicts: Iterable[Verdict], at_us: int) -> tuple[int, int | None]:
    """From when until when, around `at_us`, what is in force stays what it is if nobody proposes or decides anything. Pure."""
    times = {each.decided_us for each in verdicts} | {each.proposed_us for each in proposals}
    for each in proposals:
        times |= {int(each.body.get(name) or 0) for name in ("from_us", "until_us")}
    for_us = {int(each.body["for_us"]) for each in proposals if each.kind == "break_glass"}
    # a broken glass ends so long after one of its verdicts; which one it is does not matter here, too many bounds do no harm
    opened = {word.decided_us for word in verdicts} if for_us else set()
    times |= {when + min(each, MAX_BREAK_GLASS_US) for when in opened for each in for_us}
    later = [each for each in times if each > at_us]
    return max((each for each in times if each <= at_us), default=0), min(later, default=None)


def _windows(proposals: Sequence[tuple[Proposal, int]]) -> frozenset[tuple[str, int, int]]:
    """Of which policy and from when until when waivers and broken glass would hold that were withdrawn."""
    found = set[tuple[str, int, int]]()
    for each, approved_us in proposals:
        from_us, until_us = window(each, approved_us)
        if each.kind in ("waiver", "break_glass") and until_us is not None:
            found.add((each.subject, from_us, until_us))
    return frozenset(found)


def put_together(active: Sequence[tuple[Proposal, int]]) -> Standing:
    """What these approved proposals mean together, each with when it was approved. Pure."""
    policies: dict[str, tuple[Document, tuple[str, ...]]] = {}
    drain_by: dict[str, int] = {}
    subjects: dict[str, Subject] = {}
    models: list[tuple[str, str, int]] = []
    waivers: list[Waiver] = []
    for each, _ in active:
        if each.kind == "policy":
            document = _document(each.body["text"])
            if document is None:
                # approved once, and the language has become stricter since: until a new version is approved, nothing passes
                document = refusing(each.subject, int(each.body.get("version") or 0))
            policies[each.subject] = (document, tuple(each.body["nodes"]))
            drain_by[each.subject] = int(each.body.get("drain_by_us") or 0)
        elif each.kind == "project":
            subjects[each.subject] = Subject(each.body["node"], each.body["data_class"])
        elif each.kind == "model":
            models.append((each.subject, each.body["projects"], int(each.body["until_us"])))
    for each, approved_us in active:
        waivers += _waivers(each, approved_us, policies)
    mark = hashlib.sha256("\n".join(sorted(each.id for each, _ in active)).encode()).hexdigest()[:16]
    made_of = tuple((each.id, each.sha256, approved_us) for each, approved_us in active)
    return Standing(policies, drain_by, tuple(waivers), subjects, tuple(models), mark=mark, active=made_of)


@lru_cache(maxsize=64)
def _document(text: str) -> Document | None:
    """The document of a text that was approved: read once, asked for at every lease."""
    return read_document(text).document


def _waivers(
    proposal: Proposal, approved_us: int, policies: Mapping[str, tuple[Document, tuple[str, ...]]]
) -> list[Waiver]:
    """A waiver as it is; break-glass waives every rule of the policy."""
    if proposal.kind not in ("waiver", "break_glass"):
        return []
    from_us, until_us = window(proposal, approved_us)
    if until_us is None or proposal.subject not in policies:
        return []
    document = policies[proposal.subject][0]
    rules = [rule.id for rule in document.rules]
    if proposal.kind == "waiver":
        rules = [rule.id for rule in document.rules if rule.id == proposal.body["rule"] and _is_meant(rule, proposal)]
    return [Waiver(proposal.subject, rule, proposal.body["projects"], from_us, until_us) for rule in rules]


def _is_meant(rule: DocumentRule, proposal: Proposal) -> bool:
    """Whether the rule is still what it was when its waiver was proposed: a later version of the document may say something
    else under the same id, and nobody has waived that. Waivers of before this was kept are of the id."""
    return proposal.body.get("rule_sha256") in (None, sha256_of_rule(rule))


def sha256_of_rule(rule: DocumentRule) -> str:
    """What a rule asks of whom, whatever its document's version."""
    clauses = [msgspec.structs.replace(each, layer="") for each in rule.clauses]
    told = (rule.id, rule.effect, rule.classes, rule.projects, clauses)
    return hashlib.sha256(msgspec.json.encode(told, order="deterministic")).hexdigest()


def sha256_of(body: Mapping[str, Any]) -> str:
    return hashlib.sha256(msgspec.json.encode(dict(body), order="sorted")).hexdigest()
