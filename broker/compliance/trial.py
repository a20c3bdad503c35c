"""A policy held against offers, without consequences: what `policy test` and dry runs tell of each, and of all together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from solver.residency import Decision, Evaluator, FactEvidence, Facts, Policy
from solver.residency.types import Clause

Document = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Tried:
    """The word on one offer."""

    key: str
    decision: Decision
    facts: Facts

    def shape(self) -> Document:
        """As it is told: `key, outcome, reasons, evidence`."""
        return {
            "key": self.key,
            "outcome": self.decision.outcome,
            "reasons": msgspec.to_builtins(self.decision.reasons),
            "evidence": msgspec.to_builtins(self.facts.evidence),
        }


def tried(policy: Policy, offers: Iterable[tuple[str, Facts]], at_us: int) -> list[Tried]:
    """Each offer judged, in their order."""
    evaluator = Evaluator(policy)
    return [Tried(key, evaluator.decide(facts, at_us), facts) for key, facts in offers]


def summary(some: Sequence[Tried]) -> Document:
    """How many offers pass, and by what each of the others is stopped first: `{"country": 301, "agreements": 40}`."""
    stopped: Counter[str] = Counter()
    for each in some:
        if each.decision.outcome == "deny":
            stopped[each.decision.reasons[0].field] += 1
    allowed = sum(each.decision.outcome == "allow" for each in some)
    return {"offers": len(some), "allowed": allowed, "denied_by": dict(stopped.most_common())}


def sentence(told: Mapping[str, Any]) -> str:
    """The same in words: `412 offers: 7 allowed, 301 country, 64 jurisdictions, 40 agreements`."""
    parts = [f"{told['allowed']} allowed", *(f"{count} {field}" for field, count in told["denied_by"].items())]
    return f"{told['offers']} offers: {', '.join(parts)}"


def of_machines(policy: Policy) -> Policy:
    """The policy without what it asks of other data paths: for offers of which nobody says where their broker is."""
    kept = [_on_machine(each) for each in policy.clauses if "machine" in each.paths]
    return msgspec.structs.replace(policy, clauses=tuple(kept))


def _on_machine(clause: Clause) -> Clause:
    return msgspec.structs.replace(clause, paths=("machine",))


def facts_of_document(offer: Mapping[str, Any]) -> tuple[str, Facts]:
    """An offer as `broker offers --json` prints it, or with the names of `Facts` themselves. Raises ValueError naming the
    offer and the field."""
    key = str(offer.get("key") or offer.get("id") or "?")
    stated = dict(offer["facts"]) if isinstance(offer.get("facts"), Mapping) else dict(offer)
    stated.setdefault("jurisdictions", stated.get("operator_jurisdictions"))
    stated.setdefault("market", key.split("/", maxsplit=1)[0])
    policy = stated.get("data_policy") or {}
    stated.setdefault("retention_days", policy.get("retention_days"))
    stated.setdefault("trains_on_data", policy.get("training"))
    stated["evidence"] = _evidence(stated)
    for name in ("certifications", "agreements"):
        stated[name] = [each if isinstance(each, Mapping) else {"id": each} for each in stated.get(name) or ()]
    known = {name: stated[name] for name in Facts.__struct_fields__ if name in stated}
    missing = {
        "country": None,
        "subdivision": None,
        "location_tier": "anonymous",
        "confidentiality": "none",
        "launch": "",
    }
    try:
        return key, msgspec.convert(missing | known, Facts)
    except msgspec.ValidationError as wrong:
        raise ValueError(f"offer {key}: {wrong}") from wrong


_FOREVER = 2**62
_EVIDENCE = FactEvidence.__struct_fields__


def _evidence(stated: Mapping[str, Any]) -> list[Document]:
    """Evidence in whichever form it is told; without an end it counts as valid: the file says what it says of that day."""
    found = []
    for each in stated.get("evidence") or stated.get("location_evidence") or ():
        if isinstance(each, str):
            kind, _, source = each.partition(": ")
            found.append({"kind": kind, "source": source, "valid_until_us": _FOREVER})
        else:
            found.append({"source": "", "valid_until_us": _FOREVER} | {k: v for k, v in each.items() if k in _EVIDENCE})
    return found
