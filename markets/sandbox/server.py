"""The sandbox's HTTP API (documented in openapi.py) over the provider, and the loop that lets time act on it."""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import hmac
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import datetime
from decimal import Decimal
from typing import Any

import jsonschema
import structlog
from aiohttp import web

from markets.instants import micros
from markets.market import MachineStart
from markets.sandbox import wire
from markets.sandbox.faults import Fault, Faults
from markets.sandbox.openapi import SCHEMAS, document
from markets.sandbox.provider import Provider, Refused, clock_us
from markets.sandbox.state import Instance, metered

TICK_S = 0.05
LISTED_AFTER_END_US = 2 * 3600 * 1_000_000
MAX_BODY = 64 * 1024 * 1024
OPEN_PATHS = ("/healthz", "/openapi.json")

_log = structlog.get_logger("sandbox")
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Server:
    """Handlers around one provider. `stop` is set when the sandbox should end."""

    def __init__(self, provider: Provider, token: str, *, idle_s: float) -> None:
        self._provider = provider
        self._token = token
        self._idle_s = idle_s
        self._faults = Faults()
        self._asked_at = time.monotonic()
        self.stop = asyncio.Event()

    def application(self) -> web.Application:
        application = web.Application(middlewares=[self._boundary], client_max_size=MAX_BODY)
        application.cleanup_ctx.append(self._time)
        application.add_routes(
            [
                web.get("/healthz", self._health),
                web.get("/openapi.json", self._document),
                web.get("/v1/offers", self._offers),
                web.post("/v1/instances", self._create),
                web.get("/v1/instances", self._instances),
                web.get("/v1/instances/{id}", self._instance),
                web.delete("/v1/instances/{id}", self._release),
                web.get("/v1/invoices", self._invoice),
                web.get("/v1/meter", self._meter),
                web.post("/v1/admin/instances/{id}/preempt", self._preempt),
                web.patch("/v1/admin/offers/{id}", self._change),
                web.get("/v1/admin/faults", self._armed),
                web.post("/v1/admin/faults", self._arm),
                web.delete("/v1/admin/faults", self._disarm),
                web.post("/v1/admin/shutdown", self._shutdown),
            ]
        )
        return application

    async def _time(self, _application: web.Application) -> AsyncIterator[None]:
        warden = asyncio.create_task(self._let_time_pass())
        yield
        warden.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await warden

    async def _let_time_pass(self) -> None:
        while True:
            await self._provider.advance_all()
            if self._provider.state.live():
                self._asked_at = time.monotonic()
            elif time.monotonic() - self._asked_at > self._idle_s:
                _log.info("sandbox.idle", idle_s=self._idle_s)
                self.stop.set()
            await asyncio.sleep(TICK_S)

    @web.middleware
    async def _boundary(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Who asks, may they, and every refusal as the same JSON."""
        self._asked_at = time.monotonic()
        if request.path not in OPEN_PATHS and not self._knows(request):
            return _refusal(401, "unauthorized", "send the key as `Authorization: Bearer KEY`")
        if request.path.startswith("/v1/") and "/admin/" not in request.path and self._faults.take("rate_limited"):
            return _refusal(429, "rate_limited", "slow down", headers={"Retry-After": "1"})
        try:
            return await handler(request)
        except Refused as refused:
            return _refusal(refused.status, refused.code, str(refused))
        except web.HTTPException as known:
            return _refusal(known.status, "http_error", known.reason)

    def _knows(self, request: web.Request) -> bool:
        given = request.headers.get("Authorization", "").removeprefix("Bearer ")
        return hmac.compare_digest(given.encode(), self._token.encode())

    async def _health(self, _request: web.Request) -> web.Response:
        return _answer({"status": "ok"})

    async def _document(self, _request: web.Request) -> web.Response:
        return web.json_response(document())

    async def _offers(self, _request: web.Request) -> web.Response:
        seen_us = clock_us()
        self._provider.refresh()
        offers = [wire.offer_json(*each) for each in self._provider.offers()]
        return _answer({"offers": offers}, seen_us=seen_us)

    async def _create(self, request: web.Request) -> web.Response:
        body = await _body(request, "Create")
        if (there := self._provider.tagged(body["tag"])) is not None:
            return self._one(there)
        await self._fail_before_create(body["offer"])
        instance = await self._provider.create(
            tag=body["tag"],
            owner=body["owner"],
            offer_id=body["offer"],
            max_price=Decimal(body["max_price"]),
            start=_machine_start(body["user_data"]),
        )
        if fault := self._faults.take("create_hang_after"):
            await asyncio.sleep(fault.seconds)
        if self._faults.take("create_error_after"):
            raise Refused(500, "internal", "the sandbox was told to fail after creating")
        return self._one(instance, status=201)

    async def _fail_before_create(self, offer_id: str) -> None:
        if fault := self._faults.take("create_hang_before"):
            await asyncio.sleep(fault.seconds)
            raise Refused(500, "internal", "the sandbox was told to hang and create nothing")
        if self._faults.take("create_error_before"):
            raise Refused(500, "internal", "the sandbox was told to fail before creating")
        offer = self._provider.offer(offer_id)
        if self._faults.take("sold_out"):
            self._provider.restock(offer.id, 0)
        if self._faults.take("price_moved"):
            self._provider.reprice(offer.id, self._provider.price(offer) * Decimal("1.25"))

    async def _instances(self, request: web.Request) -> web.Response:
        seen_us = clock_us()
        if self._faults.take("list_error"):
            raise Refused(500, "internal", "the sandbox was told to fail")
        self._provider.refresh()
        found = self._matching(request, seen_us)
        cursor, limit = request.query.get("cursor", ""), _limit(request)
        page = [each for each in found if each.id > cursor][:limit]
        more = bool(page) and page[-1].id != found[-1].id
        following = page[-1].id if more else None
        if page and self._faults.take("partial_list"):
            page = page[:-1]
        answer = {"instances": [self._json(each) for each in page], "total": len(found), "next": following}
        return _answer(answer, seen_us=seen_us)

    def _matching(self, request: web.Request, now_us: int) -> list[Instance]:
        tag, owner = request.query.get("tag"), request.query.get("owner")
        return [
            each
            for each in self._provider.state.instances.values()
            if (tag is None or each.tag == tag)
            and (owner is None or each.owner == owner)
            and (tag is not None or each.ended_us is None or each.ended_us > now_us - LISTED_AFTER_END_US)
        ]

    async def _instance(self, request: web.Request) -> web.Response:
        seen_us = clock_us()
        self._provider.refresh()
        return self._one(self._provider.instance(request.match_info["id"]), seen_us=seen_us)

    async def _release(self, request: web.Request) -> web.Response:
        instance = self._provider.instance(request.match_info["id"])
        asked = instance.state in ("pending", "running")
        fault = self._faults.take("slow_release") if asked else None
        instance = await self._provider.release(instance.id, slow_s=fault.seconds if fault else 0)
        return self._one(instance, status=200 if instance.state == "ended" else 202)

    async def _invoice(self, request: web.Request) -> web.Response:
        seen_us = clock_us()
        self._provider.refresh()
        from_us, to_us = _time(request, "from", 0), _time(request, "to", 2**62)
        metered_all = [metered(each, seen_us) for each in self._provider.state.instances.values()]
        lines = [
            line
            for line in metered_all
            if line is not None and (line.instance.started_us or 0) < to_us and line.until_us > from_us
        ]
        return _answer(wire.invoice_json(lines), seen_us=seen_us)

    async def _meter(self, _request: web.Request) -> web.Response:
        seen_us = clock_us()
        self._provider.refresh()
        lines = [metered(each, seen_us) for each in self._provider.state.live()]
        return _answer({"lines": [wire.meter_json(line) for line in lines if line is not None]}, seen_us=seen_us)

    async def _preempt(self, request: web.Request) -> web.Response:
        body = await _body(request, "Preempt")
        instance = self._provider.instance(request.match_info["id"])
        notice_s = body["notice_s"] if "notice_s" in body else self._provider.offer(instance.offer).notice_s
        return self._one(await self._provider.preempt(instance.id, notice_s=notice_s))

    async def _change(self, request: web.Request) -> web.Response:
        body = await _body(request, "Change")
        offer = self._provider.offer(request.match_info["id"])
        if "price" in body:
            self._provider.reprice(offer.id, Decimal(body["price"]))
        if "capacity" in body:
            self._provider.restock(offer.id, body["capacity"])
        return _answer({"done": True})

    async def _armed(self, _request: web.Request) -> web.Response:
        return _answer({"faults": [wire.fault_json(each) for each in self._faults.armed()]})

    async def _arm(self, request: web.Request) -> web.Response:
        self._faults.arm(Fault(**await _body(request, "Fault")))
        return await self._armed(request)

    async def _disarm(self, request: web.Request) -> web.Response:
        self._faults.clear()
        return await self._armed(request)

    async def _shutdown(self, request: web.Request) -> web.Response:
        body = await _body(request, "Shutdown")
        self._provider.refresh()
        live = [each.id for each in self._provider.state.live()]
        if live and not body.get("force", False):
            raise Refused(409, "machines_live", f"{len(live)} machines live: {', '.join(live)}; release them or force")
        self.stop.set()
        return _answer({"done": True})

    def _one(self, instance: Instance, *, status: int = 200, seen_us: int | None = None) -> web.Response:
        return _answer({"instance": self._json(instance)}, status=status, seen_us=seen_us)

    def _json(self, instance: Instance) -> wire.Json:
        return wire.instance_json(instance, self._provider.facts(instance))


def _answer(content: wire.Json, *, status: int = 200, seen_us: int | None = None) -> web.Response:
    """`seen_us` is when it was so: read before looking, so that nothing is said of a moment not looked at."""
    seen = wire.time_text(clock_us() if seen_us is None else seen_us)
    return web.json_response({"seen_at": seen, **content}, status=status)


def _refusal(status: int, code: str, message: str, *, headers: dict[str, str] | None = None) -> web.Response:
    content = {"seen_at": wire.time_text(clock_us()), "error": {"code": code, "message": message}}
    return web.json_response(content, status=status, headers=headers)


async def _body(request: web.Request, schema: str) -> dict[str, Any]:
    """The body, checked against its schema. Raises Refused(400) naming the field."""
    try:
        body: dict[str, Any] = await request.json()
        jsonschema.validate(body, SCHEMAS[schema])
    except json.JSONDecodeError as error:
        raise Refused(400, "invalid_json", f"the body is not JSON: {error}") from error
    except jsonschema.ValidationError as error:
        raise Refused(400, "invalid_request", f"{error.json_path}: {error.message}") from error
    return body


def _machine_start(user_data: dict[str, Any]) -> MachineStart:
    try:
        files = {name: base64.b64decode(text, validate=True) for name, text in user_data.get("files", {}).items()}
    except binascii.Error as error:
        raise Refused(400, "invalid_request", f"user_data.files: not base64: {error}") from error
    return MachineStart(argv=tuple(user_data["argv"]), env=user_data.get("env", {}), files=files)


def _limit(request: web.Request) -> int:
    text = request.query.get("limit", "100")
    if not text.isdecimal() or not 1 <= int(text) <= 1000:
        raise Refused(400, "invalid_request", f"limit {text!r} is not a whole number from 1 to 1000")
    return int(text)


def _time(request: web.Request, name: str, otherwise: int) -> int:
    text = request.query.get(name)
    if text is None:
        return otherwise
    try:
        return micros(datetime.fromisoformat(text))
    except ValueError as error:
        raise Refused(400, "invalid_request", f"{name} {text!r}: {error}; give RFC 3339 with offset") from error
