"""Residency policies over HTTP."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jobs.clock import db_now
from markets import price_book
from tests.support.wire_agent import offer

POLICIES = Path(__file__).parents[3] / "policies"


async def list_offer(server: Any) -> None:
    async with server.services.database.transaction() as session:
        await price_book.store_offers(session, offer().market, [offer()], now_us=await db_now(session))


async def test_a_policy_is_tried_on_the_offers_of_now_with_where_the_broker_keeps_its_data(server: Any) -> None:
    await list_offer(server)
    text = (POLICIES / "eu-only.yaml").read_text()
    answer = await server.call("POST", "/v1/policies/test", json={"text": text, "data_class": "personal"})
    assert answer.status == 200, answer.raw
    [tried] = answer.json["data"]
    assert tried["outcome"] == "deny"
    assert "control_plane.country" in {reason["field"] for reason in tried["reasons"]}  # nobody stated where that is


async def test_a_policy_that_cannot_be_read_is_refused_with_line_and_column(server: Any) -> None:
    answer = await server.call("POST", "/v1/policies/test", json={"text": "rules: [", "data_class": "personal"})
    assert (answer.status, answer.code) == (400, "invalid_policy")
    assert "line 1, column 9" in answer.json["error"]["message"]
