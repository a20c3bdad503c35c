"""Nobody reaches a private network through a webhook, however the address is written or resolved."""

from __future__ import annotations

from typing import Any

import aiohttp
import pytest
from aiohttp import web
from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.test_utils import TestServer
from yarl import URL

from broker import egress
from broker.egress import BadUrl, checked_url

REFUSED = {
    "http://example.com/": "the scheme is 'http'",
    "ftp://example.com/": "the scheme is 'ftp'",
    "file:///etc/passwd": "the scheme is 'file'",
    "https:///path": "names no host",
    "https://ada:secret@example.com/": "a user or a password",
    "https://token@example.com/": "a user or a password",
    "https://127.0.0.1/": "not of the public internet",
    "https://[::1]/": "not of the public internet",
    "https://[::ffff:10.0.0.1]/": "not of the public internet",  # IPv4 inside IPv6
    "https://169.254.169.254/latest/meta-data/": "not of the public internet",  # the cloud's metadata
    "https://100.64.0.1/": "not of the public internet",  # carrier-grade NAT
    "https://[64:ff9b::a9fe:a9fe]/": "not of the public internet",  # the metadata through NAT64
    "https://0.0.0.0/": "not of the public internet",
    "https://example.com/" + "a" * 2000: "at most 2000 fit",
    "https://exa mple.com/": "",
}


@pytest.mark.parametrize("url", REFUSED)
def test_a_url_that_leads_inside_is_refused_when_it_is_named(url: str) -> None:
    with pytest.raises(BadUrl) as refused:
        checked_url(url, allow_http=False, allow_private=False)
    assert REFUSED[url] in str(refused.value)


def test_a_url_is_taken_with_its_port_and_query() -> None:
    url = "https://example.com:9443/hook?a=b"
    assert checked_url(url + "#top", allow_http=False, allow_private=False) == url


@pytest.fixture
async def inside() -> Any:
    """A server on loopback, and what came to it."""
    app, got = web.Application(), []

    async def take(request: web.Request) -> web.Response:
        got.append(request.path)
        return web.Response()

    app.router.add_get("/", take)
    async with TestServer(app) as server:
        yield server.port, got


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "127.1", "2130706433", "0x7f000001", "[::ffff:127.0.0.1]"])
async def test_no_spelling_of_loopback_is_connected_to(inside: Any, host: str) -> None:
    port, got = inside
    async with aiohttp.ClientSession(connector=egress.connector(allow_private=False, limit=1)) as session:
        with pytest.raises(aiohttp.ClientError, match=r"not of the public internet|not a canonical IPv4"):
            await session.get(f"http://{host}:{port}/")
    assert got == []
    async with aiohttp.ClientSession(connector=egress.connector(allow_private=True, limit=1)) as session:
        assert (await session.get(f"http://127.0.0.1:{port}/")).status == 200


class Rebinding(AbstractResolver):
    """Names that are public when they are looked at and private when they are used."""

    async def resolve(self, host: str, port: int = 0, family: Any = 0) -> list[ResolveResult]:
        return [
            ResolveResult(hostname=host, host=address, port=port, family=2, proto=0, flags=0)
            for address in ("127.0.0.1", "10.0.0.1")
        ]

    async def close(self) -> None:
        return None


async def test_a_name_that_is_bound_anew_after_its_check_is_not_connected_to(inside: Any) -> None:
    port, got = inside
    url = checked_url(f"https://rebinding.example:{port}/", allow_http=False, allow_private=False)
    connector = egress.connector(allow_private=False, limit=1)
    connector._resolver = Rebinding()
    async with aiohttp.ClientSession(connector=connector) as session:
        with pytest.raises(aiohttp.ClientConnectorError, match="not of the public internet"):
            await session.get(URL(url).with_scheme("http"))
    assert got == []
