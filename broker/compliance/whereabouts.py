"""Where a batch ever was, told from its sealed decisions: every place of every machine that was given its input, and of every
store, log and registry that its data passed, each with from when until when, and on what evidence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from broker.compliance.deletion import Deleted
from broker.compliance.hello import Seen
from broker.compliance.tables import DecisionRow
from markets.tables import RentalRow
from solver.residency import FactEvidence, Facts, PathFacts

Document = dict[str, Any]
# What of a batch each data path holds; a machine that is given its input computes the rest.
HELD: Mapping[str, tuple[str, ...]] = {
    "machine": ("input", "checkpoints", "output"),
    "storage": ("input", "output"),
    "checkpoint": ("checkpoints",),
    "log": ("ids",),
    "registry": ("images",),
    "control_plane": ("input", "checkpoints", "output"),
}


def told(
    rows: Sequence[DecisionRow],
    bodies: Mapping[str, bytes],
    rentals: Mapping[str, RentalRow],
) -> Document:
    """Pure. `rows` are a batch's decisions in their order, `bodies` what they were made on by hash."""
    machines: dict[str, Document] = {}
    data: dict[str, Document] = {}
    calls: dict[str, dict[str, Document]] = {}
    deleted = []
    for row in rows:
        body = bodies.get(row.facts_hash)
        if body is None:
            continue
        if row.kind == "deletion":
            gone: Document = msgspec.to_builtins(msgspec.json.decode(body, type=Deleted))
            deleted.append({"decision": row.seq, "at_us": row.at_us, **gone})
        elif row.kind == "address" and row.rental is not None:
            _called(calls.setdefault(row.rental, {}), row, msgspec.json.decode(body, type=Seen))
        elif row.kind == "store" and row.outcome == "allow":
            _passed(data, row, msgspec.json.decode(body, type=Facts).paths)
        elif row.kind == "evaluation" and row.rental is not None and _is_holding(row, machines):
            facts = msgspec.json.decode(body, type=Facts)
            _held(machines, row, facts, rentals.get(row.rental))
            _passed(data, row, facts.paths)
    for rental, machine in machines.items():
        machine["addresses"] = list(calls.get(rental, {}).values())
        machine["places"] = list(machine["places"].values())
    return _document(list(machines.values()), list(data.values()), deleted, rows)


def _is_holding(row: DecisionRow, machines: Mapping[str, Document]) -> bool:
    """Whether the machine has input by this decision: a lease gives it out, and what has it is looked at from then on."""
    return row.outcome == "allow" and (row.point == "lease" or (row.point == "heartbeat" and row.rental in machines))


def _held(machines: dict[str, Document], row: DecisionRow, facts: Facts, rental: RentalRow | None) -> None:
    """The newest place is the machine's; all that it ever had are its `places`."""
    machine = machines.setdefault(
        str(row.rental),
        {
            "rental": row.rental,
            "offer": row.offer_key,
            "market": facts.market,
            "held": list(HELD["machine"]),
            "first_us": row.at_us,
            "places": {},
        },
    )
    ended_us = None if rental is None else rental.ended_us
    machine |= {"last_us": row.at_us, "ended_us": ended_us, "decision": row.seq, **_place(facts, facts.evidence)}
    machine["location_tier"] = facts.location_tier
    _seen_at(machine["places"], row, _place(facts, facts.evidence) | {"location_tier": facts.location_tier})


def _passed(data: dict[str, Document], row: DecisionRow, paths: Sequence[PathFacts]) -> None:
    for path in paths:
        _seen_at(data, row, {"path": path.path, "held": list(HELD[path.path]), **_place(path, path.evidence)})


def _called(calls: dict[str, Document], row: DecisionRow, what: Seen) -> None:
    if what.observed is not None:
        _seen_at(
            calls, row, {"country": what.observed, "agrees": what.observed == what.country or what.country is None}
        )


def _seen_at(known: dict[str, Document], row: DecisionRow, place: Document) -> None:
    """The same place again only lasts longer; evidence that is only newer does not make it another."""
    named = {name: value for name, value in place.items() if name != "evidence"}
    sources = [(each["kind"], each["source"]) for each in place.get("evidence", ())]
    key = msgspec.json.encode([named, sources]).decode()
    first = {"first_us": row.at_us, "decisions": 0, "first_decision": row.seq}
    entry = known.setdefault(key, first)
    entry |= {**place, "last_us": row.at_us, "last_decision": row.seq, "decisions": entry["decisions"] + 1}


def _place(facts: Facts | PathFacts, evidence: Sequence[FactEvidence]) -> Document:
    return {
        "country": facts.country,
        "subdivision": facts.subdivision,
        "operator": facts.operator,
        "jurisdictions": facts.jurisdictions,
        "evidence": msgspec.to_builtins(evidence),
    }


def _document(
    machines: list[Document], data: list[Document], deleted: list[Document], rows: Sequence[DecisionRow]
) -> Document:
    places = [*(place for each in machines for place in each["places"]), *data]
    called = [call for each in machines for call in each["addresses"]]
    refused = [
        {"decision": row.seq, "at_us": row.at_us, "point": row.point, "rental": row.rental, "offer": row.offer_key}
        for row in rows
        if row.outcome == "deny"
    ]
    return {
        "machines": machines,
        "data_paths": data,
        "countries": sorted({each["country"] or "unknown" for each in [*places, *called]}),
        "operators": sorted({each["operator"] or "unknown" for each in places}),
        "refused": refused,
        "deleted": deleted,
    }
