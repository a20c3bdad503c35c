"""Getting answers out of a batch at any time, whole or so far, and knowing what became of each line."""

from __future__ import annotations

import structlog
from aiohttp import web
from sqlalchemy.ext.asyncio import AsyncSession

from broker.api import result_shapes as shapes
from broker.api.files import Content, serve_object
from broker.api.problems import unavailable
from broker.api.registry import Call, Route, route
from jobs import batches, files, line_list, shard_list, views
from jobs.clock import MICROSECONDS
from jobs.errors import BadTransition, ObjectMissing
from jobs.final_plan import LineOrder
from jobs.tables import Batch, File, Shard
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
        try:
            view = await _composed(call, batch, kind, order)
        except BadTransition as changed:
            log.info("view.outdated", batch=batch.id, reason=str(changed))  # parts of it were withdrawn meanwhile
        else:
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


async def list_lines(call: Call, query: shapes.LineQuery) -> shapes.LineList:
    """What became of each line of a batch: its status, error, tokens, and where it ran."""
    batch = await _mine(call)
    found, has_more = await line_list.list_lines(
        call.services.store,
        call.services.database.transaction,
        batch,
        status=query.status,
        custom_id=query.custom_id,
        after=query.after,  # line numbers count from 1, indexes from 0: the line after n has index n
        limit=query.limit,
    )
    data = [_line(line) for line in found]
    return shapes.LineList(data=data, last_line=data[-1].line if data else None, has_more=has_more)


def _line(line: line_list.Line) -> shapes.Line:
    usage, error = line.usage, line.error
    return shapes.Line(
        line=line.idx + 1,
        custom_id=line.custom_id,
        status=line.status,
        status_code=line.status_code,
        error=None if error is None else shapes.LineError(code=error.code, message=error.message),
        attempts=line.attempts,
        tokens=None
        if usage is None
        else shapes.LineTokens(
            input=usage.prompt_tokens,
            cached=usage.cached_tokens,
            output=usage.completion_tokens,
            reasoning=usage.reasoning_tokens,
        ),
        is_estimated=usage is not None and usage.estimated,
        placement=line.placement,
    )


async def list_shards(call: Call, query: shapes.ShardQuery) -> shapes.ShardList:
    """The shards of a batch: how far each is, and which machine holds it."""
    async with call.services.database.transaction() as session:
        batch = await batches.get(session, call.project, call.path("batch_id"))
        page = await shard_list.list_shards(session, batch.id, after=query.after, limit=query.limit)
    return shapes.ShardList(
        data=[_shard(shard) for shard in page],
        last_shard=page[-1].number if page else None,
        has_more=page.has_more,
    )


def _shard(shard: Shard) -> shapes.Shard:
    expires_us = shard.lease_expires_us
    return shapes.Shard(
        number=shard.number,
        id=shard.id,
        first_line=shard.first_idx + 1,
        lines=shard.lines,
        done=shard.done_lines,
        reserved=shard.reserved_lines,
        state=shard.state,
        placement=shard.placement_id,
        epoch=shard.epoch,
        lease_expires_at=None if expires_us is None else expires_us // MICROSECONDS,
        in_flight=len(shard.in_flight),
        suspects=len(shard.suspects),
    )


async def _mine(call: Call) -> Batch:
    async with call.services.database.transaction() as session:
        return await batches.get(session, call.project, call.path("batch_id"))


ROUTES: tuple[Route, ...] = (
    route("GET", "/v1/batches/{batch_id}/results", results, tag="batches", roles=("submitter",), produces=(JSONL,),
          errors=(416,)),
    route("GET", "/v1/batches/{batch_id}/lines", list_lines, tag="batches", roles=("submitter", "viewer")),
    route("GET", "/v1/batches/{batch_id}/shards", list_shards, tag="batches",
          roles=("submitter", "viewer", "operator")),
)  # fmt: skip
