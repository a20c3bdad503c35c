"""Administration: API keys."""

from __future__ import annotations

import structlog

from broker.api import shapes
from broker.api.auth import no_such_project
from broker.api.problems import bad_request, forbidden, not_found
from broker.api.registry import Call, Route, route
from broker.keys import DEFAULT_PROJECT, create_key, revoke_key
from jobs.clock import MICROSECONDS, db_now

log = structlog.get_logger()

MAX_LIFE_S = 10 * 365 * 86_400


async def create_api_key(call: Call, body: shapes.KeyCreate) -> shapes.KeyCreated:
    """Make an API key; its text is shown this once. A project that does not exist yet is created.

    An administrator of one project makes keys for that project only. With `all_projects` it is one of the house: policies, audits
    and budgets of all are for such keys.
    """
    own = call.caller.project
    if own is not None and body.project not in (None, own):
        raise no_such_project(str(body.project))
    if body.all_projects and own is not None:
        raise forbidden("not_of_the_house", "Only a key of all projects makes keys of all projects.")
    if body.all_projects and body.project is not None:
        raise bad_request("invalid_value", f"all_projects and project {body.project!r} exclude each other", "project")
    if body.expires_in_s is not None and body.expires_in_s > MAX_LIFE_S:
        raise bad_request(
            "invalid_value", f"expires_in_s {body.expires_in_s} is more than {MAX_LIFE_S} (ten years)", "expires_in_s"
        )
    async with call.services.database.transaction() as session:
        now_us = await db_now(session)
        key, text = await create_key(
            session,
            principal=body.principal,
            project=None if body.all_projects else body.project or own or DEFAULT_PROJECT,
            roles=body.roles,
            now_us=now_us,
            expires_us=None if body.expires_in_s is None else now_us + body.expires_in_s * MICROSECONDS,
        )
    log.info("key.created", key=key.id, project=key.project, roles=key.roles, by=call.caller.key_id)
    return shapes.KeyCreated(
        id=key.id,
        key=text,
        principal=key.principal,
        project=key.project,
        roles=list(key.roles),
        expires_at=None if key.expires_us is None else key.expires_us // MICROSECONDS,
    )


async def revoke_api_key(call: Call) -> shapes.KeyRevoked:
    """Revoke an API key: it is worth nothing from now on. Revoking twice is one revocation."""
    key_id = call.path("key_id")
    async with call.services.database.transaction() as session:
        known = await revoke_key(session, key_id, await db_now(session), project=call.caller.project)
    if not known:
        raise not_found("key_not_found", f"No key {key_id!r}; its id is in the answer that made it.")
    log.info("key.revoked", key=key_id, by=call.caller.key_id)
    return shapes.KeyRevoked(id=key_id)


ROUTES: tuple[Route, ...] = (
    route("POST", "/v1/admin/keys", create_api_key, tag="admin", roles=("admin",)),
    route("DELETE", "/v1/admin/keys/{key_id}", revoke_api_key, tag="admin", roles=("admin",)),
)  # fmt: skip
