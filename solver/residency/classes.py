"""Ordered vocabularies of the policy language: what data is, how sure a location is, what evidence is worth."""

from __future__ import annotations

from collections.abc import Sequence

from solver.errors import UnknownClass

DATA_CLASSES = ("public", "internal", "confidential", "personal", "health", "secret")
"""Kinds of data, least protected first. A project has one, and a job may only raise it."""

TIERS = ("anonymous", "claimed", "verified_host", "named_datacenter", "hyperscaler_region")
"""How sure it is where a machine stands and whose it is, least first (contract C2)."""

CONFIDENTIALITY = ("none", "at_rest", "dedicated", "cpu_tee", "gpu_tee")
"""What a place keeps from its operator, least first (contract C2)."""

EVIDENCE = ("declared", "provider", "measured", "attested")
"""What evidence of a location is worth, least first: the host's word, its provider's, a measurement, a certificate."""

_KINDS = {
    "region_table": "provider",
    "provider_region": "provider",
    "provider_api": "provider",
    "api_declared": "provider",
    "operator_statement": "provider",  # of its own machines the operator is the provider
    "contract": "provider",
    "measured": "measured",
    "rtt": "measured",
    "auditor_signed": "attested",
    "attested": "attested",
}


def evidence_level(kind: str) -> str:
    """The level of a kind of evidence; a kind that nobody has ranked is somebody's word."""
    return _KINDS.get(kind, "declared")


def at_least(ladder: Sequence[str], least: str) -> tuple[str, ...]:
    """Those of an ordered vocabulary from `least` on. Raises ValueError for a word that is not in it.

    >>> at_least(TIERS, "named_datacenter")
    ('named_datacenter', 'hyperscaler_region')
    """
    return tuple(ladder[ladder.index(least) :])


def raised(default: str, asked: str | None) -> str:
    """The class of a job: the higher of its project's and its own. Raises UnknownClass.

    >>> raised("personal", "public"), raised("internal", "health"), raised("internal", None)
    ('personal', 'health', 'internal')
    """
    for each in (default, asked or default):
        if each not in DATA_CLASSES:
            raise UnknownClass(f"data class {each!r} is none of {', '.join(DATA_CLASSES)} (least protected first)")
    return max(default, asked or default, key=DATA_CLASSES.index)
