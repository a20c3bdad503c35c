"""Answers that an official document allows, made from its schemas by schemathesis' generator: other people's code, twice."""

from __future__ import annotations

import re
from typing import Any

import jsonschema_rs
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis.generation.jsonschema.builder import build

_MONEY = re.compile("price|cost|_usd|rate", re.IGNORECASE)
_AS_IT_IS = ("enum", "required", "example", "examples")
_WORDS = ("properties", "items", "anyOf", "allOf", "oneOf", "additionalProperties")
FORMATS: dict[str, st.SearchStrategy[Any]] = {
    "uuid": st.uuids().map(str),
    "date-time": st.datetimes().map(lambda at: at.isoformat() + "Z"),
    "uri": st.just("https://example.org/"),
}


def as_sent(schema: Any, name: str = "") -> Any:
    """The schema as services use it: every member that it names is there, texts are words, a text of money is a number.

    Official documents seldom say what is required: of their schemas alone nearly all answers are `{}` and chance members.
    """
    if isinstance(schema, list):
        return [as_sent(each, name) for each in schema]
    if not isinstance(schema, dict):
        return schema
    made = {
        key: value if key in _AS_IT_IS else as_sent(value, name if key in _WORDS else key)
        for key, value in schema.items()
    }
    if isinstance(made.get("properties"), dict) and "$ref" not in made:
        made |= {"required": sorted(made["properties"]), "additionalProperties": False}
    if made.get("type") == "string" and not {"enum", "format", "pattern", "const"} & set(made):
        made["pattern"] = r"^[0-9]{1,2}\.[0-9]{1,4}$" if _MONEY.search(name) else "^[a-z]{1,8}-[a-z0-9]{1,4}$"
    if made.get("type") == "string" and name in ("next", "prev"):
        made = {"const": ""}  # the only page
    if made.get("type") in ("integer", "number") and "enum" not in made:
        made |= {"minimum": max(0, made.get("minimum", 0)), "maximum": min(10_000, made.get("maximum", 10_000))}
    return made


def answers(schema: dict[str, Any], count: int) -> list[Any]:
    """Up to `count` of them, the same ones each time."""
    found: list[Any] = []

    @settings(
        max_examples=count,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(build(schema, draft=jsonschema_rs.Draft202012, formats=FORMATS))
    def collect(answer: Any) -> None:
        found.append(answer)

    collect()
    return found
