"""How many agents one broker serves on PostgreSQL: 500 that lease shards and commit parts over HTTP, as real ones do.

The brokers are processes of `broker serve`; the agents are the real one's wire, identity and parts in this process,
without engines. What is measured: latency of leases and of parts (from the agent's first byte until it knows that the part
counts) while each agent commits every `--pace` seconds (a real one: 30), then commits a second when all of them commit as
fast as they are answered. `raw` are transactions of the same shape (the same rows, locks and bytes) by psycopg alone, each
for itself, as many at a time as the broker has connections. Then two brokers instead of one.
"""

from __future__ import annotations

import argparse
import asyncio
import gzip
import hashlib
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import aiohttp
import psutil
import psycopg
import uvloop
from psycopg.types.json import Jsonb

from benchmarks.calibrate import calibrate
from broker.api.batches import store_policy
from broker.cli import logs
from broker.control.place import await_worker
from broker.database import Database
from broker.migrate import upgrade
from broker.tables import Assignment
from jobs import batches, files, ids
from jobs.clock import db_now
from jobs.types import ShardSpec, Validation
from markets import rentals
from markets.market import Rental
from markets.offer import Accelerator, Evidence, Offer, OfferKey
from solver.residency import compile_countries
from tests.support.postgres_server import PostgresServer, postgres_server
from workers.agent.failpoints import Failpoints
from workers.agent.identity import Identity
from workers.agent.leases import HeldLease
from workers.agent.parts import Part, Parts
from workers.agent.pool import Pool
from workers.agent.spec import Welcome
from workers.agent.wire import NotNow, Wire

ROOT = Path(__file__).resolve().parents[1]
MODEL = "bench"
BATCHES = 10
CONNECTIONS = 30
PARTS_A_SHARD = 400

SETTINGS = """
markets = []
database_url = "{url}"

[database]
pool_size = {connections}
pool_overflow = 0
leader_patience_s = 120

[control]
poll_s = 3600
plan_s = 3600
reconcile_s = 3600
accrue_s = 3600

[jobs]
lease_ttl_s = 3600

[models.{model}]
engine = "url"
base_url = "http://127.0.0.1:9"
"""


class CountingWire(Wire):
    """The agent's own, which also counts how often it was told to ask again."""

    refused = 0

    async def _ask(self, *arguments: Any) -> Any:
        try:
            return await super()._ask(*arguments)
        except NotNow:
            self.refused += 1
            raise


@dataclass
class Agent:
    """A worker: the agent's own wire, identity and parts, without an engine."""

    http: aiohttp.ClientSession
    url: str
    rental: str
    bootstrap: str
    lines: int
    lease_s: list[float] = field(default_factory=list)
    commit_s: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.wire = CountingWire(self.http, self.url, self.bootstrap)

    async def begin(self) -> None:
        identity = Identity(wants_certificate=False, broker_ca=None)
        facts = {
            "rental_id": self.rental, "pubkey": identity.pubkey, "agent_version": "1", "hostname": "here", "pid": 1,
            "cpu_count": 2, "memory_mib": 100, "disk_free_mib": 100, "accelerators": [], "driver": None, "evidence": {},
        }  # fmt: skip
        answer = await self.wire.hello(facts | await identity.introduction())
        self.wire.use_token(answer["token"])
        _, prover = identity.adopt(answer)
        if prover is not None:
            self.wire.use_proof(prover)
        state = {"state": "ready", "leases": [], "metrics": {}, "notice_in_s": None, "error": None}
        await self.wire.heartbeat(state)
        began = time.monotonic()
        self.lease = HeldLease.from_wire(lease := (await self.wire.lease(0))["lease"], began)
        self.lease_s.append(time.monotonic() - began)
        self.first = lease["first_idx"]
        self.parts = Parts(
            self.wire, Pool(3), Welcome.from_wire(answer).part, Failpoints(), Counter(), on_change=_nothing, on_let_go=_nothing
        )  # fmt: skip

    async def commit(self) -> None:
        """One part, by the agent's own code. What is timed is all of it: until it counts."""
        seq, self.lease.next_seq = self.lease.next_seq, self.lease.next_seq + 1
        first = self.first + seq * self.lines
        content = gzip.compress(f"{self.rental} {seq}".encode() * self.lines, mtime=0)
        usage = [[idx, "completed", 40, 60, 0, 1, False] for idx in range(first, first + self.lines)]
        part = Part(content, hashlib.sha256(content).hexdigest(), [[first, first + self.lines]], usage)
        began = time.monotonic()
        answer = await self.parts._deliver(self.lease, seq, part, Counter(busy_ms=2000, requests=self.lines))
        self.commit_s.append(time.monotonic() - began)
        assert answer["outcome"] == "committed", answer


def _nothing() -> None:
    """Nobody waits for these agents' changes."""


async def measure(asked: argparse.Namespace) -> dict[str, Any]:
    calibration = calibrate()
    found: dict[str, Any] = {"agents": asked.agents, "lines_a_part": asked.lines, "pace_s": asked.pace}
    for brokers in asked.brokers:
        with postgres_server() as server, tempfile.TemporaryDirectory() as folder:
            found[f"brokers_{brokers}"] = await _with(Path(folder), server, brokers, asked)
    rates = [found[f"brokers_{brokers}"]["commits_per_s"] for brokers in asked.brokers]
    if len(rates) == 2:
        found["two_beside_one"] = round(rates[1] / rates[0], 2)
    return found | {"calibration": {name: round(value, 4) for name, value in calibration.items()}}


async def _with(folder: Path, server: PostgresServer, brokers: int, asked: argparse.Namespace) -> dict[str, Any]:
    url = server.url()
    await upgrade(Database(url).url)
    with _serving(folder, url, brokers) as served:
        # afterwards: the loops' first round would give up machines of a market that nobody has configured
        await _until_ready(served)
        agents = await _set_up(Database(url), asked)
        async with AsyncExitStack() as stack:
            connector = aiohttp.TCPConnector(limit=0)
            patience = aiohttp.ClientTimeout(total=300)
            http = await stack.enter_async_context(aiohttp.ClientSession(connector=connector, timeout=patience))
            working = [
                Agent(http, served[number % brokers][0], rental, token, asked.lines)
                for number, (rental, token) in enumerate(agents)
            ]
            at_once = asyncio.Semaphore(50)
            await asyncio.gather(*(_within(at_once, agent.begin) for agent in working))
            paced = await _paced(working, served, asked)
            fast = await _saturated(working, served, asked.seconds)
    raw_per_s = await _raw(url, asked)
    lease_s = [each for agent in working for each in agent.lease_s]
    return {
        "lease_ms_50_at_once": _percentiles(lease_s),
        "refused_for_the_moment": sum(agent.wire.refused for agent in working),
        "paced": paced,
        **fast,
        "raw_transactions_per_s": round(raw_per_s, 1),
        "ratio": round(fast["commits_per_s"] / raw_per_s, 3),
    }


async def _until_ready(served: list[tuple[str, int]]) -> None:
    async with aiohttp.ClientSession() as http, asyncio.timeout(120):
        for url, _ in served:
            while True:
                async with http.get(f"{url}/readyz") as answer:
                    if answer.status == 200:
                        break
                await asyncio.sleep(0.1)


async def _within(at_once: asyncio.Semaphore, work: Callable[[], Awaitable[None]]) -> None:
    async with at_once:
        await work()


async def _paced(working: list[Agent], served: list[tuple[str, int]], asked: argparse.Namespace) -> dict[str, Any]:
    """Each agent commits every `pace` seconds, spread over that time, and leases nothing new."""
    for agent in working:
        agent.commit_s.clear()
    usage, began = _cpu(served), time.monotonic()

    async def work(number: int, agent: Agent) -> None:
        await asyncio.sleep(asked.pace * number / len(working))
        for round_ in range(asked.rounds):
            due = began + asked.pace * (round_ + number / len(working))
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            await agent.commit()

    await asyncio.gather(*(work(number, agent) for number, agent in enumerate(working)))
    spent_s, took_s = _cpu(served) - usage, time.monotonic() - began
    commits = [each for agent in working for each in agent.commit_s]
    return {
        "commits_per_s": round(len(commits) / took_s, 1),
        "commit_ms": _percentiles(commits),
        "cpu_of_a_core": round(spent_s / took_s, 3),
        "cpu_ms_a_commit": round(spent_s / len(commits) * 1000, 2),
        "rss_mib": [round(psutil.Process(pid).memory_info().rss / 2**20) for _, pid in served],
    }


async def _saturated(working: list[Agent], served: list[tuple[str, int]], seconds: float) -> dict[str, Any]:
    for agent in working:
        agent.commit_s.clear()
    usage, began, others = _cpu(served), time.monotonic(), (_own_cpu(), _postgres_cpu())

    async def work(agent: Agent) -> None:
        while time.monotonic() < began + seconds and agent.lease.next_seq < PARTS_A_SHARD:
            await agent.commit()

    await asyncio.gather(*map(work, working))
    spent_s, took_s = _cpu(served) - usage, time.monotonic() - began
    commits = [each for agent in working for each in agent.commit_s]
    per_commit = 1000 / len(commits)
    return {
        "commits_per_s": round(len(commits) / took_s, 1),
        "cpu_ms_a_commit_saturated": round(spent_s * per_commit, 2),
        "agents_cpu_ms_a_commit": round((_own_cpu() - others[0]) * per_commit, 2),
        "postgres_cpu_ms_a_commit": round((_postgres_cpu() - others[1]) * per_commit, 2),
    }


def _percentiles(seconds: list[float]) -> dict[str, float]:
    cuts = statistics.quantiles(seconds, n=100)
    return {"p50": round(cuts[49] * 1000, 1), "p99": round(cuts[98] * 1000, 1)}


def _own_cpu() -> float:
    times = psutil.Process().cpu_times()
    return times.user + times.system


def _postgres_cpu() -> float:
    """Of the server's processes that live; connections last as long as what is measured."""
    found = [each for each in psutil.Process().children(recursive=True) if each.name().startswith("postgres")]
    return sum(each.cpu_times().user + each.cpu_times().system for each in found)


def _cpu(served: list[tuple[str, int]]) -> float:
    times = [psutil.Process(pid).cpu_times() for _, pid in served]
    return sum(each.user + each.system for each in times)


@contextmanager
def _serving(folder: Path, url: str, count: int) -> Iterator[list[tuple[str, int]]]:
    """(URL, pid) of each broker."""
    (folder / "objects").mkdir()
    running: list[subprocess.Popen[bytes]] = []
    try:
        urls = []
        for number in range(count):
            data = folder / str(number)
            data.mkdir()
            (data / "objects").symlink_to(folder / "objects")
            kek = data / "kek"  # one for all, as an operator copies it
            kek.write_bytes(b"k" * 32)
            kek.chmod(0o600)
            (data / "broker.toml").write_text(SETTINGS.format(url=url, model=MODEL, connections=CONNECTIONS // count))
            with socket.create_server(("127.0.0.1", 0)) as free:
                port = free.getsockname()[1]
            command = [sys.executable, "-m", "broker", "serve", "--data", str(data), "--port", str(port)]
            environment = {name: value for name, value in os.environ.items() if not name.startswith("BROKER_")}
            with (data / "log").open("wb") as log:
                process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=log)
            running.append(process)
            assert process.stdout is not None
            first = process.stdout.readline()
            assert first, (data / "log").read_text()[-2000:]
            urls.append(json.loads(first)["url"])
        yield [(url, process.pid) for url, process in zip(urls, running, strict=True)]
    finally:
        for process in running:
            process.terminate()
            process.wait(60)


async def _set_up(database: Database, asked: argparse.Namespace) -> list[tuple[str, str]]:
    """Batches in progress with a shard for each agent, and rentals as the place loop leaves them: (rental, token)."""
    of = _offer()
    async with database.transaction() as session:
        policy_hash = await store_policy(session, compile_countries(["DE"]), await db_now(session))
    for _ in range(BATCHES):
        await _batch(database, of, policy_hash, -(-asked.agents // BATCHES), asked.lines * PARTS_A_SHARD)
    made = []
    for number in range(asked.agents):
        rental, token = f"rental_{number}", f"{number:064d}"
        async with database.transaction() as session:
            now_us = await db_now(session)
            await rentals.record_intent(
                session, rental_id=rental, offer=of, project="default", model=MODEL, precision="auto", purpose={}, now_us=now_us
            )  # fmt: skip
            await rentals.mark_creating(session, rental, now_us=now_us)
            await await_worker(session, rental, token, now_us)
            await rentals.observe(session, _running(rental, of), now_us=now_us)
        made.append((rental, token))
    await database.close()
    return made


async def _batch(database: Database, of: Offer, policy_hash: str, shards: int, lines: int) -> None:
    batch_id, file_id = ids.batch_id(), ids.file_id()
    specs = tuple(
        ShardSpec(
            index=index, first_idx=index * lines, lines=lines, start=index, stop=index + 1, sha256="0" * 64,
            input_tokens=lines, output_tokens=lines,
        )
        for index in range(shards)
    )  # fmt: skip
    found = Validation(
        findings=(), findings_total=0, model=MODEL, endpoint="/v1/chat/completions", lines=shards * lines,
        input_tokens=shards * lines, output_tokens=shards * lines, shards=specs,
    )  # fmt: skip
    async with database.transaction() as session:
        await files.create(
            session, file_id=file_id, project="default", purpose="batch", filename="in.jsonl", size=1, sha256="0" * 64,
            object_key=f"default/files/{file_id}",
        )  # fmt: skip
        new = batches.NewBatch(
            id=batch_id, project="default", principal="bench", input_file_id=file_id, endpoint="/v1/chat/completions",
            completion_window="24h", policy_hash=policy_hash,
        )  # fmt: skip
        await batches.create(session, new)
        await batches.begin(session, batch_id, found)
        session.add(Assignment(batch=batch_id, offer_key=str(of.key), plan="plan_x", rank=0, cost_nano=0, end_us=0))


def _offer() -> Offer:
    now = datetime.now(UTC)
    return Offer(
        key=OfferKey("bench", None, None, "one", "cpu", 0, "on_demand"), launch="process", accelerator=Accelerator(),
        currency="USD", price=Decimal("3.60"), observed_at=now, source="bench", raw_sha256="0" * 64, country="DE",
        evidence=(Evidence("provider_api", "bench", now, timedelta(days=1)),), location_tier="named_datacenter",
    )  # fmt: skip


def _running(rental: str, of: Offer) -> Rental:
    now = datetime.now(UTC)
    return Rental(
        tag=rental, offer_key=of.key, state="running", price=Decimal("3.60"), currency="USD", started_at=now,
        ended_at=None, seen_at=now,
    )  # fmt: skip


RAW = (
    "SELECT id FROM raw_batch WHERE id = %(batch)s FOR UPDATE",
    "SELECT id, done FROM raw_shard WHERE id = %(shard)s FOR UPDATE",
    "SELECT sha256 FROM raw_part WHERE shard = %(shard)s AND seq = %(seq)s",
    "INSERT INTO raw_part (shard, seq, key, size, sha256, lines, usage, counters) VALUES"
    " (%(shard)s, %(seq)s, %(key)s, 1, %(key)s, %(lines)s, %(usage)s, %(lines)s)",
    "UPDATE raw_shard SET done = %(lines)s WHERE id = %(shard)s",
    "UPDATE raw_batch SET completed = completed + 1 WHERE id = %(batch)s",
    "INSERT INTO raw_event (batch, payload) VALUES (%(batch)s, %(lines)s)",
)
RAW_TABLES = """
    CREATE TABLE raw_batch (id text PRIMARY KEY, completed bigint DEFAULT 0);
    CREATE TABLE raw_shard (id text PRIMARY KEY, done jsonb);
    CREATE TABLE raw_part (shard text, seq int, key text, size bigint, sha256 text, lines jsonb, usage bytea,
        counters jsonb, PRIMARY KEY (shard, seq));
    CREATE TABLE raw_event (id bigserial PRIMARY KEY, batch text, payload jsonb);
"""


async def _raw(url: str, asked: argparse.Namespace) -> float:
    """Transactions a second: the locks, the part with its usage, the bitmap, the counts, the event."""
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
        await connection.execute(RAW_TABLES)
        for number in range(BATCHES):
            await connection.execute("INSERT INTO raw_batch VALUES (%s)", (str(number),))
        for number in range(CONNECTIONS):
            await connection.execute("INSERT INTO raw_shard VALUES (%s, '[]')", (str(number),))
    usage = json.dumps([[idx, "completed", 40, 60, 0, 1, False] for idx in range(asked.lines)]).encode()
    began = time.monotonic()

    async def work(number: int) -> int:
        done = 0
        async with await psycopg.AsyncConnection.connect(url) as connection:
            while time.monotonic() < began + asked.seconds:
                values = {
                    "batch": str(number % BATCHES), "shard": str(number), "seq": done, "key": f"{number}/{done}" * 8,
                    "lines": Jsonb([[done * asked.lines, (done + 1) * asked.lines]]), "usage": usage,
                }  # fmt: skip
                async with connection.transaction():
                    for statement in RAW:
                        await connection.execute(statement, values)
                done += 1
        return done

    done = await asyncio.gather(*map(work, range(CONNECTIONS)))
    return sum(done) / (time.monotonic() - began)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--agents", type=int, default=500)
    parser.add_argument("--brokers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--lines", type=int, default=200, help="of a part")
    parser.add_argument("--pace", type=float, default=30, help="seconds between an agent's commits")
    parser.add_argument("--rounds", type=int, default=2, help="commits of each agent at that pace")
    parser.add_argument("--seconds", type=float, default=20, help="of committing as fast as possible")
    parser.add_argument("--json", action="store_true", help="one JSON object (the only form there is)")
    logs.configure("warning")  # standard output is for the one object
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:  # as the agent does
        print(json.dumps(runner.run(measure(parser.parse_args()))))
