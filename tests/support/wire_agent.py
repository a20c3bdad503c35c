"""A worker as it looks on the wire, step by step, and what it needs in the broker to be let in."""

from __future__ import annotations

import gzip
import hashlib
import json
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import jsonschema

from broker.control.intake import validate_file
from broker.tables import Assignment, Worker
from jobs import batches
from jobs.clock import db_now
from jobs.tables import Batch
from markets import rentals
from markets.market import Rental
from markets.offer import Accelerator, Evidence, Offer, OfferKey

SCHEMAS = Path(__file__).parents[2] / "workers" / "agent" / "schemas"
HOUR = timedelta(hours=1)


def offer(country: str = "DE", *, sku: str = "cpu-1", ttl: timedelta = 24 * HOUR) -> Offer:
    now = datetime.now(UTC)
    return Offer(
        key=OfferKey("sandbox", "eu", None, sku, "cpu", 0, "spot"),
        launch="process",
        accelerator=Accelerator(),
        currency="USD",
        price=Decimal("0.05"),
        observed_at=now,
        source="test",
        raw_sha256="0" * 64,
        country=country,
        evidence=(Evidence("provider_api", "test", now, ttl),),
        location_tier="named_datacenter",
    )


@dataclass
class Agent:
    """A worker as it looks on the wire; `token` is its session's."""

    server: Any
    rental: str
    bootstrap: str
    pubkey: str = "ab" * 32
    token: str = ""
    welcome: dict[str, Any] = field(default_factory=dict)

    async def post(self, path: str, body: dict[str, Any], token: str | None = None) -> Any:
        return await self.server.call("POST", f"/worker/v1/{path}", key=token or self.token, json=body)

    async def hello(self, **changes: Any) -> Any:
        body = {
            "rental_id": self.rental,
            "pubkey": self.pubkey,
            "agent_version": "1",
            "hostname": "here",
            "pid": 1,
            "cpu_count": 2,
            "memory_mib": 100,
            "disk_free_mib": 100,
            "accelerators": [],
            "driver": None,
            "evidence": {},
            **changes,
        }
        answer = await self.post("hello", body, self.bootstrap)
        if answer.status == 200:
            self.token, self.welcome = answer.json["token"], answer.json
        return answer

    async def heartbeat(self, state: str = "ready", **changes: Any) -> Any:
        body = {"state": state, "leases": [], "metrics": {}, "notice_in_s": None, "error": None, **changes}
        return await self.post("heartbeat", body)

    async def lease(self, wait_s: float = 0) -> Any:
        return (await self.post("leases", {"wait_s": wait_s})).json

    async def part(self, lease: dict[str, Any], content: bytes, seq: int = 0) -> Any:
        body = {
            "epoch": lease["epoch"],
            "nonce": lease["nonce"],
            "seq": seq,
            "sha256": hashlib.sha256(content).hexdigest(),
            "size": len(content),
        }
        return await self.server.call("POST", lease["part_put"], key=self.token, json=body)

    async def put(self, target: dict[str, Any], content: bytes) -> Any:
        return await self.server.call("PUT", target["put_url"], key=None, data=content, headers=target["headers"])

    async def commit(
        self, lease: dict[str, Any], target: dict[str, Any], content: bytes, lines: range, seq: int = 0, **changes: Any
    ) -> Any:
        body = {
            "epoch": lease["epoch"],
            "nonce": lease["nonce"],
            "seq": seq,
            "key": target["key"],
            "size": len(content),
            "sha256": hashlib.sha256(content).hexdigest(),
            "lines": [[lines.start, lines.stop]],
            "usage": [[idx, "completed", 7, 5, 0, 1, False] for idx in lines],
            "counters": {"busy_ms": 2000, "requests": len(lines)},
            **changes,
        }
        return await self.post(f"shards/{lease['shard_id']}/commits", body)

    async def deliver(
        self,
        lease: dict[str, Any],
        content: bytes,
        lines: range,
        seq: int = 0,
        token: str | None = None,
        **changes: Any,
    ) -> Any:
        """Part and commit in one request."""
        body = {
            "epoch": lease["epoch"],
            "nonce": lease["nonce"],
            "seq": seq,
            "size": len(content),
            "sha256": hashlib.sha256(content).hexdigest(),
            "lines": [[lines.start, lines.stop]],
            "usage": [[idx, "completed", 7, 5, 0, 1, False] for idx in lines],
            "counters": {"busy_ms": 2000, "requests": len(lines)},
            **changes,
        }
        return await self.server.call(
            "POST",
            f"/worker/v1/shards/{lease['shard_id']}/deliveries",
            key=token or self.token,
            data=json.dumps(body).encode() + b"\n" + content,
            headers={"Content-Type": "application/vnd.compute-broker.part"},
        )

    async def work(
        self, lease: dict[str, Any], lines: range, seq: int = 0, *, failed: Collection[int] = (), **changes: Any
    ) -> Any:
        """Answer lines, store the part, commit it."""
        content = part_bytes(lines, failed)
        target = (await self.part(lease, content, seq)).json
        assert (await self.put(target, content)).status == 201
        usage = [[idx, "failed" if idx in failed else "completed", 7, 5, 0, 1, False] for idx in lines]
        return await self.commit(lease, target, content, lines, seq, usage=usage, **changes)


def part_bytes(lines: range, failed: Collection[int] = ()) -> bytes:
    rows = []
    for idx in lines:
        line: dict[str, Any] = {"custom_id": f"line-{idx}", "response": None, "error": None}
        if idx in failed:
            line["error"] = {"code": "context_length_exceeded", "message": f"line {idx} is too long for the model"}
        else:
            line["response"] = {"status_code": 200, "request_id": f"r{idx}", "body": {"id": f"c{idx}"}}
        rows.append(json.dumps({"idx": idx, "status": "failed" if idx in failed else "completed", "line": line}) + "\n")
    return gzip.compress("".join(rows).encode(), mtime=0)


Rent = Callable[..., Awaitable[Agent]]


async def confirm(server: Any, agent: Agent, of: Offer, *, ended: bool = False) -> None:
    now = datetime.now(UTC)
    seen = Rental(
        tag=agent.rental,
        offer_key=of.key,
        state="ended" if ended else "running",
        price=Decimal("0.05"),
        currency="USD",
        started_at=now,
        ended_at=now if ended else None,
        seen_at=now,
        end_reason="preempted" if ended else None,
    )
    async with server.services.database.transaction() as session:
        await rentals.observe(session, seen, now_us=await db_now(session))


async def running_batch(server: Any, of: Offer, *, lines: int = 4, rank: int = 0, **wishes: Any) -> str:
    """A batch that is in progress and assigned to an offer, as validate and plan loops leave it."""
    batch = await server.new_batch(lines=lines, x_broker={"on_infeasible": "queue", **wishes})
    async with server.services.database.transaction() as session:
        key = (await session.get_one(Batch, batch["id"])).input_key
    found = await validate_file(server.services, "default", key, "/v1/chat/completions")
    async with server.services.database.transaction() as session:
        await batches.begin(session, batch["id"], found)
        session.add(
            Assignment(
                batch=batch["id"], offer_key=str(of.key), plan="p", rank=rank, cost_nano=0, end_us=batch["expires_at"]
            )
        )
    return str(batch["id"])


def conforms(name: str, document: Any) -> None:
    jsonschema.Draft202012Validator(json.loads((SCHEMAS / f"{name}.json").read_text())).validate(document)


async def worker_row(server: Any, agent: Agent) -> Worker:
    async with server.services.database.transaction() as session:
        return await session.get_one(Worker, agent.rental)
