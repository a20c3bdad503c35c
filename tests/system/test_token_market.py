"""Tokens bought of an endpoint, whole: placed beside rented machines, run by an executor that is killed, paid for to the nano."""

from __future__ import annotations

import argparse
import csv
import json
import os
import signal
import threading
import urllib.request
from collections import Counter
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from tests.support import real_broker as support
from tests.support import scripted_engine as engine

pytestmark = pytest.mark.timeout(300)
LINES = 40
KEY = "sk-of-the-house"
# per million tokens
INPUT, CACHED, OUTPUT = Decimal("0.15"), Decimal("0.07"), Decimal("0.60")

SETTINGS = """
[providers.neartown]
url = "{url}/v1"
card = "{folder}/neartown.toml"
credentials = {{ api_key = "{key}" }}

[providers.neartown.buy]
models = {{ {model} = "scripted-large" }}
tokens_per_minute = 60000
concurrency = 4
"""
CARD = f"""
format = 1
market = "neartown"
operator = "Neartown Inference SA"
base_url = "https://api.neartown.example/v1"
currency = "USD"
source = "https://neartown.example/pricing"
observed_on = 2026-11-27

[data_policy]
retention_days = 30
training = false
source = "https://neartown.example/privacy"

[[models]]
id = "scripted-large"
input = {INPUT}
cached = {CACHED}
output = {OUTPUT}
context = 131072
country = "FR"
"""
POLICY = """
language: 1
policy: tokens-too
version: {version}
rules:
  - id: endpoints
    effect: allow
    on: [machine]
    when: {{country: [FR], launch: [token_api], data_policy: {{retention_days: {days}, training: false}}}}
  - id: machines
    effect: allow
    on: [machine]
    when: {{country: [DE], location_tier: [named_datacenter]}}
"""


class Endpoint(engine.Handler):
    """Answers half of the lines, and the rest when the gate is open: a batch cannot end before its executor is killed."""

    gate = threading.Event()

    def serve(self, body: dict[str, Any], prompt: str, seen: int) -> None:
        if self.engine.count("asked") > LINES // 2:
            self.gate.wait()
        super().serve(body, prompt, seen)


@pytest.fixture
def endpoint(tmp_path: Path) -> Iterator[str]:
    """An OpenAI-compatible server that is busy at first, asks for a key and notes every prompt."""
    options = argparse.Namespace(
        model="scripted-large", latency=0.02, slow=1.0, slots=64, refuse_first=3, poison_delay=0.0, key=KEY,
        log=tmp_path / "endpoint.log",
    )  # fmt: skip
    Endpoint.engine = engine.Engine(options)
    Endpoint.gate.clear()
    server = engine.Server(("127.0.0.1", 0), Endpoint)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    Endpoint.gate.set()
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def broker(tmp_path: Path, endpoint: str) -> Iterator[Any]:
    (tmp_path / "neartown.toml").write_text(CARD)
    also = SETTINGS.format(url=endpoint, folder=tmp_path, key=KEY, model=support.MODEL)
    with support.real_broker(tmp_path, also=also, part_lines=4) as running:
        yield running


def ask(broker: Any, path: str, body: Any, key: str | None = None) -> Any:
    request = urllib.request.Request(broker.local + path, data=json.dumps(body).encode(), method="POST")
    request.add_header("Authorization", f"Bearer {key or broker.key}")
    request.add_header("Content-Type", "application/json")
    with urllib.request.urlopen(request, timeout=20) as answer:
        return json.loads(answer.read())


def allow_endpoints(broker: Any, *, retention_days: int, version: int) -> None:
    """Proposed by one person, approved by another."""
    of_house = {"roles": ["compliance"], "all_projects": True}
    keys = [ask(broker, "/v1/admin/keys", {"principal": who, **of_house})["key"] for who in ("ann", "bob")]
    wish = {"text": POLICY.format(days=retention_days, version=version), "nodes": ["*"]}
    made = ask(broker, "/v1/compliance/policies", wish, keys[0])
    ask(broker, f"/v1/compliance/proposals/{made['id']}/approve", {}, keys[1])


def placements(broker: Any, batch_id: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = broker.get(f"/v1/batches/{batch_id}/placements")["data"]
    return found


def answers(broker: Any, batch: dict[str, Any]) -> list[dict[str, Any]]:
    text = broker.openai.files.content(batch["output_file_id"]).text
    return [json.loads(line) for line in text.splitlines()]


def price_of(usage: dict[str, Any]) -> Decimal:
    cached = usage["prompt_tokens_details"]["cached_tokens"]
    fresh = usage["prompt_tokens"] - cached
    return (fresh * INPUT + cached * CACHED + usage["completion_tokens"] * OUTPUT) / 1_000_000


def test_a_batch_is_bought_where_it_is_cheapest_and_a_killed_executor_neither_loses_nor_bills_twice(
    broker: Any, tmp_path: Path
) -> None:
    """And a quote says so, a limit that is too small refuses it, and a policy without retention keeps it off."""
    allow_endpoints(broker, retention_days=30, version=1)
    for market in ("neartown", "sandbox"):
        broker.until("its prices are read", lambda m=market: broker.get(f"/v1/market/offers?market={m}")["data"])
    batch_id = broker.submit(LINES)
    done = lambda: broker.batch(batch_id)["x_broker"]["counts"]["completed"]  # noqa: E731
    broker.until("some lines are committed", lambda: done() >= LINES // 4)
    victim = placements(broker, batch_id)[0]
    assert victim["market"] == "neartown", "it was placed elsewhere than where it is cheapest"
    os.kill(int(victim["facts"]["pid"]), signal.SIGKILL)
    Endpoint.gate.set()

    batch = broker.ended(batch_id)

    found = answers(broker, batch)
    assert Counter(each["custom_id"] for each in found) == Counter(f"line-{i}" for i in range(LINES))
    where = placements(broker, batch_id)
    assert {each["market"] for each in where} == {"neartown"} and len(where) == 2
    total = sum(price_of(each["response"]["body"]["usage"]) for each in found)
    booked = Decimal(0)
    for row in csv.DictReader(broker.text("/v1/ledger/export.csv").splitlines()):
        if row["account"].startswith("Expenses:"):
            booked += Decimal(row["amount"])
    assert booked == total == sum(Decimal(each["usd"]) for each in where)
    kept = next(each["lines"] for each in where if each["rental"] == victim["rental"])
    asked = len((tmp_path / "endpoint.log").read_text().splitlines())
    assert asked <= LINES + (LINES - kept), "lines that were committed before the kill were bought once more"
    told = broker.get(f"/v1/audit/where/{batch_id}")
    assert "Neartown Inference SA" in told["operators"] and "FR" in told["countries"]

    quoted = broker.quote(LINES)
    assert quoted["chosen"][0]["offer_key"].startswith("neartown/") and quoted["feasible"]
    # 40 prompts of about 2 tokens, 16 may be answered to each: $0.0004 at the most, beside machines of $0.90 an hour
    assert Decimal(quoted["usd"]) < Decimal("0.0008") and Decimal(quoted["p90"]["usd"]) < Decimal("0.0012")
    poor = broker.quote(LINES, max_usd="0.0001")
    assert not poor["feasible"] and poor["waiting_on"] == "price_ceiling"
    allow_endpoints(broker, retention_days=0, version=2)
    kept_off = broker.quote(LINES)
    assert kept_off["chosen"][0]["offer_key"].startswith("sandbox/")
