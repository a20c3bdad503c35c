"""One rule of a document as clauses for the evaluator: which questions, on which data paths.

Where a rule does not say `on`, what it asks of places is asked of every data path: the machine, and where input, parts, logs,
images and the control plane are. What only a machine has (a launch kind, a tier) is asked of the machine.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from itertools import product
from types import MappingProxyType
from typing import Any, Literal

import pycountry

from solver.residency.classes import CONFIDENTIALITY, EVIDENCE, TIERS, at_least
from solver.residency.marks import Marked, Where
from solver.residency.memberships import Dated, Memberships
from solver.residency.questions import PLACE_FIELDS
from solver.residency.spans import day_us
from solver.residency.types import PATHS, Clause, Condition

Some = tuple[Condition, ...]
Alternatives = tuple[Some, ...]
Op = Literal["in", "any_in", "not_in", "any_out"]
_EFFECT: Mapping[str, Literal["permit", "require", "forbid"]] = MappingProxyType(
    {"allow": "permit", "require": "require", "deny": "forbid"}
)
_WHERE = ("country", "subdivision", "operator", "jurisdictions")
_LADDERS = MappingProxyType({"evidence": EVIDENCE, "location_tier": TIERS, "confidentiality": CONFIDENTIALITY})


def lowered(
    marked: Marked, where: Where, rule: Mapping[str, Any], layer: str, memberships: Memberships
) -> Iterator[Clause]:
    """The clauses that a rule of a document stands for; what is wrong with it goes to `marked.findings`."""
    reader = _Reader(marked, memberships, rule["effect"])
    whole = reader.alternatives(rule.get("when"), (*where, "when"))
    if "if" in rule:
        if rule["effect"] != "require":
            message = f"`if` is for `require`; {rule['effect']!r} says all in `when`"
            marked.findings.append(
                marked.finding("if_without_require", message, (*where, "if"), "move it into `when`", key=True)
            )
        whole = (*whole, *reader.unless(rule["if"], (*where, "if")))
    for paths, alternatives in _by_path(marked, where, rule, whole, reader.needed):
        yield Clause(
            id=rule["id"],
            effect=_EFFECT[rule["effect"]],
            layer=layer,
            alternatives=alternatives,
            paths=paths,
            from_us=day_us(rule.get("from")),
            until_us=day_us(rule.get("until")),
            because=rule.get("because"),
        )


def _by_path(
    marked: Marked, where: Where, rule: Mapping[str, Any], whole: Alternatives, needed: AbstractSet[str]
) -> Iterator[tuple[tuple[str, ...], Alternatives]]:
    fields = {condition.field for some in whole for condition in some}
    asks_machine = bool(fields - set(PLACE_FIELDS))
    stated: tuple[str, ...] | None = tuple(each for each in PATHS if each in rule["on"]) if "on" in rule else None
    kept = PLACE_FIELDS if stated else _WHERE
    others = tuple(each for each in (stated if stated is not None else PATHS) if each != "machine")
    if stated is None and (not fields & set(_WHERE) or (asks_machine and (rule["effect"] == "deny" or "if" in rule))):
        others = ()
    if others and stated is not None and asks_machine and (rule["effect"] == "deny" or "if" in rule):
        only = ", ".join(sorted(fields - set(PLACE_FIELDS)))
        message = f"{only}: asked of the machine alone, and the rule is also on {', '.join(others)}"
        marked.findings.append(
            marked.finding("machine_only", message, (*where, "on"), "make two rules, or leave `on` out", key=True)
        )

    def is_kept(each: Condition) -> bool:
        # A group's own condition (the United States with the DPF only) stays with its country on every path.
        return each.field in kept or (each.field == "agreements" and set(each.values) <= needed)

    elsewhere = tuple(dict.fromkeys(tuple(filter(is_kept, some)) for some in whole))
    if others and stated is not None and fields and all(not some for some in elsewhere):
        message = f"nothing in the rule can be asked of {', '.join(others)}"
        marked.findings.append(marked.finding("machine_only", message, (*where, "on"), "leave `on` out", key=True))
    if stated is None or "machine" in stated:
        if elsewhere == whole:
            yield ("machine", *others), whole
            return
        yield ("machine",), whole
    if others:
        yield others, elsewhere


class _Reader:
    """Reads conditions for one effect: a list of several-valued facts means all of them, in a deny any of them."""

    def __init__(self, marked: Marked, memberships: Memberships, effect: str) -> None:
        self._marked = marked
        self._memberships = memberships
        self._is_deny = effect == "deny"
        self.needed: set[str] = set()

    def alternatives(self, when: Any, where: Where) -> Alternatives:
        """What `when` says, spelled out: one of the alternatives must be true."""
        if when is None:
            return ((),)
        if isinstance(when, list):
            return tuple(some for n, each in enumerate(when) for some in self.alternatives(each, (*where, n)))
        parts = [self._field(name, written, (*where, name)) for name, written in when.items()]
        return tuple(tuple(each for part in chosen for each in part) for chosen in product(*parts))

    def unless(self, guard: Mapping[str, Any], where: Where) -> Alternatives:
        """What makes a requirement not ask: one of the guard's conditions is known to be false."""
        found: list[Some] = []
        for name, written in guard.items():
            asked = self._field(name, written, (*where, name))
            condition = asked[0][0] if len(asked) == 1 and len(asked[0]) == 1 else None
            opposite = {
                "in": "not_in",
                "any_in": "not_in",
                "not_in": "any_in",
                "has_any": "has_none",
                "has_none": "has_any",
            }
            if condition is None or condition.op not in opposite:
                message = f"{name}: the opposite of this cannot be asked, so it cannot stand in `if`"
                self._marked.findings.append(
                    self._marked.finding("no_opposite", message, (*where, name), "use a list of values", key=True)
                )
                continue
            op: Any = opposite[condition.op]
            found.append((Condition(field=name, op=op, values=condition.values, spans=condition.spans),))
        return tuple(found)

    def _field(self, name: str, written: Any, where: Where) -> Alternatives:
        if name in ("country", "jurisdictions"):
            return self._countries(name, written, where)
        if name in _LADDERS:
            values = at_least(_LADDERS[name], written["at_least"]) if isinstance(written, dict) else tuple(written)
            return ((Condition(field=name, op="in", values=values),),)
        if name == "data_policy":
            return (tuple(self._data_policy(written, where)),)
        if name == "subdivision":
            self._check_subdivisions(written, where)
        return ((self._one(name, written),),)

    def _one(self, name: str, written: Any) -> Condition:
        if name in ("certifications", "agreements"):
            return self._held(name, written)
        if isinstance(written, bool):
            return Condition(field=name, op="in", values=(str(written).lower(),))
        if isinstance(written, dict):
            return Condition(field=name, op="not_in", values=tuple(written["not"]))
        return Condition(field=name, op="in", values=tuple(written))

    def _countries(self, name: str, written: Any, where: Where) -> Alternatives:
        is_negated = isinstance(written, dict)
        at: Where = (*where, "not") if is_negated else where
        names = written["not"] if is_negated else written
        dated = [each for n, one in enumerate(names) for each in self._memberships.named(one, (*at, n))]
        op = self._op(name, is_negated=is_negated)
        needs = sorted({each.needs for each in dated if each.needs})
        self.needed.update(needs)
        if not needs:
            return ((_listed(name, op, dated),),)
        if is_negated:
            message = (
                f"{', '.join(names)} has members with a condition ({', '.join(needs)}), so `not` does not say which"
            )
            self._marked.findings.append(
                self._marked.finding("conditional_not", message, at, "name the countries that are meant")
            )
        plain = [each for each in dated if not each.needs]
        found: list[Some] = [(_listed(name, op, plain),)] if plain else []
        for each in needs:
            wider = _listed(name, op, [one for one in dated if one.needs in (None, each)])
            found.append((wider, Condition(field="agreements", op="has_all", values=(each,))))
        return tuple(found)

    def _op(self, name: str, *, is_negated: bool) -> Op:
        """An operator with two jurisdictions is in a list only with both, and falls under a deny with either."""
        if name == "jurisdictions" and self._is_deny:
            return "any_out" if is_negated else "any_in"
        return "not_in" if is_negated else "in"

    def _held(self, name: str, written: Any) -> Condition:
        asked = written if isinstance(written, dict) else {"all": written}
        ops: dict[str, Literal["has_all", "has_any", "has_none"]] = {
            "all": "has_all",
            "any": "has_any",
            "none": "has_none",
        }
        kind, names = next(iter(asked.items()))
        return Condition(field=name, op=ops[kind], values=tuple(names))

    def _data_policy(self, written: Mapping[str, Any], where: Where) -> Iterator[Condition]:
        if "retention_days" in written:
            if self._is_deny:
                message = "`deny` of a retention of at most so many days would deny the better ones"
                self._marked.findings.append(
                    self._marked.finding(
                        "retention_in_deny", message, (*where, "retention_days"), "use `require`", key=True
                    )
                )
            yield Condition(field="retention_days", op="at_most", values=(str(written["retention_days"]),))
        if "training" in written:
            yield Condition(field="trains_on_data", op="in", values=(str(written["training"]).lower(),))

    def _check_subdivisions(self, written: Any, where: Where) -> None:
        names: Sequence[str] = written["not"] if isinstance(written, dict) else written
        for index, name in enumerate(names):
            at: Where = (*where, "not", index) if isinstance(written, dict) else (*where, index)
            subdivisions: Any = pycountry.subdivisions
            if subdivisions.get(code=name) is None:
                message = f"{name!r} is no ISO 3166-2 subdivision"
                self._marked.findings.append(
                    self._marked.finding("unknown_subdivision", message, at, "write it as CA-QC or DE-BY")
                )


def _listed(field: str, op: Op, dated: Sequence[Dated]) -> Condition:
    always = tuple(dict.fromkeys(each.country for each in dated if each.from_us is None and each.until_us is None))
    spans = tuple(dict.fromkeys(each.span for each in dated if each.country not in always))
    return Condition(field=field, op=op, values=always, spans=spans)
