"""The published JSON Schema of policy documents, language version 1. What it cannot say, `document.py` checks."""

from __future__ import annotations

from typing import Any

from solver.residency.classes import CONFIDENTIALITY, DATA_CLASSES, EVIDENCE, TIERS
from solver.residency.types import PATHS

LANGUAGE = 1
NAME = r"^[a-z0-9][a-z0-9._-]{0,63}$"
DAY = r"^[0-9]{4}-[0-9]{2}-[0-9]{2}$"

Schema = dict[str, Any]


def _words(*words: str) -> Schema:
    return {"type": "string", "enum": list(words)}


def _listed(item: Schema) -> Schema:
    return {"type": "array", "items": item, "minItems": 1, "maxItems": 1000}


def _object(properties: Schema, *required: str, title: str) -> Schema:
    return {
        "type": "object",
        "title": title,
        "additionalProperties": False,
        "properties": properties,
        "required": list(required),
    }


_TEXT: Schema = {"type": "string", "minLength": 1, "maxLength": 2000}
_WORD: Schema = {"type": "string", "minLength": 1, "maxLength": 200}
_DATE: Schema = {"type": "string", "pattern": DAY, "description": "a day, UTC: 2026-11-27"}


def _values(item: Schema, title: str) -> Schema:
    """A list of which the fact must be one, or `{not: [...]}`; of a fact with several values, all must be of the list."""
    negated = _object({"not": _listed(item)}, "not", title=title)
    return {"title": title, "anyOf": [_listed(item), negated]}


def _ladder(words: tuple[str, ...], title: str) -> Schema:
    least = _object({"at_least": _words(*words)}, "at_least", title=title)
    return {"title": title, "anyOf": [_listed(_words(*words)), least]}


def _held(title: str) -> Schema:
    """Names that all must be held (a list), or `{any: [...]}`, or `{none: [...]}`."""
    asked = {
        **_object({"all": _listed(_WORD), "any": _listed(_WORD), "none": _listed(_WORD)}, title=title),
        "minProperties": 1,
        "maxProperties": 1,
    }
    return {"title": title, "anyOf": [_listed(_WORD), asked]}


WHEN = _object(
    {
        "country": _values(_WORD, "countries (ISO 3166 alpha-2) and groups"),
        "subdivision": _values(_WORD, "subdivisions (ISO 3166-2), such as CA-QC"),
        "operator": _values(_WORD, "operators, `*` matches any text"),
        "jurisdictions": _values(_WORD, "whose law the operator is under: countries and groups"),
        "evidence": _ladder(EVIDENCE, "the least evidence for the location"),
        "certifications": _held("certifications valid when the work is over"),
        "agreements": _held("agreements valid when the work is over: DPA, SCC, BAA"),
        "location_tier": _ladder(TIERS, "how sure it is where the machine is"),
        "confidentiality": _ladder(CONFIDENTIALITY, "what the machine keeps from its operator"),
        "launch": _values(_words("vm", "container", "kubernetes", "process", "token_api"), "how work gets there"),
        "market": _values(_WORD, "markets, `*` matches any text"),
        "host": _values(_WORD, "hosts by the name that their market gives them, `*` matches any text"),
        "data_policy": {
            **_object(
                {"retention_days": {"type": "integer", "minimum": 0}, "training": {"type": "boolean"}},
                title="what a token endpoint may do with prompts: keep them at most so long, train on them",
            ),
            "minProperties": 1,
        },
        "model": _values(_WORD, "models by name, `*` matches any text"),
        "model_publisher": _values(_WORD, "publishers of models, `*` matches any text"),
        "model_licence": _values(_WORD, "licences of models (SPDX), `*` matches any text"),
        "model_costly": {"type": "boolean", "title": "whether the settings call the model costly"},
        "model_approved": {"type": "boolean", "title": "whether the model was approved for this project"},
    },
    title="conditions, all of which must be true",
) | {"minProperties": 1}

RULE = _object(
    {
        "id": {"type": "string", "pattern": NAME},
        "effect": _words("allow", "deny", "require"),
        "classes": {
            "anyOf": [
                _listed(_words(*DATA_CLASSES)),
                _object({"at_least": _words(*DATA_CLASSES)}, "at_least", title="classes from this one on"),
            ],
            "title": "of which classes of data the rule is; without it, of all",
        },
        "projects": _listed({"type": "string", "pattern": r"^[a-z0-9*?][a-z0-9/*?._-]{0,199}$"}),
        "on": _listed(_words(*PATHS)),
        "if": WHEN,
        "when": {"anyOf": [WHEN, _listed(WHEN)], "title": "conditions; in a list, one of its entries must be true"},
        "because": _TEXT,
        "law": _TEXT,
        "from": _DATE,
        "until": _DATE,
    },
    "id",
    "effect",
    title="a rule",
)

_MEMBER = _object(
    {"country": _WORD, "from": _DATE, "until": _DATE, "needs": _WORD, "note": _TEXT}, "country", title="a dated member"
)
_HELD = _object({"id": _WORD, "until": _DATE}, "id", title="what is held, until before this day")


def schema() -> Schema:
    """JSON Schema (2020-12) of a policy document."""
    group = _object(
        {"members": _listed({"anyOf": [_WORD, _MEMBER]}), "source": _TEXT, "from": _DATE, "until": _DATE},
        "members",
        title="a group of countries: codes, other groups, dated members",
    )
    operator = _object(
        {"certifications": _listed(_HELD), "agreements": _listed(_HELD), "source": _TEXT},
        title="what we know that an operator (or `market:NAME`) holds, approved with this document",
    )
    named: Schema = {"type": "string", "pattern": NAME}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "residency policy, language version 1",
        **_object(
            {
                "language": {"const": LANGUAGE},
                "policy": named,
                "version": {"type": "integer", "minimum": 1, "maximum": 999_999_999},
                "title": _TEXT,
                "description": _TEXT,
                "notice": _TEXT,
                "sources": _listed(_TEXT),
                "groups": {"type": "object", "propertyNames": named, "additionalProperties": group},
                "operators": {"type": "object", "additionalProperties": operator},
                "rules": _listed(RULE),
            },
            "language",
            "policy",
            "version",
            "rules",
            title="residency policy, language version 1",
        ),
    }
