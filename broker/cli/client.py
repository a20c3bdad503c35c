"""The commands' way to a broker: its public HTTP API, with typed errors and bounded retries."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from broker.cli.interruptions import BrokeOff, NotSent

if TYPE_CHECKING:
    import aiohttp

    from broker.cli.transport import Transport

# A broker that restarts is back within seconds; the sum of these waits is how long a command is patient with it.
RETRY_WAITS_S = (0.2, 0.5, 1.0, 2.0, 4.0)
CHUNK_BYTES = 256 * 1024
# How long nothing of a body may leave before the connection counts as broken. TCP alone would wait for ever on a peer that
# is there and does not read (seen: a proxy that had given up its other side).
# More than the 120 s that the transport gives an answer once all was sent.
SILENCE_S = 240.0
Moved = Callable[[], None]
Query = Mapping[str, str | int | list[str] | None]


class BrokerUnreachable(Exception):
    """No answer from the broker, after all retries."""


class ApiFailure(Exception):
    """The broker refused: `status`, and the error envelope's `message`, `code`, `param`."""

    def __init__(self, status: int, message: str, code: str | None, param: str | None) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.param = param


class Client:
    """One broker over HTTP. Bodies are the API's JSON as dictionaries: `broker/api/shapes.py` is their shape."""

    def __init__(
        self,
        url: str,
        key: str | None,
        project: str | None = None,
        tls_ca: Path | None = None,
        *,
        silence_s: float = SILENCE_S,
    ) -> None:
        self._tls_ca = tls_ca
        self._silence_s = silence_s
        self.url = url.rstrip("/")
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}
        if project:
            self._headers["OpenAI-Project"] = project
        self._transport: Transport | None = None

    async def __aenter__(self) -> Self:
        # Imported here: what asks no broker (help, completion of commands, a slip of the pen) need not wait for aiohttp.
        from broker.cli.transport import Transport  # noqa: PLC0415

        self._transport = Transport(self._headers, self._tls_ca)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._transport
        await self._transport.close()

    async def get(self, path: str, query: Query | None = None) -> dict[str, Any]:
        """GET a JSON document. `query` values that are None are left out. Raises ApiFailure, BrokerUnreachable."""
        return await self._json("GET", path, again=True, params=_given(query))

    async def post(
        self, path: str, body: Mapping[str, Any], *, idempotency_key: str | None = None, again: bool = False
    ) -> dict[str, Any]:
        """POST a JSON document. Repeated after a lost answer only when an idempotency key, or the nature of the request
        (`again`), makes that safe."""
        headers = {"Idempotency-Key": idempotency_key} if idempotency_key else {}
        return await self._json("POST", path, again=again or bool(idempotency_key), json=body, headers=headers)

    async def patch(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """PATCH with a JSON document: it says what shall be so, so that it may be sent twice."""
        return await self._json("PATCH", path, again=True, json=body)

    async def delete(self, path: str) -> dict[str, Any]:
        """DELETE. Raises ApiFailure 404 also when an earlier attempt did it whose answer was lost."""
        return await self._json("DELETE", path, again=True)

    async def discard(self, file_id: str) -> None:
        """Delete an uploaded file; one that is gone already is no failure."""
        try:
            await self.delete(f"/v1/files/{file_id}")
        except ApiFailure as refused:
            if refused.status != 404:
                raise

    async def send(self, path: str, form: Callable[[Moved], aiohttp.FormData], *, again: bool) -> dict[str, Any]:
        """POST a form. It is used up by an attempt, whether or not a connection came of it: `form` makes each its own.

        It calls what it is given whenever more of it is taken: an attempt of which nothing is taken for `silence_s` broke off.
        """
        return await self._json("POST", path, again=again, form=form)

    @asynccontextmanager
    async def opened(
        self, path: str, query: Query | None = None, headers: Mapping[str, str] | None = None
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """An answer to be read as it comes. Raises ApiFailure, and BrokerUnreachable also when it breaks off midway."""
        assert self._transport
        try:
            async with self._transport.asked("GET", self.url + path, params=_given(query), headers=headers) as answer:
                await _refuse(answer)
                yield answer
        except (NotSent, BrokeOff) as failure:
            raise BrokerUnreachable(f"{self.url}{path}: the answer broke off: {failure}") from failure

    async def put(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """PUT a JSON document: it says what shall be so, so that it may be sent twice."""
        return await self._json("PUT", path, again=True, json=body)

    async def post_bytes(self, path: str, query: Query, body: bytes) -> dict[str, Any]:
        """POST a file as it is. Sent once: what was done with it when an answer is lost, the broker knows."""
        headers = {"Content-Type": "application/octet-stream"}
        return await self._json("POST", path, again=False, data=body, params=_given(query), headers=headers)

    async def stream(self, path: str, query: Query | None = None) -> AsyncIterator[bytes]:
        """The bytes of an answer as they come, once; see `download` for what is resumed."""
        async with self.opened(path, query) as answer:
            async for chunk in answer.content.iter_chunked(CHUNK_BYTES):
                yield chunk

    async def is_ready(self) -> bool:
        """One look at /readyz: no retries, no error."""
        assert self._transport
        try:
            async with asyncio.timeout(5), self._transport.asked("GET", f"{self.url}/readyz") as answer:
                return answer.status == 200
        except (NotSent, BrokeOff, TimeoutError):
            return False

    async def _json(
        self,
        method: str,
        path: str,
        *,
        again: bool,
        form: Callable[[Moved], aiohttp.FormData] | None = None,
        **request: Any,
    ) -> dict[str, Any]:
        """One request, repeated when nothing was sent, or when `again` says that it may be sent twice."""
        for wait_s in (*RETRY_WAITS_S, None):
            try:
                if form is None:
                    return await self._attempt(method, path, request)
                return await self._send_moving(method, path, form, request)
            except NotSent as failure:
                await self._pause(wait_s, path, failure)  # any request may be repeated
            except BrokeOff as failure:
                await self._pause(wait_s if again else None, path, failure)
        raise AssertionError("unreachable: the last pause raises")

    async def _attempt(self, method: str, path: str, request: Mapping[str, Any]) -> dict[str, Any]:
        assert self._transport
        async with self._transport.asked(method, self.url + path, **request) as answer:
            await _refuse(answer)
            if answer.status == 204:
                return {}
            document: dict[str, Any] = await answer.json()
            return document

    async def _send_moving(
        self, method: str, path: str, form: Callable[[Moved], aiohttp.FormData], request: Mapping[str, Any]
    ) -> dict[str, Any]:
        """An attempt with a body, while it moves; then the transport's own limit for the answer. Raises NotSent, BrokeOff."""
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self._silence_s) as patience:

                def moved() -> None:
                    patience.reschedule(loop.time() + self._silence_s)

                return await self._attempt(method, path, {**request, "data": form(moved)})
        except TimeoutError as failure:
            raise BrokeOff(f"nothing more of it was taken for {self._silence_s:g} s") from failure

    async def _pause(self, wait_s: float | None, path: str, failure: Exception) -> None:
        if wait_s is None:
            raise BrokerUnreachable(
                f"{self.url}{path}: no answer ({failure}); see whether the broker runs, or set BROKER_URL to where it does"
            ) from failure
        await asyncio.sleep(wait_s)


def _given(query: Query | None) -> dict[str, str | list[str]]:
    return {
        name: value if isinstance(value, list) else str(value)
        for name, value in (query or {}).items()
        if value is not None
    }


async def _refuse(answer: aiohttp.ClientResponse) -> None:
    """Raise what an error answer says. Other servers' pages (a proxy's 502) are named by their status."""
    if answer.status < 400:
        return
    try:
        error = json.loads(await answer.read())["error"]
        raise ApiFailure(answer.status, error["message"], error.get("code"), error.get("param"))
    except (ValueError, KeyError, TypeError):
        text = f"{answer.method} {answer.url}: HTTP {answer.status} {answer.reason}"
        raise ApiFailure(answer.status, text, None, None) from None
