"""Bodies of the routes of residency policies: tests, proposals, dry runs, and what the audit tells."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from broker.api.shapes import Own

DataClass = Literal["public", "internal", "confidential", "personal", "health", "secret"]
MAX_TEXT = 1_048_576
NODE = r"^[a-z0-9*?][a-z0-9/*?._-]{0,199}$"
NAME = r"^[A-Za-z0-9][A-Za-z0-9._:/@-]{0,199}$"


class PolicyTest(Own):
    """A policy document to be held against the offers of now."""

    text: str = Field(max_length=MAX_TEXT, description="the document, YAML")
    data_class: DataClass = "internal"
    node: str = Field(
        default="default", max_length=200, description="a project's path in the tree, for rules of some projects"
    )


class Tested(Own):
    """What a policy says of each offer: `key, outcome, reasons, evidence`, and in sum."""

    object: Literal["list"] = "list"
    policy: str
    data_class: str
    data: list[dict[str, Any]]
    summary: dict[str, Any]
    findings: list[dict[str, Any]]


class PolicyProposal(Own):
    """A document that shall come into force: for whom, from when, and until when running work may go on as before."""

    text: str = Field(max_length=MAX_TEXT, description="the document, YAML")
    nodes: list[str] = Field(
        default=[], max_length=100, description="projects or paths in the tree, `*` is all; none: by name only"
    )
    from_time: int | None = Field(
        default=None, ge=0, le=253402300799, description="unix seconds; default: when it is approved"
    )
    drain_by: int | None = Field(
        default=None, ge=0, le=253402300799, description="unix seconds until which running leases may go on"
    )
    reason: str = Field(default="", max_length=2000)


class WaiverProposal(Own):
    """A rule that shall not be asked of some projects, until a time."""

    policy: str = Field(pattern=NAME)
    rule: str = Field(pattern=NAME)
    projects: str = Field(pattern=NODE)
    until: int = Field(ge=0, le=253402300799, description="unix seconds")
    reason: str = Field(min_length=1, max_length=2000)


class BreakGlassProposal(Own):
    """A policy that shall not be asked of some projects for some hours, 24 at most; two others must approve."""

    policy: str = Field(pattern=NAME)
    projects: str = Field(pattern=NODE)
    hours: int = Field(default=24, ge=1, le=24)
    reason: str = Field(min_length=1, max_length=2000)


class ProjectProposal(Own):
    """A project's place in the tree (`org/team/name`) and the class of its data."""

    project: str = Field(pattern=r"^[a-z0-9][a-z0-9-]{0,63}$")
    node: str = Field(pattern=NODE)
    data_class: DataClass
    reason: str = Field(default="", max_length=2000)


class ModelProposal(Own):
    """A model that some projects may use until a time, where policies ask for that."""

    model: str = Field(pattern=NAME)
    projects: str = Field(pattern=NODE)
    until: int = Field(ge=0, le=253402300799, description="unix seconds")
    reason: str = Field(default="", max_length=2000)


class Withdrawal(Own):
    """Why something that was approved is taken back."""

    reason: str = Field(min_length=1, max_length=2000)


class Decided(Own):
    """Who said what of a proposal, and when (unix seconds)."""

    principal: str
    outcome: str
    at: int


class Proposed(Own):
    """A proposal and how far it is: proposed, rejected, approved, active, superseded, expired,
    withdrawn."""

    id: str
    kind: str
    subject: str
    state: str
    version: int | None
    nodes: list[str]
    sha256: str
    reason: str
    proposer: str
    proposed_at: int
    needs: int
    verdicts: list[Decided]
    body: dict[str, Any]


class Proposals(Own):
    """Proposals, oldest first."""

    object: Literal["list"] = "list"
    data: list[Proposed]


class Difference(Own):
    """A proposed document beside the one in force, as a unified diff."""

    proposal: str
    policy: str
    against: str | None
    diff: str


class DryRun(Own):
    """What a proposed document would have meant: for the placements of the last days, and for the offers of now."""

    policy: str
    days: int
    placements: int
    refused: int
    cost_change_percent: str | None
    sentence: str
    refusals: list[dict[str, Any]]
    offers: dict[str, Any]


class DryRunRequest(Own):
    """A document to be held against the last days' placements and the offers of now."""

    text: str = Field(max_length=MAX_TEXT)
    nodes: list[str] = Field(default=["*"], min_length=1, max_length=100)
    days: int = Field(default=30, ge=1, le=366)


class Where(Own):
    """Where a batch ever was: machines with all their places, other data paths, countries, operators; where it was refused,
    what of it was deleted, and whether what it stores is sealed, or its keys are destroyed."""

    batch: str
    machines: list[dict[str, Any]]
    data_paths: list[dict[str, Any]]
    countries: list[str]
    operators: list[str]
    refused: list[dict[str, Any]]
    deleted: list[dict[str, Any]]
    keys: list[dict[str, Any]]
    reused: list[dict[str, Any]] = Field(
        default=[],
        description="batches whose answers this one was given, with their own machines and places; `lines` is null for those"
        " whose answers came along by another of them",
    )


class ReplayQuery(Own):
    """Which records are evaluated again: of one batch, or all after a number."""

    batch: str | None = Field(default=None, max_length=64)
    after: int = Field(default=0, ge=0)


class Replayed(Own):
    """What came of up to 1,000 records; `next_after` goes on, null at the end."""

    replayed: int
    mismatches: list[dict[str, Any]]
    next_after: int | None
