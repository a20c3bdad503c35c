"""What a worker is given with a lease so that it can open its shard and seal its parts: keys of these, and of nothing else.

They go out with the lease alone, so only to a worker whose hello has passed and whose place the policy allows at this moment.
The keys of a shard are those of its segments of the input: with its first and last the ends of the neighbouring shards'
lines come along, at most 64 KiB each. The key for parts is of one lease: shard and epoch.
"""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import structlog

from broker.object_keys import part_secret
from broker.services import Services
from broker.settings import ObjectSettings
from broker.tables import Worker
from broker.worker_objects import input_request
from jobs import leases
from jobs.errors import ObjectCorrupt, ObjectMissing
from jobs.keys import part_key
from jobs.objects import SignedRequest
from jobs.types import Lease
from markets.tables import RentalRow
from workers.agent.sealing import FORMAT

log = structlog.get_logger()


def can_seal(worker: Worker) -> bool:
    """Whether the worker's hello said that it knows our form of sealed objects."""
    return FORMAT in (worker.hello or {}).get("seals", [])


def refusal(settings: ObjectSettings, rental: RentalRow, hello: Mapping[str, Any]) -> str | None:
    """Why a worker that cannot seal may not work here, where the house wants no other; None when it may."""
    if not settings.workers_must_seal or FORMAT in hello.get("seals", []):
        return None
    return (
        f"rental {rental.id} at {rental.offer_key}: it cannot open sealed objects (is there `cryptography` in the image of "
        f"{rental.model}?), and objects.workers_must_seal lets the broker open none for it"
    )


async def released(
    services: Services, worker: Worker, granted: Lease, project: str, now_us: int, of: Mapping[str, str | int]
) -> tuple[SignedRequest, dict[str, Any] | None]:
    """How to get the shard, and the lease's keys; no keys where nothing is sealed, or where the worker cannot seal: then the
    broker opens and seals for it, and what travels between the two is under TLS alone. `of` names the lease.

    Not inside a transaction. Raises StoreFailed, ObjectMissing, ObjectCorrupt and KeyDestroyed.
    """
    store, key = services.sealed_store, granted.input_key
    if store is None or not can_seal(worker):
        return await input_request(services, key, granted.start, granted.stop, now_us, of=of), None
    part = await _part(services, granted, project)
    sealed = await store.sealed_range(key, granted.start, granted.stop)
    if sealed is None:
        source = await input_request(services, key, granted.start, granted.stop, now_us, of=of)
        return source, None if part is None else {"input": None, "part": part}
    span = sealed.span
    shard = {
        "keys": _text(b"".join(sealed.keys)),
        "context": sealed.context,
        "first": span.first,
        "is_end": span.is_end,
        "skip": span.skip,
        "length": span.length,
    }
    source = await input_request(services, key, span.at, span.until, now_us, is_opened=False, of=of)
    return source, {"input": shard, "part": part}


@asynccontextmanager
async def taken_back_on_failure(services: Services, granted: Lease, rental: str) -> AsyncIterator[None]:
    """For what comes between the granting of a lease and its answer: when it fails, the shard is free at once. Else it would
    be with a machine that never heard of it until the lease runs out, and another with each call that the machine repeats.

    A shard whose own object or key is lost stays with the lease: free, it would be the first to be leased again, and with each
    call of the machine, while the shards of other batches wait behind it."""
    is_to_stay = False
    try:
        yield
        is_to_stay = True
    except (ObjectMissing, ObjectCorrupt):
        is_to_stay = True
        raise
    finally:
        if not is_to_stay:
            log.warning("lease.not_given_out", rental=rental, shard=granted.shard_id, epoch=granted.epoch)
            async with services.database.transaction() as session:
                await leases.release(session, placement_id=rental, shard_id=granted.shard_id)


async def _part(services: Services, granted: Lease, project: str) -> dict[str, Any] | None:
    """What the lease's parts are to be sealed with; None where the batch is not sealed."""
    assert services.sealed_store is not None
    root = await services.sealed_store.secrets.root_of_batch(project, granted.batch_id)
    if root is None:
        return None
    first = part_key(project, granted.batch_id, granted.shard_id, epoch=granted.epoch, seq=0, sha256="0" * 64)
    secret = part_secret(root, first)
    return {"key": _text(secret.key), "context": secret.context.removesuffix("-0")}


def _text(key: bytes) -> str:
    return base64.b64encode(key).decode()
