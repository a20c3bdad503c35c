"""Random policy documents and facts, small enough that rules often meet: for properties and for Cedar."""

from __future__ import annotations

import random
from typing import Any

import msgspec

from solver.residency import FactEvidence, Facts, Held, PathFacts
from solver.residency.classes import CONFIDENTIALITY, EVIDENCE, TIERS

COUNTRIES = ("DE", "FR", "NO", "US", "CA")
GROUPS = {"core": ["DE", "FR"], "north": ["NO", "CA"], "most": ["DE", "FR", "NO", "CA"]}
OPERATORS = ("aws", "acme-1", "acme-2", "self")
MARKETS = ("aws", "vast", "own")
LAUNCHES = ("vm", "container", "process", "token_api")
CLASSES = ("internal", "personal", "health")


def a_document(source: random.Random, name: str) -> dict[str, Any]:
    return {
        "language": 1,
        "policy": name,
        "version": 1,
        "groups": {
            "core": {"members": GROUPS["core"]},
            "north": {"members": GROUPS["north"]},
            "most": {"members": ["core", "north"]},
        },
        "rules": [_rule(source, n) for n in range(source.randint(1, 4))],
    }  # fmt: skip


def _rule(source: random.Random, number: int) -> dict[str, Any]:
    effect = source.choice(("allow", "allow", "deny", "require"))
    rule: dict[str, Any] = {"id": f"r{number}", "effect": effect}
    if source.random() < 0.3:
        rule["classes"] = source.sample(CLASSES, source.randint(1, 2))
    place_only = source.random() < 0.4
    if source.random() < 0.25:
        rule["when"] = [_when(source, effect, place_only) for _ in range(2)]
    else:
        rule["when"] = _when(source, effect, place_only)
    if place_only and source.random() < 0.5:
        rule["on"] = source.sample(("machine", "storage", "log"), source.randint(1, 3))
    if effect == "require" and not place_only and source.random() < 0.5:
        rule["if"] = {"launch": source.sample(LAUNCHES, 1)}
        if source.random() < 0.5:
            rule["if"]["jurisdictions"] = source.sample(COUNTRIES, 1)
    return rule


def _when(source: random.Random, effect: str, place_only: bool) -> dict[str, Any]:
    names = ["country", "jurisdictions", "operator"] if place_only else [
        "country", "jurisdictions", "operator", "location_tier", "confidentiality", "launch", "market",
        "certifications", "agreements", "evidence", "data_policy",
    ]  # fmt: skip
    return {name: _written(source, name, effect) for name in source.sample(names, source.randint(1, 2))}


def _written(source: random.Random, name: str, effect: str) -> Any:
    if name in ("certifications", "agreements"):
        some = source.sample(("A", "B"), source.randint(1, 2))
        return source.choice([some, {"any": some}, {"none": some}])
    ladders = {"location_tier": TIERS, "confidentiality": CONFIDENTIALITY, "evidence": EVIDENCE}
    if name in ladders:
        return source.choice([{"at_least": source.choice(ladders[name])}, source.sample(ladders[name], 2)])
    if name == "data_policy":
        asked = {"retention_days": source.choice((0, 7)), "training": source.choice((True, False))}
        wanted = (
            ["training"] if effect == "deny" else source.sample(("retention_days", "training"), source.randint(1, 2))
        )
        return {each: asked[each] for each in wanted}
    values = {
        "country": (*COUNTRIES, *GROUPS),
        "jurisdictions": (*COUNTRIES, *GROUPS),
        "operator": (*OPERATORS, "acme-*"),
        "launch": LAUNCHES,
        "market": MARKETS,
    }[name]
    some = source.sample(values, source.randint(1, 2))
    return {"not": some} if source.random() < 0.3 else some


def some_facts(source: random.Random) -> Facts:
    return Facts(
        country=source.choice((*COUNTRIES, None)),
        subdivision=None,
        location_tier=source.choice(TIERS),
        confidentiality=source.choice(CONFIDENTIALITY),
        launch=source.choice(LAUNCHES),
        market=source.choice(MARKETS),
        operator=source.choice((*OPERATORS, None)),
        jurisdictions=_jurisdictions(source),
        evidence=_evidence(source),
        certifications=_held(source),
        agreements=_held(source),
        retention_days=source.choice((0, 7, 30, None)),
        trains_on_data=source.choice((True, False, None)),
        paths=_paths(source),
    )


def _paths(source: random.Random) -> tuple[PathFacts, ...]:
    """All other paths lead to one of two places; now and then one is not known at all."""
    places = [
        PathFacts(
            path="",
            country=source.choice((*COUNTRIES, None)),
            operator=source.choice((*OPERATORS, None)),
            jurisdictions=_jurisdictions(source),
            evidence=_evidence(source),
        )
        for _ in range(2)
    ]
    mostly = 0.9 if source.random() < 0.5 else 1.0
    return tuple(
        msgspec.structs.replace(source.choice(places), path=each)
        for each in ("storage", "checkpoint", "log", "registry", "control_plane")
        if source.random() < mostly
    )


def _evidence(source: random.Random) -> tuple[FactEvidence, ...]:
    kind = source.choice(("self_declared", "region_table", None, "region_table"))
    return () if kind is None else (FactEvidence(kind=kind, source="test", valid_until_us=100),)


def _jurisdictions(source: random.Random) -> tuple[str, ...] | None:
    return source.choice((None, ("DE",), ("US",), ("DE", "US"), ("DE", "FR"), ("NO", "CA")))


def _held(source: random.Random) -> tuple[Held, ...]:
    return tuple(Held(id=each) for each in ("A", "B") if source.random() < 0.5)
