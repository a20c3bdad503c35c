"""The HTTP application: all routes, and what happens around every request.

Outermost to innermost: request id and metrics, errors to envelopes, encodings; then the route's own identify, parse,
call, encode (binding.py). Nothing is served that is not in the registry.
"""

from __future__ import annotations

import re
import time
import traceback
from collections.abc import Mapping
from typing import Any

import structlog
from aiohttp import web
from aiohttp.typedefs import Handler, Middleware
from ulid import ULID

from broker.api import (
    admin,
    audit,
    batch_life,
    batches,
    books,
    budget_limits,
    budgets,
    compliance,
    costs,
    credentials,
    errors,
    files,
    finance_decisions,
    finance_reports,
    house_accounts,
    invoices,
    ledger_exports,
    ledger_seal,
    login,
    market,
    markets,
    models,
    offer_details,
    plans,
    policies,
    profiles,
    projects,
    rate_cards,
    rates,
    results,
    retry,
    teams,
    uploads,
    webhooks,
    worker_parts,
    workers,
)
from broker.api.agent_download import AgentDownload
from broker.api.auth import WorkerSessions
from broker.api.binding import REQUEST_ID, bind
from broker.api.doctor import Doctor
from broker.api.events import EventStreams
from broker.api.health import Health
from broker.api.openapi import document
from broker.api.problems import Problem, bad_request
from broker.api.registry import Call, Route, route
from broker.api.wire import WireSchemas
from broker.api.worker import WorkerWire
from broker.control.loops import LoopState
from broker.database import UNAVAILABLE
from broker.event_feed import EventFeed
from broker.metrics.counters import Counters
from broker.metrics.exposition import Exposition
from broker.services import Services

log = structlog.get_logger()

ROUTES: web.AppKey[tuple[Route, ...]] = web.AppKey("routes", tuple)
# What `read` takes: JSON bodies. Uploads and parts are streamed and have limits of their own.
MAX_JSON_BYTES = 8 * 1024 * 1024
RANGE_NOT_SATISFIABLE = 416


def build_app(services: Services, loops: Mapping[str, LoopState] | None = None) -> web.Application:
    """The application. `loops` is the live mapping of the control loops' states, for /readyz and /metrics.

    Serve it with `auto_decompress=False` (a 292 kB body became 300 MB otherwise) and `access_log=None` (paths of objects
    hold signed permissions).
    """
    states = {} if loops is None else loops
    wire, worker_wire, sessions = WireSchemas(), WorkerWire(), WorkerSessions(services)
    feed = EventFeed(services.database)
    routes = (
        *files.ROUTES,
        *uploads.ROUTES,
        *batches.ROUTES,
        *batch_life.ROUTES,
        *results.ROUTES,
        *EventStreams(feed).routes(),
        *retry.ROUTES,
        *models.ROUTES,
        *market.ROUTES,
        *plans.ROUTES,
        *policies.ROUTES,
        *markets.ROUTES,
        *offer_details.ROUTES,
        *rate_cards.ROUTES,
        *rates.ROUTES,
        *compliance.ROUTES,
        *audit.ROUTES,
        *profiles.ROUTES,
        *books.ROUTES,
        *ledger_exports.ROUTES,
        *invoices.ROUTES,
        *ledger_seal.ROUTES,
        *finance_reports.ROUTES,
        *finance_decisions.ROUTES,
        *budgets.ROUTES,
        *budget_limits.ROUTES,
        *teams.ROUTES,
        *costs.ROUTES,
        *Doctor(states).routes(),
        *webhooks.ROUTES,
        *admin.ROUTES,
        *login.ROUTES,
        *workers.ROUTES,
        *credentials.ROUTES,
        *house_accounts.ROUTES,
        *projects.ROUTES,
        *worker_wire.routes(),
        *worker_parts.PartWire(services, wire).routes(),
        *AgentDownload().routes(),
        *Health(states, Exposition(services, states)).routes(),
    )
    routes = (*routes, _document_route(routes, wire, services.public_url))
    app = web.Application(
        middlewares=[_identified(services.counters), _refusing, _unencoded], client_max_size=MAX_JSON_BYTES
    )
    app[ROUTES] = routes
    for each in routes:
        handler = bind(each, services, sessions, wire)
        app.router.add_route(each.method, each.aiohttp_path(), handler)
        if each.method == "GET" and each.access == "key" and RANGE_NOT_SATISFIABLE in each.errors:
            # What is read in ranges is first asked for its size and ETag. Not in the document: HEAD follows from GET.
            app.router.add_route("HEAD", each.aiohttp_path(), handler)

    async def stop(_app: web.Application) -> None:
        worker_wire.stopping.set()
        await feed.close()

    app.on_response_prepare.append(stamp)
    app.on_shutdown.append(stop)
    return app


def _document_route(routes: tuple[Route, ...], wire: WireSchemas, url: str) -> Route:
    described: dict[str, Any] = {}

    async def openapi(call: Call) -> dict[str, Any]:
        """This API as an OpenAPI 3.1 document."""
        if not described:  # made for the first who asks: it takes 0.1 s, which no start need wait for
            described.update(document((*routes, own), wire, url))
        return described

    own = route("GET", "/openapi.json", openapi, tag="health", access="open", produces=("application/json",))
    return own


def _identified(counters: Counters) -> Middleware:
    @web.middleware
    async def identified(request: web.Request, handler: Handler) -> web.StreamResponse:
        """Give the request an id, answer with it, and count the answer."""
        started = time.monotonic()
        asked = request.headers.get("x-request-id", "")
        request[REQUEST_ID] = asked if re.fullmatch(r"[A-Za-z0-9._-]{1,64}", asked) else f"req_{ULID()}"
        # every event of this request says which one it is of
        named = structlog.contextvars.bound_contextvars(request=request[REQUEST_ID])
        with named, counters.requests_open.track_inprogress():
            answer = await handler(request)
        counters.answered(
            request.method if answer.status != 405 else "-",
            route_of(request),
            answer.status,
            time.monotonic() - started,
        )
        return answer

    return identified


async def stamp(request: web.Request, answer: web.StreamResponse) -> None:
    """Every answer says which request it answers, streams too, and nothing of what we are made of."""
    answer.headers["Server"] = "broker"
    answer.headers["x-request-id"] = request.get(REQUEST_ID, "")


def route_of(request: web.Request) -> str:
    """The declared path of a request, for labels and logs: never the path itself, which holds ids and permissions."""
    resource = request.match_info.route.resource
    return "-" if resource is None else resource.canonical


@web.middleware
async def _refusing(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Errors that we know become their answers; any other is logged with its facts and tells the caller nothing."""
    try:
        return await handler(request)
    except Exception as error:  # noqa: BLE001 - the outermost edge: what is not caught here, nobody explains to the caller
        if isinstance(error, ConnectionError) and _hung_up(request):
            log.info("request.abandoned", request=request[REQUEST_ID], route=route_of(request), error=str(error))
            return errors.response_of(bad_request("connection_lost", "The connection broke."))  # nobody reads it
        problem = errors.problem_of(error) or errors.defect(request[REQUEST_ID])
        if problem.status >= 500:
            _log_failure(request, problem, error)
        return errors.response_of(problem)


def _hung_up(request: web.Request) -> bool:
    return request.transport is None or request.transport.is_closing()


def _log_failure(request: web.Request, problem: Problem, error: Exception) -> None:
    if isinstance(error, UNAVAILABLE):
        # while the database is away every request ends here: one line each
        found = f"{type(error).__name__}: {error}".partition("\n")[0]
        log.warning("request.no_database", request=request[REQUEST_ID], route=route_of(request), error=found)
        return
    log.error(
        "request.failed",
        request=request[REQUEST_ID],
        method=request.method,
        route=route_of(request),
        status=problem.status,
        code=problem.code,
        # formatted here: a renderer that shows local variables would print our secrets
        trace="".join(traceback.format_exception(error)),
    )


@web.middleware
async def _unencoded(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Bodies are taken as they are: what is limited is what we read, not what it would decompress to."""
    encoding = request.headers.get("Content-Encoding", "identity").lower()
    if encoding not in ("", "identity"):
        raise Problem(415, "unsupported_encoding", f"Content-Encoding {encoding!r}: send the body as it is.")
    return await handler(request)
