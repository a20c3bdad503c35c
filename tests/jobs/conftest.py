"""A jobs room with a database and a store of its own, driven the way the broker and a worker drive it."""

from __future__ import annotations

import gzip
import hashlib
import json
from collections.abc import AsyncIterator, Iterable, Sequence
from typing import Any

import msgspec
import pytest

from broker.database import Database
from jobs import batches, commits, files, ids, leases, lines, own_parts, ranges, results
from jobs.keys import input_key
from jobs.objects import ObjectStore
from jobs.part_objects import AnswerError, AnswerLine, AnswerResponse, PartLine
from jobs.tables import Batch, File, Shard
from jobs.types import Commit, CommitAnswer, Lease, Limits, LineUsage, Reserved, Validation
from tests.support.parts import stored_part

PROJECT = "acme"
SECOND_US = 1_000_000


def request_line(n: int, **changes: Any) -> bytes:
    """A good input line, as uploaded."""
    body = {"model": "tiny", "messages": [{"role": "user", "content": f"question {n}"}], "max_tokens": 8}
    line = {"custom_id": f"id-{n}", "method": "POST", "url": "/v1/chat/completions", "body": body}
    return json.dumps(line | changes).encode() + b"\n"


def part_bytes(numbers: Sequence[int], failed: Iterable[int] = (), worker: str = "w") -> bytes:
    """A part object as an agent writes it, in completion order (here: descending)."""
    written = []
    for n in sorted(numbers, reverse=True):
        answer: dict[str, Any] = {"custom_id": f"id-{n}", "response": None, "error": None}
        if n in set(failed):
            answer["error"] = {"code": "engine_error", "message": "refused"}
        else:
            answer["response"] = {"status_code": 200, "request_id": f"{worker}-{n}", "body": {"text": f"answer {n} ✓"}}
        status = "failed" if n in set(failed) else "completed"
        written.append(json.dumps({"idx": n, "status": status, "line": answer}, ensure_ascii=False))
    return gzip.compress("\n".join(written).encode() + b"\n", mtime=0)


def own_answer(n: int, kind: own_parts.Kind) -> PartLine:
    """What the broker answers to line `n` by itself."""
    if kind == "invalid":
        error = AnswerError("invalid_json_line", "not JSON")
        return PartLine(n, "failed", AnswerLine(f"id-{n}", None, error))
    response = AnswerResponse(200, f"broker-{n}", msgspec.Raw(b'{"text": "known"}'))
    return PartLine(n, "completed", AnswerLine(f"id-{n}", response, None))


def usage(numbers: Iterable[int], failed: Iterable[int] = ()) -> tuple[LineUsage, ...]:
    bad = set(failed)
    return tuple(
        LineUsage(
            idx=n,
            status="failed" if n in bad else "completed",
            prompt_tokens=10,
            completion_tokens=0 if n in bad else 5,
            cached_tokens=1,
            attempts=1,
        )
        for n in numbers
    )


async def in_chunks(content: bytes, size: int = 7) -> AsyncIterator[bytes]:
    for at in range(0, len(content), size):
        yield content[at : at + size]


class Room:
    """One line a step. `seq` counts by itself; `clock` moves the database's clock."""

    def __init__(self, database: Database, store: ObjectStore) -> None:
        self.database = database
        self.store = store
        self._seq = 0

    def clock(self, seconds: float) -> None:
        self.database.clock_offset_us += int(seconds * SECOND_US)

    async def upload(self, content: bytes) -> File:
        file_id = ids.file_id()
        stored = await self.store.put_stream(input_key(PROJECT, file_id), in_chunks(content, 1 << 16))
        async with self.database.transaction() as session:
            return await files.create(
                session,
                file_id=file_id,
                project=PROJECT,
                purpose="batch",
                filename="prompts.jsonl",
                size=stored.size,
                sha256=stored.sha256,
                object_key=stored.key,
            )

    def new(self, file: File, **changes: Any) -> batches.NewBatch:
        new = batches.NewBatch(
            id=ids.batch_id(),
            project=PROJECT,
            principal="ada",
            input_file_id=file.id,
            endpoint="/v1/chat/completions",
            completion_window="24h",
            policy_hash="p",
        )
        return msgspec.structs.replace(new, **changes)

    async def create(self, file: File, **changes: Any) -> Batch:
        async with self.database.transaction() as session:
            batch, _ = await batches.create(session, self.new(file, **changes))
            return batch

    async def validated(self, file: File, shard_lines: int) -> Validation:
        return await lines.validate(
            self.store.stream(file.object_key),
            limits=Limits(),
            shard_lines=shard_lines,
            shard_bytes=1 << 20,
            default_output_tokens=16,
        )

    async def batch(self, count: int = 6, *, shard_lines: int = 3, reserved: Iterable[int] = (), **changes: Any) -> str:
        """A batch of `count` lines that is in progress; the broker answers the `reserved` ones itself."""
        file = await self.upload(b"".join(request_line(n) for n in range(count)))
        batch = await self.create(file, **changes)
        validation = await self.validated(file, shard_lines)
        async with self.database.transaction() as session:
            await batches.begin(session, batch.id, validation, Reserved(lines=ranges.from_lines(reserved)))
        return batch.id

    async def get(self, batch_id: str) -> Batch:
        async with self.database.transaction() as session:
            return await batches.get(session, PROJECT, batch_id)

    async def shard(self, shard_id: str) -> Shard:
        async with self.database.transaction() as session:
            return await session.get_one(Shard, shard_id)

    async def try_lease(self, batch_id: str, placement: str = "one", ttl_s: float = 60) -> Lease | None:
        async with self.database.transaction() as session:
            return await leases.lease(session, placement_id=placement, batch_ids=[batch_id], ttl_s=ttl_s)

    async def lease(self, batch_id: str, placement: str = "one", ttl_s: float = 60) -> Lease:
        lease = await self.try_lease(batch_id, placement, ttl_s)
        assert lease is not None, "no shard was free"
        return lease

    async def renew(self, lease: Lease, placement: str = "one", **told: Any) -> bool:
        async with self.database.transaction() as session:
            return await leases.renew(
                session,
                placement_id=placement,
                shard_id=lease.shard_id,
                epoch=lease.epoch,
                nonce=lease.nonce,
                ttl_s=lease.ttl_s,
                **told,
            )

    async def abandon(self, placement: str, blame: bool = True) -> int:
        async with self.database.transaction() as session:
            return await leases.abandon(session, placement_id=placement, blame=blame)

    async def revoke(self, placement: str) -> int:
        async with self.database.transaction() as session:
            return await leases.revoke(session, placement_id=placement)

    async def part(
        self, lease: Lease, numbers: Sequence[int], *, failed: Iterable[int] = (), seq: int | None = None
    ) -> Commit:
        """Upload a part and return the commit that claims it."""
        if seq is None:
            self._seq += 1
            seq = self._seq
        content = part_bytes(numbers, failed, worker=f"{lease.nonce}-{seq}")
        return await stored_part(self.store, lease, seq, content, usage(sorted(numbers), failed))

    async def own_part(
        self, batch_id: str, number: int, lines: Sequence[int], kind: own_parts.Kind = "reused", withdrawn: int = 0
    ) -> own_parts.OwnPart:
        """Cut and store a part of the broker's own for lines of shard `number`."""
        shard = await self.shard(ids.shard_id(batch_id, number))
        name = own_parts.ShardName(
            project=PROJECT,
            batch_id=batch_id,
            shard_id=shard.id,
            first_idx=shard.first_idx,
            lines=shard.lines,
            withdrawn=withdrawn,
        )
        saved = own_parts.Saved(input_tokens=10 * len(lines), output_tokens=5 * len(lines), nano=7 * len(lines))
        answers = [own_answer(n, kind) for n in sorted(lines)]
        part, content = own_parts.cut(name, answers, kind, saved if kind == "reused" else None)
        await own_parts.store(self.store, part, content)
        return part

    async def own_commit(self, part: own_parts.OwnPart) -> str:
        async with self.database.transaction() as session:
            return await own_parts.commit(session, part)

    async def give_to_workers(self, batch_id: str, number: int, lines: Iterable[int]) -> bool:
        shard_id = ids.shard_id(batch_id, number)
        async with self.database.transaction() as session:
            return await own_parts.give_to_workers(session, batch_id, shard_id, ranges.from_lines(lines))

    async def send(self, asked: Commit, placement: str = "one") -> CommitAnswer:
        async with self.database.transaction() as session:
            return await commits.commit(session, placement, asked)

    async def commit(
        self, lease: Lease, numbers: Sequence[int], placement: str = "one", *, failed: Iterable[int] = ()
    ) -> CommitAnswer:
        return await self.send(await self.part(lease, numbers, failed=failed), placement)

    async def answer_all(self, batch_id: str, failed: Iterable[int] = ()) -> None:
        while (lease := await self.try_lease(batch_id)) is not None:
            open_lines = list(ranges.lines_of(ranges.difference(leases_lines(lease), lease.done)))
            answer = await self.commit(lease, open_lines, failed=[n for n in failed if n in open_lines])
            assert answer.outcome == "committed"

    async def advance(self, cancel_grace_s: float = 600) -> list[str]:
        async with self.database.transaction() as session:
            return await batches.advance(session, cancel_grace_s=cancel_grace_s)

    async def cancel(self, batch_id: str) -> Batch:
        async with self.database.transaction() as session:
            return await batches.cancel(session, PROJECT, batch_id)

    async def plan(self, batch_id: str) -> results.FinalPlan:
        async with self.database.transaction() as session:
            plan = await results.load_final_plan(session, batch_id)
        assert plan is not None, "the batch is not closed"
        return plan

    async def compose(self, batch_id: str) -> results.Composed:
        plan = await self.plan(batch_id)
        return await results.compose(self.store, plan, results.PartRows(self.database.transaction, plan))

    async def finish(self, batch_id: str, composed: results.Composed) -> Batch:
        async with self.database.transaction() as session:
            return await results.finish(session, batch_id, composed)

    async def finalise(self, batch_id: str) -> Batch:
        return await self.finish(batch_id, await self.compose(batch_id))

    async def read(self, file_id: str | None) -> list[dict[str, Any]]:
        """The lines of an output or error file; [] when there is none."""
        if file_id is None:
            return []
        async with self.database.transaction() as session:
            file = await files.get(session, PROJECT, file_id)
        content = await self.store.get(file.object_key)
        assert (len(content), hashlib.sha256(content).hexdigest()) == (file.bytes, file.sha256)
        return [json.loads(line) for line in content.decode().splitlines()]


def leases_lines(lease: Lease) -> tuple[tuple[int, int], ...]:
    return ((lease.first_idx, lease.first_idx + lease.lines),)


@pytest.fixture
def room(database: Database, object_store: ObjectStore) -> Room:
    return Room(database, object_store)
