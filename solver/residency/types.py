"""What residency rules talk about: the policy, the facts of a place, the decision (contract C5)."""

from __future__ import annotations

import hashlib
from typing import Any, Literal

import msgspec


class FactEvidence(msgspec.Struct, frozen=True, kw_only=True):
    """One piece of evidence for a location; it counts while `at_us < valid_until_us`."""

    kind: str
    source: str
    valid_until_us: int


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of where work would run. None is unknown, and unknown never satisfies an allow."""

    country: str | None
    subdivision: str | None
    location_tier: str
    confidentiality: str
    launch: str
    market: str
    operator: str | None = None
    jurisdictions: tuple[str, ...] | None = None
    evidence: tuple[FactEvidence, ...] = ()


class PolicyRule(msgspec.Struct, frozen=True, kw_only=True):
    """One rule: `field` of the facts must (`effect="allow"`) or must not (`"deny"`) be one of `values`."""

    id: str
    effect: Literal["allow", "deny"]
    field: str
    values: tuple[str, ...]


class Policy(msgspec.Struct, frozen=True, kw_only=True):
    """A named, versioned set of rules. Deny overrides; every allow rule must be satisfied; no rule is no permission."""

    name: str
    rules: tuple[PolicyRule, ...]
    version: int = 1


class Reason(msgspec.Struct, frozen=True, kw_only=True):
    """Why: the rule, what it wanted and what was found. `code` is stable for programs."""

    rule_id: str
    field: str
    wanted: str
    found: str
    code: str


class Decision(msgspec.Struct, frozen=True, kw_only=True):
    """The outcome with at least one reason."""

    outcome: Literal["allow", "deny"]
    reasons: tuple[Reason, ...]


def digest(value: Policy | Facts) -> str:
    """The hash under which a policy or a fact stands in a snapshot: 16 hex digits of the sha256 of its canonical JSON."""
    return hashlib.sha256(msgspec.json.encode(value, order="deterministic")).hexdigest()[:16]


def schema() -> dict[str, Any]:
    """JSON Schema of a policy."""
    return msgspec.json.schema(Policy)
