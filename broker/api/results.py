"""Getting answers out of a batch at any time, whole or so far, and knowing what became of each line."""

from __future__ import annotations

import structlog
from aiohttp import web
from sqlalchemy.ext.asyncio import AsyncSession

from broker.api import result_shapes as shapes
from broker.api.files import Content, serve_object
from broker.api.problems import unavailable
from broker.api.registry import Call, Route, route
from jobs import batches, files, views
from jobs.errors import ObjectMissing
from jobs.final_plan import LineOrder
from jobs.tables import Batch, File
from jobs.views import Kind, View

log = structlog.get_logger()

JSONL = "application/jsonl"
# How often the batch may move on between composing a view and opening it before we ask the caller to come back.
ATTEMPTS = 3


async def results(call: Call, query: shapes.ResultQuery) -> web.StreamResponse:
    """The lines of a batch that are answered: of one that runs so far, of one that has ended all.

    Every line exactly once and in the form of the published file, verified like it. `Range`, `If-None-Match` and
    `If-Range` are honoured: the ETag names the state of the batch, so a resumed download never mixes two.
    """
    async with call.services.database.transaction() as session:
        batch = await batches.get(session, call.project, call.path("batch_id"))
        published = await _published(session, batch, query.kind)
    order: LineOrder = query.order or batch.line_order  # type: ignore[assignment]  # the column holds no other
    if published is not None and order == batch.line_order:
        return await serve_object(
            call, _content(batch, query.kind, published.object_key, published.sha256, published.bytes)
        )
    return await _serve_view(call, batch, query.kind, order)


async def _published(session: AsyncSession, batch: Batch, kind: Kind) -> File | None:
    """The file of a batch that has ended. Raises FileGone when it was deleted: what was deleted on purpose is not served by
    another door, in no order."""
    file_id = batch.output_file_id if kind == "output" else batch.error_file_id
    return None if file_id is None else await files.get(session, batch.project, file_id)


async def _serve_view(call: Call, batch: Batch, kind: Kind, order: LineOrder) -> web.StreamResponse:
    for _ in range(ATTEMPTS):
        view = await _composed(call, batch, kind, order)
        if view.lines == 0:
            return web.Response(content_type=JSONL, headers={"ETag": f'"{view.state_sha256}"'})
        try:
            size = await call.services.store.size(view.key)
            return await serve_object(call, _content(batch, kind, view.key, view.state_sha256, size))
        except ObjectMissing:
            log.info("view.replaced", batch=batch.id, key=view.key)  # a newer one, before this one was opened
        async with call.services.database.transaction() as session:
            batch = await batches.get(session, call.project, batch.id)
    raise unavailable("results_changing", "The batch moved on several times while its results were read; ask again.")


def _content(batch: Batch, kind: Kind, key: str, tag: str, size: int) -> Content:
    """Called as the published file is called."""
    name = f"{batch.id}_{'output' if kind == 'output' else 'error'}.jsonl"
    return Content(key=key, size=size, tag=tag, filename=name, media_type=JSONL)


async def _composed(call: Call, batch: Batch, kind: Kind, order: LineOrder) -> View:
    """The view of the batch, which may be there already from an earlier request."""
    view = views.view_of(batch, kind, order)
    if view.lines == 0:
        return view
    try:
        await call.services.store.size(view.key)
    except ObjectMissing:
        return await views.compose_view(call.services.store, call.services.database.transaction, batch.id, kind, order)
    return view


ROUTES: tuple[Route, ...] = (
    route("GET", "/v1/batches/{batch_id}/results", results, tag="batches", roles=("submitter",), produces=(JSONL,),
          errors=(416,)),
)  # fmt: skip
