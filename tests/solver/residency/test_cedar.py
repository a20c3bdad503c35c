"""Cedar says the same as our evaluator, about random documents in up to three layers and random facts.

What Cedar is given is written from the documents' own words (cedar.py), so reading, compiling and judging are all compared.
"""

from __future__ import annotations

import random

import pytest
import yaml

from solver.residency import evaluate
from solver.residency.document import Document, read_document
from solver.residency.effective import effective
from tests.solver.residency.cedar import Judge
from tests.solver.residency.random_policies import CLASSES, GROUPS, a_document, some_facts

FACTS_EACH = 25


def documents(source: random.Random) -> tuple[list[dict[str, object]], list[Document]]:
    """Random documents that are understood; some contradict themselves, and are refused."""
    written, understood = [], []
    while not written or (len(written) < 3 and source.random() < 0.4):
        one = a_document(source, f"layer-{len(written)}")
        reading = read_document(yaml.safe_dump(one))
        if reading.document is None:
            assert {each.code for each in reading.errors} == {"contradiction"}, reading.errors
            continue
        written.append(one)
        understood.append(reading.document)
    return written, understood


def disagreements(cases: int, seed: int) -> tuple[list[str], int]:
    """What the two say differently of so many cases, and how many of them were allowed."""
    found, allowed = [], 0
    for number in range(cases // FACTS_EACH):
        source = random.Random(seed + number)
        written, understood = documents(source)
        data_class = source.choice(CLASSES)
        policy = effective(understood, data_class=data_class, project="org/team/p")
        facts = [some_facts(source) for _ in range(FACTS_EACH)]
        for each, theirs in zip(facts, Judge(written, data_class, GROUPS).allows(facts), strict=True):
            ours = evaluate(policy, each, 50)
            allowed += theirs
            if (ours.outcome == "allow") != theirs:
                found.append(
                    f"seed {seed + number}: Cedar {theirs}, ours {ours} of {each} under {yaml.safe_dump(written)}"
                )
    return found, allowed


def test_cedar_decides_as_we_do() -> None:
    found, allowed = disagreements(2_000, seed=0)
    assert not found, found[0]
    assert allowed > 80, "too few cases are allowed for the comparison to mean anything"


@pytest.mark.residency
@pytest.mark.timeout(600)
def test_cedar_decides_as_we_do_in_ten_thousand_cases() -> None:
    found, allowed = disagreements(10_000, seed=1_000)
    assert not found, found[0]
    assert allowed > 500
