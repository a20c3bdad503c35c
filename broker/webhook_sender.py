"""One signed request to one webhook, and what became of it (Standard Webhooks, as OpenAI's clients verify it).

Nothing of the answer but its status is used, and no redirect is followed: a 3xx is a failure like any other.
"""

from __future__ import annotations

import base64
import hmac
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version

import aiohttp

from broker import egress
from broker.settings import WebhookSettings
from jobs.clock import MICROSECONDS

USER_AGENT = f"compute-broker/{version('compute-broker')}"


@dataclass(frozen=True, slots=True)
class Message:
    """What is sent: the same id and bytes at each attempt, so that a receiver knows a repeat."""

    id: str
    body: bytes


@dataclass(frozen=True, slots=True)
class Answer:
    """The receiver's status, or why there was none."""

    status: int | None
    error: str | None = None

    @property
    def is_taken(self) -> bool:
        return self.status is not None and 200 <= self.status < 300

    @property
    def is_gone(self) -> bool:
        """410: the receiver wants no more, ever."""
        return self.status == 410


def signed_headers(message: Message, secrets: Sequence[str], now_us: int) -> dict[str, str]:
    """The three headers of Standard Webhooks. With several secrets (one was just rotated) there are several signatures."""
    seconds = str(now_us // MICROSECONDS)
    signed = b".".join((message.id.encode(), seconds.encode(), message.body))
    return {
        "webhook-id": message.id,
        "webhook-timestamp": seconds,
        "webhook-signature": " ".join(f"v1,{_mac(secret, signed)}" for secret in secrets),
    }


def _mac(secret: str, signed: bytes) -> str:
    key = base64.b64decode(secret.removeprefix("whsec_"))
    return base64.b64encode(hmac.digest(key, signed, "sha256")).decode()


class WebhookSender:
    """An HTTP client for webhooks: an async context, or closed by `close`."""

    def __init__(self, settings: WebhookSettings) -> None:
        self._session = aiohttp.ClientSession(
            connector=egress.connector(allow_private=settings.allow_private, limit=settings.concurrency),
            timeout=aiohttp.ClientTimeout(total=settings.timeout_s),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            headers={"User-Agent": USER_AGENT, "Content-Type": "application/json"},
        )

    async def send(self, url: str, message: Message, secrets: Sequence[str], now_us: int) -> Answer:
        """One attempt. What fails is in the answer; nothing that a receiver does raises."""
        headers = signed_headers(message, secrets, now_us)
        try:
            async with self._session.post(url, data=message.body, headers=headers, allow_redirects=False) as response:
                return Answer(response.status)
        except TimeoutError:
            return Answer(None, f"no answer within {self._session.timeout.total:g} s")
        except aiohttp.ClientConnectorCertificateError:
            return Answer(None, "the certificate is not valid for this host, or nobody we trust signed it")
        except aiohttp.ClientConnectorError as failure:
            return Answer(None, f"cannot connect: {failure.strerror}"[:300])
        except (aiohttp.ClientError, OSError) as failure:
            return Answer(None, type(failure).__name__)  # its text may hold the URL, and that a secret

    async def __aenter__(self) -> WebhookSender:
        return self

    async def __aexit__(self, *_raised: object) -> None:
        await self.close()

    async def close(self) -> None:
        await self._session.close()
