"""What residency rules talk about: the policy, the facts of a place, the decision (contract C5)."""

from __future__ import annotations

import hashlib
from typing import Any, Literal

import msgspec

EVALUATOR = 3
"""The evaluator's version, kept with every decision: a record is replayed by the evaluator that made it."""

PATHS = ("machine", "storage", "checkpoint", "log", "registry", "control_plane")
"""Every place that a batch's data passes: what computes, what keeps input and results, what keeps parts, where logs go, where
the image comes from, and where the broker itself runs."""


class FactEvidence(msgspec.Struct, frozen=True, kw_only=True):
    """One piece of evidence for a location; it counts while `at_us < valid_until_us`."""

    kind: str
    source: str
    valid_until_us: int


class Held(msgspec.Struct, frozen=True, kw_only=True):
    """A certification or an agreement, good until `valid_until_us`; None has no end."""

    id: str
    valid_until_us: int | None = None


class PathFacts(msgspec.Struct, frozen=True, kw_only=True):
    """Where one data path other than the machine leads, and whose it is. None is unknown."""

    path: str
    country: str | None = None
    subdivision: str | None = None
    operator: str | None = None
    jurisdictions: tuple[str, ...] | None = None
    evidence: tuple[FactEvidence, ...] = ()


class ModelFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What a policy may ask of a model. None is unknown; `approved_until_us` None is not approved."""

    name: str
    publisher: str | None = None
    licence: str | None = None
    is_costly: bool | None = None
    approved_until_us: int | None = None


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of where work would run. None is unknown, and unknown never satisfies an allow.

    `until_us` is when the work is over at the latest (None: `at_us`): what is held (certifications, agreements, approvals)
    must still be good then. `retention_days` and `trains_on_data` are a token endpoint's data policy.
    """

    country: str | None
    subdivision: str | None
    location_tier: str
    confidentiality: str
    launch: str
    market: str
    operator: str | None = None
    jurisdictions: tuple[str, ...] | None = None
    evidence: tuple[FactEvidence, ...] = ()
    host: str | None = None
    certifications: tuple[Held, ...] = ()
    agreements: tuple[Held, ...] = ()
    retention_days: int | None = None
    trains_on_data: bool | None = None
    paths: tuple[PathFacts, ...] = ()
    model: ModelFacts | None = None
    until_us: int | None = None


class PolicyRule(msgspec.Struct, frozen=True, kw_only=True):
    """One rule: `field` of the facts must (`effect="allow"`) or must not (`"deny"`) be one of `values`."""

    id: str
    effect: Literal["allow", "deny"]
    field: str
    values: tuple[str, ...]


class Span(msgspec.Struct, frozen=True, kw_only=True):
    """A value that counts in `from_us <= at_us < until_us` only: a country while it is a member of a group."""

    value: str
    from_us: int | None = None
    until_us: int | None = None


class Condition(msgspec.Struct, frozen=True, kw_only=True):
    """One question to the facts: true, false, or unknown when the fact is.

    `in`: all values found are listed; `any_in`: one is; `not_in`: none is; `any_out`: one is not; `has_all`, `has_any`,
    `has_none`: what is held; `at_most`: a number. Listed values may have `*` and `?`. `spans` are further values with dates.
    """

    field: str
    op: Literal["in", "any_in", "not_in", "any_out", "has_all", "has_any", "has_none", "at_most"]
    values: tuple[str, ...] = ()
    spans: tuple[Span, ...] = ()


class Window(msgspec.Struct, frozen=True, kw_only=True):
    """From `from_us` until before `until_us`."""

    from_us: int
    until_us: int


class Clause(msgspec.Struct, frozen=True, kw_only=True):
    """One rule of a policy document, as the evaluator reads it.

    `alternatives`: the rule applies when all conditions of one of them are true. `permit`: one permit of each layer that has
    any must apply, on each of its paths. `require` must apply. `forbid` must not, and what may apply (a condition is
    unknown, none is false) does. `layer` names the document. Out of its dates, and while it is waived, a rule says nothing.
    """

    id: str
    effect: Literal["permit", "require", "forbid"]
    layer: str
    alternatives: tuple[tuple[Condition, ...], ...] = ((),)
    paths: tuple[str, ...] = ("machine",)
    from_us: int | None = None
    until_us: int | None = None
    waived: tuple[Window, ...] = ()
    because: str | None = None


class Operator(msgspec.Struct, frozen=True, kw_only=True):
    """What a policy document states of an operator (or of all of a market, `market:NAME`), approved with the document."""

    name: str
    certifications: tuple[Held, ...] = ()
    agreements: tuple[Held, ...] = ()


class Policy(msgspec.Struct, frozen=True, kw_only=True):
    """A named, versioned set of rules. Deny overrides; every allow rule must be satisfied; no rule is no permission.

    `rules` are of lists of countries and the class `internal`; `clauses` of policy documents. Both must be satisfied.
    `layers` are the documents that it was made of, as `name@version`.
    """

    name: str
    rules: tuple[PolicyRule, ...] = ()
    version: int = 1
    clauses: tuple[Clause, ...] = ()
    operators: tuple[Operator, ...] = ()
    layers: tuple[str, ...] = ()
    data_class: str | None = None


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
    """The hash under which a policy or a fact stands in a snapshot: 16 hex digits of the sha256 of its canonical JSON.

    What a policy of countries does not have is left out, so that its hash is what earlier releases stored.
    """
    if isinstance(value, Policy) and not (value.clauses or value.operators or value.layers or value.data_class):
        plain = {"name": value.name, "rules": value.rules, "version": value.version}
        return _hash(msgspec.json.encode(plain))
    return _hash(msgspec.json.encode(value, order="deterministic"))


def _hash(text: bytes) -> str:
    return hashlib.sha256(text).hexdigest()[:16]


def schema() -> dict[str, Any]:
    """JSON Schema of a compiled policy; of the documents that people write, `schema.py`."""
    return msgspec.json.schema(Policy)
