"""One request to the engine and what came of it. How the bytes travel is for the implementations: here by aiohttp.

An exchange never raises for what an engine or a network does: it hands over an `Answer`, or a `NoAnswer` that says how
far the request got, because that decides whether the line, the engine or nobody is to blame.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

import aiohttp


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole HTTP answer, as far as its meaning needs it."""

    status: int
    body: bytes
    request_id: str | None
    retry_after: str | None


@dataclass(frozen=True, slots=True)
class NoAnswer:
    """`unconnected`: nothing was sent. `overdue`: sent, and silence. `broken`: sent, and no whole answer came back."""

    kind: Literal["unconnected", "overdue", "broken"]
    message: str


# The exception is a defect of ours: nothing that an engine does leads to one.
Outcome = Answer | NoAnswer | BaseException


class Pending(Protocol):
    """A request under way."""

    def cancel(self) -> object:
        """Drop it and its connection. What is on its way to `on_end` at this moment may still arrive there."""


class Exchange(Protocol):
    """Sends requests, any number at once."""

    def post(self, url: str, body: bytes, on_end: Callable[[Outcome], None]) -> Pending:
        """Send; `on_end` is called once, later, never from within this call."""

    def close(self) -> None:
        """Close idle connections. Cancel what is under way first."""


class SessionExchange:
    """By an aiohttp session: any URL, TLS, any loop."""

    def __init__(self, session: aiohttp.ClientSession, headers: Mapping[str, str], timeout_s: float) -> None:
        self._session = session
        self._headers = {"Content-Type": "application/json", **headers}
        self._timeout = aiohttp.ClientTimeout(total=timeout_s)
        self._timeout_s = timeout_s

    def post(self, url: str, body: bytes, on_end: Callable[[Outcome], None]) -> Pending:
        """See Exchange."""

        def hand_over(task: asyncio.Task[Answer | NoAnswer]) -> None:
            if not task.cancelled():
                on_end(task.exception() or task.result())

        task = asyncio.create_task(self._post(url, body))
        task.add_done_callback(hand_over)
        return task

    def close(self) -> None:
        """The session belongs to the caller."""

    async def _post(self, url: str, body: bytes) -> Answer | NoAnswer:
        try:
            async with self._session.post(
                url, data=body, headers=self._headers, timeout=self._timeout, allow_redirects=False
            ) as answer:
                content, headers = await answer.read(), answer.headers
                return Answer(answer.status, content, headers.get("x-request-id"), headers.get("Retry-After"))
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            return NoAnswer("unconnected", str(error))
        except TimeoutError:
            return NoAnswer("overdue", f"no answer within {self._timeout_s} s")
        except aiohttp.ClientError as error:
            return NoAnswer("broken", f"{type(error).__name__}: {error}")
