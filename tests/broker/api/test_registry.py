"""The registry refuses half-declared routes, and the document it makes is OpenAPI."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
from openapi_spec_validator import OpenAPIV31SpecValidator

from broker.api.health_shapes import Health
from broker.api.registry import PARAMETERS, Call, Undeclared, refusals, route

# what the path says is all there is to say
WITHOUT_BODY = (
    "/cancel",
    "/pause",
    "/resume",
    "/approve",
    "/retry",
    "/revoke",
    "/rewrap",
    "/changes/{approval}/reject",
    "/moves/{approval}/reject",
    "/{proposal_id}/reject",
    "/close",
)


async def test_every_route_has_a_schema_a_role_and_a_summary(server: Any) -> None:
    for each in server.routes:
        where = f"{each.method} {each.path}"
        assert each.summary.strip().endswith("."), f"{where}: the docstring's first line is the summary, a sentence"
        assert inspect.iscoroutinefunction(each.handler), where
        assert bool(each.roles) == (each.access == "key"), f"{where}: a route for keys names roles, others have none"
        assert each.response or each.produces or each.wire_response or each.status == 204, f"{where}: no answer schema"
        if each.method in ("POST", "PUT", "PATCH") and not each.path.endswith(WITHOUT_BODY):
            assert each.request or each.wire_request or each.consumes, f"{where}: no request schema"
        assert set(each.parameters) <= set(PARAMETERS), where


async def test_the_document_is_valid_openapi_and_lists_what_is_served(server: Any) -> None:
    document = (await server.call("GET", "/openapi.json", key=None)).json
    OpenAPIV31SpecValidator(document).validate()
    listed = {(method.upper(), path) for path, item in document["paths"].items() for method in item}
    assert listed == {(each.method, each.path) for each in server.routes}
    assert "Batch" in document["components"]["schemas"]
    assert "worker.commit.request" in document["components"]["schemas"]


async def test_the_document_declares_every_refusal_and_who_may_call(server: Any) -> None:
    document = (await server.call("GET", "/openapi.json", key=None)).json
    for each in server.routes:
        operation = document["paths"][each.path][each.method.lower()]
        assert {str(status) for status in refusals(each)} <= set(operation["responses"]), each.path
        assert operation.get("x-roles", []) == sorted(each.roles)
        assert bool(operation["security"]) == (each.access not in ("open", "signed"))


async def test_no_route_answers_409(server: Any) -> None:
    """The stock clients retry it twice, so a conflict would be sent three times."""
    assert not [each.path for each in server.routes if 409 in refusals(each) | set(each.also) | {each.status}]


async def undocumented(call: Call) -> Health:
    return Health(status="ok", problems=[])


async def without_answer(call: Call):  # type: ignore[no-untyped-def]
    """Something."""


async def documented(call: Call) -> Health:
    """Something."""
    return Health(status="ok", problems=[])


def test_a_route_that_declares_too_little_is_not_made() -> None:
    with pytest.raises(Undeclared, match="docstring"):
        route("GET", "/x", undocumented, tag="x", roles=("viewer",))
    with pytest.raises(Undeclared, match="schema"):
        route("GET", "/x", without_answer, tag="x", roles=("viewer",))
    with pytest.raises(Undeclared, match="roles"):
        route("GET", "/x", documented, tag="x")
    with pytest.raises(Undeclared, match="roles"):
        route("GET", "/x", documented, tag="x", access="open", roles=("viewer",))
    with pytest.raises(Undeclared, match="no pattern"):
        route("GET", "/x/{nobody_knows}", documented, tag="x", roles=("viewer",))
