"""What a commit costs beside the least that a database could do: 200 lines, SQLite, paired and interleaved.

`commit` is the whole protocol step of the jobs room (checks, part row, bitmap, counts, outbox) in its transaction; `raw`
is one transaction of one insert and one update of the same bytes. CPU-seconds of this process, medians of the pairs.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from sqlalchemy import text

from benchmarks.calibrate import calibrate
from broker.cli import logs
from broker.database import Database, sqlite_url
from broker.migrate import upgrade
from jobs import batches, commits, files, ids, leases
from jobs.keys import part_key
from jobs.types import Commit, Lease, LineUsage, ShardSpec, Validation

LINES = 200


async def measure(pairs: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        database = Database(sqlite_url(Path(folder) / "broker.db"))
        await upgrade(database.url)
        lease = await _leased(database, pairs)
        async with database.transaction() as session:
            await session.execute(text("CREATE TABLE raw (n INTEGER PRIMARY KEY, bytes BLOB, done TEXT)"))
        ours, raw = [], []
        for n in range(pairs):
            ours.append(await _timed(_commit(database, lease, n)))
            raw.append(await _timed(_raw(database, n)))
        await database.close()
    calibration = calibrate()
    ms = statistics.median(ours) * 1000
    return {
        "lines": LINES,
        "pairs": pairs,
        "commit_cpu_ms": round(ms, 3),
        "raw_cpu_ms": round(statistics.median(raw) * 1000, 3),
        "ratio": round(statistics.median(a / b for a, b in zip(ours, raw, strict=True)), 2),
        "commit_cpu_per_json_loop": round(ms / 1000 / calibration["json_cpu_s"], 5),
        "calibration": {name: round(value, 4) for name, value in calibration.items()},
    }


async def _timed(work: Any) -> float:
    began = time.process_time()
    await work
    return time.process_time() - began


async def _leased(database: Database, pairs: int) -> Lease:
    """A batch with one shard that has room for every commit, leased."""
    async with database.transaction() as session:
        file = await files.create(
            session,
            file_id=ids.file_id(),
            project="bench",
            purpose="batch",
            filename="in.jsonl",
            size=1,
            sha256="0" * 64,
            object_key="bench/input/x",
        )
        new = batches.NewBatch(
            id=ids.batch_id(),
            project="bench",
            principal="bench",
            input_file_id=file.id,
            endpoint="/v1/chat/completions",
            completion_window="24h",
            policy_hash="-",
        )
        batch, _ = await batches.create(session, new)
        lines = LINES * (pairs + 1)
        shard = ShardSpec(
            index=0, first_idx=0, lines=lines, start=0, stop=1, sha256="0" * 64, input_tokens=1, output_tokens=1
        )
        await batches.begin(
            session,
            batch.id,
            Validation(
                findings=(),
                findings_total=0,
                model="m",
                endpoint="/v1/chat/completions",
                lines=lines,
                input_tokens=1,
                output_tokens=1,
                shards=(shard,),
            ),
        )
        lease = await leases.lease(session, placement_id="bench", batch_ids=[batch.id], ttl_s=3600)
    assert lease is not None
    return lease


async def _commit(database: Database, lease: Lease, n: int) -> None:
    sha256 = f"{n:064x}"
    asked = Commit(
        shard_id=lease.shard_id,
        epoch=lease.epoch,
        nonce=lease.nonce,
        seq=n,
        key=part_key(lease.project, lease.batch_id, lease.shard_id, epoch=lease.epoch, seq=n, sha256=sha256),
        size=1,
        sha256=sha256,
        lines=((n * LINES, (n + 1) * LINES),),
        usage=tuple(_usage(n * LINES + i) for i in range(LINES)),
    )
    async with database.transaction() as session:
        answer = await commits.commit(session, "bench", asked)
    assert answer.outcome == "committed", answer


def _usage(idx: int) -> LineUsage:
    return LineUsage(idx=idx, status="completed", prompt_tokens=40, completion_tokens=60, cached_tokens=0, attempts=1)


async def _raw(database: Database, n: int) -> None:
    content = b"x" * 6_000  # about the size of the usage of 200 lines
    async with database.transaction() as session:
        await session.execute(text("INSERT INTO raw VALUES (:n, :bytes, '')"), {"n": n, "bytes": content})
        await session.execute(text("UPDATE raw SET done = :done WHERE n = :n"), {"n": n, "done": str(n)})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=100)
    parser.add_argument("--json", action="store_true", help="one JSON object (the only form there is)")
    logs.configure("warning")  # standard output is for the one object
    print(json.dumps(asyncio.run(measure(parser.parse_args().pairs))))
