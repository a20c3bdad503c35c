"""The typed route registry: what a route takes, gives, who may call it and how it refuses, declared once.

A handler is an async function of a `Call`, and of `body` and `query` where it has them:

    async def create(call: Call, body: BatchCreate) -> Batch:
        "Create a batch of an uploaded file."

Its annotations are the schema, its docstring is the summary; `route(...)` adds what annotations cannot say. The same
`Route` values make the aiohttp application (binding.py), the OpenAPI document (openapi.py) and the tests.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

from aiohttp import web
from pydantic import BaseModel

from broker.keys import Principal, Role
from broker.services import Services

Handler = Callable[..., Awaitable[BaseModel | dict[str, Any] | web.StreamResponse | None]]
Access = Literal["key", "worker", "bootstrap", "signed", "open"]

EVERYONE: tuple[Role, ...] = ("submitter", "viewer", "compliance", "finance", "operator")

# name of a path parameter → (pattern, description); a value that does not match is a 404 before any handler runs
PARAMETERS: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "file_id": (r"[A-Za-z0-9_-]{1,64}", "id of a file: `file-…`"),
        "batch_id": (r"[A-Za-z0-9_-]{1,64}", "id of a batch: `batch_…`"),
        "project": (r"[a-z0-9][a-z0-9-]{0,63}", "name of a project"),
        "team": (r"[a-z0-9][a-z0-9-]{0,63}", "name of a team"),
        "period": (r"[0-9A-Za-z-]{1,16}", "a month, UTC: `2026-10`"),
        "approval": (r"[A-Za-z0-9_-]{1,64}", "id of an approval: `approval_…`"),
        "upload_id": (r"[A-Za-z0-9_-]{1,64}", "id of an upload: `upload_…`"),
        "webhook_id": (r"[A-Za-z0-9_-]{1,64}", "id of a webhook: `webhook_…`"),
        "anomaly_id": (r"[a-z0-9_]{1,64}", "id of an anomaly: `anomaly_…`"),
        "exception_id": (r"[A-Za-z0-9_-]{1,64}", "id of an invoice's exception: `exception_…`"),
        "proposal_id": (r"[A-Za-z0-9_-]{1,64}", "id of a proposal of compliance: `proposal_…`"),
        "event_id": (r"[A-Za-z0-9_-]{1,64}", "id of an event: `evt_…`"),
        "market": (r"[a-z0-9][a-z0-9-]{0,63}", "name of a market, such as `aws`"),
        "rental": (r"[A-Za-z0-9_-]{1,64}", "id of a rental: `rental_…`"),
        "key_id": (r"[A-Za-z0-9_]{1,64}", "id of an API key: `key_…`, not its text"),
        "rental_id": (r"[A-Za-z0-9_-]{1,64}", "id of a rental: `rental_…`"),
        "shard_id": (r"[A-Za-z0-9_-]{1,64}", "id of a shard: `shard_…`"),
        # the router sees %2F as it came and decodes it afterwards: names like `org/model` arrive either way
        "model": (r"[A-Za-z0-9][A-Za-z0-9._:%/-]{0,199}", "name of a model"),
        "token": (r"[A-Za-z0-9._~=-]{1,4000}", "signed, expiring permission for one method on one object"),
    }
)


class Undeclared(TypeError):
    """A route lacks something that every route must declare."""


@dataclass(frozen=True, slots=True)
class Route:
    """One method on one path.

    `access`: who is asked for what: an API key with one of `roles` (admin may always), a worker's session token, its
    bootstrap token, a signature inside the path, or nothing. `of_house`: what it tells or changes is of all projects
    together, and a key of one is told that there is no such thing. `consumes` names the media type of a body that is not one
    JSON document, `produces` those of an answer that is streamed; `is_body_optional`: no body at all is an empty object.
    `also` are answers of other statuses that are no error envelopes (None: without a body). `wire_*` are names of worker
    wire schemas.
    """

    method: str
    path: str
    handler: Handler
    access: Access
    roles: frozenset[str]
    of_house: bool
    tag: str
    summary: str
    description: str
    operation: str
    status: int
    request: type[BaseModel] | None
    is_body_optional: bool
    query: type[BaseModel] | None
    response: type[BaseModel] | None
    consumes: str | None
    produces: tuple[str, ...]
    wire_request: str | None
    wire_response: str | None
    errors: frozenset[int]
    also: Mapping[int, type[BaseModel] | None]
    headers: Mapping[str, str]

    @property
    def parameters(self) -> tuple[str, ...]:
        return tuple(re.findall(r"{(\w+)}", self.path))

    @property
    def has_json_body(self) -> bool:
        return self.request is not None or self.wire_request is not None

    def aiohttp_path(self) -> str:
        """The path with each parameter's pattern, as aiohttp's router wants it."""
        return re.sub(r"{(\w+)}", lambda match: f"{{{match[1]}:{PARAMETERS[match[1]][0]}}}", self.path)


def route(
    method: str,
    path: str,
    handler: Handler,
    *,
    tag: str,
    roles: tuple[Role, ...] = (),
    access: Access = "key",
    of_house: bool = False,
    status: int = 200,
    consumes: str | None = None,
    produces: tuple[str, ...] = (),
    response: type[BaseModel] | None = None,
    wire_request: str | None = None,
    wire_response: str | None = None,
    errors: tuple[int, ...] = (),
    also: Mapping[int, type[BaseModel] | None] | None = None,
    headers: Mapping[str, str] | None = None,
    is_body_optional: bool = False,
) -> Route:
    """Declare a route. `response` is for handlers that build their HTTP answer themselves.

    Raises Undeclared when a role, a schema or a docstring is missing:
    such a route is never served."""
    where = f"{method} {path}"
    if (access == "key") != bool(roles):
        raise Undeclared(
            f"{where}: access {access!r} with roles {roles!r}; a route for keys names its roles, others have none"
        )
    summary, _, description = inspect.cleandoc(handler.__doc__ or "").partition("\n")
    if not summary:
        raise Undeclared(f"{where}: {handler.__name__} has no docstring; its first line is the summary in the document")
    notes = inspect.get_annotations(handler, eval_str=True)
    request, query, returned = (_model(notes.get(name)) for name in ("body", "query", "return"))
    response = response or returned
    if response is None and not produces and wire_response is None and status != 204:
        raise Undeclared(f"{where}: the answer has no schema; annotate the handler's return or name what it produces")
    unknown = [name for name in re.findall(r"{(\w+)}", path) if name not in PARAMETERS]
    if unknown:
        raise Undeclared(f"{where}: path parameters {unknown} have no pattern in PARAMETERS")
    return Route(
        method=method,
        path=path,
        handler=handler,
        access=access,
        roles=frozenset((*roles, "admin")) if roles else frozenset(),
        of_house=of_house,
        tag=tag,
        summary=summary,
        description=description.strip(),
        operation=f"{tag}.{handler.__name__}",
        status=status,
        request=request,
        is_body_optional=is_body_optional,
        query=query,
        response=response,
        consumes=consumes,
        produces=produces,
        wire_request=wire_request,
        wire_response=wire_response,
        errors=frozenset(errors),
        also=MappingProxyType(dict(also or {})),
        headers=MappingProxyType(dict(headers or {})),
    )


def refusals(declared: Route) -> frozenset[int]:
    """All statuses of the error envelope that a route may answer: its own, and those that follow from its shape."""
    found = set(declared.errors) | {500, 503}
    if declared.access in ("key", "worker", "bootstrap"):
        found |= {401, 403}
    if declared.access == "signed":
        found |= {403}
    if declared.has_json_body or declared.query or declared.consumes:
        found |= {400}
    if declared.has_json_body or declared.consumes:
        found |= {413, 415}
    if declared.parameters or declared.access == "key":
        found |= {404}
    return frozenset(found)


def _model(note: Any) -> type[BaseModel] | None:
    return note if isinstance(note, type) and issubclass(note, BaseModel) else None


@dataclass(frozen=True, slots=True)
class Call:
    """One request as a handler sees it. `principal` is set on routes for keys, `rental` on routes for workers.

    `project` is the only project whose objects this call may see; it is "" on routes without a key.
    """

    services: Services
    request: web.Request
    request_id: str
    principal: Principal | None
    project: str
    rental: str = ""

    def path(self, name: str) -> str:
        """A path parameter, decoded."""
        return self.request.match_info[name]

    @property
    def caller(self) -> Principal:
        """Who calls. Only routes for keys have one."""
        if self.principal is None:
            raise Undeclared(f"{self.request.path}: this route takes no key, so it has no caller")
        return self.principal

    @property
    def is_house(self) -> bool:
        """Whether a key of the house's calls, which is of no project alone."""
        return self.caller.project is None
