"""What is wrong with a policy document as a whole: rules that leave nothing, and rules that mean more than they seem to."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import combinations
from typing import Any, Protocol

from solver.residency.marks import Finding, Marked, Where
from solver.residency.types import Clause, Condition


class Rule(Protocol):
    """What of a document's rule is looked at here."""

    @property
    def id(self) -> str: ...

    @property
    def effect(self) -> str: ...

    @property
    def classes(self) -> tuple[str, ...]: ...

    @property
    def projects(self) -> tuple[str, ...]: ...

    @property
    def clauses(self) -> tuple[Clause, ...]: ...


def contradictions(marked: Marked, rules: Sequence[Rule]) -> Iterator[Finding]:
    """Two rules of which one leaves the other nothing: an allow that a deny takes back whole, requirements that exclude each
    other. Only what is so for every place is told; the dry run tells of the rest."""
    numbers = {each.id: index for index, each in enumerate(rules)}
    for first, second in combinations(rules, 2):
        if not set(first.classes) & set(second.classes) or (first.projects and second.projects):
            continue
        for one, other in ((first, second), (second, first)):
            if why := _excludes(one, other):
                where: Where = ("rules", numbers[other.id])
                line = marked.mark(("rules", numbers[one.id]))[0]
                message = f"{other.effect} {other.id!r} is never satisfied beside {one.effect} {one.id!r} (line {line}): {why}"
                yield marked.finding("contradiction", message, where, "narrow one of the two, or give it other classes")
                break


def _excludes(one: Rule, other: Rule) -> str | None:
    """Why `other` (an allow or a requirement) leaves nothing beside `one`, or None."""
    if other.effect == "deny" or len(other.clauses) == 0 or set(other.classes) - set(one.classes):
        return None
    if one.effect == "allow" or (other.effect == "allow" and one.effect == "require" and one.projects):
        return None
    for clause in one.clauses:
        if clause.from_us is not None or clause.until_us is not None or "machine" not in clause.paths:
            continue
        for target in other.clauses:
            if "machine" in target.paths and (why := _empty(clause, target)):
                return why
    return None


def _empty(clause: Clause, target: Clause) -> str | None:
    if len(clause.alternatives) != 1 or not target.alternatives:
        return None
    reasons = [_clash(clause, clause.alternatives[0], some) for some in target.alternatives]
    return reasons[0] if all(reasons) else None


def _clash(clause: Clause, stated: Iterable[Condition], wanted: Iterable[Condition]) -> str | None:
    conditions = list(stated)
    if clause.effect == "forbid":
        if not conditions:
            return "it denies everything"
        if len(conditions) != 1:
            return None
    for mine in conditions:
        for theirs in wanted:
            if mine.field != theirs.field or not _is_plain(mine) or not _is_plain(theirs):
                continue
            ours, others = _values(mine), _values(theirs)
            if clause.effect == "forbid" and others <= ours:
                return f"{mine.field} {', '.join(sorted(others))} is denied"
            if clause.effect == "require" and not others & ours:
                return f"{mine.field} cannot be of both {_some(ours)} and {_some(others)}"
    return None


def _is_plain(condition: Condition) -> bool:
    return condition.op in ("in", "any_in") and not any("*" in each or "?" in each for each in condition.values)


def _values(condition: Condition) -> set[str]:
    return {*condition.values, *(span.value for span in condition.spans)}


def _some(values: set[str]) -> str:
    listed = sorted(values)
    return ", ".join(listed[:4]) + (" …" if len(listed) > 4 else "")


def doubts(marked: Marked) -> Iterator[Finding]:
    """What is allowed to be so and is seldom meant."""
    rules = marked.value["rules"]
    if not any(rule["effect"] == "allow" for rule in rules):
        message = (
            "no rule allows anything: alone, this policy permits public data at most; it can narrow another policy"
        )
        yield _warning(
            marked, "only_narrows", message, ("rules",), "add an allow rule, or bind it below a policy that has one"
        )
    required = {field for rule in rules if rule["effect"] == "require" for field in _fields(rule)}
    for index, rule in enumerate(rules):
        if rule["effect"] == "allow" and not {"location_tier", "host", "market"} & (set(_fields(rule)) | required):
            message = (
                f"allow {rule['id']!r} does not ask for a location_tier: hosts that only claim where they are pass it"
            )
            hint = "add `location_tier: {at_least: named_datacenter}`"
            yield _warning(marked, "any_tier", message, ("rules", index), hint)


def _fields(rule: dict[str, Any]) -> Iterator[str]:
    when: Any = rule.get("when") or {}
    for each in when if isinstance(when, list) else [when]:
        yield from each


def _warning(marked: Marked, code: str, message: str, where: Where, suggestion: str) -> Finding:
    line, column = marked.mark(where)
    return Finding(code, message, line, column, suggestion, severity="warning")
