"""Leasing the next shard before the engine runs dry."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from workers.agent.driver import Driver
from workers.agent.errors import ProtocolDefect, Refused
from workers.agent.leases import HeldLease
from workers.agent.lines import BadShard, read_shard
from workers.agent.log import event
from workers.agent.parts import from_ranges
from workers.agent.pool import Pool
from workers.agent.sealing import Opener, SealBroken
from workers.agent.wire import NotNow, Wire, next_pause

_LONG_POLL_S = 20.0
_SHORTEST_POLL_S = 0.2
_BAD_SHARDS_IN_A_ROW = 3


@dataclass(slots=True, eq=False)
class Intake:
    """`run` returns when the broker says that there will be nothing more. It raises Dismissed and ProtocolDefect."""

    wire: Wire
    pool: Pool
    driver: Driver
    served_model: str | None
    on_lease: Callable[[], None]
    unstated_tokens: int | None = None
    _wake: asyncio.Event = field(default_factory=asyncio.Event)
    _bad: int = 0

    def wake(self) -> None:
        """Lines were finished or dropped: perhaps it is time for the next shard."""
        if self._is_hungry:
            self._wake.set()

    @property
    def _is_hungry(self) -> bool:
        """Whether the lines at hand no longer fill the engine once over."""
        return self.pool.waiting < self.driver.limit

    async def run(self) -> None:
        tries = 0
        while True:
            while not self._is_hungry:
                self._wake.clear()
                await self._wake.wait()
            asked_at = time.monotonic()
            try:
                answer = await self.wire.lease(_LONG_POLL_S)
            except (NotNow, Refused) as silence:
                pause = next_pause(tries, silence.after_s if isinstance(silence, NotNow) else None, 0.5)
                event("lease.unanswered", reason=str(silence), again_in_s=round(pause, 2))
                await asyncio.sleep(pause)
                tries += 1
                continue
            tries = 0
            if answer["lease"] is not None:
                await self._take(answer["lease"])
            elif answer["stop"]:
                return
            elif time.monotonic() - asked_at < _SHORTEST_POLL_S:
                await asyncio.sleep(_SHORTEST_POLL_S)  # a broker that does not hold the question

    def _unstated(self, endpoint: str) -> tuple[str, int] | None:
        name = _LIMIT_NAMES.get(endpoint)
        return None if name is None or self.unstated_tokens is None else (name, self.unstated_tokens)

    async def _take(self, offered: Mapping[str, Any]) -> None:
        """Fetch the shard of a lease and put its lines into the pool. A shard that cannot be read is let go."""
        lease = HeldLease.from_wire(offered, time.monotonic())
        try:
            content = await self.wire.fetch(offered["input_get"], offered["input_headers"])
            if (seal := (offered.get("seal") or {}).get("input")) is not None:
                content = await asyncio.to_thread(opened_shard, content, seal)
            digest = hashlib.sha256(content).hexdigest()
            if digest != offered["input_sha256"]:
                raise BadShard(f"the shard's bytes have sha256 {digest}, the lease says {offered['input_sha256']}")
            lines = await asyncio.to_thread(
                read_shard,
                content,
                first_idx=offered["first_idx"],
                lines=offered["lines"],
                served_model=self.served_model or offered["model"],
                skip=from_ranges(offered["done"]),
                unstated=self._unstated(lease.endpoint),
            )
        except (BadShard, Refused) as error:
            event("lease.unusable", shard=lease.shard_id, epoch=lease.epoch, error=str(error))
            self._bad += 1
            if self._bad >= _BAD_SHARDS_IN_A_ROW:
                raise ProtocolDefect(f"{self._bad} shards in a row could not be read; the last: {error}") from error
            return
        self._bad = 0
        suspects = {int(idx): attempts for idx, attempts in offered["suspects"].items()}
        lease.admit(lines, suspects, alone_from=max(1, self.pool.max_attempts - 1))
        self.pool.add(lease, time.monotonic())
        event("lease.taken", shard=lease.shard_id, epoch=lease.epoch, lines=len(lines), suspects=len(suspects))
        self.on_lease()


# What the limit of an answer is called; embeddings have none.
_LIMIT_NAMES = {
    "/v1/chat/completions": "max_tokens",
    "/v1/completions": "max_tokens",
    "/v1/responses": "max_output_tokens",
}


def opened_shard(content: bytes, seal: Mapping[str, Any]) -> bytes:
    """The shard's bytes out of the sealed segments that hold them. `seal` is the lease's own. Raises BadShard."""
    joined = base64.b64decode(seal["keys"])
    keys = [joined[at : at + 32] for at in range(0, len(joined), 32)]
    first = int(seal["first"])
    opener = Opener(lambda n: keys[n - first], seal["context"], first, first + len(keys) - 1, bool(seal["is_end"]))
    try:
        plain = opener.add(content) + opener.end()
    except SealBroken as broken:
        raise BadShard(f"the shard's bytes are not those that were sealed: {broken}") from broken
    return plain[seal["skip"] : seal["skip"] + seal["length"]]
