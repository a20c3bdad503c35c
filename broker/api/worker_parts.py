"""The worker wire's data side: a shard's bytes down, a part's bytes up, and the commit that makes it count.

A worker has no credentials of the store: it is given signed permissions, one method on one key, for minutes.
"""

from __future__ import annotations

import hashlib
from typing import Any

import msgspec
import structlog
from aiohttp import web

from broker.api.files import Part, stream_object
from broker.api.problems import Problem, conflict, not_found
from broker.api.registry import Call, Route, route
from broker.api.worker import plain
from broker.measurements import measured_work
from broker.tables import Worker
from broker.worker_objects import PART_TYPE, part_request
from jobs import commits, leases
from jobs.clock import db_now
from jobs.errors import JobsError, ObjectExists, ObjectMissing
from jobs.keys import is_part_key, part_key
from jobs.signing import Permission, verify
from jobs.types import Commit, CommitAnswer
from markets.tables import RentalRow

log = structlog.get_logger()

# Far above what parts are cut at: one line with many long choices may be larger than a whole usual part.
MAX_PART_BYTES = 64 * 1024 * 1024


async def object_get(call: Call) -> web.StreamResponse:
    """The bytes that a lease names, of exactly one shard."""
    permission = await _permission(call, "GET")
    part = Part(int(permission.extra["start"]), int(permission.extra["stop"]), False)
    try:
        return await stream_object(call, permission.key, part, {"Content-Type": "application/jsonl"})
    except ObjectMissing as error:
        # The permission outlives the batch: when its input was deleted since, the worker lets the shard go.
        raise not_found("object_gone", "This object was deleted after its permission was given.") from error


async def part_target(call: Call, body: dict[str, Any]) -> dict[str, Any]:
    """Ask where a part may be written: the answer names the one key and a URL to PUT it."""
    if body["size"] > MAX_PART_BYTES:
        raise Problem(
            413, "part_too_large", f"A part of {body['size']} bytes; at most {MAX_PART_BYTES} are taken.", param="size"
        )
    async with call.services.database.transaction() as session:
        now_us = await db_now(session)
        claim = await leases.claim(
            session,
            placement_id=call.rental,
            shard_id=call.path("shard_id"),
            epoch=body["epoch"],
            nonce=plain(body["nonce"], "nonce"),
        )
    key = part_key(
        claim.project, claim.batch_id, claim.shard_id, epoch=body["epoch"], seq=body["seq"], sha256=body["sha256"]
    )
    target = await part_request(call.services, key, body["size"], body["sha256"], now_us)
    return {"key": key, "put_url": target.url, "headers": target.headers}


async def object_put(call: Call) -> web.StreamResponse:
    """Store a part, create-only: 201, or 412 when it is already there (the same name means the same bytes)."""
    permission = await _permission(call, "PUT")
    content = await _exact_body(call.request, int(permission.extra["size"]), str(permission.extra["sha256"]))
    try:
        await call.services.store.put(permission.key, content)
    except ObjectExists as error:
        raise Problem(412, error.code, str(error)) from error
    return web.Response(status=201)


async def _permission(call: Call, method: str) -> Permission:
    # Minutes of one object are no lease: this machine's clock will do, and spares each part a transaction.
    now_us = call.services.database.process_now_us()
    return verify(call.services.secret, call.path("token"), "GET" if method == "GET" else "PUT", now_us)


async def _exact_body(request: web.Request, size: int, sha256: str) -> bytes:
    """The body, if it is what was announced. Reads at most one byte more than announced."""
    content = bytearray()
    async for chunk in request.content.iter_chunked(256 * 1024):
        content += chunk
        if len(content) > size:
            break
    if len(content) != size or hashlib.sha256(content).hexdigest() != sha256:
        found = (
            "more" if len(content) > size else f"{len(content)} bytes with sha256 {hashlib.sha256(content).hexdigest()}"
        )
        raise conflict(
            "part_differs", f"The part was announced with {size} bytes and sha256 {sha256}; received {found}."
        )
    return bytes(content)


async def commit(call: Call, body: dict[str, Any]) -> dict[str, Any]:
    """Make a stored part count: exactly once, whatever is lost, repeated or late."""
    try:
        answer = await _committed(call, _commit(call.path("shard_id"), body))
    except (Problem, JobsError) as refused:
        call.services.counters.commit_refused(refused.code)
        raise
    call.services.counters.committed(answer, body["size"])
    return _answer(answer)


async def _committed(call: Call, asked: Commit) -> CommitAnswer:
    services = call.services
    await _seen(call, asked)
    async with services.database.transaction() as session:
        answer = await commits.commit(session, call.rental, asked)
        if answer.outcome in ("committed", "committed_superseded"):
            rental = await session.get_one(RentalRow, call.rental)
            worker = await session.get_one(Worker, call.rental)
            worker.work_us = await db_now(session)
            await measured_work(session, rental, asked.usage, asked.counters)
        services.failpoints.reached("commit.in_txn")
    services.failpoints.reached("commit.before_ack")
    if answer.shard_done:
        services.nudge("finalise")
        services.nudge("answer")
    return answer


def _commit(shard_id: str, body: dict[str, Any]) -> Commit:
    plain(body["nonce"], "nonce")
    # The document passed its schema, which says the same as the type; what is left are types that JSON has not (tuples).
    return msgspec.convert({"shard_id": shard_id, **body}, Commit)


async def _seen(call: Call, asked: Commit) -> None:
    """An uploaded object without a row does not exist, and a row without its object, or of other bytes, must not: look first.

    Outside the transaction, because it is I/O; objects are immutable, so what was seen stays true. Without a sha256 that the
    store itself verified the object is read.
    """
    missing = conflict("part_missing", f"No object {asked.key[:300]!r}: PUT the part before its commit.", "key")
    if not is_part_key(asked.key):
        raise missing
    try:
        is_same = await call.services.store.holds(asked.key, asked.size, asked.sha256)
    except ObjectMissing as error:
        raise missing from error
    if not is_same:
        claim = f"the {asked.size} bytes with sha256 {asked.sha256[:64]} that the commit claims"
        raise conflict("part_differs", f"Object {asked.key!r} does not have {claim}.", "size")


def _answer(answer: CommitAnswer) -> dict[str, Any]:
    document: dict[str, Any] = msgspec.to_builtins(answer)
    return document


ROUTES: tuple[Route, ...] = (
    route("GET", "/worker/v1/objects/{token}", object_get, tag="worker", access="signed", produces=("application/jsonl",)),
    route("PUT", "/worker/v1/objects/{token}", object_put, tag="worker", access="signed", status=201, consumes=PART_TYPE,
          produces=(PART_TYPE,), errors=(412, 422)),
    route("POST", "/worker/v1/shards/{shard_id}/parts", part_target, tag="worker", access="worker",
          wire_request="part.request", wire_response="part.response", errors=(422,)),
    route("POST", "/worker/v1/shards/{shard_id}/commits", commit, tag="worker", access="worker",
          wire_request="commit.request", wire_response="commit.response", errors=(422,)),
)  # fmt: skip
