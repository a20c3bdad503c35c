"""Cedar (AWS's policy language) as the judge of ours: a document and some facts, said in Cedar from the document's own words.

Nothing of `solver.residency` is used here but the vocabularies. One layer is one Cedar action, one data path one resource;
`require` is a `forbid … unless`, and what is unknown is an attribute that the context lacks.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import cedarpy

from solver.residency import Facts
from solver.residency.classes import CONFIDENTIALITY, EVIDENCE, TIERS

SETS = ("jurisdictions", "certifications", "agreements")
PLACE = ("country", "subdivision", "operator", "jurisdictions")
LADDERS = {"location_tier": TIERS, "confidentiality": CONFIDENTIALITY, "evidence": EVIDENCE}
PATHS = ("machine", "storage", "checkpoint", "log", "registry", "control_plane")
Rule = Mapping[str, Any]


@dataclass(frozen=True)
class Judge:
    """Some documents in Cedar, for one class of data; `members` are the groups that they may name."""

    documents: Sequence[Mapping[str, Any]]
    data_class: str
    members: Mapping[str, Sequence[str]]

    def policies(self) -> str:
        lines = ['permit(principal, action == Action::"any", resource);']
        for document in self.documents:
            for rule in document["rules"]:
                if self.data_class in rule.get("classes", [self.data_class]):
                    lines += self._rule(document["policy"], rule)
        return "\n".join(lines)

    def questions(self) -> list[tuple[str, str]]:
        """(action, path) pairs that must all be allowed."""
        asked = {("any", path) for path in PATHS}
        for document in self.documents:
            allows = [rule for rule in document["rules"] if rule["effect"] == "allow"]
            ours = [rule for rule in allows if self.data_class in rule.get("classes", [self.data_class])]
            if any("machine" in paths_of(rule) for rule in allows):  # if to other data alone, to this nothing
                asked.add((document["policy"], "machine"))
            for rule in ours:
                asked |= {(document["policy"], path) for path in paths_of(rule)}
        return sorted(asked)

    def allows(self, facts: Sequence[Facts]) -> list[bool]:
        questions = self.questions()
        if not any(action != "any" and path == "machine" for action, path in questions):
            return [False] * len(facts)  # data that is not public needs an allow
        requests = [
            {
                "principal": 'Batch::"b"',
                "action": f'Action::"{action}"',
                "resource": f'Path::"{path}"',
                "context": context(each, path),
            }
            for each in facts
            for action, path in questions
        ]
        answers = cedarpy.is_authorized_batch(requests, self.policies(), [])
        errors = [each.diagnostics.errors for each in answers if each.diagnostics.errors]
        assert not errors, (errors[0], self.policies())
        words = [each.decision == cedarpy.Decision.Allow for each in answers]
        step = len(questions)
        return [all(words[n * step : (n + 1) * step]) for n in range(len(facts))]

    def _rule(self, layer: str, rule: Rule) -> Iterator[str]:
        for path in paths_of(rule):
            scope = f'resource == Path::"{path}"'
            when = self._whens(rule, path)
            if rule["effect"] == "allow":
                known = " || ".join(f"({' && '.join(f'({a} && {b})' for a, b in some) or 'true'})" for some in when)
                yield f'permit(principal, action == Action::"{layer}", {scope}) when {{ {known} }};'
            elif rule["effect"] == "deny":
                doubtful = " || ".join(f"({' && '.join(f'(!{a} || {b})' for a, b in some) or 'true'})" for some in when)
                yield f"forbid(principal, action, {scope}) when {{ {doubtful} }};"
            else:
                known = " || ".join(f"({' && '.join(f'({a} && {b})' for a, b in some) or 'true'})" for some in when)
                spared = "".join(f" || ({a} && !{b})" for a, b in self._conditions(rule.get("if", {}), "if"))
                yield f"forbid(principal, action, {scope}) unless {{ {known}{spared} }};"

    def _whens(self, rule: Rule, path: str) -> list[list[tuple[str, str]]]:
        when = rule.get("when", {})
        listed = when if isinstance(when, list) else [when]
        asked = PLACE if "on" not in rule else (*PLACE, "evidence", "certifications", "agreements")
        kept = [{k: v for k, v in each.items() if path == "machine" or k in asked} for each in listed]
        return [list(self._conditions(each, rule["effect"])) for each in kept]

    def _conditions(self, when: Mapping[str, Any], effect: str) -> Iterator[tuple[str, str]]:
        """For each condition whether its fact is known, and the question, in Cedar."""
        for field, written in when.items():
            if field == "data_policy":
                if "retention_days" in written:
                    yield "(context has retention_days)", f"context.retention_days <= {written['retention_days']}"
                if "training" in written:
                    yield "(context has training)", f"(context.training == {json.dumps(written['training'])})"
                continue
            yield f"(context has {field})", self._question(field, written, effect)

    def _question(self, field: str, written: Any, effect: str) -> str:
        at = f"context.{field}"
        if field in ("certifications", "agreements"):
            asked = written if isinstance(written, dict) else {"all": written}
            kind, names = next(iter(asked.items()))
            listed = json.dumps(names)
            return {
                "all": f"{at}.containsAll({listed})",
                "any": f"{at}.containsAny({listed})",
                "none": f"(!({at}.containsAny({listed})))",
            }[kind]
        if field in LADDERS:
            ladder = LADDERS[field]
            values = ladder[ladder.index(written["at_least"]) :] if isinstance(written, dict) else written
            return f"{json.dumps(list(values))}.contains({at})"
        is_negated = isinstance(written, dict)
        values = [one for each in (written["not"] if is_negated else written) for one in self.members.get(each, [each])]
        if field in SETS:
            every, some = f"{json.dumps(values)}.containsAll({at})", f"{json.dumps(values)}.containsAny({at})"
            if effect == "deny":
                return f"(!({every}))" if is_negated else some
            return f"(!({some}))" if is_negated else (some if effect == "if" else every)
        hit = " || ".join(f'{at} like "{each}"' if "*" in each else f"{at} == {json.dumps(each)}" for each in values)
        return f"(!({hit}))" if is_negated else f"({hit})"


def paths_of(rule: Rule) -> tuple[str, ...]:
    """The data paths that a rule is about: what it says, else all that it can be asked of."""
    if "on" in rule:
        return tuple(each for each in PATHS if each in rule["on"])
    when = rule.get("when", {})
    fields = {field for each in (when if isinstance(when, list) else [when]) for field in each}
    machine_only = fields - {*PLACE, "evidence", "certifications", "agreements"} or "if" in rule
    if not fields & set(PLACE) or (
        machine_only and rule["effect"] != "allow" and (rule["effect"] == "deny" or "if" in rule)
    ):
        return ("machine",)
    return PATHS


def context(facts: Facts, path: str) -> dict[str, Any]:
    """What is known of a path, unknown things left out. All evidence in these facts is valid, or there is none."""
    place = facts if path == "machine" else next((each for each in facts.paths if each.path == path), None)
    known: dict[str, Any] = {"certifications": [], "agreements": []}
    if place is not None:
        if place.evidence:
            known |= {name: getattr(place, name) for name in ("country", "subdivision") if getattr(place, name)}
            known["evidence"] = "declared" if place.evidence[0].kind == "self_declared" else "provider"
        if place.operator:
            known["operator"] = place.operator
        if place.jurisdictions:
            known["jurisdictions"] = list(place.jurisdictions)
    if path == "machine":
        is_token = facts.launch == "token_api"
        known |= {name: getattr(facts, name) for name in ("location_tier", "confidentiality", "launch", "market")}
        known["certifications"] = [each.id for each in facts.certifications]
        known["agreements"] = [each.id for each in facts.agreements]
        retention, training = (facts.retention_days, facts.trains_on_data) if is_token else (0, False)
        known |= {} if retention is None else {"retention_days": retention}
        known |= {} if training is None else {"training": training}
    return known
