"""The only evaluator of residency policies (contract C5): total, pure, and closed when in doubt.

A question to a fact is true, false or unknown. What is unknown never satisfies an allow or a requirement, and always falls
under a deny: what cannot be shown to be elsewhere may be there. `Evaluator` holds one policy ready for many facts and answers
in codes; `evaluate` says the same of one in words.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import msgspec

from solver.residency.questions import PLACE_FIELDS, Question, Read, ask, in_force, reader
from solver.residency.types import (
    PATHS,
    Clause,
    Condition,
    Decision,
    Facts,
    ModelFacts,
    PathFacts,
    Policy,
    PolicyRule,
    Reason,
)

Codes = tuple[int, ...]
NO_PERMISSION = -1
"""The code for: no rule at all permits anything."""


def evaluate(policy: Policy, facts: Facts, at_us: int) -> Decision:
    """May work under `policy` run at a place with these `facts` at `at_us`? Any input gives a decision with at least one reason.

    - A deny applies when all its conditions are true or *unknown*.
    - Every requirement, and every allow rule of a list of countries, must be satisfied by known facts.
    - Of each document that has allow rules, one must apply; without any allow rule there is no permission.
    - Country and subdivision are known only while at least one piece of evidence is valid at `at_us`.
    """
    return Evaluator(policy).decide(facts, at_us)


def of_job(facts: Facts, model: ModelFacts | None, until_us: int | None) -> Facts:
    """The facts of a place for a job: with the model that would run there, and when the work is over at the latest."""
    return msgspec.structs.replace(facts, model=model, until_us=until_us)


def asks_model(policy: Policy) -> bool:
    """Whether its word can depend on the model."""
    return Evaluator(policy).asks_model


@dataclass(frozen=True, slots=True)
class _Rule:
    """A clause on one path with its alternatives as masks of questions. `code` is its place in `Evaluator.rules`."""

    code: int
    masks: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class _Asked:
    """A field that is asked for, the questions about it, and the answers (true, false) to each value met so far."""

    read: Read
    questions: tuple[Question, ...]
    answers: dict[Any, tuple[int, int]]


@dataclass(frozen=True, slots=True)
class _Program:
    """What one path is asked, at one moment: questions by field, and the rules over them. `permits` are by layer: those in
    force, and the codes of all."""

    path: str
    asked: tuple[_Asked, ...]
    forbids: tuple[_Rule, ...]
    requires: tuple[_Rule, ...]
    permits: tuple[tuple[tuple[_Rule, ...], Codes], ...]
    is_of_place: bool


@dataclass(frozen=True, slots=True)
class _Elsewhere:
    """The word on all paths but the machine, which is the same for offers of one broker at one moment."""

    paths: tuple[PathFacts, ...]
    at_us: int
    until_us: int | None
    broken: Codes


class Evaluator:
    """One policy, ready for many facts. Remembers the answer to each question for each value that it has met.

    `asks_model` and `asks_until`: whether its word depends on the model, and on when the work is over.
    """

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self.rules: tuple[tuple[Clause, str], ...] = tuple(_rules(policy))
        # Where documents or a class of data decide, lists (of countries, of confidentiality) come from the job: they narrow, and
        # permit nothing.
        is_of_lists = policy.data_class is None and not policy.layers
        self._has_permission = (is_of_lists and any(rule.effect == "allow" for rule in policy.rules)) or any(
            clause.effect == "permit" and "machine" in clause.paths for clause in policy.clauses
        )
        asked = {each.field for clause, _ in self.rules for some in clause.alternatives for each in some}
        self.asks_model = any(field.startswith("model") for field in asked)
        self.asks_until = bool(asked & {"certifications", "agreements", "model_approved"})
        self._held = {each.name: each for each in policy.operators}
        self._bounds = sorted(set(_bounds(policy)))
        self._programs: dict[int, tuple[_Program, ...]] = {}
        self._elsewhere: _Elsewhere | None = None

    def decide(self, facts: Facts, at_us: int) -> Decision:
        """The decision in words; agrees with `codes`."""
        broken = self.codes(facts, at_us)
        if broken:
            return Decision(outcome="deny", reasons=tuple(self._against(broken, facts, at_us)))
        return Decision(outcome="allow", reasons=tuple(self._granted(facts, at_us)))

    def codes(self, facts: Facts, at_us: int) -> Codes:
        """The numbers in `rules` of what stands against it, NO_PERMISSION among them; none at all is an allow."""
        moment = bisect_right(self._bounds, at_us)
        programs = self._programs.get(moment)
        if programs is None:
            programs = self._programs[moment] = tuple(self._compile(at_us))
        broken: list[int] = []
        others = programs
        if programs and programs[0].path == "machine":
            self._run(programs[0], facts, facts, at_us, broken)
            others = programs[1:]
        if others:
            broken.extend(self._of_others(others, facts, at_us))
        if not self._has_permission:
            broken.append(NO_PERMISSION)
        return tuple(broken)

    def _of_others(self, programs: Sequence[_Program], facts: Facts, at_us: int) -> Codes:
        known = self._elsewhere
        if (
            known is not None
            and known.paths is facts.paths
            and (known.at_us, known.until_us) == (at_us, facts.until_us)
        ):
            return known.broken
        broken: list[int] = []
        for program in programs:
            self._run(program, _path(facts, program.path), facts, at_us, broken)
        if all(program.is_of_place for program in programs):
            self._elsewhere = _Elsewhere(facts.paths, at_us, facts.until_us, tuple(broken))
        return tuple(broken)

    def rule_id(self, code: int) -> str:
        """The id of the rule that a code stands for."""
        return self.policy.name if code == NO_PERMISSION else self.rules[code][0].id

    def _run(self, program: _Program, place: Facts | PathFacts, facts: Facts, at_us: int, broken: list[int]) -> None:
        """Add the codes of the rules that stand against one path. `true` and `false` are masks of questions with these
        answers; what is in neither is unknown."""
        true = false = 0
        held = self._held
        for asked in program.asked:
            value = asked.read(place, facts, at_us, held)
            answer = asked.answers.get(value)
            if answer is None:
                answer = asked.answers[value] = _masks(asked.questions, value)
            true |= answer[0]
            false |= answer[1]
        _add_broken(program, true, false, broken)

    def _compile(self, at_us: int) -> Iterator[_Program]:
        for path in PATHS:
            questions: dict[tuple[str, str, tuple[str, ...]], Question] = {}
            forbids, requires = [], []
            permits: dict[str, tuple[list[_Rule], list[int]]] = {}
            for code, (clause, on) in enumerate(self.rules):
                if on != path:
                    continue
                if clause.effect == "permit":
                    # a layer whose permits have all ended permits nothing
                    permits.setdefault(clause.layer, ([], []))[1].append(code)
                if not _is_active(clause, at_us):
                    continue
                rule = _Rule(code, tuple(_mask(each, questions, at_us) for each in clause.alternatives))
                if clause.effect == "forbid":
                    forbids.append(rule)
                elif clause.effect == "require":
                    requires.append(rule)
                else:
                    permits[clause.layer][0].append(rule)
            if not (forbids or requires or permits):
                continue
            layers = tuple((tuple(active), tuple(codes)) for active, codes in permits.values())
            by_field: dict[str, tuple[Question, ...]] = {}
            for each in questions.values():
                by_field[each.field] = (*by_field.get(each.field, ()), each)
            asked = tuple(_Asked(reader(field), some, {}) for field, some in by_field.items())
            is_of_place = set(by_field) <= set(PLACE_FIELDS)
            yield _Program(path, asked, tuple(forbids), tuple(requires), layers, is_of_place)

    # -- in words

    def _against(self, broken: Codes, facts: Facts, at_us: int) -> Iterator[Reason]:
        for code in sorted(broken, key=lambda each: (each == NO_PERMISSION, each)):
            if code == NO_PERMISSION:
                yield Reason(
                    rule_id=self.policy.name, field="-", wanted="an allow rule", found="none", code="no_permission"
                )
            elif not _is_active(self.rules[code][0], at_us):
                yield Reason(
                    rule_id=self.rules[code][0].id,
                    field="-",
                    wanted="an allow rule in force",
                    found="none",
                    code="not_in_force",
                )
            else:
                yield from self._told(code, facts, at_us, is_against=True)

    def _granted(self, facts: Facts, at_us: int) -> Iterator[Reason]:
        for code, (clause, _) in enumerate(self.rules):
            if _is_active(clause, at_us):
                yield from self._told(code, facts, at_us, is_against=False)

    def _told(self, code: int, facts: Facts, at_us: int, *, is_against: bool) -> Iterator[Reason]:
        """The conditions of a rule that decide. Of a permit or a requirement that does not apply, those of the alternative
        that came nearest which are not true; of a deny that applies, all."""
        clause, path = self.rules[code]
        place: Facts | PathFacts = facts if path == "machine" else _path(facts, path)
        told = [
            [(each, *ask(each, reader(each.field)(place, facts, at_us, self._held), at_us)) for each in some]
            for some in clause.alternatives
        ]
        prefix = "" if path == "machine" else f"{path}."
        if not told:  # of a document: it allows nothing to this data and project, or it cannot be read
            if is_against:
                wanted = f"a rule of {clause.layer} that lets this data and project pass"
                yield Reason(rule_id=clause.id, field="-", wanted=wanted, found="none", code="no_permission")
            return
        if clause.effect == "forbid":
            hits = [some for some in told if all(truth is not False for _, truth, _ in some)]
            if bool(hits) != is_against:
                return
            chosen = hits[0] if hits else [pair for some in told for pair in some if pair[1] is False]
        else:
            chosen = min(told, key=lambda some: sum(truth is not True for _, truth, _ in some))
            if is_against:
                chosen = [pair for pair in chosen if pair[1] is not True]
            elif any(truth is not True for _, truth, _ in chosen):
                return  # a permit that does not apply, where another does
        if not chosen:
            everything = Reason(
                rule_id=clause.id, field=f"{prefix}-", wanted="anything", found="anything", code="allowed"
            )
            yield everything if clause.effect != "forbid" else _of_everything(clause, prefix)
        for condition, truth, found in chosen:
            yield _reason(clause, condition, prefix, truth, found, at_us)


def _rules(policy: Policy) -> Iterator[tuple[Clause, str]]:
    """All rules in their order, each once per path: those of lists of countries as clauses, too."""
    for rule in policy.rules:
        yield _as_clause(rule, policy.name), "machine"
    for clause in policy.clauses:
        for path in clause.paths:
            yield clause, path


def _as_clause(rule: PolicyRule, layer: str) -> Clause:
    is_deny = rule.effect == "deny"
    condition = Condition(field=rule.field, op="any_in" if is_deny else "in", values=rule.values)
    return Clause(id=rule.id, effect="forbid" if is_deny else "require", layer=layer, alternatives=((condition,),))


def _bounds(policy: Policy) -> Iterator[int]:
    """The moments at which what a policy says may change."""
    for clause in policy.clauses:
        windows = [(clause.from_us, clause.until_us), *((each.from_us, each.until_us) for each in clause.waived)]
        spans = [span for some in clause.alternatives for each in some for span in each.spans]
        for from_us, until_us in [*windows, *((span.from_us, span.until_us) for span in spans)]:
            yield from (each for each in (from_us, until_us) if each is not None)


def _is_active(clause: Clause, at_us: int) -> bool:
    if clause.from_us is not None and at_us < clause.from_us:
        return False
    if clause.until_us is not None and at_us >= clause.until_us:
        return False
    return not any(each.from_us <= at_us < each.until_us for each in clause.waived)


def _mask(some: Sequence[Condition], questions: dict[Any, Question], at_us: int) -> int:
    mask = 0
    for condition in some:
        question = Question.of(condition, at_us, len(questions))
        known = questions.setdefault((question.field, question.op, question.values), question)
        mask |= known.bit
    return mask


def _masks(questions: Sequence[Question], value: Any) -> tuple[int, int]:
    true = false = 0
    for each in questions:
        truth = each.truth(value)
        if truth is True:
            true |= each.bit
        elif truth is False:
            false |= each.bit
    return true, false


def _add_broken(program: _Program, true: int, false: int, broken: list[int]) -> None:
    for rule in program.forbids:
        for mask in rule.masks:
            if not false & mask:
                broken.append(rule.code)
                break
    for rule in program.requires:
        for mask in rule.masks:
            if true & mask == mask:
                break
        else:
            broken.append(rule.code)
    for active, codes in program.permits:
        if not _permits(active, true):
            broken.extend([rule.code for rule in active] or codes)


def _permits(active: Sequence[_Rule], true: int) -> bool:
    for rule in active:
        for mask in rule.masks:
            if true & mask == mask:
                return True
    return False


def _path(facts: Facts, path: str) -> PathFacts:
    return next((each for each in facts.paths if each.path == path), PathFacts(path=path))


def _of_everything(clause: Clause, prefix: str) -> Reason:
    return Reason(rule_id=clause.id, field=f"{prefix}-", wanted="nothing", found="anything", code="denied")


def _reason(clause: Clause, condition: Condition, prefix: str, truth: bool | None, found: str, at_us: int) -> Reason:
    is_deny = clause.effect == "forbid"
    if truth is None:
        code = "unknown"
    elif is_deny:
        code = "denied" if truth else "not_denied"
    else:
        code = "allowed" if truth else "not_allowed"
    words = (_FORBIDDEN if is_deny else _WANTED).get(condition.op, "one of")
    wanted = f"{words} {', '.join(in_force(condition, at_us))}"
    return Reason(rule_id=clause.id, field=prefix + condition.field, wanted=wanted, found=found, code=code)


_WANTED: Mapping[str, str] = MappingProxyType(
    {"not_in": "none of", "has_all": "all of", "has_any": "any of", "has_none": "none of", "at_most": "at most"}
)
_FORBIDDEN: Mapping[str, str] = MappingProxyType(
    {
        "in": "none of",
        "any_in": "none of",
        "not_in": "one of",
        "any_out": "only of",
        "has_all": "not all of",
        "has_any": "none of",
        "has_none": "any of",
        "at_most": "more than",
    }
)
