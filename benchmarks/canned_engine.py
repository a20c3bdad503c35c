"""The cheapest engine there can be: `python -m benchmarks.canned_engine --tokens N` prints its port and answers at once.

Every POST gets the same chat completion, with the headers that uvicorn sends; /health and /metrics answer as vLLM does.
It only reads Content-Length, so it serves well-behaved clients alone.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import re
import string
from typing import cast

import uvloop

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_METRICS = b'vllm:num_requests_running{engine="0"} 64\nvllm:num_requests_waiting{engine="0"} 8\n'


def completion(tokens: int) -> bytes:
    """A chat completion as vLLM writes it, with `tokens` words, hardly compressible."""
    source = random.Random(3)
    text = " ".join("".join(source.choices(string.ascii_lowercase, k=4)) for _ in range(tokens))
    message = {"role": "assistant", "content": text, "refusal": None, "annotations": None, "audio": None}
    message |= {"function_call": None, "tool_calls": [], "reasoning": None}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": "length", "stop_reason": None}
    usage = {"prompt_tokens": 40, "total_tokens": 40 + tokens, "completion_tokens": tokens}
    answer = {
        "id": "chatcmpl-8f14e45fceea167a5a36dedd4bea2543",
        "object": "chat.completion",
        "created": 1_790_000_000,
        "model": "m",
        "choices": [choice],
        "service_tier": None,
        "system_fingerprint": None,
        "usage": usage | {"prompt_tokens_details": {"cached_tokens": 16}},
        "prompt_logprobs": None,
        "kv_transfer_params": None,
    }
    return json.dumps(answer, separators=(",", ":")).encode()


def http_answer(content: bytes, kind: str) -> bytes:
    """The bytes of a 200 answer."""
    head = (
        f"HTTP/1.1 200 OK\r\ndate: Sun, 22 Nov 2026 10:00:00 GMT\r\nserver: uvicorn\r\ncontent-length: {len(content)}"
    )
    return f"{head}\r\ncontent-type: {kind}\r\n\r\n".encode() + content


class CannedEngine(asyncio.Protocol):
    """One connection; requests one after the other."""

    def __init__(self, answer: bytes) -> None:
        self._answer = http_answer(answer, "application/json")
        self._buffer = b""
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's own class is one in all but name

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while (end := self._buffer.find(b"\r\n\r\n")) >= 0:
            length = _LENGTH.search(self._buffer, 0, end + 2)
            stop = end + 4 + (int(length[1]) if length else 0)
            if len(self._buffer) < stop:
                return
            request, self._buffer = self._buffer[:stop], self._buffer[stop:]
            self._send(request)

    def _send(self, request: bytes) -> None:
        assert self._transport is not None
        if request.startswith(b"GET /metrics"):
            self._transport.write(http_answer(_METRICS, "text/plain"))
        elif request.startswith(b"GET "):
            self._transport.write(http_answer(b"", "text/plain"))
        else:
            self._transport.write(self._answer)


async def serve(tokens: int) -> None:
    answer = completion(tokens)
    server = await asyncio.get_running_loop().create_server(lambda: CannedEngine(answer), "127.0.0.1", 0, backlog=1024)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=128)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(parser.parse_args().tokens))
