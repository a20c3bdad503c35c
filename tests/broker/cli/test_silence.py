"""A peer that is there and does not read."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import aiohttp
import pytest

from broker.cli.client import BrokerUnreachable, Client, Moved

ENOUGH = 64 * 1024 * 1024  # more than the buffers of both ends take


class Deaf:
    """A server that reads nothing of its first connections, as a proxy that has lost its other side, and then answers."""

    def __init__(self, deaf: int) -> None:
        self.asked = 0
        self._deaf = deaf
        self._over = asyncio.Event()

    async def __aenter__(self) -> str:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, limit=1024)
        return f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def __aexit__(self, *_: object) -> None:
        self._over.set()
        self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.asked += 1
        if self.asked <= self._deaf:
            await self._over.wait()
        else:
            head = await reader.readuntil(b"\r\n\r\n")
            assert b"chunked" in head.lower()
            while not (await reader.read(1 << 20)).endswith(b"0\r\n\r\n"):
                pass
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}")
            await writer.drain()
        writer.close()


def form(moved: Moved) -> aiohttp.FormData:
    async def content() -> AsyncIterator[bytes]:
        for _ in range(ENOUGH // 2**20):
            moved()
            yield b"x" * 2**20

    made = aiohttp.FormData()
    made.add_field("data", content(), filename="part", content_type="application/octet-stream")
    return made


async def test_an_upload_of_which_nothing_is_taken_any_more_is_sent_again() -> None:
    deaf = Deaf(1)
    async with deaf as url, Client(url, None, silence_s=0.3) as client:
        assert await client.send("/v1/uploads/upload_1/parts", form, again=True) == {}
    assert deaf.asked == 2


async def test_what_may_not_be_sent_twice_says_that_nothing_was_taken() -> None:
    async with Deaf(1) as url, Client(url, None, silence_s=0.3) as client:
        with pytest.raises(BrokerUnreachable, match=r"nothing more of it was taken for 0\.3 s"):
            await client.send("/v1/files", form, again=False)
