"""Bodies of the residency policies' routes."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from broker.api.shapes import Own

DataClass = Literal["public", "internal", "confidential", "personal", "health", "secret"]
MAX_TEXT = 1_048_576


class PolicyTest(Own):
    """A policy document to be held against the offers of now."""

    text: str = Field(max_length=MAX_TEXT, description="the document, YAML")
    data_class: DataClass = "internal"
    node: str = Field(
        default="default", max_length=200, description="a project's path in the tree, for rules of some projects"
    )


class Tested(Own):
    """What a policy says of each offer: `key, outcome, reasons, evidence`, and in sum."""

    object: Literal["list"] = "list"
    policy: str
    data_class: str
    data: list[dict[str, Any]]
    summary: dict[str, Any]
    findings: list[dict[str, Any]]
