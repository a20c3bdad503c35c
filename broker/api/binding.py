"""From a declared route to an aiohttp handler: identify, parse, call, encode. No route does any of it by itself."""

from __future__ import annotations

import json
import re
from collections.abc import Awaitable, Callable, Mapping
from math import isfinite
from typing import Any, TypeVar

from aiohttp import web
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails, from_json

from broker.api.auth import WorkerSessions, identify
from broker.api.problems import Problem, bad_request
from broker.api.registry import Route
from broker.api.shapes import Confidential
from broker.api.wire import WireSchemas
from broker.services import Services

M = TypeVar("M", bound=BaseModel)
AiohttpHandler = Callable[[web.Request], Awaitable[web.StreamResponse]]

REQUEST_ID: web.RequestKey[str] = web.RequestKey("request_id", str)

# What pydantic calls it → what OpenAI's clients know
CODES: Mapping[str, str] = {"missing": "missing_required_parameter", "extra_forbidden": "unknown_parameter"}

# Without any of these a document holds nothing that `_refuse_unstorable` refuses: escapes are how NUL and half characters
# get into JSON, 64 bits have room for 18 digits of any kind, and infinity takes 309 of them or an exponent of three.
# To look at each of a commit's 1,400 values costs 0.6 ms.
_SUSPICIOUS = re.compile(rb"\\u|[0-9]{19}|[0-9][eE]\+?[0-9]{3}")


def bind(declared: Route, services: Services, sessions: WorkerSessions, wire: WireSchemas) -> AiohttpHandler:
    """The aiohttp handler of a route."""

    async def endpoint(request: web.Request) -> web.StreamResponse:
        call = await identify(declared, services, sessions, request, request[REQUEST_ID])
        arguments: dict[str, Any] = {}
        if declared.query is not None:
            arguments["query"] = parse_query(declared.query, request)
        if declared.has_json_body:
            is_absent = declared.is_body_optional and not request.can_read_body
            document = {} if is_absent else await json_document(request)
            arguments["body"] = _checked(declared, wire, document)
        elif declared.consumes is not None:
            require_media_type(request, declared.consumes)
        return _encoded(declared, await declared.handler(call, **arguments))

    return endpoint


def _checked(declared: Route, wire: WireSchemas, document: Any) -> Any:
    if declared.wire_request is not None:
        wire.check(declared.wire_request, document)
        return document
    assert declared.request is not None
    return parse_body(declared.request, document)


def _encoded(declared: Route, answer: BaseModel | dict[str, Any] | web.StreamResponse | None) -> web.StreamResponse:
    if isinstance(answer, web.StreamResponse):
        return answer
    if answer is None:
        return web.Response(status=204)
    body = answer.model_dump_json().encode() if isinstance(answer, BaseModel) else json.dumps(answer).encode()
    return web.Response(status=declared.status, body=body, content_type="application/json")


def require_media_type(request: web.Request, wanted: str) -> None:
    """415 for a body of another kind, and for one that is encoded: sizes are limited on what we read, not on a bomb."""
    if request.content_type != wanted:
        raise Problem(
            415, "unsupported_media_type", f"Content-Type {request.content_type!r}: this route takes {wanted}."
        )


async def json_document(request: web.Request) -> Any:
    """The body as a JSON document. Raises 415 and 400; 413 comes from aiohttp's own limit on `read`."""
    require_media_type(request, "application/json")
    return parsed(await request.read())


def parsed(raw: bytes) -> Any:
    """A JSON document that the databases can hold. Raises 400."""
    try:
        document = from_json(raw, allow_inf_nan=False)
    except ValueError as error:
        raise bad_request("invalid_json", f"The request body is not valid JSON: {error}") from error
    if _SUSPICIOUS.search(raw):
        _refuse_unstorable(document, "")
    return document


def parse_body(model: type[M], document: Any) -> M:
    """The document as `model`. Raises 400 that names the first wrong parameter and counts the others."""
    try:
        return model.model_validate(document, strict=True)
    except ValidationError as error:
        if issubclass(model, Confidential):
            raise _confidentially_invalid(error) from None
        raise _invalid(error, model) from error


def parse_query(model: type[M], request: web.Request) -> M:
    """The query string as `model`; a repeated parameter becomes a list. Raises 400."""
    values: dict[str, Any] = {}
    for name in request.query:
        found = request.query.getall(name)
        values[name] = found[0] if len(found) == 1 else found
    _refuse_unstorable(values, "")
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise _invalid(error, model) from error


def _invalid(error: ValidationError, model: type[BaseModel]) -> Problem:
    found = error.errors(include_url=False, include_context=False)
    first = found[0]
    param = ".".join(str(part) for part in first["loc"]) or None
    more = f" ({len(found) - 1} more problems)" if len(found) > 1 else ""
    value = "" if first["type"] == "missing" else f", got {json.dumps(first['input'], default=str)[:100]}"
    where = f"{param}: " if param else ""
    wanted = _in_words(first, model) or first["msg"]
    return bad_request(CODES.get(first["type"], "invalid_value"), f"{where}{wanted}{value}{more}", param)


def _in_words(found: ErrorDetails, model: type[BaseModel]) -> str | None:
    """What a field should be, as its description says, where pydantic would show a regular expression."""
    if found["type"] != "string_pattern_mismatch" or len(found["loc"]) != 1:
        return None
    field = model.model_fields.get(str(found["loc"][0]))
    return f"Input should be: {field.description}" if field and field.description else None


def _confidentially_invalid(error: ValidationError) -> Problem:
    """Neither values nor what stands where a name belongs: either may be the secret."""
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    param = str(first["loc"][0]) if first["loc"] and first["type"] != "extra_forbidden" else None
    where = f"{param}: " if param else ""
    return bad_request(CODES.get(first["type"], "invalid_value"), f"{where}{first['msg']} (not shown)", param)


def _refuse_unstorable(value: Any, where: str) -> None:
    """Raises 400 for what cannot be stored everywhere, wherever it stands in the document."""
    if isinstance(value, dict):
        for name, inner in value.items():
            _refuse_unstorable(name, where)
            _refuse_unstorable(inner, f"{where}.{name}".lstrip("."))
    elif isinstance(value, list):
        for inner in value:
            _refuse_unstorable(inner, where)
    elif problem := _storage_problem(value):
        raise bad_request("invalid_value", f"{where or 'body'}: {problem}", where or None)


def _storage_problem(value: Any) -> str | None:
    """PostgreSQL has no NUL in text, no lone surrogates, and both databases no integers beyond 64 bits: say so here."""
    if isinstance(value, str) and ("\x00" in value or any("\ud800" <= each <= "\udfff" for each in value)):
        return "text must be Unicode without NUL characters"
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        return f"{str(value)[:40]} does not fit into 64 bits"
    if isinstance(value, float) and not isfinite(value):
        return "the number is too large"
    return None
