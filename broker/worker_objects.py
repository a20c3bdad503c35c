"""How a worker reaches the objects of its lease: the store itself by a signed request, or the broker by a signed permission.

Either is for one thing, for minutes: exactly the bytes of one shard, or exactly one part that must not be there yet. A worker
never has credentials of the store.
"""

from __future__ import annotations

from collections.abc import Mapping

from broker.services import Services
from jobs.clock import MICROSECONDS
from jobs.objects import ObjectStore, SignedRequest
from jobs.signing import sign

OBJECT_TTL_S = 900
PART_TYPE = "application/octet-stream"
# A part and its commit in one request: the commit as JSON on one line, and the part.
DELIVERY_TYPE = "application/vnd.compute-broker.part"
# Parts are cut at 4 MiB before they are packed; what is larger is a single long line, and goes the long way.
DELIVERED_BYTES = 4 * 1024 * 1024


async def input_request(
    services: Services,
    key: str,
    start: int,
    stop: int,
    now_us: int,
    *,
    is_opened: bool = True,
    of: Mapping[str, str | int] | None = None,
) -> SignedRequest:
    """To GET bytes [start, stop) of an input. `is_opened`: as they were uploaded; else as they are stored, whoever asks has
    the keys. `of` a lease (rental, shard, epoch): it is asked again whether it may be read when it is, where the broker serves
    it. Raises StoreFailed, KeyDestroyed."""
    if services.store.direct is not None and not (is_opened and await is_sealed(services, key)):
        return await services.store.direct.signed_get(key, start, stop, OBJECT_TTL_S)
    facts: dict[str, str | int] = {"start": start, "stop": stop, "as_stored": int(not is_opened), **(of or {})}
    token = sign(services.secret, "GET", key, _until(now_us), facts)
    return SignedRequest(url=f"/worker/v1/objects/{token}", headers={})


def delivered_bytes(services: Services) -> int:
    """Up to which size a part may come with its commit: none where workers write to the store themselves."""
    return DELIVERED_BYTES if services.store.direct is None else 0


async def part_request(
    services: Services, key: str, size: int, sha256: str, now_us: int, *, is_sealed_there: bool = False
) -> SignedRequest:
    """To PUT the part that was announced. `is_sealed_there`: the worker has sealed it; else the broker does, where the batch is
    sealed, so that nothing lies in a store in clear. Raises StoreFailed, KeyDestroyed."""
    if services.store.direct is not None and (is_sealed_there or not await is_sealed(services, key)):
        return await services.store.direct.signed_put(key, size, sha256, OBJECT_TTL_S)
    return put_here(services, key, size, sha256, now_us, is_sealed_there=is_sealed_there)


def put_here(
    services: Services, key: str, size: int, sha256: str, now_us: int, *, is_sealed_there: bool = False
) -> SignedRequest:
    """The same, through the broker whatever the store can do."""
    facts: dict[str, str | int] = {"size": size, "sha256": sha256, "as_stored": int(is_sealed_there)}
    token = sign(services.secret, "PUT", key, _until(now_us), facts)
    return SignedRequest(url=f"/worker/v1/objects/{token}", headers={"Content-Type": PART_TYPE})


async def is_sealed(services: Services, key: str) -> bool:
    """Whether the object of this name is sealed, or would be. Raises KeyDestroyed."""
    return services.sealed_store is not None and await services.sealed_store.is_sealed(key)


def stored(services: Services) -> ObjectStore:
    """Objects as they are stored."""
    return services.store if services.sealed_store is None else services.sealed_store.inner


def _until(now_us: int) -> int:
    return now_us + OBJECT_TTL_S * MICROSECONDS
