"""What composing results costs: CPU and memory for so many lines, in input order, in completion order, and so far.

A batch is prepared in a folder (parts of 200 lines, out of order, from 32 shards at a time, 1 line in 50 failed); each
composition then runs in a process of its own, whose peak memory the kernel tells (VmHWM). `before_mib` is that process
with everything imported and the plan not loaded.
"""

from __future__ import annotations

import argparse
import asyncio
import gzip
import hashlib
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, Literal

from sqlalchemy import select, update

from benchmarks.calibrate import calibrate
from broker.cli import logs
from broker.database import Database, sqlite_url
from broker.migrate import upgrade
from jobs import batches, commits, files, ids, leases, results, views
from jobs.keys import input_key
from jobs.objects import ObjectStore
from jobs.part_rows import PartRows
from jobs.tables import Batch
from jobs.types import Lease, LineUsage, ShardSpec, Validation
from tests.support.parts import stored_part

PART_LINES, SHARD_LINES, SHARDS_AT_A_TIME = 200, 1_000, 32
Mode = Literal["input", "completion", "view"]
ANSWER = "An answer of the length that a small model gives to a short question, give or take a sentence. " * 4


def request(n: int) -> bytes:
    body = {"model": "m", "messages": [{"role": "user", "content": f"question {n} " + "x" * 200}], "max_tokens": 64}
    line = {"custom_id": f"line-{n}", "method": "POST", "url": "/v1/chat/completions", "body": body}
    return json.dumps(line).encode() + b"\n"


# --- a batch with all its parts --------------------------------------------------------------------------------------


async def prepare(folder: Path, lines: int) -> None:
    """A batch that is answered and waits for the finaliser."""
    database, store = Database(sqlite_url(folder / "broker.db")), ObjectStore.local(folder / "objects")
    await upgrade(database.url)
    batch_id = await _begun(database, store, lines)
    source = random.Random(7)
    while held := [each async for each in _leased(database, batch_id)]:
        chunks = [(lease, chunk) for lease in held for chunk in _chunks(lease, source)]
        source.shuffle(chunks)
        for seq, (lease, chunk) in enumerate(chunks):
            await _answer(database, store, lease, chunk, seq)
    await database.close()


async def _begun(database: Database, store: ObjectStore, lines: int) -> str:
    file_id, shards = ids.file_id(), list[ShardSpec]()

    async def content() -> AsyncIterator[bytes]:
        for first in range(0, lines, SHARD_LINES):
            raw = b"".join(map(request, range(first, min(lines, first + SHARD_LINES))))
            shards.append(_spec(shards[-1] if shards else None, raw))
            yield raw

    stored = await store.put_stream(input_key("bench", file_id), content())
    found = Validation(
        findings=(), findings_total=0, model="m", endpoint="/v1/chat/completions", lines=lines,
        input_tokens=60 * lines, output_tokens=64 * lines, shards=tuple(shards),
    )  # fmt: skip
    async with database.transaction() as session:
        await files.create(
            session, file_id=file_id, project="bench", purpose="batch", filename="in.jsonl", size=stored.size,
            sha256=stored.sha256, object_key=stored.key,
        )  # fmt: skip
        new = batches.NewBatch(
            id=ids.batch_id(), project="bench", principal="bench", input_file_id=file_id,
            endpoint="/v1/chat/completions", completion_window="24h", policy_hash="-",
        )  # fmt: skip
        batch, _ = await batches.create(session, new)
        await batches.begin(session, batch.id, found)
    return batch.id


def _spec(before: ShardSpec | None, raw: bytes) -> ShardSpec:
    start, lines = before.stop if before else 0, raw.count(b"\n")
    return ShardSpec(
        index=before.index + 1 if before else 0,
        first_idx=before.first_idx + before.lines if before else 0,
        lines=lines,
        start=start,
        stop=start + len(raw),
        sha256=hashlib.sha256(raw).hexdigest(),
        input_tokens=60 * lines,
        output_tokens=64 * lines,
    )


async def _leased(database: Database, batch_id: str) -> AsyncIterator[Lease]:
    for _ in range(SHARDS_AT_A_TIME):
        async with database.transaction() as session:
            lease = await leases.lease(session, placement_id="bench", batch_ids=[batch_id], ttl_s=3600)
        if lease is None:
            return
        yield lease


def _chunks(lease: Lease, source: random.Random) -> Iterator[list[int]]:
    """The lines of a shard in parts, nearly in order, as an engine with many lines in flight finishes them."""
    order = sorted(range(lease.first_idx, lease.first_idx + lease.lines), key=lambda n: n + source.uniform(0, 300))
    return (order[at : at + PART_LINES] for at in range(0, len(order), PART_LINES))


async def _answer(database: Database, store: ObjectStore, lease: Lease, lines: list[int], seq: int) -> None:
    content = gzip.compress(b"".join(map(_answer_line, lines)), compresslevel=1, mtime=0)
    asked = await stored_part(store, lease, seq, content, list(map(_usage, lines)))
    async with database.transaction() as session:
        answer = await commits.commit(session, "bench", asked)
    assert answer.outcome == "committed", answer


def _status(n: int) -> Literal["completed", "failed"]:
    return "failed" if n % 50 == 0 else "completed"


def _answer_line(n: int) -> bytes:
    body = {"id": f"c{n}", "choices": [{"message": {"role": "assistant", "content": f"{n} {ANSWER}"}}]}
    line: dict[str, Any] = {"custom_id": f"line-{n}", "response": None, "error": None}
    if _status(n) == "failed":
        line["error"] = {"code": "engine_error", "message": "refused"}
    else:
        line["response"] = {"status_code": 200, "request_id": f"r{n}", "body": body}
    return json.dumps({"idx": n, "status": _status(n), "line": line}).encode() + b"\n"


def _usage(n: int) -> LineUsage:
    return LineUsage(idx=n, status=_status(n), prompt_tokens=60, completion_tokens=64, cached_tokens=0, attempts=1)


# --- one composition, in a process of its own ------------------------------------------------------------------------


async def compose(folder: Path, mode: Mode) -> dict[str, float]:
    """Output and error file of the prepared batch; `view`: only the output, the way a running batch's is read."""
    database, store = Database(sqlite_url(folder / "broker.db")), ObjectStore.local(folder / "objects")
    async with database.transaction() as session:
        batch_id = str(await session.scalar(select(Batch.id)))
        order = "completion" if mode == "completion" else "input"
        await session.execute(update(Batch).values(line_order=order))
    before_mib, began, cpu = peak_mib(), time.monotonic(), time.process_time()
    if mode == "view":
        await views.compose_view(store, database.transaction, batch_id, "output", "input")
    else:
        async with database.transaction() as session:
            plan = await results.load_final_plan(session, batch_id)
        assert plan is not None
        composed = await results.compose(store, plan, PartRows(database.transaction, plan))
        assert composed.completed + composed.failed == plan.total, composed
    await database.close()
    return {
        "before_mib": before_mib,
        "peak_mib": peak_mib(),
        "cpu_s": round(time.process_time() - cpu, 2),
        "wall_s": round(time.monotonic() - began, 2),
    }


def peak_mib() -> float:
    """The most memory that this process ever held, by the kernel."""
    status = Path("/proc/self/status").read_text()
    return round(int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) / 1024, 1)


def measure(lines: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        _child(folder, "prepare", lines)
        found = {mode: json.loads(_child(folder, mode, lines)) for mode in ("input", "completion", "view")}
    calibration = calibrate()
    return {
        "lines": lines,
        **found,
        "cpu_per_json_loop": round(found["input"]["cpu_s"] / calibration["json_cpu_s"], 1),
        "calibration": {name: round(value, 4) for name, value in calibration.items()},
    }


def _child(folder: str, what: str, lines: int) -> str:
    command = [sys.executable, "-m", "benchmarks.results", "--lines", str(lines), "--child", what, "--folder", folder]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lines", type=int, default=200_000)
    parser.add_argument("--json", action="store_true", help="one JSON object (the only form there is)")
    parser.add_argument("--child", choices=["prepare", "input", "completion", "view"], help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    logs.configure("warning")  # standard output is for the one object
    if asked.child == "prepare":
        asyncio.run(prepare(asked.folder, asked.lines))
    elif asked.child:
        print(json.dumps(asyncio.run(compose(asked.folder, asked.child))))
    else:
        print(json.dumps(measure(asked.lines)))
