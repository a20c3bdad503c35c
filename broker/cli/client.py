"""The commands' way to a broker: its public HTTP API, with typed errors and bounded retries."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Any, Self

import aiohttp
import structlog

log = structlog.get_logger()

# A broker that restarts is back within seconds; the sum of these waits is how long a command is patient with it.
RETRY_WAITS_S = (0.2, 0.5, 1.0, 2.0, 4.0)
CHUNK_BYTES = 256 * 1024
Query = Mapping[str, str | int | None]


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

    def __init__(self, url: str, key: str | None, project: str | None = None) -> None:
        self.url = url.rstrip("/")
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}
        if project:
            self._headers["OpenAI-Project"] = project
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        # Uploads and downloads take as long as they take: only connecting and silence are limited.
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=10, sock_read=120)
        self._session = aiohttp.ClientSession(headers=self._headers, timeout=timeout)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._session
        await self._session.close()

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

    async def send(self, path: str, form: Callable[[], aiohttp.FormData], *, again: bool) -> dict[str, Any]:
        """POST a form. It is used up by an attempt, whether or not a connection came of it: `form` makes each its own."""
        return await self._json("POST", path, again=again, form=form)

    @asynccontextmanager
    async def opened(
        self, path: str, query: Query | None = None, headers: Mapping[str, str] | None = None
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """An answer to be read as it comes. Raises ApiFailure, and BrokerUnreachable also when it breaks off midway."""
        assert self._session
        try:
            async with self._session.get(self.url + path, params=_given(query), headers=headers) as answer:
                await _refuse(answer)
                yield answer
        except (aiohttp.ClientConnectionError, aiohttp.ClientPayloadError, TimeoutError) as failure:
            raise BrokerUnreachable(f"{self.url}{path}: the answer broke off: {failure}") from failure

    async def stream(self, path: str) -> AsyncIterator[bytes]:
        """The bytes of an answer as they come, once; see `download` for what is resumed."""
        async with self.opened(path) as answer:
            async for chunk in answer.content.iter_chunked(CHUNK_BYTES):
                yield chunk

    async def is_ready(self) -> bool:
        """One look at /readyz: no retries, no error."""
        assert self._session
        try:
            async with self._session.get(f"{self.url}/readyz", timeout=aiohttp.ClientTimeout(total=5)) as answer:
                return answer.status == 200
        except (aiohttp.ClientError, TimeoutError):
            return False

    async def _json(
        self, method: str, path: str, *, again: bool, form: Callable[[], aiohttp.FormData] | None = None, **request: Any
    ) -> dict[str, Any]:
        """One request, repeated when nothing was sent, or when `again` says that it may be sent twice."""
        assert self._session
        for wait_s in (*RETRY_WAITS_S, None):
            if form:
                request["data"] = form()
            try:
                async with self._session.request(method, self.url + path, **request) as answer:
                    await _refuse(answer)
                    if answer.status == 204:
                        return {}
                    document: dict[str, Any] = await answer.json()
                    return document
            except aiohttp.ClientConnectorError as failure:
                # Nothing was sent, so that any request may be repeated.
                await self._pause(wait_s, path, failure)
            except (aiohttp.ClientConnectionError, aiohttp.ClientPayloadError, TimeoutError) as failure:
                await self._pause(wait_s if again else None, path, failure)
        raise AssertionError("unreachable: the last pause raises")

    async def _pause(self, wait_s: float | None, path: str, failure: Exception) -> None:
        if wait_s is None:
            what = str(failure) or type(failure).__name__
            raise BrokerUnreachable(
                f"{self.url}{path}: no answer ({what}); see whether the broker runs, or set BROKER_URL to where it does"
            ) from failure
        log.info("client.retry", url=self.url + path, wait_s=wait_s, error=str(failure))
        await asyncio.sleep(wait_s)


def _given(query: Query | None) -> dict[str, str]:
    return {name: str(value) for name, value in (query or {}).items() if value is not None}


async def _refuse(answer: aiohttp.ClientResponse) -> None:
    """Raise what an error answer says. Other servers' pages (a proxy's 502) are named by their status."""
    if answer.status < 400:
        return
    try:
        error = (await answer.json())["error"]
        raise ApiFailure(answer.status, error["message"], error.get("code"), error.get("param"))
    except (aiohttp.ContentTypeError, ValueError, KeyError, TypeError):
        text = f"{answer.method} {answer.url}: HTTP {answer.status} {answer.reason}"
        raise ApiFailure(answer.status, text, None, None) from None
