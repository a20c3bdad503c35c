"""Schemathesis over every operation of a served OpenAPI document, with the ids of things that are really there.

What is generated alone reaches no handler: each path parameter, and each field of a body that names a thing, is often
replaced by what a person would send, the id of a real thing that is made for this operation. What is looked for: an
answer of 5xx, a status or a media type that the document does not name, a body that is not what its schema says.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
ANSWER_WITHIN_S = 60
STREAM_FOR_S = 0.5
# A part with its commit is our own type of bytes: sent as bytes are.
schemathesis.serializer.alias("application/vnd.compute-broker.part", "application/octet-stream")


@dataclass
class Fuzz:
    """What to ask, as whom, and about what.

    `real` maps a path parameter, a query parameter or a field of a body to what makes good values of it, asked once for
    each operation, in this order. `keys` maps a security scheme of the document to what gives a credential that is good.
    `statuses` collects what each operation answered.
    """

    url: str
    document: dict[str, Any]
    real: Mapping[str, Callable[[], Sequence[Any]]]
    keys: Mapping[str, Callable[[], str]]
    examples: int
    statuses: dict[str, set[int]] = field(default_factory=dict)
    problems: dict[str, str] = field(default_factory=dict)

    def run(self) -> None:
        """Ask everything. What is wrong is in `problems`, one for each operation."""
        for found in schemathesis.openapi.from_dict(self.document).get_all_operations():
            operation = found.ok()
            scheme = self._scheme(operation)
            key = self.keys[scheme]() if scheme else None
            self._ask(operation, key, self._made(operation), self.examples)

    def _made(self, operation: Any) -> dict[str, list[Any]]:
        """Good values for what this operation names: its parameters, and the fields of its body."""
        raw = operation.definition.raw
        text = json.dumps([raw.get("requestBody", {}), raw.get("parameters", [])])
        for name in re.findall(r'"#/components/schemas/([^"]+)"', text):
            text += json.dumps(self.document["components"]["schemas"][name].get("properties", {}))
        text += operation.path
        made = {name: list(make()) for name, make in self.real.items() if f'"{name}"' in text or f"{{{name}}}" in text}
        return {name: values for name, values in made.items() if values}

    def _scheme(self, operation: Any) -> str | None:
        item = self.document["paths"][operation.path][operation.method.lower()]
        return next((name for alternative in item["security"] for name in alternative), None)

    def _ask(self, operation: Any, key: str | None, real: Mapping[str, list[Any]], examples: int) -> None:
        modes = [
            operation.as_strategy(generation_mode=mode) for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE)
        ]

        @settings(
            max_examples=examples,
            deadline=None,
            database=None,
            derandomize=True,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(case=st.one_of(modes), data=st.data())
        def ask(case: Any, data: st.DataObject) -> None:
            make_real(case, real, data)
            if key is not None and operation.label not in self.statuses:
                self._one(operation, case, None)  # once as a stranger, too
            self._one(operation, case, key)

        try:
            ask()
        except (AssertionError, BaseExceptionGroup, requests.RequestException) as problem:
            self.problems.setdefault(operation.label, f"{type(problem).__name__}: {problem}"[:3000])

    def _one(self, operation: Any, case: Any, key: str | None) -> None:
        headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        is_stream = "text/event-stream" in str(operation.definition.raw.get("responses", {}))
        try:
            answer = case.call(
                base_url=self.url, headers=headers, timeout=STREAM_FOR_S if is_stream else ANSWER_WITHIN_S
            )
        except requests.RequestException:
            if is_stream:
                return  # it goes on, as it should: its batch has not ended
            raise
        self.statuses.setdefault(operation.label, set()).add(answer.status_code)
        case.validate_response(answer, checks=CHECKS, headers=headers)


def make_real(case: Any, real: Mapping[str, list[Any]], data: st.DataObject) -> None:
    """Put good values into a case: often all of them, so that the call is what somebody might mean."""
    is_meant = data.draw(st.sampled_from([True, True, False]))
    for where in (case.path_parameters, case.query, case.body):
        if not isinstance(where, dict):
            continue
        for name in sorted(where.keys() & real.keys()):
            if is_meant or data.draw(st.booleans()):
                where[name] = data.draw(st.sampled_from(real[name]))
        if "wait_s" in where:
            where["wait_s"] = 0.01  # a long poll; what it does with other numbers is its own tests' question
