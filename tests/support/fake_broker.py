"""`/worker/v1` in memory, for tests of the agent: leases with epochs, parts, commits, and faults to order.

Every request and every answer is validated against the JSON Schemas beside the agent; a request that does not fit is
kept in `violations`, which `close` raises. The rules of a commit are those of jobs.types.CommitAnswer.
"""

from __future__ import annotations

import asyncio
import base64
import gzip
import hashlib
import json
import secrets
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aiohttp import web
from jsonschema import Draft202012Validator

from workers.agent import sealing

# What comes along with the segments of a shard.
NEIGHBOUR = b'{"custom_id": "another shard\'s"}\n' * 40
DELIVERY_TYPE = "application/vnd.compute-broker.part"
_SCHEMAS = Path(__file__).parents[2] / "workers" / "agent" / "schemas"
_VALIDATORS = {
    path.name.removesuffix(".json"): Draft202012Validator(json.loads(path.read_text()))
    for path in _SCHEMAS.glob("*.json")
}


def schema_errors(name: str, value: object) -> list[str]:
    """What of `value` does not fit the schema `name` ("commit.request")."""
    return [f"{name}: {error.json_path}: {error.message}" for error in _VALIDATORS[name].iter_errors(value)]


def request_line(custom_id: str, prompt: str, **body: object) -> dict[str, Any]:
    """One line of an input file."""
    message = {"model": "scripted", "messages": [{"role": "user", "content": prompt}], "max_tokens": 8, **body}
    return {"custom_id": custom_id, "method": "POST", "url": "/v1/chat/completions", "body": message}


@dataclass
class Shard:
    """`first_idx` and the bytes; `epoch` grows with each lease; `done` maps line number → its part's line."""

    shard_id: str
    first_idx: int
    content: bytes
    lines: int
    endpoint: str = "/v1/chat/completions"
    epoch: int = 0
    nonce: str = ""
    holder: str | None = None
    expires_at: float = 0.0
    suspects: dict[str, int] = field(default_factory=dict)
    in_flight: list[int] = field(default_factory=list)
    done: dict[int, dict[str, Any]] = field(default_factory=dict)
    usage: dict[int, list[Any]] = field(default_factory=dict)
    answers: dict[tuple[int, int], tuple[str, dict[str, Any]]] = field(default_factory=dict)
    nonces: dict[int, str] = field(default_factory=dict)

    @property
    def is_done(self) -> bool:
        return len(self.done) == self.lines


@dataclass(eq=False)
class FakeBroker:
    """Start it with `async with`. `faults[call]` holds what the next calls of that name get instead of an answer:

    a status (an error answer), "drop" (processed, the connection closed before the answer), "refuse" (closed
    without processing), "hang" (neither answered nor closed), or, "answer", none. With a `seal_key` inputs and parts are sealed.

    `hooks[call]` is called once, when the next call of that name arrives. Calls: hello heartbeat
    lease input target put commit delivery goodbye. While `is_away`, all get 503.
    """

    engine: dict[str, Any]
    lease_ttl_s: float = 30.0
    heartbeat_s: float = 0.2
    part: dict[str, Any] = field(default_factory=lambda: {"lines": 5, "seconds": 0.5, "bytes": 1_000_000})
    max_attempts: int = 3
    lease_model: str | None = None
    lease_concurrency: int | None = None
    seal_key: bytes | None = None
    rotate_tokens: bool = False
    stop_when_done: bool = True
    shards: dict[str, Shard] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)
    faults: dict[str, list[int | str]] = field(default_factory=dict)
    hooks: dict[str, Callable[[], None]] = field(default_factory=dict)
    calls: Counter[str] = field(default_factory=Counter)
    outcomes: Counter[str] = field(default_factory=Counter)
    counters: Counter[str] = field(default_factory=Counter)
    hellos: list[dict[str, Any]] = field(default_factory=list)
    heartbeats: list[dict[str, Any]] = field(default_factory=list)
    goodbyes: list[dict[str, Any]] = field(default_factory=list)
    commits: list[dict[str, Any]] = field(default_factory=list)
    violations: list[str] = field(default_factory=list)
    tokens: dict[str, str] = field(default_factory=dict)
    workers: dict[str, str] = field(default_factory=dict)
    drain: bool = False
    drain_in_s: float | None = None
    revoked: set[str] = field(default_factory=set)
    is_away: bool = False
    is_terminal: bool = False
    url: str = ""

    async def __aenter__(self) -> FakeBroker:
        application = web.Application(client_max_size=1 << 30)
        application.add_routes(
            [
                web.post("/worker/v1/hello", self._guarded("hello", self._hello)),
                web.post("/worker/v1/heartbeat", self._guarded("heartbeat", self._heartbeat)),
                web.post("/worker/v1/leases", self._guarded("lease", self._lease)),
                web.get("/worker/v1/shards/{shard}/input", self._guarded("input", self._input)),
                web.post("/worker/v1/shards/{shard}/parts", self._guarded("target", self._target)),
                web.put("/objects/{key:.+}", self._guarded("put", self._put)),
                web.post("/worker/v1/shards/{shard}/commits", self._guarded("commit", self._commit)),
                web.post("/worker/v1/shards/{shard}/deliveries", self._guarded("delivery", self._delivery)),
                web.post("/worker/v1/goodbye", self._guarded("goodbye", self._goodbye)),
            ]
        )
        self._runner = web.AppRunner(application, shutdown_timeout=0.1, handler_cancellation=True)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._runner.cleanup()
        assert not self.violations, "the agent broke the wire contract:\n" + "\n".join(self.violations)

    # -- what a test says and asks ------------------------------------------------------------------------------------

    def expect_worker(self, rental_id: str = "rental_1") -> str:
        """A machine will come up; its bootstrap token."""
        token = f"boot-{secrets.token_hex(8)}"
        self.tokens[token] = rental_id
        return token

    def add_shard(
        self, lines: list[dict[str, Any]], *, first_idx: int = 0, suspects: dict[int, int] | None = None
    ) -> Shard:
        content = b"".join(json.dumps(line).encode() + b"\n" for line in lines)
        shard = Shard(f"shard_{len(self.shards)}", first_idx, content, len(lines), endpoint=lines[0]["url"])
        shard.suspects = {str(idx): attempts for idx, attempts in (suspects or {}).items()}
        self.shards[shard.shard_id] = shard
        return shard

    def expire_leases(self) -> None:
        """As if the broker's clock had passed the end of every lease; lines in flight become suspects."""
        for shard in self.shards.values():
            if shard.holder is not None:
                shard.expires_at = 0.0
                for idx in shard.in_flight:
                    if idx not in shard.done:
                        shard.suspects[str(idx)] = shard.suspects.get(str(idx), 0) + 1
                shard.in_flight = []

    @property
    def is_done(self) -> bool:
        return all(shard.is_done for shard in self.shards.values())

    @property
    def done(self) -> dict[int, dict[str, Any]]:
        """Line number → part line, of all shards."""
        return {idx: line for shard in self.shards.values() for idx, line in shard.done.items()}

    @property
    def usage(self) -> dict[int, list[Any]]:
        return {idx: row for shard in self.shards.values() for idx, row in shard.usage.items()}

    def holds(self, shard: Shard, holder: str | None) -> bool:
        return shard.holder is not None and shard.holder == holder and time.monotonic() < shard.expires_at

    # -- the wire -----------------------------------------------------------------------------------------------------

    def _guarded(self, call: str, handler: Callable[[web.Request], Any]) -> Callable[[web.Request], Any]:
        async def answer(request: web.Request) -> web.StreamResponse:
            self.calls[call] += 1
            self.hooks.pop(call, lambda: None)()
            if self.is_away:
                return _error(503, "away")
            pending = self.faults.get(call)
            fault = pending.pop(0) if pending else None
            if isinstance(fault, int):
                return _error(fault, "ordered by the test")
            if fault == "refuse":
                _cut(request)
            if fault == "hang":
                await asyncio.get_running_loop().create_future()  # until the agent hangs up
            response: web.StreamResponse = await handler(request)
            if fault == "drop":
                _cut(request)
            return response

        return answer

    async def _read(self, request: web.Request, schema: str) -> dict[str, Any]:
        value = await request.json()
        errors = schema_errors(schema, value)
        self.violations += errors
        if errors:
            raise web.HTTPBadRequest(text="; ".join(errors))
        return dict(value)

    def _write(self, schema: str, value: dict[str, Any]) -> web.Response:
        errors = schema_errors(schema, value)
        assert not errors, f"the fake broker itself broke the contract: {errors}"
        return web.json_response(value)

    def _worker(self, request: web.Request) -> str:
        token = request.headers.get("Authorization", "").removeprefix("Bearer ")
        rental = self.tokens.get(token)
        if rental is None or rental in self.revoked:
            raise web.HTTPUnauthorized(text='{"error": {"message": "token"}}')
        return rental

    async def _hello(self, request: web.Request) -> web.StreamResponse:
        rental = self._worker(request)
        hello = await self._read(request, "hello.request")
        if self.workers.setdefault(rental, hello["pubkey"]) != hello["pubkey"]:
            return _error(422, "another process is this worker")
        self.hellos.append(hello)
        token = f"tok-{secrets.token_hex(8)}"
        self.tokens[token] = rental
        return self._write(
            "hello.response",
            {
                "worker_id": f"worker-{rental}",
                "token": token,
                "token_ttl_s": 600,
                "heartbeat_s": self.heartbeat_s,
                "engine": self.engine,
                "part": self.part,
                "max_attempts": self.max_attempts,
            },
        )

    async def _heartbeat(self, request: web.Request) -> web.StreamResponse:
        rental = self._worker(request)
        beat = await self._read(request, "heartbeat.request")
        self.heartbeats.append(beat)
        lost = []
        for claim in beat["leases"]:
            shard = self.shards[claim["shard_id"]]
            if self.holds(shard, rental) and shard.epoch == claim["epoch"]:
                shard.expires_at = time.monotonic() + self.lease_ttl_s
                shard.in_flight = claim["in_flight"]
                for idx, attempts in claim["suspects"].items():
                    shard.suspects[idx] = max(attempts, shard.suspects.get(idx, 0))
            else:
                lost.append(claim["shard_id"])
        token = None
        if self.rotate_tokens:
            token = f"tok-{secrets.token_hex(8)}"
            self.tokens[token] = rental
            # a call that is under way may still carry the one before: like real ones, old tokens live on for a while
            for old in [name for name, of in self.tokens.items() if of == rental and name.startswith("tok")][:-4]:
                del self.tokens[old]
        return self._write(
            "heartbeat.response",
            {"token": token, "token_ttl_s": 600, "drain": self.drain, "drain_in_s": self.drain_in_s, "lost": lost},
        )

    async def _lease(self, request: web.Request) -> web.StreamResponse:
        rental = self._worker(request)
        wait_s = (await self._read(request, "lease.request"))["wait_s"]
        deadline = time.monotonic() + min(wait_s, 1.0)
        while True:
            for shard in self.shards.values():
                if not shard.is_done and (shard.holder is None or time.monotonic() >= shard.expires_at):
                    return self._write("lease.response", {"lease": self._grant(shard, rental), "stop": False})
            if self.stop_when_done and self.is_done:
                return self._write("lease.response", {"lease": None, "stop": True})
            if time.monotonic() >= deadline:
                return self._write("lease.response", {"lease": None, "stop": False})
            await asyncio.sleep(0.02)

    def _grant(self, shard: Shard, rental: str) -> dict[str, Any]:
        shard.epoch += 1
        shard.nonce = secrets.token_hex(4)
        shard.nonces[shard.epoch] = shard.nonce
        shard.holder = rental
        shard.expires_at = time.monotonic() + self.lease_ttl_s
        seal = {} if self.seal_key is None else {"seal": self._seal(shard)}
        return seal | {
            "shard_id": shard.shard_id,
            "batch_id": "batch_1",
            "epoch": shard.epoch,
            "nonce": shard.nonce,
            "ttl_s": self.lease_ttl_s,
            "endpoint": shard.endpoint,
            "input_get": f"/worker/v1/shards/{shard.shard_id}/input",
            "input_headers": {"Range": "bytes=0-"},
            "input_sha256": hashlib.sha256(shard.content).hexdigest(),
            "first_idx": shard.first_idx,
            "lines": shard.lines,
            "part_put": f"/worker/v1/shards/{shard.shard_id}/parts",
            "done": _ranges(shard.done),
            "suspects": {idx: n for idx, n in shard.suspects.items() if int(idx) not in shard.done},
            "model": self.lease_model,
            "concurrency": self.lease_concurrency,
            "part_lines": None,
        }

    async def _input(self, request: web.Request) -> web.StreamResponse:
        self._worker(request)
        if request.headers.get("Range") != "bytes=0-":
            self.violations.append(f"GET {request.path} without the headers of its lease")
        shard = self.shards[request.match_info["shard"]]
        return web.Response(body=shard.content if self.seal_key is None else self.sealed_input(shard)[sealing.HEADER :])

    def sealed_input(self, shard: Shard) -> bytes:
        """The shard amid its neighbours, sealed once."""
        assert self.seal_key is not None
        plain = NEIGHBOUR + shard.content + NEIGHBOUR
        return self.objects.setdefault(f"in/{shard.shard_id}", sealing.seal(self.seal_key, shard.shard_id, plain))

    def _seal(self, shard: Shard) -> dict[str, Any]:
        """The seal of a lease."""
        assert self.seal_key is not None
        sealed = self.sealed_input(shard)
        of_object = sealing.object_key(self.seal_key, sealed[: sealing.HEADER], shard.shard_id)
        count = -(-sealing.plain_size(len(sealed)) // sealing.SEGMENT)
        keys = b"".join(sealing.segment_key(of_object, number) for number in range(count))
        return {
            "input": {
                "keys": base64.b64encode(keys).decode(),
                "context": shard.shard_id,
                "first": 0,
                "is_end": True,
                "skip": len(NEIGHBOUR),
                "length": len(shard.content),
            },
            "part": {
                "key": base64.b64encode(self.lease_key(shard, shard.epoch)).decode(),
                "context": f"{shard.shard_id}/{shard.epoch}",
            },
        }

    def lease_key(self, shard: Shard, epoch: int) -> bytes:
        """What the parts of one lease are sealed with."""
        assert self.seal_key is not None
        return sealing.hkdf(self.seal_key, b"", f"{shard.shard_id}/{epoch}".encode())

    def _opened(self, shard: Shard, commit: dict[str, Any], content: bytes) -> bytes:
        if self.seal_key is None:
            return content
        context = f"{shard.shard_id}/{commit['epoch']}-{commit['seq']}"
        return sealing.opened(self.lease_key(shard, commit["epoch"]), context, content)

    async def _target(self, request: web.Request) -> web.StreamResponse:
        self._worker(request)
        part = await self._read(request, "part.request")
        key = f"out/{request.match_info['shard']}/{part['epoch']}-{part['seq']}-{part['sha256'][:16]}.jsonl.gz"
        target = {"key": key, "put_url": f"{self.url}/objects/{key}", "headers": {"If-None-Match": "*"}}
        return self._write("part.response", target)

    async def _put(self, request: web.Request) -> web.StreamResponse:
        key = request.match_info["key"]
        if request.headers.get("If-None-Match") != "*":
            self.violations.append(f"PUT {key} without the headers of its target")
        content = await request.read()
        if key in self.objects:
            return web.Response(status=412)
        self.objects[key] = content
        return web.Response(status=201)

    async def _goodbye(self, request: web.Request) -> web.StreamResponse:
        rental = self._worker(request)
        self.goodbyes.append(await self._read(request, "goodbye.request"))
        for shard in self.shards.values():
            if shard.holder == rental:
                shard.holder = None
        return web.Response(status=204)

    async def _commit(self, request: web.Request) -> web.StreamResponse:
        rental = self._worker(request)
        return self._outcome(request, await self._read(request, "commit.request"), rental)

    async def _delivery(self, request: web.Request) -> web.StreamResponse:
        """Part and commit at once, where the welcome offers it (`part["delivered_bytes"]`)."""
        rental = self._worker(request)
        head, _, content = (await request.read()).partition(b"\n")
        commit = json.loads(head)
        self.violations += schema_errors("delivery.request", commit)
        if len(content) > self.part.get("delivered_bytes", 0) or request.content_type != DELIVERY_TYPE:
            self.violations.append(f"a delivery of {len(content)} bytes as {request.content_type}")
        shard_id = request.match_info["shard"]
        key = f"out/{shard_id}/{commit['epoch']}-{commit['seq']}-{commit['sha256'][:16]}.jsonl.gz"
        self.objects.setdefault(key, content)
        return self._outcome(request, commit | {"key": key}, rental)

    def _outcome(self, request: web.Request, commit: dict[str, Any], rental: str) -> web.StreamResponse:
        shard = self.shards[request.match_info["shard"]]
        answer = self._decide(shard, commit, rental)
        self.outcomes[answer["outcome"]] += 1
        self.commits.append(commit | {"shard_id": shard.shard_id, "outcome": answer["outcome"], "rental": rental})
        return self._write("commit.response", answer)

    def _decide(self, shard: Shard, commit: dict[str, Any], rental: str) -> dict[str, Any]:
        place = (commit["epoch"], commit["seq"])

        def answer(outcome: str, message: str | None = None, before: str | None = None) -> dict[str, Any]:
            return {
                "outcome": outcome,
                "done": _ranges(shard.done),
                "shard_done": shard.is_done,
                "lease_lost": not (self.holds(shard, rental) and shard.epoch == commit["epoch"]),
                "outcome_before": before,
                "message": message,
            }

        if place in shard.answers:
            sha256, before = shard.answers[place]
            if sha256 != commit["sha256"]:
                return answer("rejected_conflict")
            return answer("replayed", before=before["outcome"])
        if self.is_terminal:
            return answer("rejected_terminal")
        problem = self._problem(shard, commit)
        if problem is not None:
            self.violations.append(problem)
            return answer("rejected_invalid", problem)
        numbers = [idx for start, stop in commit["lines"] for idx in range(start, stop)]
        if any(idx in shard.done for idx in numbers):
            result = answer("rejected_overlap")
        else:
            superseded = not (self.holds(shard, rental) and shard.epoch == commit["epoch"])
            for line in _part_lines(self._opened(shard, commit, self.objects[commit["key"]])):
                shard.done[line["idx"]] = line
            for row in commit["usage"]:
                shard.usage[row[0]] = row
            self.counters.update(commit["counters"])
            result = answer("committed_superseded" if superseded else "committed")
        shard.answers[place] = (commit["sha256"], result)
        return result

    def _problem(self, shard: Shard, commit: dict[str, Any]) -> str | None:
        """What is false in a commit: it claims to describe an object that is really there."""
        if shard.nonces.get(commit["epoch"]) != commit["nonce"]:
            return f"commit of epoch {commit['epoch']} with a nonce that is not its own"
        content = self.objects.get(commit["key"])
        if content is None:
            return f"commit of an object that does not exist: {commit['key']}"
        if hashlib.sha256(content).hexdigest() != commit["sha256"] or len(content) != commit["size"]:
            return f"commit of {commit['key']} with another sha256 or size"
        return next(iter(_part_problems(shard, commit, _part_lines(self._opened(shard, commit, content)))), None)


def _part_problems(shard: Shard, commit: dict[str, Any], lines: list[dict[str, Any]]) -> Iterator[str]:
    """What is wrong with a part itself."""
    for line in lines:
        yield from schema_errors("part.line", line)
    numbers = sorted(line["idx"] for line in lines)
    if _ranges(numbers) != commit["lines"] or [row[0] for row in commit["usage"]] != numbers:
        yield f"commit of {commit['key']}: lines, usage and object name different lines"
    custom_ids = {shard.first_idx + n: json.loads(row)["custom_id"] for n, row in enumerate(shard.content.splitlines())}
    if any(custom_ids.get(line["idx"]) != line["line"]["custom_id"] for line in lines):
        yield f"commit of {commit['key']}: a line outside the shard, or with another line's custom_id"


def _part_lines(content: bytes) -> list[dict[str, Any]]:
    return [json.loads(row) for row in gzip.decompress(content).splitlines()]


def _ranges(numbers: Any) -> list[list[int]]:
    ranges: list[list[int]] = []
    for number in sorted(numbers):
        if ranges and ranges[-1][1] == number:
            ranges[-1][1] += 1
        else:
            ranges.append([number, number + 1])
    return ranges


def _error(status: int, message: str) -> web.Response:
    return web.json_response(
        {"error": {"message": message, "type": "test", "param": None, "code": None}}, status=status
    )


def _cut(request: web.Request) -> None:
    """Close the connection under the client, as a lost broker or link would."""
    if request.transport is not None:
        request.transport.abort()
    raise asyncio.CancelledError
