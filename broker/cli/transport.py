"""HTTP for the commands: aiohttp, imported by a command once it has something to ask."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp

from broker.cli.interruptions import BrokeOff, NotSent


class Transport:
    """One client's connections. To be made inside of the event loop that uses it."""

    def __init__(self, headers: Mapping[str, str], tls_ca: Path | None = None) -> None:
        """`tls_ca`: PEM of what is trusted beside what the system trusts. Raises OSError when it cannot be read as that."""
        # Uploads and downloads take as long as they take: only connecting and silence are limited.
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=10, sock_read=120)
        self._session = aiohttp.ClientSession(headers=headers, timeout=timeout, connector=_connector(tls_ca))

    @asynccontextmanager
    async def asked(self, method: str, url: str, **request: Any) -> AsyncIterator[aiohttp.ClientResponse]:
        """The answer to a request, while it is read. Raises NotSent or BrokeOff, also out of the reading."""
        try:
            async with self._session.request(method, url, **request) as answer:
                yield answer
        except aiohttp.ClientConnectorError as failure:
            raise NotSent(_told(failure)) from failure
        except (aiohttp.ClientConnectionError, aiohttp.ClientPayloadError, TimeoutError) as failure:
            raise BrokeOff(_told(failure)) from failure

    async def close(self) -> None:
        await self._session.close()


def _connector(tls_ca: Path | None) -> aiohttp.TCPConnector | None:
    if tls_ca is None:
        return None
    context = ssl.create_default_context()
    context.load_verify_locations(cafile=tls_ca)
    return aiohttp.TCPConnector(ssl=context)


def _told(failure: Exception) -> str:
    return str(failure) or type(failure).__name__
