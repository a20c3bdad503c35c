"""What the official clients are shown: a real broker in which one batch has ended, and keys for it."""

from __future__ import annotations

import contextlib
import json
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support import real_broker as support

LINES = 6
BAD = 4  # this line's request is refused by the engine, so that there is an error file
TAGS = {"x_broker": {"priority": 7, "tags": {"team": "conformance"}, "max_usd": "5"}}


@dataclass(frozen=True)
class World:
    """`key` is a submitter's, `viewer` may only look, `batch` has ended with an output and an error file."""

    url: str
    key: str
    viewer: str
    batch: str
    model: str = support.MODEL

    @property
    def base_url(self) -> str:
        return f"{self.url}/v1"


def request_lines(lines: int = LINES, bad: int = BAD) -> bytes:
    """Chat requests `line-0` …; the engine refuses the one numbered `bad`."""
    rows = [
        {
            "custom_id": f"line-{number}",
            "method": "POST",
            "url": "/v1/chat/completions",
            "body": {
                "model": support.MODEL,
                "max_tokens": 8,
                "messages": [{"role": "user", "content": f"{'BAD400' if number == bad else 'say'} {number}"}],
            },
        }
        for number in range(lines)
    ]
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


@contextlib.contextmanager
def world(folder: Path) -> Iterator[tuple[World, support.RealBroker]]:
    """A broker of its own, stopped at the end."""
    with support.real_broker(folder, latency=0.02) as broker:
        client = broker.openai
        file = client.files.create(file=("ended.jsonl", request_lines()), purpose="batch")
        batch = client.batches.create(
            input_file_id=file.id,
            endpoint="/v1/chat/completions",
            completion_window="24h",
            metadata={"run": "one"},
            extra_body={**TAGS, "output_expires_after": {"anchor": "created_at", "seconds": 7200}},
        )
        broker.ended(batch.id)
        keys = {role: new_key(broker, role) for role in ("submitter", "viewer")}
        yield World(broker.url, keys["submitter"], keys["viewer"], batch.id), broker


def new_key(broker: support.RealBroker, *roles: str, project: str = "default") -> str:
    body = json.dumps({"principal": f"a {roles[0]}", "roles": list(roles), "project": project}).encode()
    request = urllib.request.Request(
        f"{broker.url}/v1/admin/keys",
        data=body,
        headers={"Authorization": f"Bearer {broker.key}", "Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=20) as answer:
        made: dict[str, Any] = json.load(answer)
    return str(made["key"])
