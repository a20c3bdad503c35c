"""Residency: the policy language and its only evaluator. Pure.

`evaluate(policy, facts, at_us) -> Decision` is total: any policy and any facts give a decision, never an exception. Documents
that people write are read by `document.read_document` and put together by `effective.effective`.
"""

from solver.residency.classes import CONFIDENTIALITY
from solver.residency.compile import INTERNAL, about_places, compile_countries, with_confidentiality
from solver.residency.evaluate import Evaluator, asks_model, evaluate, of_job
from solver.residency.types import (
    Decision,
    FactEvidence,
    Facts,
    Held,
    ModelFacts,
    PathFacts,
    Policy,
    PolicyRule,
    Reason,
    digest,
)

__all__ = [
    "CONFIDENTIALITY",
    "INTERNAL",
    "Decision",
    "Evaluator",
    "FactEvidence",
    "Facts",
    "Held",
    "ModelFacts",
    "PathFacts",
    "Policy",
    "PolicyRule",
    "Reason",
    "about_places",
    "asks_model",
    "compile_countries",
    "digest",
    "evaluate",
    "of_job",
    "with_confidentiality",
]
