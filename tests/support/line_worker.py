"""A worker without a machine: leases shards through the jobs room, stores parts and commits them, and counts what it did."""

from __future__ import annotations

import gzip
import json
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

from broker.services import Services
from jobs import commits, leases, ranges
from jobs.types import Lease, LineStatus, LineUsage
from tests.support.parts import stored_part


@dataclass
class LineWorker:
    """Each computed answer is another one, so that a copied answer is seen to be a copy. `ran` are the lines it was given."""

    services: Services
    placement: str = "rental_of_test"
    ran: list[int] = field(default_factory=list)

    async def lease(self, batch_id: str) -> Lease | None:
        async with self.services.database.transaction() as session:
            return await leases.lease(session, placement_id=self.placement, batch_ids=[batch_id], ttl_s=60)

    async def work(self, batch_id: str, *, failed: Collection[int] = ()) -> list[int]:
        """Answer everything that is to be had, in one part a shard; the lines that these were."""
        given = []
        while (lease := await self.lease(batch_id)) is not None:
            given += await self.answer(lease, failed=failed)
        return given

    async def answer(
        self, lease: Lease, *, failed: Collection[int] = (), only: Collection[int] | None = None
    ) -> list[int]:
        """Answer the open lines of a lease, or `only` some of them."""
        content = await self.services.store.get(lease.input_key, lease.start, lease.stop)
        requests = dict(enumerate(content.removesuffix(b"\n").split(b"\n"), lease.first_idx))
        lines = [n for n in requests if n not in set(ranges.lines_of(lease.done)) and (only is None or n in only)]
        records = [self._record(n, json.loads(requests[n])["custom_id"], n in failed) for n in lines]
        part = gzip.compress("".join(records).encode(), mtime=0)
        await self._commit(lease, part, lines, failed)
        return lines

    def _record(self, idx: int, custom_id: str, is_failed: bool) -> str:
        self.ran.append(idx)
        answer: dict[str, Any] = {"custom_id": custom_id, "response": None, "error": None}
        if is_failed:
            answer["error"] = {"code": "engine_error", "message": "refused"}
        else:
            body = {"id": f"computed-{len(self.ran)}", "usage": {"prompt_tokens": 7, "completion_tokens": 5}}
            answer["response"] = {"status_code": 200, "request_id": f"r{len(self.ran)}", "body": body}
        return json.dumps({"idx": idx, "status": "failed" if is_failed else "completed", "line": answer}) + "\n"

    async def _commit(self, lease: Lease, part: bytes, lines: list[int], failed: Collection[int]) -> None:
        usage = [_usage(n, is_failed=n in failed) for n in lines]
        asked = await stored_part(self.services.store, lease, 0, part, usage)
        async with self.services.database.transaction() as session:
            answer = await commits.commit(session, self.placement, asked)
        assert answer.outcome == "committed", answer.message


def _usage(idx: int, *, is_failed: bool) -> LineUsage:
    status: LineStatus = "failed" if is_failed else "completed"
    return LineUsage(idx=idx, status=status, prompt_tokens=7, completion_tokens=5, cached_tokens=0, attempts=1)
