"""One HTTP API of a provider, asked for what it sells: log-in, time limits, retries, size limits, errors of ours.

Only for requests that change nothing: every one of them may be sent again. No message of any error holds a credential, a
query, or more than the beginning of what the provider said.
"""

from __future__ import annotations

import asyncio
import hashlib
import ssl
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import parse_qsl, quote, urlsplit

import aiohttp
import stamina

from markets.errors import MarketsError, NotAuthorized, RateLimited, ShapeDrift, Unavailable
from markets.provider.login import ANONYMOUS, CredentialSource, Login, Proof, nobody
from markets.provider.shape import Shape, read

T = TypeVar("T")
_SAID_CHARS = 200
# A token that ends while its request is under way is refused: it is fetched anew this many seconds before.
_TOKEN_MARGIN_S = 30
# Credentials that are changed or taken away are not used any longer than this.
_LOOK_S = 60


@dataclass(frozen=True, slots=True)
class Reach:
    """Where an API is, and how patient we are with it.

    `timeout_s` is for one request with its whole answer, `max_bytes` for the answer unpacked. `attempts` are made where the
    failure may pass by itself; a Retry-After longer than `patience_s` is not waited for but handed on as RateLimited. `ca` (a
    PEM file) is trusted instead of what the system does.
    """

    base_url: str
    timeout_s: float = 20
    max_bytes: int = 64 * 1024 * 1024
    attempts: int = 3
    patience_s: float = 5
    ca: Path | None = None


class ProviderApi:
    """`get`, `post` and `follow` raise NoCredentials, NotAuthorized, RateLimited, Unavailable and its kind ShapeDrift."""

    def __init__(
        self, market: str, reach: Reach, *, login: Login = ANONYMOUS, credentials: CredentialSource = nobody
    ) -> None:
        self._market, self._reach, self._login, self._credentials = market, reach, login, credentials
        self._session: aiohttp.ClientSession | None = None
        self._values: Mapping[str, str] | None = None
        self._proof: Proof | None = None
        self._proving = asyncio.Lock()
        self._look_s, self._ends_s = 0.0, float("inf")

    async def get(self, path: str, query: Mapping[str, str] | None = None) -> Shape:
        return await self._asked("GET", path, query or {}, None)

    async def post(self, path: str, body: Any, query: Mapping[str, str] | None = None) -> Shape:
        """A question too long for a URL (GraphQL, a search): it must change nothing."""
        return await self._asked("POST", path, query or {}, body)

    async def follow(self, link: str) -> Shape:
        """A link of the provider's own to its next page. ShapeDrift when it leads elsewhere: our log-in would go there."""
        base, to = urlsplit(self._reach.base_url), urlsplit(link)
        if to.netloc and (to.scheme, to.netloc) != (base.scheme, base.netloc):
            raise ShapeDrift(f"{self._market}: a next page on {to.hostname!r}, which is not {base.hostname!r}")
        prefix = base.path.rstrip("/")
        return await self.get(to.path.removeprefix(prefix), dict(parse_qsl(to.query, keep_blank_values=True)))

    async def pages(
        self, ask: Callable[[T], Awaitable[Shape]], first: T, after: Callable[[Shape], T | None], *, most: int = 1_000
    ) -> list[Shape]:
        """All pages: `ask(first)`, then `ask(after(page))` while there is one. All or nothing.

        ShapeDrift when a page was asked for before, says the same as one before, or is the `most`-th and not the last: a list
        that never ends must not fill the memory, and one cut in the middle would look like offers that are gone.
        """
        found: list[Shape] = []
        at: T | None = first
        asked, said = set[str](), set[bytes]()
        while at is not None:
            if repr(at) in asked:
                raise ShapeDrift(f"{self._market}: its pages go round: page {len(found)} leads back to one before")
            if len(found) == most:
                raise ShapeDrift(f"{self._market}: more than {most} pages")
            asked.add(repr(at))
            page = await ask(at)
            at = after(page)
            words = hashlib.sha256(repr(page.value).encode()).digest()
            if at is not None and words in said:
                raise ShapeDrift(
                    f"{self._market}: page {len(found)} is word for word one before it, and there is a next"
                )
            said.add(words)
            found.append(page)
        return found

    async def is_logged_in(self) -> bool:
        """Whether there are credentials, where they are optional: some questions are answered only with them."""
        return bool((await self._proven()).secrets)

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def _asked(self, method: str, path: str, query: Mapping[str, str], body: Any) -> Shape:
        return await patiently(self._reach, lambda: self._with_proof(method, path, query, body))

    async def _with_proof(self, method: str, path: str, query: Mapping[str, str], body: Any) -> Shape:
        """A refusal of a proof that was good before is asked once more with a new one: tokens end, and keys are rotated."""
        known = self._proof
        proof = await self._proven()
        try:
            return await self._once(method, path, query, body, proof)
        except NotAuthorized:
            self._proof, self._look_s = None, 0.0
            if proof is not known:
                raise
        return await self._once(method, path, query, body, await self._proven())

    async def _proven(self) -> Proof:
        """The proof of before, unless the credentials have changed or been taken away since, or its token has ended."""
        async with self._proving:
            now = time.monotonic()
            if now >= self._look_s:
                values = await self._credentials()
                self._look_s = now + _LOOK_S
                if values != self._values:
                    self._values, self._proof = values, None
            if self._proof is None or now >= self._ends_s:
                proof = self._login.proof(self._market, self._values)
                self._ends_s = float("inf")
                if self._login.token_path and self._values:
                    proof = await self._token(self._values, proof)
                self._proof = proof
            return self._proof

    async def _token(self, values: Mapping[str, str], proof: Proof) -> Proof:
        names = self._login.needs
        body = {"grant_type": "client_credentials", "client_id": values[names[0]], "client_secret": values[names[1]]}
        answer = await self._once("POST", self._login.token_path or "", {}, body, proof)
        token = answer["access_token"].text()
        lasts = answer.get("expires_in")
        self._ends_s = time.monotonic() + (int(lasts.number()) if lasts else 600) - _TOKEN_MARGIN_S
        return Proof(headers={"Authorization": f"Bearer {token}"}, secrets=(*proof.secrets, token))

    async def _once(self, method: str, path: str, query: Mapping[str, str], body: Any, proof: Proof) -> Shape:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(ssl=self._trust()),
                timeout=aiohttp.ClientTimeout(total=self._reach.timeout_s),
                cookie_jar=aiohttp.DummyCookieJar(),
                headers={"User-Agent": "compute-broker", "Accept": "application/json"},
            )
        where, url = f"{self._market} {method} {path}", self._reach.base_url.rstrip("/") + path
        try:
            # a redirect is not followed: the log-in would go wherever it leads
            async with self._session.request(
                method,
                url,
                params={**query, **proof.query},
                json=body,
                headers=proof.headers,
                allow_redirects=False,
            ) as response:
                said = await self._body(response, where)
                status, headers = response.status, response.headers
        except TimeoutError as error:
            raise Unavailable(f"{where}: no whole answer within {self._reach.timeout_s:g} s") from error
        except (aiohttp.ClientError, ValueError) as error:
            raise Passing(f"{where}: {_scrubbed(str(error) or type(error).__name__, proof)}") from None
        if status == 200:
            return read(said, where, headers)
        excerpt = _scrubbed(said[:_SAID_CHARS].decode("utf-8", "replace"), proof)
        raise _refusal(status, f"{where}: status {status}: {excerpt}", retry_after_s(headers.get("Retry-After")))

    def _trust(self) -> ssl.SSLContext | bool:
        if self._reach.ca is None:
            return True
        try:
            return ssl.create_default_context(cafile=self._reach.ca)
        except OSError as error:  # an SSLError is one
            raise Unavailable(f"{self._market}: the authority in {self._reach.ca} cannot be read: {error}") from error

    async def _body(self, response: aiohttp.ClientResponse, where: str) -> bytes:
        parts, size = [], 0
        async for part in response.content.iter_chunked(1 << 16):
            size += len(part)
            if size > self._reach.max_bytes:
                raise Unavailable(f"{where}: an answer of more than {self._reach.max_bytes} bytes")
            parts.append(part)
        return b"".join(parts)


async def together(*asks: Coroutine[Any, Any, T], at_once: int = 8) -> list[T]:
    """All answers in order, at most `at_once` under way; or the first failure, and what is then still under way is given up."""
    turns = asyncio.Semaphore(at_once)

    async def in_turn(ask: Coroutine[Any, Any, T]) -> T:
        async with turns:
            return await ask

    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(in_turn(ask)) for ask in asks]
    except BaseExceptionGroup as failed:
        for ask in asks:
            ask.close()  # those that never had their turn
        raise failed.exceptions[0] from None
    return [task.result() for task in tasks]


async def patiently(reach: Reach, ask: Callable[[], Awaitable[T]]) -> T:
    """`ask` again while its failure may pass by itself: a Passing one, or a RateLimited one that asks for little patience."""

    def again(error: Exception) -> bool | float:
        """Whether to ask again, or after how many seconds."""
        if isinstance(error, Passing):
            return True
        if not isinstance(error, RateLimited):
            return False
        if error.retry_after_s is None:
            return True
        return max(0.1, error.retry_after_s) if error.retry_after_s <= reach.patience_s else False

    attempts = stamina.retry_context(
        on=again, attempts=reach.attempts, timeout=None, wait_initial=0.5, wait_max=reach.patience_s
    )
    async for attempt in attempts:
        with attempt:
            return await ask()
    raise AssertionError("stamina ends with an answer or an error")


class Passing(Unavailable):
    """A failure that may be over a moment later."""


def _refusal(status: int, message: str, retry_after_s: float | None) -> MarketsError:
    if status in (401, 403):
        return NotAuthorized(message)
    if status == 429 or (status == 503 and retry_after_s is not None):
        return RateLimited(message, retry_after_s=retry_after_s)
    return Passing(message) if status >= 500 else Unavailable(message)


def retry_after_s(text: str | None) -> float | None:
    """Seconds, from either form of Retry-After; one that cannot be read counts as none."""
    if not text:
        return None
    if text.strip().isdecimal():
        return float(text)
    try:
        at = parsedate_to_datetime(text).astimezone(UTC)
    except (ValueError, OverflowError):  # a zone of years, or one that moves the date out of the calendar
        return None
    return max(0.0, (at - datetime.now(UTC)).total_seconds())


def _scrubbed(text: str, proof: Proof) -> str:
    for secret in proof.secrets:
        text = text.replace(secret, "…").replace(quote(secret, safe=""), "…")
    return text
