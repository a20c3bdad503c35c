"""A policy document as a person writes it, read into what the evaluator understands; all errors are found at once."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jsonschema import Draft202012Validator
from jsonschema.exceptions import ValidationError

from solver.residency.classes import DATA_CLASSES, at_least
from solver.residency.marks import Finding, Marked, Where, read
from solver.residency.memberships import Memberships
from solver.residency.rule import lowered
from solver.residency.schema import schema
from solver.residency.sense import contradictions, doubts
from solver.residency.spans import day_us, reversed_dates
from solver.residency.types import Clause, Held, Operator


@dataclass(frozen=True, slots=True)
class DocumentRule:
    """A rule with whom it is for: classes of data (all of them spelled out) and projects (patterns; none: all)."""

    id: str
    effect: str
    classes: tuple[str, ...]
    projects: tuple[str, ...]
    clauses: tuple[Clause, ...]


@dataclass(frozen=True, slots=True)
class Document:
    """A policy document that was understood."""

    name: str
    version: int
    title: str
    rules: tuple[DocumentRule, ...]
    operators: tuple[Operator, ...]

    @property
    def label(self) -> str:
        return f"{self.name}@{self.version}"


@dataclass(frozen=True, slots=True)
class Reading:
    """What was read of a text: the document unless there are errors; warnings come with a document, too."""

    document: Document | None
    findings: tuple[Finding, ...]

    @property
    def errors(self) -> tuple[Finding, ...]:
        return tuple(each for each in self.findings if each.severity == "error")


def read_document(text: str) -> Reading:
    """The policy that `text` (YAML) says, or everything that is wrong with it, each with line, column and a suggestion."""
    marked = read(text)
    findings = list(marked.findings)
    if not findings:
        findings = list(_shape(marked))
    if findings:
        return Reading(None, _ordered(findings))
    memberships = Memberships.of(marked)
    rules = tuple(_rules(marked, memberships))
    operators = tuple(_operators(marked))
    findings = [*memberships.findings, *marked.findings, *_twice(marked), *_dates(marked)]
    if not findings:
        findings = [*contradictions(marked, rules), *doubts(marked)]
    if any(each.severity == "error" for each in findings):
        return Reading(None, _ordered(findings))
    value = marked.value
    document = Document(value["policy"], value["version"], value.get("title", value["policy"]), rules, operators)
    return Reading(document, _ordered(findings))


def _ordered(findings: Sequence[Finding]) -> tuple[Finding, ...]:
    return tuple(sorted(dict.fromkeys(findings), key=lambda each: (each.line, each.column, each.code)))


# -- shape


def _shape(marked: Marked) -> Iterator[Finding]:
    for error in Draft202012Validator(schema()).iter_errors(marked.value):
        for deepest in _deepest(error):
            yield from _structural(marked, deepest)


def _deepest(error: ValidationError) -> Iterator[ValidationError]:
    """Of an `anyOf`, what is wrong with the alternative that has the value's type; else the error itself."""
    if error.validator != "anyOf" or not error.context:
        yield error
        return
    branches: dict[Any, list[ValidationError]] = {}
    for each in error.context:
        branches.setdefault(each.relative_schema_path[0], []).append(each)
    fitting = [some for some in branches.values() if not any(e.validator == "type" and not e.path for e in some)]
    if not fitting:
        yield error
        return
    for each in min(fitting, key=len):
        yield from _deepest(each)


def _structural(marked: Marked, error: ValidationError) -> Iterator[Finding]:
    where: Where = tuple(error.absolute_path)
    name = next((step for step in reversed(where) if isinstance(step, str)), "the document")
    stated: Any = error.validator_value
    instance: Any = error.instance
    if error.validator == "additionalProperties":
        known = sorted(dict(error.schema).get("properties", {})) if isinstance(error.schema, Mapping) else []
        for field in sorted(set(instance) - set(known)):
            yield marked.finding(
                "unknown_field", f"unknown field {field!r}", (*where, field), _meant(field, known), key=True
            )
    elif error.validator == "required":
        for field in (each for each in stated if each not in instance):
            yield marked.finding("missing_field", f"{name} lacks {field!r}", where, f"add `{field}: …`")
    elif error.validator in ("enum", "const"):
        known = [str(each) for each in (stated if error.validator == "enum" else [stated])]
        yield marked.finding("unknown_word", f"{name}: {instance!r} is not known", where, _meant(instance, known))
    else:
        yield marked.finding("wrong_value", f"{name}: {_short(error)}", where, _wanted(error))


def _short(error: ValidationError) -> str:
    shown = repr(error.instance)
    return f"{shown if len(shown) < 80 else shown[:77] + '…'} is not what is written here"


def _wanted(error: ValidationError) -> str:
    words = {
        "type": f"write a {error.validator_value}",
        "pattern": f"write it as {error.validator_value}",
        "minItems": "name at least one, or leave the field out",
        "minProperties": "say at least one condition, or leave the field out",
        "maxProperties": "say one of them",
        "anyOf": "write a list, or one of the forms that `broker policy schema` shows",
    }
    return words.get(str(error.validator), f"it must satisfy {error.validator} {error.validator_value!r}")


def _meant(written: object, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(str(written), known, n=2, cutoff=0.6)
    return f"did you mean {' or '.join(near)}?" if near else f"known are {', '.join(known)}"


# -- content


def _rules(marked: Marked, memberships: Memberships) -> Iterator[DocumentRule]:
    layer = f"{marked.value['policy']}@{marked.value['version']}"
    for index, rule in enumerate(marked.value["rules"]):
        where: Where = ("rules", index)
        yield DocumentRule(
            id=rule["id"],
            effect=rule["effect"],
            classes=_classes(rule.get("classes")),
            projects=tuple(rule.get("projects", ())),
            clauses=tuple(lowered(marked, where, rule, layer, memberships)),
        )


def _classes(written: Any) -> tuple[str, ...]:
    if written is None:
        return DATA_CLASSES
    if isinstance(written, dict):
        return at_least(DATA_CLASSES, written["at_least"])
    return tuple(each for each in DATA_CLASSES if each in written)


def _operators(marked: Marked) -> Iterator[Operator]:
    for name, stated in (marked.value.get("operators") or {}).items():
        yield Operator(
            name=name,
            certifications=_held(stated.get("certifications", ())),
            agreements=_held(stated.get("agreements", ())),
        )


def _held(written: Sequence[dict[str, Any]]) -> tuple[Held, ...]:
    return tuple(Held(id=each["id"], valid_until_us=day_us(each.get("until"))) for each in written)


def _twice(marked: Marked) -> Iterator[Finding]:
    known: dict[str, int] = {}
    for index, rule in enumerate(marked.value["rules"]):
        where: Where = ("rules", index, "id")
        if rule["id"] in known:
            message = f"rule id {rule['id']!r} is taken by the rule on line {known[rule['id']]}"
            yield marked.finding("id_twice", message, where, f"call it {rule['id']}-2, say")
        known.setdefault(rule["id"], marked.mark(where)[0])


def _dates(marked: Marked) -> Iterator[Finding]:
    value = marked.value
    places: list[Where] = [("rules", index) for index in range(len(value["rules"]))]
    for name, group in (value.get("groups") or {}).items():
        places.append(("groups", name))
        places += [("groups", name, "members", n) for n, each in enumerate(group["members"]) if isinstance(each, dict)]
    for name, stated in (value.get("operators") or {}).items():
        for kind in ("certifications", "agreements"):
            places += [("operators", name, kind, n) for n in range(len(stated.get(kind, ())))]
    for where in places:
        yield from reversed_dates(marked, where)
