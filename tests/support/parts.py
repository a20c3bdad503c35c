"""Storing a part as a worker does, for whoever commits in the jobs room without a worker: tests and benchmarks."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from jobs import ranges
from jobs.keys import part_key
from jobs.objects import ObjectStore
from jobs.types import Commit, Lease, LineUsage


async def stored_part(store: ObjectStore, lease: Lease, seq: int, content: bytes, usage: Sequence[LineUsage]) -> Commit:
    """Put a part object where the lease says it lies; the commit that claims it, for the lines that have a usage."""
    sha256 = hashlib.sha256(content).hexdigest()
    key = part_key(lease.project, lease.batch_id, lease.shard_id, epoch=lease.epoch, seq=seq, sha256=sha256)
    await store.put(key, content)
    return Commit(
        shard_id=lease.shard_id,
        epoch=lease.epoch,
        nonce=lease.nonce,
        seq=seq,
        key=key,
        size=len(content),
        sha256=sha256,
        lines=ranges.from_lines(line.idx for line in usage),
        usage=tuple(usage),
    )
