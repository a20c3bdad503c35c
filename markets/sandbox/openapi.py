"""The sandbox's own document, OpenAPI 3.1. The server checks every request body against the schemas in it."""

from __future__ import annotations

from typing import Any

from markets.sandbox.faults import NAMES

Schema = dict[str, Any]

_TIME: Schema = {"type": "string", "format": "date-time", "description": "RFC 3339, UTC, microseconds"}
_MONEY: Schema = {"type": "string", "pattern": r"^[0-9]+(\.[0-9]+)?(E-?[0-9]+)?$", "description": "decimal, USD"}
_TAG: Schema = {"type": "string", "pattern": "^[A-Za-z0-9][A-Za-z0-9_.-]{0,127}$"}
_COUNT: Schema = {"type": "integer", "minimum": 0}


def _object(properties: dict[str, Schema], *, optional: tuple[str, ...] = ()) -> Schema:
    required = [name for name in properties if name not in optional]
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


def _maybe(schema: Schema) -> Schema:
    return {"anyOf": [schema, {"type": "null"}]}


def _list(schema: Schema) -> Schema:
    return {"type": "array", "items": schema}


def _ref(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


_ACCELERATOR = _object(
    {
        "kind": {"type": "string"},
        "name": {"type": "string"},
        "form": _maybe({"type": "string"}),
        "memory_mib": _COUNT,
        "count": _COUNT,
    }
)
_OFFER = _object(
    {
        "id": {"type": "string"},
        "region": _maybe({"type": "string"}),
        "zone": _maybe({"type": "string"}),
        "country": _maybe({"type": "string", "pattern": "^[A-Z]{2}$"}),
        "subdivision": _maybe({"type": "string"}),
        "tier": {"enum": ["anonymous", "claimed", "verified_host", "named_datacenter", "hyperscaler_region"]},
        "operator": _maybe({"type": "string"}),
        "jurisdictions": _maybe(_list({"type": "string"})),
        "pricing": {"enum": ["on_demand", "spot"]},
        "price": {**_MONEY, "description": "USD per hour; 0 where the list has none"},
        "currency": {"const": "USD"},
        "available": {**_COUNT, "description": "how many can be rented now; 0 is sold out"},
        "granularity_s": {"type": "integer", "minimum": 1},
        "minimum_s": _COUNT,
        "interruptions_per_hour": _maybe({"type": "string"}),
        "notice_s": _COUNT,
        "boot_s": _COUNT,
        "confidentiality": {"enum": ["none", "dedicated"]},
        "accelerator": _ACCELERATOR,
    }
)
_INSTANCE = _object(
    {
        "id": {"type": "string"},
        "tag": _TAG,
        "owner": {"type": "string"},
        "offer": {"type": "string"},
        "state": {"enum": ["pending", "running", "releasing", "ended"]},
        "price": _MONEY,
        "currency": {"const": "USD"},
        "granularity_s": {"type": "integer", "minimum": 1},
        "minimum_s": _COUNT,
        "created_at": _TIME,
        "started_at": _maybe(_TIME),
        "ended_at": _maybe(_TIME),
        "end_reason": _maybe({"enum": ["released", "preempted", "exited", "failed"]}),
        "exit_status": _maybe({"type": "integer"}),
        "preemption_at": _maybe(_TIME),
        "pid": _maybe({"type": "integer"}),
        "folder": {"type": "string"},
    }
)
_CREATE = _object(
    {
        "tag": {**_TAG, "description": "of the client's making; the same tag again answers with the same instance"},
        "owner": {"type": "string", "minLength": 1, "maxLength": 200},
        "offer": {"type": "string"},
        "max_price": {**_MONEY, "description": "USD per hour; dearer offers are refused with price_moved"},
        "user_data": _object(
            {
                "argv": {"type": "array", "items": {"type": "string"}, "minItems": 1},
                "env": {"type": "object", "additionalProperties": {"type": "string"}},
                "files": {
                    "type": "object",
                    "additionalProperties": {"type": "string", "contentEncoding": "base64"},
                    "description": "relative name → content",
                },
            },
            optional=("env", "files"),
        ),
    }
)
_METER_LINE = _object(
    {
        "instance": {"type": "string"},
        "tag": _TAG,
        "offer": {"type": "string"},
        "from": _TIME,
        "to": _TIME,
        "seconds": _COUNT,
        "amount": _MONEY,
        "currency": {"const": "USD"},
        "final": {"type": "boolean"},
    }
)
_FAULT = _object(
    {
        "name": {"enum": list(NAMES)},
        "times": {"type": "integer", "minimum": 1, "maximum": 1000},
        "seconds": {"type": "number", "minimum": 0, "maximum": 3600},
    },
    optional=("times", "seconds"),
)

SCHEMAS: dict[str, Schema] = {
    "Offer": _OFFER,
    "Instance": _INSTANCE,
    "Create": _CREATE,
    "MeterLine": _METER_LINE,
    "Fault": _FAULT,
    "Preempt": _object({"notice_s": {"type": "number", "minimum": 0, "maximum": 86400}}, optional=("notice_s",)),
    "Change": _object({"price": _MONEY, "capacity": _COUNT}, optional=("price", "capacity")),
    "Shutdown": _object({"force": {"type": "boolean"}}, optional=("force",)),
    "Error": _object({"seen_at": _TIME, "error": _object({"code": {"type": "string"}, "message": {"type": "string"}})}),
    "OffersAnswer": _object({"seen_at": _TIME, "offers": _list(_ref("Offer"))}),
    "InstanceAnswer": _object({"seen_at": _TIME, "instance": _ref("Instance")}),
    "InstancesAnswer": _object(
        {
            "seen_at": _TIME,
            "instances": _list(_ref("Instance")),
            "total": {**_COUNT, "description": "of all pages"},
            "next": _maybe({"type": "string"}),
        }
    ),
    "InvoiceAnswer": _object(
        {"seen_at": _TIME, "lines": _list(_ref("MeterLine")), "total": _MONEY, "currency": {"const": "USD"}}
    ),
    "MeterAnswer": _object({"seen_at": _TIME, "lines": _list(_ref("MeterLine"))}),
    "FaultsAnswer": _object({"seen_at": _TIME, "faults": _list(_ref("Fault"))}),
    "Done": _object({"seen_at": _TIME, "done": {"const": True}}),
}


def _query(name: str, schema: Schema) -> Schema:
    return {"name": name, "in": "query", "required": False, "schema": schema}


_ID: Schema = {"name": "id", "in": "path", "required": True, "schema": {"type": "string"}}
_PERIOD = [_query("from", _TIME), _query("to", _TIME)]
_FILTERS = [
    _query("tag", _TAG),
    _query("owner", {"type": "string"}),
    _query("cursor", {"type": "string"}),
    _query("limit", {"type": "integer", "minimum": 1, "maximum": 1000}),
]


def _operation(
    summary: str,
    answers: dict[int, str],
    *,
    body: str | None = None,
    parameters: list[Schema] | None = None,
    name: str,
) -> Schema:
    responses = {
        str(status): {"description": schema, "content": {"application/json": {"schema": _ref(schema)}}}
        for status, schema in {**answers, 401: "Error", 429: "Error", 500: "Error"}.items()
    }
    operation: Schema = {"operationId": name, "summary": summary, "responses": responses}
    if parameters:
        operation["parameters"] = parameters
    if body:
        content = {"application/json": {"schema": _ref(body)}}
        operation["requestBody"] = {"required": True, "content": content}
    return operation


def document() -> Schema:
    """The whole document, as served at /openapi.json."""
    wrong = {400: "Error", 404: "Error"}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "broker sandbox provider",
            "version": "1",
            "description": "Rents local processes by the hour. Every answer carries the provider's clock in seen_at.",
        },
        "security": [{"key": []}],
        "paths": {
            "/v1/offers": {"get": _operation("What can be rented", {200: "OffersAnswer"}, name="offers")},
            "/v1/instances": {
                "post": _operation(
                    "Rent; the same tag again answers 200 with what is there",
                    {201: "InstanceAnswer", 200: "InstanceAnswer", 409: "Error", **wrong},
                    body="Create",
                    name="create",
                ),
                "get": _operation(
                    "Instances, ended ones for two hours after their end (by tag: always), a page at a time",
                    {200: "InstancesAnswer", 400: "Error"},
                    parameters=_FILTERS,
                    name="instances",
                ),
            },
            "/v1/instances/{id}": {
                "parameters": [_ID],
                "get": _operation("One instance", {200: "InstanceAnswer", 404: "Error"}, name="instance"),
                "delete": _operation(
                    "Release; 200: it has ended, 202: not yet",
                    {200: "InstanceAnswer", 202: "InstanceAnswer", 404: "Error"},
                    name="release",
                ),
            },
            "/v1/invoices": {
                "get": _operation(
                    "What is billed for instances whose metered time overlaps [from, to)",
                    {200: "InvoiceAnswer", 400: "Error"},
                    parameters=_PERIOD,
                    name="invoice",
                )
            },
            "/v1/meter": {"get": _operation("Closed increments of what runs now", {200: "MeterAnswer"}, name="meter")},
            "/v1/admin/instances/{id}/preempt": {
                "parameters": [_ID],
                "post": _operation(
                    "Take it away after a notice (default: the offer's), or at once with 0",
                    {200: "InstanceAnswer", **wrong},
                    body="Preempt",
                    name="preempt",
                ),
            },
            "/v1/admin/offers/{id}": {
                "parameters": [_ID],
                "patch": _operation("Change price or capacity", {200: "Done", **wrong}, body="Change", name="change"),
            },
            "/v1/admin/faults": {
                "get": _operation("What is armed", {200: "FaultsAnswer"}, name="faults"),
                "post": _operation("Arm a fault", {200: "FaultsAnswer", 400: "Error"}, body="Fault", name="arm"),
                "delete": _operation("Disarm all", {200: "FaultsAnswer"}, name="disarm"),
            },
            "/v1/admin/shutdown": {
                "post": _operation(
                    "End the provider; refused while machines live unless forced",
                    {200: "Done", 400: "Error", 409: "Error"},
                    body="Shutdown",
                    name="shutdown",
                )
            },
        },
        "components": {
            "schemas": SCHEMAS,
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
    }
