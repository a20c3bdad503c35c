"""The worker wire, `/worker/v1`: how an agent proves who it is, says that it lives, and gets work.

The agent dials out and knows nothing but its rental and a single-use token. It is told what engine to start, and gets
leases, only after the residency policy was evaluated against its rental's facts. Bodies are validated against the JSON
Schemas beside the agent before they get here.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from typing import Any

import structlog
from sqlalchemy.ext.asyncio import AsyncSession

from broker import lease_seals, worker_sessions
from broker.api.auth import bearer
from broker.api.callers import address_of
from broker.api.problems import Problem, bad_request
from broker.api.registry import Call, Route, route
from broker.authority import LIFE, BadCsr, revoke
from broker.compliance.decisions import Point
from broker.compliance.hello import Seen, observed_country, seen, word_on
from broker.compliance.judging import seal_seen
from broker.measurements import measured_load
from broker.model_set import with_weights
from broker.services import Services
from broker.start_up import observe
from broker.tables import Assignment, Worker
from broker.token_buying import endpoint_spec, is_bought
from broker.worker_identity import Identity, first_identity, renewed_certificate, tell_of_misuse
from broker.worker_objects import delivered_bytes
from broker.worker_pool import candidates, heard_for, pool, refusal, released, still_allowed
from broker.worker_sessions import Refused
from jobs import leases
from jobs.clock import MICROSECONDS, db_now
from jobs.errors import LeaseLost
from jobs.objects import SignedRequest
from jobs.tables import Batch, Shard
from jobs.types import Lease
from markets.tables import RentalRow
from workers.engines import engine_spec
from workers.errors import UnknownModel, WorkersError

log = structlog.get_logger()

# How often a long poll looks: at first soon, for work that comes right after other work, and then more seldom, because a look
# costs some twenty questions to the database and many agents may wait.
POLL_S, MOST_POLL_S = 0.25, 1.0


@dataclass(frozen=True)
class WorkerWire:
    """The routes of one application. `stopping` ends long polls when the server shuts down."""

    stopping: asyncio.Event = field(default_factory=asyncio.Event)

    def routes(self) -> tuple[Route, ...]:
        async def lease(call: Call, body: dict[str, Any]) -> dict[str, Any]:
            """Get the next shard; a long poll of at most `wait_s` seconds."""
            return await self._next_work(call, float(body["wait_s"]))

        return (
            route("POST", "/worker/v1/hello", hello, tag="worker", access="bootstrap", errors=(422, 425),
                  wire_request="hello.request", wire_response="hello.response"),
            route("POST", "/worker/v1/heartbeat", heartbeat, tag="worker", access="worker",
                  wire_request="heartbeat.request", wire_response="heartbeat.response"),
            route("POST", "/worker/v1/leases", lease, tag="worker", access="worker",
                  wire_request="lease.request", wire_response="lease.response"),
            route("POST", "/worker/v1/goodbye", goodbye, tag="worker", access="worker", status=204,
                  wire_request="goodbye.request"),
        )  # fmt: skip

    async def _next_work(self, call: Call, wait_s: float) -> dict[str, Any]:
        give_up, poll_s = time.monotonic() + wait_s, POLL_S
        while True:
            answer = await _work(call)
            left_s = give_up - time.monotonic()
            if answer["lease"] or answer["stop"] or left_s <= 0 or self.stopping.is_set() or _hung_up(call):
                return answer
            try:
                async with asyncio.timeout(min(poll_s, left_s)):
                    await self.stopping.wait()
            except TimeoutError:
                poll_s = min(poll_s * 2, MOST_POLL_S)


def _hung_up(call: Call) -> bool:
    # Handlers are not cancelled when a client goes away; a lease granted to nobody would idle until it expires.
    transport = call.request.transport
    return transport is None or transport.is_closing()


async def hello(call: Call, body: dict[str, Any]) -> dict[str, Any]:
    """Exchange the single-use bootstrap token for a session and the engine to start."""
    services, rental_id = call.services, body["rental_id"]
    text = bearer(call.request)
    denied: str | None = None
    identity = Identity("proof" if body.get("proof") else "")
    observed = await observed_country(services, address_of(call))
    try:
        async with services.database.transaction() as session:
            now_us = await db_now(session)
            worker = await worker_sessions.bind_bootstrap(session, rental_id, text, body["pubkey"], now_us)
            now_us = await db_now(session)  # the lock may have been waited for
            rental = await _confirmed(session, rental_id)
            batches = await pool(session, rental)
            what = seen(rental.facts, body, observed)
            denied = _against(what)
            for each in heard_for(rental, batches):
                await seal_seen(session, services, "hello", rental, each.id, what, now_us)
            denied = denied or await refusal(session, services, rental, batches, now_us, "hello")
            denied = denied or lease_seals.refusal(services.settings.objects, rental, body)
            if denied is None:
                if services.authority is not None:
                    csr = body.get("csr")
                    identity = await first_identity(session, services.authority, rental_id, identity, csr, now_us)
                _welcome(worker, body, now_us)
            else:
                _fail(worker, denied, now_us)
            session.add(worker)
    except Refused as refused:
        if refused.code == "bootstrap_used":
            await tell_of_misuse(services.database, rental_id, address_of(call))
        raise Problem(refused.status, refused.code, str(refused)) from refused
    except BadCsr as bad:
        raise bad_request(bad.code, str(bad), "csr") from bad
    if denied is not None:
        log.error("worker.forbidden", rental=rental_id, offer=rental.offer_key, reason=denied)
        services.nudge("reconcile")
        raise Problem(403, "residency_forbidden", denied)
    log.info("worker.hello", rental=rental_id, pid=body["pid"], hostname=body["hostname"], agent=body["agent_version"])
    return _greeting(services, await _engine(services, rental), worker, identity, now_us)


async def _engine(services: Services, rental: RentalRow) -> dict[str, Any]:
    """How to start the rental's model. A model that is gone from the settings or whose weights are not to be had will not
    come back by asking again: the worker is failed, and its machine released."""
    profile = services.models.get(rental.model)
    try:
        if profile is None:
            raise UnknownModel(f"model {rental.model!r} is not configured any more")
        if is_bought(rental):
            return endpoint_spec(services.settings, profile, rental)
        here = await with_weights(profile, services.settings.cache / "weights")
        return engine_spec(here, services.settings.jobs.media_hosts)
    except WorkersError as error:
        reason = f"{error.code}: {error}"
    async with services.database.transaction() as session:
        worker, _ = await _both(session, rental.id)
        _fail(worker, reason, await db_now(session))
        session.add(worker)
    log.error("worker.no_engine", rental=rental.id, model=rental.model, error=reason)
    services.nudge("reconcile")
    raise Problem(403, "engine_unavailable", f"Rental {rental.id}: {reason}; stop.")


async def _confirmed(session: AsyncSession, rental_id: str) -> RentalRow:
    """The rental, once its market has confirmed it. Raises 425 before, 401 after its end."""
    rental = await session.get(RentalRow, rental_id)
    if rental is None or rental.state in ("ended", "lost", "failed", "releasing"):
        state = rental.state if rental else "unknown"
        raise Problem(401, "rental_ended", f"Rental {rental_id} is {state}; stop.")
    if rental.state != "running":
        message = f"Rental {rental_id} is {rental.state}: its market has not confirmed it yet; ask again."
        raise Problem(425, "rental_not_confirmed", message, headers={"Retry-After": "1"})
    return rental


def _against(what: Seen) -> str | None:
    word = word_on(what)
    return word.reasons[0].found if word.outcome == "deny" else None


def _welcome(worker: Worker, body: dict[str, Any], now_us: int) -> None:
    worker.pubkey = body["pubkey"]
    worker.seen_us = now_us
    worker.hello = {name: value for name, value in body.items() if name not in ("pubkey", "csr")}
    if worker.hello_us is None:
        worker.hello_us = now_us
        worker.state = "starting"


def _fail(worker: Worker, reason: str, now_us: int) -> None:
    worker.state, worker.error, worker.gone_us = "failed", reason, now_us
    worker.session += 1


def _greeting(
    services: Services,
    engine: dict[str, Any],
    worker: Worker,
    identity: Identity,
    now_us: int,
) -> dict[str, Any]:
    settings = services.settings
    session = worker_sessions.fresh(worker.rental, worker.session, now_us, settings.control.token_ttl_s, identity.bound)
    return {
        "worker_id": worker.rental,
        "binding": identity.bound or None,
        "certificate": identity.certificate,
        "certificate_renew_s": round(LIFE.total_seconds()) // 2 if identity.certificate else None,
        "now_us": now_us,
        "token": worker_sessions.issue(services.secret, session),
        "token_ttl_s": settings.control.token_ttl_s,
        "heartbeat_s": settings.control.heartbeat_s,
        "engine": engine,
        "part": {
            "lines": settings.jobs.part_lines,
            "seconds": settings.jobs.part_seconds,
            "bytes": settings.jobs.part_bytes,
            "delivered_bytes": delivered_bytes(services),
        },
        "max_attempts": settings.jobs.max_attempts,
    }


async def heartbeat(call: Call, body: dict[str, Any]) -> dict[str, Any]:
    """Say what the worker does; renews its leases and its token, and hears whether to drain."""
    services, token = call.services, bearer(call.request)
    observed = await observed_country(services, address_of(call))
    async with services.database.transaction() as session:
        named = {(each["shard_id"], each["epoch"]) for each in body["leases"]}
        await leases.lock_held(session, placement_id=call.rental, shard_ids={shard_id for shard_id, _ in named})
        worker, rental = await _both(session, call.rental)
        now_us = await db_now(session)  # behind the locks: what was withdrawn while they were waited for counts
        claims = _still_on(services, worker, token, now_us)
        what = seen(rental.facts, worker.hello, observed)
        if (denied := _against(what)) is not None:
            await _expelled(session, services, worker, rental, what, denied, now_us, "heartbeat")
        lost = [
            each["shard_id"]
            for each in body["leases"]
            if denied is not None
            or not await _permitted(session, services, rental, each["shard_id"], now_us, what)
            or not await _renew(session, services, call.rental, each)
        ]
        await leases.end_dropped(session, placement_id=call.rental, named=named)
        if denied is None:
            await _note(session, worker, rental, body, now_us)
        await observe(session, rental, worker, services.models.get(rental.model), body.get("timings", {}))
        certificate = await _renewed_certificate(session, services, call.rental, body.get("csr"), now_us)
        drain = worker.drain_reason is not None or rental.state == "releasing"
    if denied is not None:
        services.nudge("reconcile")
        raise Problem(403, "residency_forbidden", denied)
    ttl_s = services.settings.control.token_ttl_s
    successor = worker_sessions.renewed(claims, now_us, ttl_s)
    if body["state"] == "failed":
        services.nudge("reconcile")
    return {
        "token": worker_sessions.issue(services.secret, successor) if successor else None,
        "token_ttl_s": ttl_s,
        "certificate": certificate,
        "drain": drain,
        # bounded: a line that hangs must not keep a machine that nobody needs (request timeouts are minutes long)
        "drain_in_s": services.settings.control.drain_s if drain else None,
        "lost": lost,
    }


async def _renewed_certificate(
    session: AsyncSession, services: Services, rental: str, csr: str | None, now_us: int
) -> str | None:
    """The successor of a certificate, or None where none is asked for or given out. Raises Problem 400."""
    if csr is None or services.authority is None:
        return None
    try:
        return await renewed_certificate(session, services.authority, rental, csr, now_us)
    except BadCsr as bad:
        raise bad_request(bad.code, str(bad), "csr") from bad


async def _both(session: AsyncSession, rental_id: str) -> tuple[Worker, RentalRow]:
    worker = await worker_sessions.locked_worker(session, rental_id)
    rental = await session.get(RentalRow, rental_id)
    if worker is None or rental is None:
        raise Problem(401, "session_ended", f"Rental {rental_id} is not known any more; stop.")
    return worker, rental


def _still_on(services: Services, worker: Worker, token: str, now_us: int) -> worker_sessions.Session:
    """What the caller's token says, asked again of the worker's locked row: between the check of the token and the lock its
    session may have been ended, and a revocation must not be undone by a call that was under way. Raises 401."""
    claims = worker_sessions.read(services.secret, token, now_us)
    if claims is None or worker.session != claims.number or worker.state == "gone":
        raise Problem(401, "session_ended", f"The session of rental {worker.rental} was ended; stop.")
    return claims


async def _expelled(
    session: AsyncSession,
    services: Services,
    worker: Worker,
    rental: RentalRow,
    what: Seen,
    reason: str,
    now_us: int,
    point: Point,
) -> None:
    """A machine that moved midway is as one that calls from elsewhere at its hello: it gets nothing more, and is ended."""
    for each in await pool(session, rental):
        await seal_seen(session, services, point, rental, each.id, what, now_us)
    await leases.release(session, placement_id=rental.id)
    _fail(worker, reason, now_us)
    session.add(worker)
    log.error("worker.forbidden", rental=rental.id, offer=rental.offer_key, reason=reason)


async def _permitted(
    session: AsyncSession, services: Services, rental: RentalRow, shard_id: str, now_us: int, what: Seen
) -> bool:
    """Whether residency still allows the lease. If not, it ends now: an hour of work on a shard is no reason to go on."""
    shard = await session.get(Shard, shard_id)
    if shard is None or shard.placement_id != rental.id:
        return True  # whether it is held at all is the renewal's question
    batch = await session.get_one(Batch, shard.batch_id)
    if await still_allowed(session, services, rental, batch, now_us, what):
        return True
    await leases.release(session, placement_id=rental.id, shard_id=shard_id)
    return False


async def _renew(session: AsyncSession, services: Services, rental_id: str, held: dict[str, Any]) -> bool:
    return await leases.renew(
        session,
        placement_id=rental_id,
        shard_id=held["shard_id"],
        epoch=held["epoch"],
        nonce=plain(held["nonce"], "nonce"),
        ttl_s=services.settings.jobs.lease_ttl_s,
        in_flight=held["in_flight"],
        suspects_told={int(line): attempts for line, attempts in _numbered(held["suspects"]).items()},
    )


def _numbered(suspects: dict[str, int]) -> dict[str, int]:
    wrong = [name for name in suspects if not (name.isascii() and name.isdigit() and len(name) <= 9)]
    if wrong:
        raise bad_request("wire_violation", f"suspects: {wrong[0]!r} is not a line number", "leases.suspects")
    return suspects


def plain(text: str, where: str) -> str:
    """Text that we made ourselves is ASCII; anything else is not ours and could not be compared in constant time."""
    if not text.isascii():
        raise bad_request("wire_violation", f"{where}: {text!r} was not given by this broker", where)
    return text


async def _note(session: AsyncSession, worker: Worker, rental: RentalRow, body: dict[str, Any], now_us: int) -> None:
    if body["state"] != worker.state:
        log.info(f"worker.{body['state']}", rental=rental.id, before=worker.state, error=body["error"])
    if worker.state != "failed":  # a failure is final, whatever an answer that was late makes of it
        worker.state = body["state"]
    worker.seen_us = now_us
    worker.metrics = dict(body["metrics"])
    worker.error = body["error"] or worker.error
    if body["notice_in_s"] is not None:
        worker.notice_us = now_us + round(min(body["notice_in_s"], 86_400) * MICROSECONDS)
    if worker.state == "ready" and worker.ready_us is None:
        worker.ready_us = now_us
        await measured_load(session, rental, (now_us - (worker.hello_us or now_us)) // 1000)
    session.add(worker)


class _Elsewhere(Exception):
    """The machine calls from where its offer is not; `what` was seen, `reason` is what stands against it."""

    def __init__(self, what: Seen, reason: str) -> None:
        super().__init__(reason)
        self.what, self.reason = what, reason


async def _work(call: Call) -> dict[str, Any]:
    """One look: a lease, nothing yet, or nothing more ever."""
    observed = await observed_country(call.services, address_of(call))
    try:
        return await _looked(call, observed)
    except _Elsewhere as moved:
        await _expel(call, moved)
        return {"lease": None, "stop": True}


async def _expel(call: Call, moved: _Elsewhere) -> None:
    """Its shards are locked before its worker, as by everybody: not in the transaction that has locked that already."""
    services = call.services
    async with services.database.transaction() as session:
        await leases.release(session, placement_id=call.rental)
        worker, rental = await _both(session, call.rental)
        now_us = await db_now(session)
        if worker.state in ("failed", "gone"):
            return
        await _expelled(session, services, worker, rental, moved.what, moved.reason, now_us, "lease")
    services.nudge("reconcile")


async def _looked(call: Call, observed: str | None) -> dict[str, Any]:
    services = call.services
    async with services.database.transaction() as session:
        worker, rental = await _both(session, call.rental)
        now_us = await db_now(session)
        if rental.state != "running" or worker.drain_reason is not None or worker.state in ("failed", "gone"):
            return {"lease": None, "stop": True}
        what = seen(rental.facts, worker.hello, observed)
        if (denied := _against(what)) is not None:
            raise _Elsewhere(what, denied)
        batches = await candidates(session, services, rental, now_us)
        try:
            granted = await leases.lease(
                session,
                placement_id=rental.id,
                batch_ids=batches,
                ttl_s=services.settings.jobs.lease_ttl_s,
            )
        except LeaseLost:
            return {"lease": None, "stop": True}
        if granted is None:
            is_over = bool(batches.forbidden) and not await leases.held(session, rental.id)
            if is_over:
                # Its facts are those of the day it was rented; a machine rented anew has fresh evidence, or is refused.
                worker.drain_reason = f"residency no longer allows {len(batches.forbidden)} of its batches here"
                session.add(worker)
                await batches.seal_forbidden()
            return {"lease": None, "stop": is_over}
        shard = await session.get_one(Shard, granted.shard_id)
        # read anew, as all that `released` asks: the batch may be pinned to another policy since it was among the candidates
        batch = await session.get_one(Batch, granted.batch_id, populate_existing=True)
        paced = _concurrency(batch, await session.get(Assignment, (batch.id, rental.offer_key)))
        if not await released(session, services, rental, batch, what):
            await leases.release(session, placement_id=rental.id, shard_id=shard.id)
            return {"lease": None, "stop": True}
    of: dict[str, str | int] = {"rental": rental.id, "shard": granted.shard_id, "epoch": granted.epoch}
    async with lease_seals.taken_back_on_failure(services, granted, rental.id):
        source, seal = await lease_seals.released(services, worker, granted, batch.project, now_us, of)
    services.counters.leased()
    found = _lease(services, granted, batch, shard.sha256, source) | paced
    return {"lease": found if seal is None else found | {"seal": seal}, "stop": False}


def _lease(services: Services, granted: Lease, batch: Batch, sha256: str, source: SignedRequest) -> dict[str, Any]:
    return {
        "shard_id": granted.shard_id,
        "batch_id": granted.batch_id,
        "epoch": granted.epoch,
        "nonce": granted.nonce,
        "ttl_s": granted.ttl_s,
        "endpoint": granted.endpoint,
        "input_get": source.url,
        "input_headers": source.headers,
        "input_sha256": sha256,
        "first_idx": granted.first_idx,
        "lines": granted.lines,
        "part_put": f"/worker/v1/shards/{granted.shard_id}/parts",
        "done": [list(pair) for pair in granted.done],
        "suspects": {str(line): attempts for line, attempts in granted.suspects.items()},
        "model": _engines_name(services, batch),
        "part_lines": (batch.wishes or {}).get("part_lines"),
    }


def _concurrency(batch: Batch, placed: Assignment | None) -> dict[str, int]:
    """With how many requests at once its p95 is kept; what no plan has said of yet begins with one."""
    if (batch.wishes or {}).get("max_p95_ms") is None:
        return {}
    return {"concurrency": (placed.concurrency if placed else None) or 1}


def _engines_name(services: Services, batch: Batch) -> str | None:
    """What the engine calls the model, where the lines name another (one of several that the batch accepts)."""
    profile = services.models.get(batch.model or "")
    return None if profile is None or batch.asked_model in (None, profile.public_name) else profile.public_name


async def goodbye(call: Call, body: dict[str, Any]) -> None:
    """The worker has committed what it had and stops; its leases are free at once."""
    async with call.services.database.transaction() as session:
        await leases.lock_held(session, placement_id=call.rental)
        worker, rental = await _both(session, call.rental)
        now_us = await db_now(session)
        _still_on(call.services, worker, bearer(call.request), now_us)
        freed = await leases.release(session, placement_id=rental.id)
        # a failure stays one after the goodbye: the planner holds back offers on which starting fails
        has_failed = "failed" in (body["reason"], worker.state)
        worker.state, worker.gone_us = ("failed" if has_failed else "gone"), now_us
        worker.error = body["error"] or worker.error
        worker.session += 1
        session.add(worker)
        await revoke(session, rental.id, f"goodbye: {body['reason']}", now_us)
    log.info("worker.gone", rental=call.rental, reason=body["reason"], error=body["error"], leases=freed)
    call.services.nudge("reconcile")
