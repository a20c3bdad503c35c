"""A project's settings: its limits and from what cost on a batch needs a second person."""

from __future__ import annotations

from decimal import Decimal

import structlog
from sqlalchemy.ext.asyncio import AsyncSession

from broker.api import project_shapes as shapes
from broker.api.problems import not_found
from broker.api.registry import Call, Route, route
from broker.compliance import destruction
from broker.compliance.deletion import seal_project_erasure
from broker.control.convert import usd
from broker.project_limits import NAMES, limits_of
from broker.settings import Settings
from broker.tables import Project
from jobs import erasure, garbage
from jobs.clock import MICROSECONDS, db_now
from ledger.money import to_nano

log = structlog.get_logger()


async def get_project(call: Call) -> shapes.Project:
    """A project's limits and its threshold of approval, with what of it is its own."""
    async with call.services.database.transaction() as session:
        return _shape(call.services.settings, await _named(session, call))


async def change_project(call: Call, body: shapes.ProjectPatch) -> shapes.Project:
    """Change a project's limits and its threshold of approval. They hold for what is uploaded and validated from now on."""
    async with call.services.database.transaction() as session:
        project = await _named(session, call)
        own = dict(project.limits or {})
        for name in body.limits.model_fields_set:
            value = getattr(body.limits, name)
            own = {key: each for key, each in own.items() if key != name} | ({} if value is None else {name: value})
        project.limits = own or None
        if "approve_above_usd" in body.model_fields_set:
            text = body.approve_above_usd
            project.approve_above_nano = None if text is None else to_nano(Decimal(text))
        session.add(project)
        shape = _shape(call.services.settings, project)
    log.info(
        "project.changed", project=shape.id, limits=own, approve_above=shape.approve_above_usd, by=call.caller.key_id
    )
    call.services.nudge("validate")
    return shape


async def erase_project(call: Call) -> shapes.ProjectErased:
    """Erase a project's data: every file, result and part, and what people typed; ids, counts and the books remain.

    422 while a batch of it has not ended. Settings and keys stay.
    """
    store = call.services.store
    async with call.services.database.transaction() as session:
        project = (await _named(session, call)).id
        await erasure.erase(session, project)
        erased_us = await db_now(session)
    gone = await _destroy_keys(call, project)
    # What was written since belongs to work that began after the erasure; what has no row of that is garbage in time.
    keys = [each.key async for each in store.listed(project) if each.written_us < erased_us]
    removed = 0
    for start in range(0, len(keys), garbage.AT_ONCE):
        some = keys[start : start + garbage.AT_ONCE]
        async with call.services.database.transaction() as session:
            kept = await garbage.files_at(session, some)
        for key in set(some) - kept:
            await store.delete(key)
            removed += 1
    after: str | None = ""
    while after is not None:  # when the objects are gone: a record of what a crash left undone would be a lie
        async with call.services.database.transaction() as session:
            after = await seal_project_erasure(session, call.services.secret, project, erased_us, after=after)
    log.info("project.objects_erased", project=project, objects=removed, keys=gone, by=call.caller.key_id)
    return shapes.ProjectErased(id=project, objects=removed)


async def _destroy_keys(call: Call, project: str) -> int:
    """Whatever copy of the project's objects is left anywhere cannot be read from now on. How many keys these were."""
    async with call.services.database.transaction() as session:
        owners = await destruction.of_project(session, project)
    count = 0
    for start in range(0, len(owners), destruction.AT_ONCE):
        some = owners[start : start + destruction.AT_ONCE]
        async with call.services.database.transaction() as session:
            gone = await destruction.retire(session, call.services.secret, some, "erased")
        call.services.forget_keys(gone)
        count += len(gone)
    return count


async def _named(session: AsyncSession, call: Call) -> Project:
    name, own = call.path("project"), call.caller.project
    found = await session.get(Project, name)
    if found is None or own not in (None, found.id):
        raise not_found("project_not_found", f"No project {name!r}; it is made with its first key.")
    return found


def _shape(settings: Settings, project: Project) -> shapes.Project:
    limits = limits_of(settings, project)
    above = limits.approve_above_nano
    own = sorted(project.limits or {}) + (["approve_above_usd"] if project.approve_above_nano is not None else [])
    return shapes.Project(
        id=project.id,
        created_at=project.created_us // MICROSECONDS,
        limits={name: getattr(limits, name) for name in NAMES},
        approve_above_usd=None if above is None else usd(above),
        own=own,
    )


ROUTES: tuple[Route, ...] = (
    route("GET", "/v1/admin/projects/{project}", get_project, tag="admin", roles=("admin",)),
    route("PATCH", "/v1/admin/projects/{project}", change_project, tag="admin", roles=("admin",)),
    route("DELETE", "/v1/admin/projects/{project}/data", erase_project, tag="admin", roles=("admin",), errors=(422,)),
)  # fmt: skip
