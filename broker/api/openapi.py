"""The OpenAPI 3.1 document, made from the registry: what is served is what is described."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from importlib.metadata import version
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import JsonSchemaMode, models_json_schema

from broker.api.errors import RETRYABLE
from broker.api.registry import PARAMETERS, Route, refusals
from broker.api.shapes import ErrorEnvelope
from broker.api.wire import WireSchemas

REF = "#/components/schemas/{model}"
SECURITY: Mapping[str, str | None] = {
    "key": "api_key",
    "worker": "worker_session",
    "bootstrap": "worker_bootstrap",
    "signed": None,
    "open": None,
}
DESCRIPTIONS: Mapping[int, str] = {
    204: "Nothing more to tell.",
    400: "The request is malformed; the message names what and where.",
    401: "No valid credential.",
    403: "Not allowed for this caller.",
    404: "Not found, or another project's.",
    412: "An object with this name is already there; the same name means the same bytes.",
    413: "The body is larger than allowed.",
    415: "A media type or content encoding that is not taken.",
    416: "The range lies outside of the content.",
    422: "Well-formed, but in conflict with what is; asking again does not help (`x-should-retry: false`).",
    425: "Too early; ask again after `Retry-After`.",
    429: "Too many requests; ask again after `Retry-After`.",
    500: "The broker failed; the answer names the request id under which it was logged.",
    503: "Not now; ask again after `Retry-After`.",
}


def document(routes: Iterable[Route], wire: WireSchemas, url: str) -> dict[str, Any]:
    """The whole document. Components: every pydantic model, every worker wire schema."""
    declared = list(routes)
    references, schemas = _models(declared)
    for name, schema in wire.documents.items():
        schemas[_wire_name(name)] = {key: value for key, value in schema.items() if key != "$schema"}
    paths: dict[str, dict[str, Any]] = {}
    for each in declared:
        paths.setdefault(each.path, {})[each.method.lower()] = _operation(each, references, schemas)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "broker",
            "version": version("compute-broker"),
            "description": "A compute broker for batch LLM inference.",
        },
        "servers": [{"url": url}],
        "paths": paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": {
                "api_key": {"type": "http", "scheme": "bearer", "description": "an API key: brk_…"},
                "worker_session": {"type": "http", "scheme": "bearer", "description": "the token that hello answered"},
                "worker_bootstrap": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "the single-use token in agent.json",
                },
            },
        },
        "tags": [{"name": name} for name in dict.fromkeys(each.tag for each in declared)],
    }


References = Mapping[Any, dict[str, Any]]


def _models(routes: list[Route]) -> tuple[References, dict[str, Any]]:
    wanted: list[tuple[type[BaseModel], JsonSchemaMode]] = [(ErrorEnvelope, "serialization")]
    for each in routes:
        wanted += [(model, "validation") for model in (each.request, each.query) if model]
        answers = [each.response, *each.also.values()]
        wanted += [(model, "serialization") for model in answers if model]
    references, top = models_json_schema(list(dict.fromkeys(wanted)), ref_template=REF)
    return references, dict(top.get("$defs", {}))


def _operation(declared: Route, references: References, schemas: Mapping[str, Any]) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "operationId": declared.operation,
        "tags": [declared.tag],
        "summary": declared.summary,
        "parameters": _parameters(declared, references, schemas),
        "responses": _responses(declared, references),
    }
    if declared.description:
        operation["description"] = declared.description
    if declared.roles:
        operation["x-roles"] = sorted(declared.roles)
    scheme = SECURITY[declared.access]
    operation["security"] = [{scheme: []}] if scheme else []
    body = _body(declared, references)
    if body:
        operation["requestBody"] = body
    return operation


def _parameters(declared: Route, references: References, schemas: Mapping[str, Any]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for name in declared.parameters:
        pattern, description = PARAMETERS[name]
        found.append(
            {
                "name": name,
                "in": "path",
                "required": True,
                "description": description,
                "schema": {"type": "string", "pattern": f"^{pattern}$"},
            }
        )
    if declared.query is not None:
        schema = _resolved(references[(declared.query, "validation")], schemas)
        required = set(schema.get("required", ()))
        for name, field in schema.get("properties", {}).items():
            found.append({"name": name, "in": "query", "required": name in required, "schema": field})
    conditions = RANGE_HEADERS if 416 in declared.errors else {}
    for name, description in {**declared.headers, **conditions}.items():
        found.append(
            {"name": name, "in": "header", "required": False, "description": description, "schema": {"type": "string"}}
        )
    return found


def _resolved(reference: Mapping[str, Any], schemas: Mapping[str, Any]) -> Mapping[str, Any]:
    resolved: Mapping[str, Any] = schemas[str(reference["$ref"]).rpartition("/")[2]]
    return resolved


def _body(declared: Route, references: References) -> dict[str, Any] | None:
    if declared.wire_request is not None:
        return _json_body({"$ref": REF.format(model=_wire_name(declared.wire_request))})
    if declared.request is not None:
        body = _json_body(references[(declared.request, "validation")])
        return {**body, "required": not declared.is_body_optional}
    if declared.consumes == "multipart/form-data":
        return {"required": True, "content": {"multipart/form-data": {"schema": FORMS[declared.path]}}}
    if declared.consumes is not None:
        return {"required": True, "content": {declared.consumes: {"schema": {"type": "string", "format": "binary"}}}}
    return None


def _json_body(schema: Mapping[str, Any]) -> dict[str, Any]:
    return {"required": True, "content": {"application/json": {"schema": schema}}}


RANGE_HEADERS: Mapping[str, str] = {
    "Range": "`bytes=a-b`: only this part",
    "If-Range": "the ETag for which `Range` was meant; with another content the whole comes",
    "If-None-Match": "an ETag; its content is not sent again (304)",
}
FILE_FORM: Mapping[str, Any] = {
    "type": "object",
    "properties": {
        "purpose": {"type": "string", "enum": ["batch"]},
        "file": {"type": "string", "format": "binary", "description": "JSON Lines, one request a line"},
        "expires_after[anchor]": {"type": "string", "enum": ["created_at"]},
        "expires_after[seconds]": {"type": "integer", "minimum": 3600, "maximum": 2592000},
    },
    "required": ["purpose", "file"],
}
PART_FORM: Mapping[str, Any] = {
    "type": "object",
    "properties": {"data": {"type": "string", "format": "binary", "description": "bytes of the file, at most 64 MiB"}},
    "required": ["data"],
}
FORMS: Mapping[str, Mapping[str, Any]] = {"/v1/files": FILE_FORM, "/v1/uploads/{upload_id}/parts": PART_FORM}


def _responses(declared: Route, references: References) -> dict[str, Any]:
    found: dict[str, Any] = {str(declared.status): _success(declared, references)}
    if declared.produces and 416 in declared.errors:
        found["206"] = {
            "description": "The range that was asked for.",
            "content": {kind: {} for kind in declared.produces},
        }
        found["304"] = {"description": "It is what `If-None-Match` names; nothing is sent again."}
    for status, model in declared.also.items():
        found[str(status)] = {"description": DESCRIPTIONS[status]}
        if model is not None:
            found[str(status)]["content"] = {"application/json": {"schema": references[(model, "serialization")]}}
    for status in sorted(refusals(declared) - declared.also.keys()):
        answer: dict[str, Any] = {
            "description": DESCRIPTIONS[status],
            "content": {"application/json": {"schema": references[(ErrorEnvelope, "serialization")]}},
        }
        if status in RETRYABLE:
            answer["headers"] = {"Retry-After": {"description": "seconds", "schema": {"type": "string"}}}
        found[str(status)] = answer
    return found


def _success(declared: Route, references: References) -> dict[str, Any]:
    answer: dict[str, Any] = {
        "description": declared.summary,
        "headers": {"x-request-id": {"schema": {"type": "string"}}},
    }
    if declared.response is not None:
        answer["content"] = {"application/json": {"schema": references[(declared.response, "serialization")]}}
        answer["content"] |= _produced(declared)
    elif declared.wire_response is not None:
        answer["content"] = {
            "application/json": {"schema": {"$ref": REF.format(model=_wire_name(declared.wire_response))}}
        }
    elif declared.produces:
        answer["content"] = _produced(declared)
    return answer


def _produced(declared: Route) -> dict[str, Any]:
    return {kind: {"schema": PRODUCED.get(kind, {"type": "string"})} for kind in declared.produces}


PRODUCED: Mapping[str, Mapping[str, Any]] = {
    "application/json": {"type": "object"},
    "text/event-stream": {"description": "server-sent events, each with `id`, `event` and `data`"},
}


def _wire_name(name: str) -> str:
    return f"worker.{name}"
