"""The worker wire's data side: a shard's bytes down, a part's bytes up, and the commit that makes it count.

A worker has no credentials of the store: it is given signed permissions, one method on one key, for minutes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Sequence
from typing import Any

import msgspec
import structlog
from aiohttp import web

from broker.api.auth import MOST_TOGETHER
from broker.api.binding import parsed
from broker.api.callers import address_of
from broker.api.files import Part, stream_object
from broker.api.problems import Problem, bad_request, conflict, not_found
from broker.api.registry import Call, Route, route
from broker.api.wire import DELIVERIES, Delivery, WireSchemas
from broker.api.worker import plain
from broker.commit_groups import CommitGroups
from broker.compliance.hello import observed_country, seen
from broker.services import Services
from broker.tables import Worker
from broker.together import Together
from broker.worker_objects import DELIVERED_BYTES, DELIVERY_TYPE, PART_TYPE, is_sealed, part_request, put_here, stored
from broker.worker_pool import may_read
from jobs import commits, leases
from jobs.clock import db_now
from jobs.commits import Asked
from jobs.errors import JobsError, KeyDestroyed, LeaseUnknown, ObjectExists, ObjectMissing
from jobs.keys import is_part_key, part_key
from jobs.leases import Claim, Held
from jobs.objects import ObjectStore
from jobs.signing import Permission, verify
from jobs.tables import Batch, Shard
from jobs.types import Commit, CommitAnswer
from markets.tables import RentalRow
from workers.agent.sealing import looks_sealed

log = structlog.get_logger()

# Far above what parts are cut at: one line with many long choices may be larger than a whole usual part.
MAX_PART_BYTES = 64 * 1024 * 1024


class PartWire:
    """The routes of one application. Questions of workers that ask at the same time go to the database together."""

    def __init__(self, services: Services, wire: WireSchemas) -> None:
        self._services = services
        self._wire = wire
        self._claims: Together[Held, Claim] = Together(self._claim, most=MOST_TOGETHER)
        self._batches: Together[str, str] = Together(self._batch, most=MOST_TOGETHER)
        self._commits = CommitGroups(services)

    def routes(self) -> tuple[Route, ...]:
        async def part_target(call: Call, body: dict[str, Any]) -> dict[str, Any]:
            """Ask where a part may be written: the answer names the one key and a URL to PUT it."""
            return await self._target(call, body)

        async def commit(call: Call, body: dict[str, Any]) -> dict[str, Any]:
            """Make a stored part count: exactly once, whatever is lost, repeated or late."""
            return await self._answered(call, body["size"], self._committed(call, body))

        async def delivery(call: Call) -> dict[str, Any]:
            """Store a part and make it count, in one request: exactly once, whatever is lost, repeated or late."""
            asked, content = self._opened(await call.request.read())
            return await self._answered(call, asked.size, self._delivered(call, asked, content))

        return (
            route("GET", "/worker/v1/objects/{token}", object_get, tag="worker", access="signed",
                  produces=("application/jsonl",)),
            route("PUT", "/worker/v1/objects/{token}", object_put, tag="worker", access="signed", status=201,
                  consumes=PART_TYPE, produces=(PART_TYPE,), errors=(412, 422)),
            route("POST", "/worker/v1/shards/{shard_id}/parts", part_target, tag="worker", access="worker",
                  wire_request="part.request", wire_response="part.response", errors=(422,)),
            route("POST", "/worker/v1/shards/{shard_id}/commits", commit, tag="worker", access="worker",
                  wire_request="commit.request", wire_response="commit.response", errors=(422,)),
            route("POST", "/worker/v1/shards/{shard_id}/deliveries", delivery, tag="worker", access="worker",
                  consumes=DELIVERY_TYPE, wire_response="commit.response", errors=(422,)),
        )  # fmt: skip

    def _opened(self, body: bytes) -> tuple[Delivery, bytes]:
        """The two halves of a delivery, the first as its schema has it. Raises 400."""
        head, _, content = body.partition(b"\n")
        try:
            asked = DELIVERIES.decode(head)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            self._wire.check("delivery.request", parsed(head))  # which says where, in the words of the others
            raise bad_request("wire_violation", f"delivery.request: {error}") from error
        if b"\\u" in head:  # its numbers are known to fit; of texts only an escape can hold what no database does
            parsed(head)
        return asked, content

    async def _delivered(self, call: Call, asked: Delivery, content: bytes) -> CommitAnswer:
        """The lease is asked for before anything is stored, and the object stored before anything says that it is there."""
        if asked.size > DELIVERED_BYTES:
            raise too_large(asked.size, DELIVERED_BYTES)
        if len(content) != asked.size or hashlib.sha256(content).hexdigest() != asked.sha256:
            raise _differs(asked.size, asked.sha256, content)
        claim = await self._claims(_held(call, asked.epoch, asked.nonce))
        commit = asked.commit(claim.shard_id, _key(claim, asked.seq, asked.sha256))
        try:
            is_sealed_there = await _is_sealed_there(self._services, claim, commit.key, asked.sealed)
            if is_sealed_there:
                require_seal(content)
            store = stored(self._services) if is_sealed_there else self._services.store
            await store.put(commit.key, content)
        except ObjectExists:  # it was delivered before; that its bytes are these is not taken on trust
            await _seen(self._services.store, commit)
        except KeyDestroyed:
            # Its batch has ended, and that is what the worker is to hear: one that is refused three times in a row stops.
            log.info("part.key_destroyed", batch=claim.batch_id, shard=claim.shard_id)
        return await self._decided(call, claim.batch_id, commit)

    async def _target(self, call: Call, body: dict[str, Any]) -> dict[str, Any]:
        if body["size"] > MAX_PART_BYTES:
            raise too_large(body["size"], MAX_PART_BYTES)
        claim = await self._claims(_held(call, body["epoch"], body["nonce"]))
        key = _key(claim, body["seq"], body["sha256"])
        now_us = self._services.database.process_now_us()
        services, size, sha256 = self._services, body["size"], body["sha256"]
        try:
            is_there = await _is_sealed_there(services, claim, key, body.get("sealed", False))
            target = await part_request(services, key, size, sha256, now_us, is_sealed_there=is_there)
        except KeyDestroyed:  # as above: the commit tells that the batch has ended, and the PUT here stores nothing
            target = put_here(services, key, size, sha256, now_us)
        return {"key": key, "put_url": target.url, "headers": target.headers}

    async def _committed(self, call: Call, body: dict[str, Any]) -> CommitAnswer:
        # The document passed its schema, which says the same as the type; what is left are types that JSON has not (tuples).
        asked = msgspec.convert({"shard_id": call.path("shard_id"), **body}, Commit)
        plain(asked.nonce, "nonce")
        await _seen(self._services.store, asked)
        return await self._decided(call, await self._batches(asked.shard_id), asked)

    async def _decided(self, call: Call, batch_id: str, asked: Commit) -> CommitAnswer:
        together = Asked(batch_id=batch_id, placement_id=call.rental, commit=asked, told={"request": call.request_id})
        return await self._commits.commit(together)

    async def _answered(self, call: Call, size: int, work: Awaitable[CommitAnswer]) -> dict[str, Any]:
        try:
            answer = await work
        except (Problem, JobsError) as refused:
            self._services.counters.commit_refused(refused.code)
            raise
        self._services.counters.committed(answer, size)
        document: dict[str, Any] = msgspec.to_builtins(answer)
        return document

    async def _claim(self, asked: Sequence[Held]) -> list[Claim | Exception]:
        async with self._services.database.transaction() as session:
            return [*await leases.claims(session, asked)]

    async def _batch(self, shard_ids: Sequence[str]) -> list[str | Exception]:
        async with self._services.database.transaction() as session:
            known = await commits.batches_of(session, shard_ids)
        return [known.get(shard_id) or LeaseUnknown(f"no shard {shard_id}") for shard_id in shard_ids]


def _held(call: Call, epoch: int, nonce: str) -> Held:
    return Held(placement_id=call.rental, shard_id=call.path("shard_id"), epoch=epoch, nonce=plain(nonce, "nonce"))


def _key(claim: Claim, seq: int, sha256: str) -> str:
    return part_key(claim.project, claim.batch_id, claim.shard_id, epoch=claim.epoch, seq=seq, sha256=sha256)


async def _is_sealed_there(services: Services, claim: Claim, key: str, says_so: bool) -> bool:
    """Whether the worker says that it has sealed the part. Raises Problem 422 where the batch is not sealed."""
    if not says_so:
        return False
    if not await is_sealed(services, key):
        message = f"Batch {claim.batch_id} is not sealed: send its parts as they are."
        raise conflict("batch_not_sealed", message, "sealed")
    return True


def require_seal(content: bytes) -> None:
    """What is said to be sealed lies in the store as it comes: a faulty worker's plaintext must not. Raises Problem 422.

    Where workers write to the store themselves it is noticed when the part is read, and the part withdrawn.
    """
    if not looks_sealed(content):
        raise conflict(
            "part_not_sealed", "The part is said to be sealed, and does not have the form of that.", "sealed"
        )


def too_large(size: int, most: int) -> Problem:
    return Problem(413, "part_too_large", f"A part of {size} bytes; at most {most} are taken.", param="size")


async def object_get(call: Call) -> web.StreamResponse:
    """The bytes that a lease names, of exactly one shard."""
    permission = await _permission(call, "GET")
    if not await _may_still_read(call, permission):
        raise not_found("object_gone", "The lease that this permission was given for is over.")
    part = Part(int(permission.extra["start"]), int(permission.extra["stop"]), False)
    try:
        store = stored(call.services) if permission.extra.get("as_stored") else call.services.store
        return await stream_object(call, permission.key, part, {"Content-Type": "application/jsonl"}, store)
    except ObjectMissing as error:
        # The permission outlives the batch: when its input was deleted since, the worker lets the shard go.
        raise not_found("object_gone", "This object was deleted after its permission was given.") from error


async def _may_still_read(call: Call, permission: Permission) -> bool:
    """Whether the lease that the permission is of is held yet, and residency allows it: a permission lives for minutes, and
    what its market or its address tells in between takes it back."""
    if "rental" not in permission.extra:
        return True  # given out by a release that did not say whose it is
    services, extra = call.services, permission.extra
    observed = await observed_country(services, address_of(call))
    async with services.database.transaction() as session:
        now_us = await db_now(session)
        rental = await session.get(RentalRow, str(extra["rental"]))
        shard, worker = await session.get(Shard, str(extra["shard"])), await session.get(Worker, str(extra["rental"]))
        if rental is None or shard is None or worker is None:
            return False
        if (shard.placement_id, shard.epoch, shard.state) != (rental.id, extra["epoch"], "leased"):
            return False
        batch = await session.get_one(Batch, shard.batch_id)
        return await may_read(session, services, rental, batch, now_us, seen(rental.facts, worker.hello, observed))


async def object_put(call: Call) -> web.StreamResponse:
    """Store a part, create-only: 201, or 412 when it is already there (the same name means the same bytes).

    Of a batch that has ended and whose key is destroyed nothing is stored any more: 201 all the same, and its commit is told.
    """
    permission = await _permission(call, "PUT")
    content = await _exact_body(call.request, int(permission.extra["size"]), str(permission.extra["sha256"]))
    try:
        if permission.extra.get("as_stored"):
            require_seal(content)
        store = stored(call.services) if permission.extra.get("as_stored") else call.services.store
        await store.put(permission.key, content)
    except ObjectExists as error:
        raise Problem(412, error.code, str(error)) from error
    except KeyDestroyed:
        log.info("part.key_destroyed", key=permission.key)
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
        raise _differs(size, sha256, bytes(content))
    return bytes(content)


def _differs(size: int, sha256: str, content: bytes) -> Problem:
    found = f"{len(content)} bytes with sha256 {hashlib.sha256(content).hexdigest()}"
    return conflict(
        "part_differs",
        f"The part was announced with {size} bytes and sha256 {sha256}; received "
        f"{'more' if len(content) > size else found}.",
    )


async def _seen(store: ObjectStore, asked: Commit) -> None:
    """An uploaded object without a row does not exist, and a row without its object, or of other bytes, must not: look first.

    Outside the transaction, because it is I/O; objects are immutable, so what was seen stays true. Without a sha256 that the
    store itself verified the object is read.
    """
    missing = conflict("part_missing", f"No object {asked.key[:300]!r}: PUT the part before its commit.", "key")
    if not is_part_key(asked.key):
        raise missing
    try:
        is_same = await store.holds(asked.key, asked.size, asked.sha256)
    except KeyDestroyed:
        return  # its batch has ended, which is what the worker is to hear
    except ObjectMissing as error:
        raise missing from error
    if not is_same:
        claim = f"the {asked.size} bytes with sha256 {asked.sha256[:64]} that the commit claims"
        raise conflict("part_differs", f"Object {asked.key!r} does not have {claim}.", "size")
