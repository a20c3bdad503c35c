"""What happens to a batch, as it happens: Server-Sent Events, resumable, and the same as pages.

A stream begins with the first event, or after the one that `Last-Event-ID` names, and ends after the batch's last one.
Events have numbers without gaps that are visible in order (jobs/outbox.py), so a stream is resumed without loss or
repetition by the number alone.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import structlog
from aiohttp import web

from broker.api.auth import bearer
from broker.api.event_shapes import BatchEvent, BatchEventList, EventQuery, batch_event
from broker.api.problems import Problem, bad_request
from broker.api.registry import EVERYONE, Call, Route, route
from broker.database import UNAVAILABLE
from broker.event_feed import EventFeed
from broker.keys import authenticate
from jobs import batches, outbox
from jobs.clock import db_now
from jobs.types import TERMINAL

log = structlog.get_logger()

AT_ONCE = 100  # events read in one transaction of a stream
LIVENESS_S = 1.0  # how soon it is noticed that a client went away
HEADERS = {
    "Content-Type": "text/event-stream; charset=utf-8",
    "Cache-Control": "no-cache, no-transform",
    "X-Accel-Buffering": "no",  # nginx would collect the stream
}
# One line, no blank one after it: that ends an event, and the stock openai client then decodes an empty one and fails.
HEARTBEAT = b": still here\n"


@dataclass(frozen=True, slots=True)
class Look:
    """What one look found: events after a number, whether none will follow, and whether the key still opens anything."""

    events: list[BatchEvent]
    number: int
    is_last: bool
    is_allowed: bool = True


def wants_stream(asked: bool | None, accept: str) -> bool:
    """Whether a stream is meant. Accept lists are not weighed: who names event streams at all can read one.

    >>> wants_stream(None, "*/*"), wants_stream(None, "text/event-stream"), wants_stream(None, "application/json")
    (True, True, False)
    >>> wants_stream(False, "text/event-stream"), wants_stream(True, "application/json")
    (False, True)
    """
    if asked is not None:
        return asked
    return "text/event-stream" in accept or "application/json" not in accept


def frame(event: BatchEvent) -> bytes:
    """An event on the wire. JSON has no raw line breaks, so one `data:` line holds it."""
    return f"id: {event.id}\nevent: {event.type}\ndata: {event.model_dump_json()}\n\n".encode()


@dataclass(frozen=True)
class EventStreams:
    """The event route of one application, and the streams that each key has open at it."""

    feed: EventFeed
    open: Counter[str] = field(default_factory=Counter)

    def routes(self) -> tuple[Route, ...]:
        async def list_events(call: Call, query: EventQuery) -> BatchEventList | web.StreamResponse:
            """What happened to a batch, and what happens while you listen.

            As Server-Sent Events: everything from the beginning (or after `Last-Event-ID`), then live until the batch
            has ended. A stream that is resumed after the last event is 204, which tells an EventSource to stop.
            """
            after = call.request.headers.get("Last-Event-ID") or query.after
            if wants_stream(query.stream, call.request.headers.get("Accept", "*/*")):
                return await self._stream(call, after)
            return await _page(call, after, query.limit)

        declared = route(
            "GET", "/v1/batches/{batch_id}/events", list_events, tag="batches", roles=EVERYONE,
            response=BatchEventList, produces=("text/event-stream",), also={204: None}, errors=(429,),
            headers={"Last-Event-ID": "id of the last event that was seen, as an EventSource sends it"},
        )  # fmt: skip
        return (declared,)

    async def _stream(self, call: Call, after: str | None) -> web.StreamResponse:
        with self._slot(call):
            async with self.feed.watch(call.path("batch_id")) as changed:
                look = await _look(call, await _number(call, after), AT_ONCE)
                if look.is_last and not look.events and after is not None:
                    return web.Response(status=204)
                answer = web.StreamResponse(headers=HEADERS)
                await answer.prepare(call.request)
                try:
                    await self._tell(call, answer, changed, look)
                except ConnectionResetError:
                    log.info("events.listener_left", request=call.request_id)
                except UNAVAILABLE as failure:
                    # The headers are out: all that can be said is the end, after which a client resumes.
                    log.warning("events.cut_off", request=call.request_id, error=str(failure))
                return answer

    async def _tell(self, call: Call, answer: web.StreamResponse, changed: asyncio.Event, look: Look) -> None:
        """Write what there is, then what comes, until there is nothing to come or nobody to listen."""
        heartbeat_s = call.services.settings.http.stream_heartbeat_s
        await answer.write(HEARTBEAT)  # sends the headers, so that a client knows that it is connected
        written_s = time.monotonic()
        while look.is_allowed:
            for event in look.events:
                await answer.write(frame(event))
                written_s = time.monotonic()
            if look.is_last or self.feed.is_closing or _hung_up(call):
                return
            if len(look.events) < AT_ONCE and not await _is_set(changed, min(LIVENESS_S, heartbeat_s)):
                look = Look([], look.number, is_last=False)
                if time.monotonic() - written_s >= heartbeat_s:
                    await answer.write(HEARTBEAT)
                    written_s = time.monotonic()
                continue
            changed.clear()  # before the look: what is committed after it wakes us again
            look = await _look(call, look.number, AT_ONCE)

    @contextmanager
    def _slot(self, call: Call) -> Iterator[None]:
        key, most = call.caller.key_id, call.services.settings.http.streams_per_key
        if self.open[key] >= most:
            message = f"This key listens to {most} event streams already; close one, or ask for pages (?stream=false)."
            raise Problem(429, "too_many_streams", message, headers={"Retry-After": "10"})
        self.open[key] += 1
        try:
            yield
        finally:
            self.open[key] -= 1
            if not self.open[key]:
                del self.open[key]


async def _page(call: Call, after: str | None, limit: int) -> BatchEventList:
    look = await _look(call, await _number(call, after), limit + 1)
    page = look.events[:limit]
    return BatchEventList.of(page, has_more=len(look.events) > limit)


async def _number(call: Call, event_id: str | None) -> int:
    """After which number to begin. Raises BatchNotFound, and 400 for an event that is not (or no longer) known."""
    async with call.services.database.transaction() as session:
        batch = await batches.get(session, call.project, call.path("batch_id"))
        number = 0 if event_id is None else await outbox.number_of(session, batch.id, event_id)
    if number is None:
        message = f"no event {event_id!r} of batch {batch.id} is known; leave it away to begin with the first that is"
        raise bad_request("event_not_found", message, "after")
    return number


async def _look(call: Call, number: int, limit: int) -> Look:
    """The events after a number. A key that was revoked since the stream began is told nothing more."""
    async with call.services.database.transaction() as session:
        if await authenticate(session, bearer(call.request), await db_now(session)) is None:
            return Look([], number, is_last=False, is_allowed=False)
        # The status first: when it is terminal, the event that said so was committed with it, and is seen below.
        batch = await batches.get(session, call.project, call.path("batch_id"))
        found = await outbox.after(session, batch.id, number, limit)
    return Look(
        events=[batch_event(event) for event in found],
        number=found[-1].number if found else number,
        is_last=batch.status in TERMINAL and len(found) < limit,
    )


async def _is_set(changed: asyncio.Event, within_s: float) -> bool:
    try:
        async with asyncio.timeout(within_s):
            return await changed.wait()
    except TimeoutError:
        return False


def _hung_up(call: Call) -> bool:
    transport = call.request.transport
    return transport is None or transport.is_closing()
