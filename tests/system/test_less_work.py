"""Work that is not done: bad lines, repeats and known answers, through a real broker, worker and engine."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support import real_broker as support

pytestmark = [pytest.mark.flows, pytest.mark.timeout(300)]
TAG = "an-agent-with-a-name"


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Any]:
    with support.real_broker(tmp_path) as running:
        yield running


def submit(broker: Any, *texts: str) -> str:
    """One line a text; `BAD` is no request. Each line carries a tag."""
    rows = []
    for n, text in enumerate(texts):
        body = {
            "model": support.MODEL,
            "max_tokens": 8,
            "temperature": 0,
            "messages": [{"role": "user", "content": text}],
        }
        line = {"custom_id": f"line-{n}", "method": "POST", "url": "/v1/chat/completions", "body": body}
        line["x_broker"] = {"tags": {"agent": TAG}}
        rows.append("not json" if text == "BAD" else json.dumps(line))
    file = broker.openai.files.create(file=("in.jsonl", "\n".join(rows).encode()), purpose="batch")
    batch = broker.openai.batches.create(
        input_file_id=file.id,
        endpoint="/v1/chat/completions",
        completion_window="24h",
        extra_body={"x_broker": {"skip_invalid": True, "reuse": True}},
    )
    return str(batch.id)


def answers(broker: Any, batch: dict[str, Any]) -> dict[str, str]:
    text = broker.openai.files.content(batch["output_file_id"]).text
    lines = map(json.loads, text.splitlines())
    return {line["custom_id"]: line["response"]["body"]["choices"][0]["message"]["content"] for line in lines}


def test_an_engine_computes_each_request_once_and_never_sees_bad_lines_or_tags(broker: Any) -> None:
    first = broker.ended(submit(broker, "alpha", "beta", "BAD", "alpha", "alpha"))
    assert broker.executions() == 2
    told = answers(broker, first)
    assert sorted(told) == ["line-0", "line-1", "line-3", "line-4"]
    assert told["line-0"] == told["line-3"] == told["line-4"] != told["line-1"]
    assert (first["x_broker"]["invalid"], first["x_broker"]["reused"]["lines"]) == (1, 2)
    broker.until("its answers are remembered", lambda: "batch.remembered" in (broker.folder / "broker.log").read_text())

    machines = len(broker.machines())
    second = broker.ended(submit(broker, "beta", "alpha"))
    assert (broker.executions(), len(broker.machines())) == (2, machines), "nothing was rented for known answers"
    assert answers(broker, second) == {"line-0": told["line-1"], "line-1": told["line-0"]}
    assert second["x_broker"]["cost_usd"] == "0"

    for log in ("broker.log", "executions.log"):
        assert TAG not in (broker.folder / log).read_text()
    rows = broker.get(f"/v1/batches/{first['id']}/costs?by=agent")
    assert {row["value"]: row["lines"] for row in rows["data"]} == {"-": 1, TAG: 4}
    assert rows["usd"] == first["x_broker"]["cost_usd"]
