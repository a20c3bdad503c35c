"""A batch of a million lines through the jobs room: stored, validated, sharded, leased, committed and finalised.

Run as a process of its own, so that its peak of memory is the batch's. Real: the object store (a local folder, sealed), SQLite,
the leases, commits and results of `jobs`. Scripted: the worker, which writes the same short answer to each line, in parts
of 200. Prints one object: the peak RSS in MB up to the end of each stage, and the stage's CPU-seconds.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import resource
import tempfile
import time
import zlib
from collections.abc import AsyncIterator
from pathlib import Path

from benchmarks import corpus
from broker.cli import logs
from broker.database import Database, sqlite_url
from broker.keyring import open_keyring
from broker.migrate import upgrade
from broker.object_keys import ObjectKeys
from broker.sealed_store import SealedStore
from broker.settings import VaultSettings
from broker.vault import Vault
from jobs import batches, commits, files, ids, leases, lines, results
from jobs.keys import input_key
from jobs.objects import ObjectStore, Stored
from jobs.types import Lease, Limits, LineUsage, Validation
from tests.support.parts import stored_part

PROJECT, WORKER = "bench", "worker"
PART_LINES = 200
ANSWER = {
    "object": "chat.completion",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "so " * 60}}],
}


class Stages:
    """Peak RSS and CPU-seconds, taken at the end of each stage."""

    def __init__(self) -> None:
        self.peak_rss_mb: dict[str, int] = {}
        self.cpu_s: dict[str, float] = {}
        self._began = time.process_time()

    def end(self, stage: str) -> None:
        self.peak_rss_mb[stage] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
        self.cpu_s[stage] = round(time.process_time() - self._began, 1)
        self._began = time.process_time()


async def run(folder: Path, count: int, size: int, *, sealed: bool = True) -> Stages:
    stages = Stages()
    database = Database(sqlite_url(folder / "broker.db"))
    await upgrade(database.url)
    keys = ObjectKeys(database, Vault(database, open_keyring(VaultSettings(), folder)), seals_new=sealed)
    store = SealedStore(ObjectStore.local(folder / "objects"), keys)
    await keys.begin(PROJECT, "input")
    stages.end("started")
    stored = await store.put_stream(input_key(PROJECT, "input"), _file(count, size))
    stages.end("stored")
    validation = await lines.validate(
        store.stream(stored.key),
        limits=Limits(max_lines=count, max_file_bytes=stored.size),
        shard_lines=1_000,
        shard_bytes=8 * 1024 * 1024,
        default_output_tokens=256,
    )
    assert validation.lines == count and not validation.findings, validation.findings[:3]
    stages.end("validated")
    batch_id = await _begin(database, stored, validation)
    await keys.begin(PROJECT, batch_id)
    del validation
    stages.end("sharded")
    while (lease := await _lease(database, batch_id)) is not None:
        await _work(store, database, lease)
    stages.end("committed")
    assert await _finalise(store, database, batch_id) == count
    stages.end("finalised")
    await database.close()
    return stages


async def _file(count: int, size: int) -> AsyncIterator[bytes]:
    """A thousand different lines over and over, each with a custom_id of its own: making lines is not measured."""
    templates = [corpus.line(number, size).split(b"request-", 1) for number in range(min(count, 1_000))]
    for first in range(0, count, 1_000):
        numbers = range(first, min(first + 1_000, count))
        yield b"".join(b"%srequest-%07d%s" % (templates[n % 1_000][0], n, templates[n % 1_000][1][7:]) for n in numbers)


async def _begin(database: Database, stored: Stored, validation: Validation) -> str:
    async with database.transaction() as session:
        file = await files.create(
            session,
            file_id=ids.file_id(),
            project=PROJECT,
            purpose="batch",
            filename="in.jsonl",
            size=stored.size,
            sha256=stored.sha256,
            object_key=stored.key,
        )
        new = batches.NewBatch(
            id=ids.batch_id(),
            project=PROJECT,
            principal="bench",
            input_file_id=file.id,
            endpoint="/v1/chat/completions",
            completion_window="7d",
            policy_hash="-",
        )
        batch, _ = await batches.create(session, new)
        await batches.begin(session, batch.id, validation)
        return batch.id


async def _lease(database: Database, batch_id: str) -> Lease | None:
    async with database.transaction() as session:
        return await leases.lease(session, placement_id=WORKER, batch_ids=[batch_id], ttl_s=86_400)


async def _work(store: ObjectStore, database: Database, lease: Lease) -> None:
    """Answer a shard in parts, as an agent would."""
    for seq, first in enumerate(range(lease.first_idx, lease.first_idx + lease.lines, PART_LINES)):
        stop = min(first + PART_LINES, lease.first_idx + lease.lines)
        content = zlib.compress(b"".join(_answer(idx) for idx in range(first, stop)), level=1, wbits=31)
        asked = await stored_part(store, lease, seq, content, [_usage(idx) for idx in range(first, stop)])
        async with database.transaction() as session:
            answer = await commits.commit(session, WORKER, asked)
        assert answer.outcome == "committed", answer


def _answer(idx: int) -> bytes:
    response = {"status_code": 200, "request_id": f"r-{idx}", "body": ANSWER}
    line = {"custom_id": f"request-{idx:07}", "response": response, "error": None}
    return json.dumps({"idx": idx, "status": "completed", "line": line}).encode() + b"\n"


def _usage(idx: int) -> LineUsage:
    return LineUsage(idx=idx, status="completed", prompt_tokens=40, completion_tokens=60, cached_tokens=0, attempts=1)


async def _finalise(store: ObjectStore, database: Database, batch_id: str) -> int:
    """Close, compose and end the batch; how many lines were completed."""
    async with database.transaction() as session:
        await batches.advance(session, cancel_grace_s=600)
    async with database.transaction() as session:
        plan = await results.load_final_plan(session, batch_id)
    assert plan is not None, "the batch is not closed"
    composed = await results.compose(store, plan, results.PartRows(database.transaction, plan))
    async with database.transaction() as session:
        batch = await results.finish(session, batch_id, composed)
    assert batch.status == "completed", batch.status
    return batch.completed


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lines", type=int, default=1_000_000)
    parser.add_argument("--bytes", type=int, default=500, help="about how long a line is")
    parser.add_argument("--clear", action="store_true", help="objects are not sealed")
    parser.add_argument("--json", action="store_true", help="one JSON object (the only form there is)")
    asked = parser.parse_args()
    logs.configure("warning")  # standard output is for the one object
    with tempfile.TemporaryDirectory() as scratch:
        done = asyncio.run(run(Path(scratch), asked.lines, asked.bytes, sealed=not asked.clear))
    print(json.dumps({"lines": asked.lines, "peak_rss_mb": done.peak_rss_mb, "cpu_s": done.cpu_s}))
