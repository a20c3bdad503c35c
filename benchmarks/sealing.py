"""What sealing costs: streams through the sealed form alone, and through a store with it and without, interleaved.

`aead`: bytes a CPU-second of sealing and opening, in chunks as they come from clients and stores. `store`: CPU-seconds of one
gigabyte written and read through a local folder, sealed over clear; `lease_ms`: the keys of a shard of 8 MiB.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from broker.cli import logs
from broker.database import Database, sqlite_url
from broker.keyring import open_keyring
from broker.migrate import upgrade
from broker.object_keys import ObjectKeys
from broker.sealed_store import SealedStore
from broker.settings import VaultSettings
from broker.vault import Vault
from jobs import ids
from jobs.keys import input_key
from jobs.objects import ObjectStore
from workers.agent.sealing import Opener, Sealer, object_key, plain_size, segment_key, span

MIB = 1024 * 1024
CHUNK = 256 * 1024
SHARD = 8 * MIB


def aead(size: int) -> dict[str, float]:
    """GB a CPU-second."""
    chunk, began = os.urandom(CHUNK), time.process_time()
    sealer = Sealer(bytes(32), "bench")
    sealed = [sealer.header, *(sealer.add(chunk) for _ in range(size // CHUNK)), sealer.end()]
    sealing_s = time.process_time() - began
    of_object = object_key(bytes(32), sealed[0], "bench")
    where = span(0, size, plain_size(sum(map(len, sealed))))
    began = time.process_time()
    opener = Opener(lambda number: segment_key(of_object, number), "bench", where.first, where.last, where.is_end)
    opened = sum(len(opener.add(each)) for each in sealed[1:]) + len(opener.end())
    opening_s = time.process_time() - began
    assert opened == size
    return {
        "seal_gb_per_cpu_s": round(size / sealing_s / 1e9, 2),
        "open_gb_per_cpu_s": round(size / opening_s / 1e9, 2),
    }


async def through_store(folder: Path, size: int, rounds: int) -> dict[str, Any]:
    """CPU-seconds of a write and a read, medians of interleaved rounds."""
    database = Database(sqlite_url(folder / "broker.db"))
    await upgrade(database.url)
    keys = ObjectKeys(database, Vault(database, open_keyring(VaultSettings(), folder)))
    clear = ObjectStore.local(folder / "objects")
    sealed = SealedStore(clear, keys)
    cost: dict[str, list[float]] = {"clear": [], "sealed": []}
    for _ in range(rounds):
        for kind, store in (("clear", clear), ("sealed", sealed)):
            key = input_key("bench", ids.file_id())
            if kind == "sealed":
                await keys.begin("bench", key.rpartition("/")[2])
            began = time.process_time()
            await store.put_stream(key, _chunks(size))
            assert sum([len(chunk) async for chunk in store.stream(key)]) == size
            cost[kind].append(time.process_time() - began)
            last = key
    began, count = time.process_time(), 50
    for n in range(count):
        assert await sealed.sealed_range(last, n * MIB, n * MIB + min(SHARD, size - n * MIB)) is not None
    lease_ms = (time.process_time() - began) / count * 1_000
    await database.close()
    medians = {kind: statistics.median(each) for kind, each in cost.items()}
    return {
        "cpu_s": {kind: round(each, 2) for kind, each in medians.items()},
        "sealed_over_clear": round(medians["sealed"] / medians["clear"], 2),
        "lease_ms": round(lease_ms, 2),
    }


async def _chunks(size: int) -> AsyncIterator[bytes]:
    chunk = os.urandom(CHUNK)
    for _ in range(size // CHUNK):
        yield chunk


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mib", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true", help="one JSON object (the only form there is)")
    asked = parser.parse_args()
    logs.configure("warning")
    with tempfile.TemporaryDirectory() as scratch:
        stored = asyncio.run(through_store(Path(scratch), asked.mib * MIB, asked.rounds))
    print(json.dumps({"mib": asked.mib, "aead": aead(asked.mib * MIB), "store": stored, "load": os.getloadavg()[0]}))
