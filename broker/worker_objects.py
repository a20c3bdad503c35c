"""How a worker reaches the objects of its lease: the store itself by a signed request, or the broker by a signed permission.

Either is for one thing, for minutes: exactly the bytes of one shard, or exactly one part that must not be there yet. A worker
never has credentials of the store.
"""

from __future__ import annotations

from broker.services import Services
from jobs.clock import MICROSECONDS
from jobs.objects import SignedRequest
from jobs.signing import sign

OBJECT_TTL_S = 900
PART_TYPE = "application/octet-stream"


async def input_request(services: Services, key: str, start: int, stop: int, now_us: int) -> SignedRequest:
    """To GET bytes [start, stop) of an input. Raises StoreFailed."""
    if services.store.direct is not None:
        return await services.store.direct.signed_get(key, start, stop, OBJECT_TTL_S)
    token = sign(services.secret, "GET", key, _until(now_us), {"start": start, "stop": stop})
    return SignedRequest(url=f"/worker/v1/objects/{token}", headers={})


async def part_request(services: Services, key: str, size: int, sha256: str, now_us: int) -> SignedRequest:
    """To PUT the part that was announced. Raises StoreFailed."""
    if services.store.direct is not None:
        return await services.store.direct.signed_put(key, size, sha256, OBJECT_TTL_S)
    token = sign(services.secret, "PUT", key, _until(now_us), {"size": size, "sha256": sha256})
    return SignedRequest(url=f"/worker/v1/objects/{token}", headers={"Content-Type": PART_TYPE})


def _until(now_us: int) -> int:
    return now_us + OBJECT_TTL_S * MICROSECONDS
