"""Residency: the policy language and its only evaluator. Pure.

`evaluate(policy, facts, at_us) -> Decision` is total: any policy and any facts give a decision, never an exception.
"""

from solver.residency.compile import CONFIDENTIALITY, INTERNAL, about_places, compile_countries, with_confidentiality
from solver.residency.evaluate import evaluate
from solver.residency.types import Decision, FactEvidence, Facts, Policy, PolicyRule, Reason, digest

__all__ = [
    "CONFIDENTIALITY",
    "INTERNAL",
    "Decision",
    "FactEvidence",
    "Facts",
    "Policy",
    "PolicyRule",
    "Reason",
    "about_places",
    "compile_countries",
    "digest",
    "evaluate",
    "with_confidentiality",
]
