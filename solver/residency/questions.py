"""What a policy may ask of facts, field by field: how a fact is read, and whether the answer is yes, no or unknown."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from types import MappingProxyType
from typing import Any

from solver.residency.classes import EVIDENCE, evidence_level
from solver.residency.types import Condition, FactEvidence, Facts, Held, ModelFacts, Operator, PathFacts


@dataclass(frozen=True, slots=True)
class Unfounded:
    """A value that is there and does not count, with the reason in words."""

    why: str


Stated = Mapping[str, Operator]
Read = Callable[[Facts | PathFacts, Facts, int, Stated], Any]
"""How a field is read: of which path, in which facts, at which moment, with what the policy states of operators by name."""


def _located(value: str | None, evidence: tuple[FactEvidence, ...], at_us: int) -> Any:
    for each in evidence:
        if at_us < each.valid_until_us:
            return value or None
    return Unfounded(f"unknown ({value} without valid evidence)") if value else None


def _country(place: Facts | PathFacts, _facts: Facts, at_us: int, _held: Stated) -> Any:
    return _located(place.country, place.evidence, at_us)


def _subdivision(place: Facts | PathFacts, _facts: Facts, at_us: int, _held: Stated) -> Any:
    return _located(place.subdivision, place.evidence, at_us)


def _evidence(place: Facts | PathFacts, _facts: Facts, at_us: int, _held: Stated) -> Any:
    levels = [evidence_level(each.kind) for each in place.evidence if at_us < each.valid_until_us]
    return max(levels, key=EVIDENCE.index, default=None)


def _certifications(place: Facts | PathFacts, facts: Facts, at_us: int, held: Stated) -> Any:
    return _valid(place, facts, at_us, held, "certifications")


def _agreements(place: Facts | PathFacts, facts: Facts, at_us: int, held: Stated) -> Any:
    return _valid(place, facts, at_us, held, "agreements")


def _valid(place: Facts | PathFacts, facts: Facts, at_us: int, held: Stated, kind: str) -> tuple[str, ...]:
    """What the path's operator still holds when the work is over. What nobody states is not held."""
    until_us = max(at_us, facts.until_us or at_us)
    found: list[Held] = list(getattr(facts, kind)) if place is facts else []
    for name in (place.operator, f"market:{facts.market}" if place is facts else None):
        if name and (operator := held.get(name)):
            found += getattr(operator, kind)
    return tuple(sorted({each.id for each in found if each.valid_until_us is None or until_us < each.valid_until_us}))


def _retention(_place: Facts | PathFacts, facts: Facts, _at_us: int, _held: Stated) -> Any:
    # between us and a rented machine there is nobody who retains
    return facts.retention_days if facts.launch == "token_api" else 0


def _training(_place: Facts | PathFacts, facts: Facts, _at_us: int, _held: Stated) -> Any:
    return _word(facts.trains_on_data if facts.launch == "token_api" else False)


def _word(truth: bool | None) -> str | None:
    return None if truth is None else str(truth).lower()


def _model(read: Callable[[ModelFacts, int], Any]) -> Read:
    def of_model(_place: Facts | PathFacts, facts: Facts, at_us: int, _held: Stated) -> Any:
        return None if facts.model is None else read(facts.model, max(at_us, facts.until_us or at_us))

    return of_model


def _is_approved(model: ModelFacts, until_us: int) -> str:
    return str(model.approved_until_us is not None and until_us < model.approved_until_us).lower()


_READ: Mapping[str, Read] = MappingProxyType(
    {
        "country": _country,
        "subdivision": _subdivision,
        "operator": lambda place, *_: place.operator or None,
        "jurisdictions": lambda place, *_: place.jurisdictions or None,
        "evidence": _evidence,
        "certifications": _certifications,
        "agreements": _agreements,
        "location_tier": lambda _, facts, *__: facts.location_tier or None,
        "confidentiality": lambda _, facts, *__: facts.confidentiality or None,
        "launch": lambda _, facts, *__: facts.launch or None,
        "market": lambda _, facts, *__: facts.market or None,
        "host": lambda _, facts, *__: facts.host or None,
        "retention_days": _retention,
        "trains_on_data": _training,
        "model": _model(lambda model, _: model.name or None),
        "model_publisher": _model(lambda model, _: model.publisher or None),
        "model_licence": _model(lambda model, _: model.licence or None),
        "model_costly": _model(lambda model, _: _word(model.is_costly)),
        "model_approved": _model(_is_approved),
    }
)
FIELDS = tuple(_READ)
PLACE_FIELDS = ("country", "subdivision", "operator", "jurisdictions", "evidence", "certifications", "agreements")
"""What can be asked of every data path; the rest is of the machine and of what runs there."""
_NO_SUCH = Unfounded("unknown (no such fact)")


def reader(field: str) -> Read:
    """How to read a field. It gives a string, a tuple or a number; None or Unfounded when it is unknown."""
    return _READ.get(field) or (lambda *_: _NO_SUCH)


@dataclass(frozen=True, slots=True)
class Question:
    """A condition at one moment: its values are those that count then. `bit` is its place in a mask."""

    field: str
    op: str
    values: frozenset[str]
    patterns: tuple[str, ...]
    bit: int

    @classmethod
    def of(cls, condition: Condition, at_us: int, number: int) -> Question:
        values = in_force(condition, at_us)
        patterns = tuple(each for each in values if "*" in each or "?" in each)
        return cls(condition.field, condition.op, frozenset(values), patterns, 1 << number)

    def truth(self, value: Any) -> bool | None:
        if value is None or isinstance(value, Unfounded):
            return None
        if self.op == "at_most":
            limits = [int(each) for each in self.values if each.isascii() and each.isdecimal()]
            return isinstance(value, int) and value <= min(limits, default=-1)
        found = value if isinstance(value, tuple) else (value,)
        if self.op == "has_all":
            return self.values <= set(found)
        hits = sum(self._has(each) for each in found)
        if self.op in ("in", "any_out"):
            return (hits == len(found)) == (self.op == "in")
        return hits > 0 if self.op in ("any_in", "has_any") else hits == 0

    def _has(self, value: Any) -> bool:
        return value in self.values or any(fnmatchcase(str(value), each) for each in self.patterns)


def in_force(condition: Condition, at_us: int) -> list[str]:
    """What a condition lists at `at_us`."""
    dated = [
        span.value
        for span in condition.spans
        if (span.from_us is None or span.from_us <= at_us) and (span.until_us is None or at_us < span.until_us)
    ]
    return [*condition.values, *dated]


def ask(condition: Condition, value: Any, at_us: int) -> tuple[bool | None, str]:
    """The answer, and what was found in words: what decides of several values, else all."""
    question = Question.of(condition, at_us, 0)
    if value is None or isinstance(value, Unfounded):
        return None, value.why if isinstance(value, Unfounded) else "unknown"
    truth = question.truth(value)
    found = value if isinstance(value, tuple) else (value,)
    hits = [str(each) for each in found if question._has(each)]
    misses = [str(each) for each in found if not question._has(each)]
    decisive = misses if condition.op in ("in", "any_out") else hits
    return truth, ", ".join(decisive or map(str, found)) or "none"
