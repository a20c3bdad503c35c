"""How people log in here: what `broker login` has to ask whom. Nothing of it is secret."""

from __future__ import annotations

import structlog
from pydantic import BaseModel, Field

from broker.api.problems import not_found, unavailable
from broker.api.registry import EVERYONE, Call, Route, route
from broker.oidc import IssuerSilent

log = structlog.get_logger()


class Login(BaseModel):
    """The issuer and its endpoints for the device grant (RFC 8628)."""

    object: str = "login"
    issuer: str
    client_id: str
    scopes: list[str]
    token_endpoint: str
    device_authorization_endpoint: str | None = Field(description="null: the issuer has no device grant")


class Caller(BaseModel):
    """Who the key or token that was sent belongs to, and what it may do where."""

    object: str = "caller"
    principal: str
    project: str | None = Field(description="null: all projects")
    roles: list[str]


async def login(call: Call) -> Login:
    """Where people get tokens for this broker."""
    issuer = call.services.issuer
    if issuer is None:
        raise not_found("no_login", "This broker takes API keys only: it has no [oidc] in its settings.")
    try:
        found = await issuer.document()
    except IssuerSilent as silent:
        log.error("oidc.issuer_silent", reason=str(silent))
        raise unavailable("issuer_unavailable", "The issuer does not answer; ask again.") from silent
    device = found.get("device_authorization_endpoint")
    return Login(
        issuer=issuer.settings.issuer,
        client_id=issuer.settings.client_id or issuer.settings.audience,
        scopes=list(issuer.settings.scopes),
        token_endpoint=str(found.get("token_endpoint")),
        device_authorization_endpoint=None if device is None else str(device),
    )


async def whoami(call: Call) -> Caller:
    """Who you are here."""
    caller = call.caller
    return Caller(principal=caller.name, project=caller.project, roles=sorted(caller.roles))


ROUTES: tuple[Route, ...] = (
    route("GET", "/v1/login", login, tag="login", access="open", errors=(404,)),
    route("GET", "/v1/whoami", whoami, tag="login", roles=EVERYONE),
)
