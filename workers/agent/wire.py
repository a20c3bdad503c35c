"""The agent's side of `/worker/v1`: who we are, what is asked, and how often.

Answers are sorted once, here: 2xx is an answer; 401 and 403 raise Dismissed; 425, 429, 5xx and silence are asked again
with growing, jittered pauses (`Retry-After` counts); any other 4xx raises Refused. The token goes to the broker's own
origin and nowhere else, so an object store never sees it.
"""

from __future__ import annotations

import asyncio
import json
import random
import ssl
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

import aiohttp
from yarl import URL

from workers.agent.errors import Dismissed, Refused
from workers.agent.identity import PROOF_HEADER, Prover
from workers.agent.log import event

_FIRST_PAUSE_S = 0.2
_LONGEST_PAUSE_S = 15.0
_CALL_S = 60.0
_SILENCE_S = 60.0
_SLOWEST_BYTES_PER_S = 16 * 1024
_WIRE = "/worker/v1/"
_OBJECTS = _WIRE + "objects/"
PART_TYPE = "application/vnd.compute-broker.part"
_AGAIN = frozenset({408, 425, 429})


class NotNow(Exception):
    """The broker, or an object store, did not answer, or asked to be asked again after `after_s`."""

    def __init__(self, message: str, after_s: float | None = None) -> None:
        super().__init__(message)
        self.after_s = after_s


@dataclass(frozen=True, slots=True)
class Reply:
    """An HTTP answer below 500 that is none of 401, 403, 408, 425, 429."""

    status: int
    body: bytes


class Wire:
    """One agent's conversation with the broker. `last_answer_at` (monotonic) feeds the dead man's switch."""

    def __init__(self, session: aiohttp.ClientSession, broker_url: str, token: str) -> None:
        self._session = session
        self._base = URL(broker_url + "/")
        self._token = token
        self._tls: ssl.SSLContext | bool = True
        self._prover: Prover | None = None
        self.last_answer_at = time.monotonic()

    def use_token(self, token: str) -> None:
        """From now on this is who we are."""
        self._token = token

    def use_proof(self, prover: Prover) -> None:
        """From now on each call proves that it is ours."""
        self._prover = prover

    def use_tls(self, context: ssl.SSLContext) -> None:
        """From now on connections to the broker are made with this: new ones, because a connection has one identity."""
        self._tls = context

    async def hello(self, facts: Mapping[str, Any]) -> dict[str, Any]:
        """Say what this machine is; asked again until answered. Dismissed also on 422: another process is this worker."""
        try:
            return await self._until_answered("worker/v1/hello", facts)
        except Refused as refusal:
            if refusal.status == 422:
                raise Dismissed(str(refusal)) from refusal
            raise

    async def heartbeat(self, state: Mapping[str, Any], within_s: float = _CALL_S) -> dict[str, Any]:
        """Asked once, because the next one says it better. NotNow: no answer within `within_s`."""
        return _object(await self._call("POST", "worker/v1/heartbeat", state, within_s))

    async def lease(self, wait_s: float) -> dict[str, Any]:
        """A long poll; asked once. NotNow: no answer."""
        return _object(await self._call("POST", "worker/v1/leases", {"wait_s": wait_s}, _CALL_S + wait_s))

    async def fetch(self, url: str, headers: Mapping[str, str]) -> bytes:
        """A shard's bytes; asked again until answered."""
        return (await self._repeat(url, lambda: self._transfer("GET", url, None, headers))).body

    async def part_target(self, url: str, request: Mapping[str, Any]) -> dict[str, Any]:
        """Where a part may be written; asked again until answered."""
        return await self._until_answered(url, request)

    async def put(self, url: str, content: bytes, headers: Mapping[str, str]) -> None:
        """Write a part, once. NotNow: nothing is known. Refused: this URL will not take it (it may have expired).

        412 is success: the name is unique to the bytes, so what lies there already is this part.
        """
        reply = await self._transfer("PUT", url, content, headers)
        if reply.status >= 300 and reply.status != 412:
            raise Refused("PUT of a part", reply.status, reply.body.decode("utf-8", "replace"))

    async def commit(self, shard_id: str, commit: Mapping[str, Any]) -> dict[str, Any]:
        """Asked again until answered: the broker replays its answer to a commit that it has seen."""
        return await self._until_answered(f"worker/v1/shards/{shard_id}/commits", commit)

    async def deliver(self, shard_id: str, commit: Mapping[str, Any], content: bytes) -> dict[str, Any]:
        """A part and its commit at once; asked again until answered, as `commit`."""
        path = f"worker/v1/shards/{shard_id}/deliveries"
        body = json.dumps(commit).encode() + b"\n" + content

        async def ask() -> Reply:
            reply = await self._ask("POST", path, body, {"Content-Type": PART_TYPE}, _transfer_timeout(body))
            if reply.status >= 300:
                raise Refused(f"POST {path}", reply.status, reply.body.decode("utf-8", "replace"))
            return reply

        return _object(await self._repeat(path, ask))

    async def goodbye(self, reason: str, error: str | None) -> None:
        """The last call, asked once. NotNow: no answer."""
        await self._call("POST", "worker/v1/goodbye", {"reason": reason, "error": error})

    async def _until_answered(self, path: str, message: Mapping[str, Any]) -> dict[str, Any]:
        return _object(await self._repeat(path, lambda: self._call("POST", path, message)))

    async def _repeat(self, what: str, ask: Callable[[], Awaitable[Reply]]) -> Reply:
        tries = 0
        while True:
            try:
                return await ask()
            except NotNow as refusal:
                pause = next_pause(tries, refusal.after_s, random.random())
                event("broker.silent", call=URL(what).path, reason=str(refusal), again_in_s=round(pause, 2))
                await asyncio.sleep(pause)
                tries += 1

    async def _call(self, method: str, path: str, message: Mapping[str, Any], within_s: float = _CALL_S) -> Reply:
        timeout = aiohttp.ClientTimeout(total=within_s, sock_connect=10)
        body = json.dumps(message).encode()
        reply = await self._ask(method, path, body, {"Content-Type": "application/json"}, timeout)
        if reply.status >= 300:
            raise Refused(f"{method} {URL(path).path}", reply.status, reply.body.decode("utf-8", "replace"))
        return reply

    async def _transfer(self, method: str, url: str, body: bytes | None, headers: Mapping[str, str]) -> Reply:
        try:
            reply = await self._ask(method, url, body, headers, _transfer_timeout(body))
        except Dismissed as dismissed:
            # a permission to read or write one object has run out: that says nothing about this worker
            raise Refused(f"{method} {URL(url).path}", 403, str(dismissed)) from dismissed
        if method == "GET" and reply.status >= 300:
            raise Refused(f"GET {URL(url).path}", reply.status, reply.body.decode("utf-8", "replace"))
        return reply

    def _identity(self, method: str, url: URL, body: bytes) -> dict[str, str]:
        shown = {"Authorization": f"Bearer {self._token}"}
        # objects are opened by what their own path says: no proof, and none of the time to hash a part
        if self._prover is not None and not _wire_path(url).startswith(_OBJECTS):
            shown[PROOF_HEADER] = self._prover.header(method, _wire_path(url), body)
        return shown

    async def _ask(
        self, method: str, path: str, body: bytes | None, headers: Mapping[str, str], timeout: aiohttp.ClientTimeout
    ) -> Reply:
        url = self._base.join(URL(path, encoded=True))
        is_broker = url.origin() == self._base.origin()
        sent = dict(headers) | (self._identity(method, url, body or b"") if is_broker else {})
        try:
            async with self._session.request(
                method,
                url,
                data=body,
                headers=sent,
                timeout=timeout,
                allow_redirects=False,
                ssl=self._tls if is_broker else True,
            ) as answer:
                reply = Reply(answer.status, await answer.read())
                after = answer.headers.get("Retry-After")
        except (aiohttp.ClientError, TimeoutError) as error:
            raise NotNow(f"{type(error).__name__}: {error}") from error
        if is_broker and reply.status in (401, 403):
            raise Dismissed(f"{method} {url.path}: the broker answered {reply.status}: {reply.body[:500]!r}")
        if reply.status >= 500 or reply.status in _AGAIN:
            raise NotNow(f"status {reply.status}", float(after) if after and after.isdigit() else None)
        if is_broker and reply.status < 400:
            self.last_answer_at = time.monotonic()
        return reply


def _wire_path(url: URL) -> str:
    """From the wire's own root: the broker may be below a path of a proxy's."""
    return _WIRE + url.path.partition(_WIRE)[2]


def next_pause(tries: int, after_s: float | None, chance: float) -> float:
    """Seconds until the next try: doubling from 0.2 to 15, half of it by chance in [0, 1); never before `after_s`.

    >>> next_pause(3, None, 0.0), next_pause(30, None, 0.999) <= 15, next_pause(0, 7, 0.0)
    (0.8, True, 7)
    """
    longest: float = min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2 ** min(tries, 16))
    return max(after_s or 0, longest * (0.5 + chance / 2))


def _transfer_timeout(body: bytes | None) -> aiohttp.ClientTimeout:
    """What is fetched may take as long as more of it comes. What is sent has its time, because aiohttp limits no silence while
    it sends and TCP waits for ever on a peer that is there and does not read: the part would never be cut again.

    >>> _transfer_timeout(None).total is None, _transfer_timeout(bytes(1 << 20)).total
    (True, 124.0)
    """
    total = None if body is None else _SILENCE_S + len(body) / _SLOWEST_BYTES_PER_S
    return aiohttp.ClientTimeout(total=total, sock_connect=10, sock_read=_SILENCE_S)


def _object(reply: Reply) -> dict[str, Any]:
    try:
        answer = json.loads(reply.body)
    except ValueError as error:
        raise NotNow(f"the answer is not JSON: {error}") from error
    if not isinstance(answer, dict):
        raise NotNow(f"the answer is not a JSON object but {type(answer).__name__}")
    return answer
