"""A broker without machines, driven over its API: its loops are stepped by hand, and a worker of the test computes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest

from broker.control.answer import Answerer
from broker.control.finalise import Finaliser
from broker.control.remember import Rememberer
from broker.control.validate import Validator
from broker.services import Services
from tests.support.line_worker import LineWorker


def request(n: int, text: str, **body: Any) -> dict[str, Any]:
    asked = {"model": "tiny", "messages": [{"role": "user", "content": text}], "max_tokens": 8, "temperature": 0}
    return {"custom_id": f"line-{n}", "method": "POST", "url": "/v1/chat/completions", "body": asked | body}


class Crash(Exception):
    """Stands for the end of the process."""


@dataclass
class House:
    """A broker without machines: its loops are stepped by hand, and a worker of the test computes the lines."""

    server: Any
    services: Services
    worker: LineWorker
    also: dict[str, Any] = field(default_factory=dict)  # of the request that creates a batch

    async def submit(self, *lines: str | dict[str, Any] | None, **wishes: Any) -> str:
        """Upload and create; a text is a question, None a line that is no JSON. Then validation."""
        rows = [
            b"not json" if line is None else json.dumps(line if isinstance(line, dict) else request(n, line)).encode()
            for n, line in enumerate(lines)
        ]
        return await self.submit_bytes(b"\n".join(rows) + b"\n", **wishes)

    async def submit_bytes(self, content: bytes, **wishes: Any) -> str:
        file_id = await self.server.upload(content)
        body = {"input_file_id": file_id, "endpoint": "/v1/chat/completions", "completion_window": "24h"}
        answer = await self.server.call("POST", "/v1/batches", json=body | self.also | {"x_broker": wishes})
        assert answer.status == 200, answer.raw
        await Validator(self.services).step()
        return str(answer.json["id"])

    async def step(self) -> None:
        """What the loops do after a commit."""
        await Answerer(self.services).step()
        await Finaliser(self.services).step()
        await Answerer(self.services).step()
        await Rememberer(self.services).step()

    async def run(self, batch_id: str, **how: Any) -> list[int]:
        """Compute what is to be computed until the batch has ended; the lines that were computed."""
        given: list[int] = []
        for _ in range(4):
            given += await self.worker.work(batch_id, **how)
            await self.step()
        return given

    async def batch(self, batch_id: str) -> dict[str, Any]:
        return dict((await self.server.call("GET", f"/v1/batches/{batch_id}")).json)

    @contextmanager
    def crash_at(self, point: str) -> Iterator[None]:
        """The broker dies in the block, when it reaches this point."""

        def reached(name: str) -> None:
            if name == point:
                raise Crash

        healthy, self.services.failpoints.reached = self.services.failpoints.reached, reached  # type: ignore[method-assign]
        with pytest.raises(Crash):
            yield
        self.services.failpoints.reached = healthy  # type: ignore[method-assign]

    async def results(self, batch_id: str, kind: str = "output") -> dict[str, Any]:
        """custom_id → line of the output or error file."""
        file_id = (await self.batch(batch_id))[f"{kind}_file_id"]
        raw = (await self.server.call("GET", f"/v1/files/{file_id}/content")).raw
        return {line["custom_id"]: line for line in map(json.loads, raw.splitlines())}
