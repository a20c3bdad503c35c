"""What a residency decision costs: the ready-made policies for each class of data over many distinct places.

A decision is one (class × offer), its reasons as codes. `change` is a new version of one policy held against 100,000 offers:
reading the document, compiling it, and judging each offer once. CPU-seconds of this process.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from pathlib import Path
from typing import Any

from benchmarks.calibrate import calibrate
from solver.residency import Evaluator, FactEvidence, Facts, Held, PathFacts, digest
from solver.residency.classes import CONFIDENTIALITY, DATA_CLASSES, TIERS
from solver.residency.document import Document, read_document
from solver.residency.effective import effective

POLICIES = Path(__file__).parent.parent / "policies"
COUNTRIES = ("DE", "FR", "NL", "FI", "IE", "SE", "US", "CA", "GB", "CH", "IN", "SG", "JP", "BR", "NO", "IS", "PL")
HOUR_US = 3_600_000_000
NOW_US = 1_795_000_000 * 1_000_000


def places(count: int, seed: int = 8) -> list[Facts]:
    """So many distinct facts: countries, tiers, operators, evidence of every age."""
    source = random.Random(seed)
    paths = tuple(
        PathFacts(path=each, country="DE", operator="self", jurisdictions=("DE",), evidence=(_evidence(source),))
        for each in ("storage", "checkpoint", "log", "registry", "control_plane")
    )
    found: dict[str, Facts] = {}
    while len(found) < count:
        operator = f"operator-{source.randrange(200)}"
        facts = Facts(
            country=source.choice((*COUNTRIES, None)),
            subdivision=None,
            location_tier=source.choice(TIERS),
            confidentiality=source.choice(CONFIDENTIALITY),
            launch=source.choice(("vm", "container", "kubernetes", "process", "token_api")),
            market=source.choice(("aws", "vast", "own", "sandbox")),
            operator=operator,
            jurisdictions=tuple(sorted({source.choice(COUNTRIES) for _ in range(source.randint(1, 2))})),
            evidence=(_evidence(source),),
            host=f"host-{source.randrange(4000)}",
            agreements=tuple(Held(id=each) for each in ("BAA", "DPA", "DPF") if source.random() < 0.4),
            retention_days=source.choice((0, 30, None)),
            trains_on_data=source.choice((False, True, None)),
            paths=paths,
        )
        found[digest(facts)] = facts
    return list(found.values())


def _evidence(source: random.Random) -> FactEvidence:
    return FactEvidence(
        kind=source.choice(("region_table", "self_declared")),
        source="benchmark",
        valid_until_us=NOW_US + source.randint(-HOUR_US, 24 * HOUR_US),
    )


def documents() -> list[Document]:
    read = [read_document(file.read_text()) for file in sorted(POLICIES.glob("*.yaml"))]
    return [each.document for each in read if each.document]


def decide(facts: list[Facts], evaluators: list[Evaluator]) -> tuple[float, int]:
    """CPU-seconds for each evaluator over all facts, and how many were allowed."""
    allowed = 0
    began = time.process_time()
    for evaluator in evaluators:
        for each in facts:
            allowed += not evaluator.codes(each, NOW_US)
    return time.process_time() - began, allowed


def change(facts: list[Facts], offers: int) -> float:
    """CPU-seconds from the text of a policy to the word on each of `offers` offers, whose facts repeat as places do."""
    text = (POLICIES / "eu-only.yaml").read_text()
    listed = [facts[number % len(facts)] for number in range(offers)]
    began = time.process_time()
    document = read_document(text).document
    assert document is not None
    evaluator = Evaluator(effective([document], data_class="personal", project="acme/ml"))
    for each in listed:
        evaluator.codes(each, NOW_US)
    return time.process_time() - began


def measure(tuples: int, offers: int, rounds: int) -> dict[str, Any]:
    facts = places(tuples)
    rates, changes, allowed = [], [], 0
    for _ in range(rounds):
        evaluators = [
            Evaluator(effective([document], data_class=each, project="acme/ml"))
            for document in documents()
            for each in DATA_CLASSES
        ]
        seconds, allowed = decide(facts, evaluators)
        rates.append(len(evaluators) * len(facts) / seconds)
        changes.append(change(facts, offers))
    calibration = calibrate()
    rate, changed = statistics.median(rates), statistics.median(changes)
    return {
        "fact_tuples": len(facts),
        "classes": len(DATA_CLASSES),
        "policies": len(documents()),
        "decisions": len(facts) * len(DATA_CLASSES) * len(documents()),
        "allowed": allowed,
        "decisions_per_cpu_s": round(rate),
        "decisions_per_json_loop": round(rate * calibration["json_cpu_s"]),
        "change_offers": offers,
        "change_cpu_s": round(changed, 3),
        "change_per_json_loop": round(changed / calibration["json_cpu_s"], 2),
        "calibration": {name: round(value, 4) for name, value in calibration.items()},
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--tuples", type=int, default=5_000)
    parser.add_argument("--offers", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    found = measure(given.tuples, given.offers, given.rounds)
    print(json.dumps(found) if given.json else "\n".join(f"{name}: {value}" for name, value in found.items()))
