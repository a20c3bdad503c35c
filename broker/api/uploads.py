"""Uploads, as at OpenAI: a large file in parts, in any order and side by side, completed into one file."""

from __future__ import annotations

from sqlalchemy.ext.asyncio import AsyncSession

from broker.api import upload_shapes as shapes
from broker.api.files import clean_name, file_shape, require_batch
from broker.api.multipart import Form, receive
from broker.api.problems import Problem, bad_request
from broker.api.registry import Call, Route, route
from broker.compliance import destruction
from broker.project_limits import project_limits
from jobs import ids, uploads
from jobs.clock import MICROSECONDS, db_now
from jobs.errors import JobsError, ObjectMissing
from jobs.keys import upload_part_key
from jobs.objects import Stored
from jobs.streams import Chunks
from jobs.tables import UploadRow


async def create_upload(call: Call, body: shapes.UploadCreate) -> shapes.Upload:
    """Begin a file that comes in parts; there is an hour's time to complete it."""
    require_batch(body.purpose)
    async with call.services.database.transaction() as session:
        limits = await project_limits(session, call.services.settings, call.project)
        limit = limits.max_upload_bytes
    if body.bytes > limit:
        message = f"bytes is {body.bytes}; a file may have {limit} (limit max_upload_bytes); split it"
        raise bad_request("file_too_large", message, "bytes")
    new = uploads.NewUpload(
        id=ids.upload_id(),
        project=call.project,
        principal=call.caller.name,
        purpose=body.purpose,
        filename=clean_name(body.filename),
        mime_type=body.mime_type,
        bytes=body.bytes,
        file_expires_s=(limits.file_lifetime_s or None) if body.expires_after is None else body.expires_after.seconds,
    )
    await call.services.begin_objects(new.project, new.id)
    async with call.services.database.transaction() as session:
        return await _shape(session, await uploads.create(session, new))


async def add_part(call: Call) -> shapes.UploadPart:
    """Add a part of at most 64 MiB: multipart, field `data`. Parts may come in any order and side by side."""
    services, upload_id, part_id = call.services, call.path("upload_id"), ids.upload_part_id()
    async with services.database.transaction() as session:
        upload = await uploads.open_upload(session, call.project, upload_id)
    key = upload_part_key(call.project, upload_id, part_id)

    async def keep(chunks: Chunks) -> Stored:
        return await services.store.put_stream(key, chunks)

    form = Form("data", min(uploads.MAX_PART_BYTES, upload.bytes), "a part is at most 64 MiB, and at most the file")
    try:
        stored = await receive(call.request, form, keep)
        async with services.database.transaction() as session:
            part = await uploads.add_part(session, call.project, upload_id, part_id, stored)
    except (Problem, JobsError):
        if form.stored is not None:  # as for a file: only what was refused for certain
            await services.store.delete(key)
        raise
    return shapes.UploadPart(id=part.id, created_at=part.created_us // MICROSECONDS, upload_id=upload_id)


async def complete_upload(call: Call, body: shapes.UploadComplete) -> shapes.Upload:
    """Make the parts, in the order of `part_ids`, one file. Asking again answers the same file.

    The parts must sum to the announced `bytes`; with `md5` the content is checked against it.
    """
    services, project, upload_id = call.services, call.project, call.path("upload_id")
    async with services.database.transaction() as session:
        upload, composition = await uploads.arrange(session, project, upload_id, body.part_ids)
        if composition is None:
            return await _shape(session, upload)
    try:
        stored = await uploads.compose(services.store, composition, body.md5)
    except ObjectMissing:
        # Somebody completed or cancelled it while we wrote, and the parts went: then that is the answer.
        async with services.database.transaction() as session:
            upload, composition = await uploads.arrange(session, project, upload_id, body.part_ids)
            if composition is not None:
                raise
            return await _shape(session, upload)
    services.failpoints.reached("upload.before_txn")
    async with services.database.transaction() as session:
        upload = await uploads.complete(session, project, upload_id, ids.file_id(), stored)
        shape = await _shape(session, upload)
    await _remove_parts(call, upload_id)
    return shape


async def cancel_upload(call: Call) -> shapes.Upload:
    """Cancel an upload: it takes no more parts, and its parts are removed."""
    async with call.services.database.transaction() as session:
        upload = await uploads.cancel(session, call.project, call.path("upload_id"))
        shape = await _shape(session, upload)
        gone = await destruction.retire(session, call.services.secret, [upload.id], "deleted")
    call.services.forget_keys(gone)
    await _remove_parts(call, upload.id)
    return shape


async def _remove_parts(call: Call, upload_id: str) -> None:
    """After the row says that they are not needed. What this does not reach (a crash) is collected later."""
    async with call.services.database.transaction() as session:
        keys = await uploads.part_keys(session, upload_id)
    for key in keys:
        await call.services.store.delete(key)


async def _shape(session: AsyncSession, upload: UploadRow) -> shapes.Upload:
    file = await uploads.file_of(session, upload)
    return shapes.Upload(
        id=upload.id,
        bytes=upload.bytes,
        created_at=upload.created_us // MICROSECONDS,
        expires_at=upload.expires_us // MICROSECONDS,
        filename=upload.filename,
        purpose=upload.purpose,
        status=uploads.status_at(upload, await db_now(session)),
        file=None if file is None else file_shape(file),
    )


ROUTES: tuple[Route, ...] = (
    route("POST", "/v1/uploads", create_upload, tag="uploads", roles=("submitter",)),
    route("POST", "/v1/uploads/{upload_id}/parts", add_part, tag="uploads", roles=("submitter",),
          consumes="multipart/form-data", errors=(422,)),
    route("POST", "/v1/uploads/{upload_id}/complete", complete_upload, tag="uploads", roles=("submitter",),
          errors=(422,)),
    route("POST", "/v1/uploads/{upload_id}/cancel", cancel_upload, tag="uploads", roles=("submitter",), errors=(422,)),
)  # fmt: skip
