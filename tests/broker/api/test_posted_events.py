"""Events that people post: what is the broker's own to say is refused, and nothing is written."""

from __future__ import annotations

from typing import Any

import pytest

NOW = 1_795_305_600_000_000
REAL = [{"account": "Expenses:Compute:Spot:Aws", "nano": -5}, {"account": "Liabilities:Accrued:Aws", "nano": 5}]
MEMO = [{"account": "Memo:Budget:default", "nano": 10**12}, {"account": "Memo:Contra", "nano": -(10**12)}]
SPENT = [{"account": "Memo:Spent:default", "nano": -5}, {"account": "Memo:Budget:default", "nano": 5}]


def correction(**changed: Any) -> dict[str, Any]:
    event = {"key": "fix-1", "kind": "correction", "occurred_at_us": NOW, "actor": "x", "corrects": "some-entry",
             "dims": {"project": "default", "rental": "rental_1"}, "lines": REAL}  # fmt: skip
    return event | changed


async def post(server: Any, *events: dict[str, Any]) -> Any:
    return await server.call("POST", "/v1/ledger/events", json={"events": list(events)})


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"lines": MEMO}, "memo lines"),
        ({"lines": [*REAL, *SPENT]}, "memo lines"),
        ({"scopes": ["team:ml"]}, "scopes"),
        ({"hold": "rental_1"}, "hold"),
    ],
)
async def test_a_correction_that_rewrites_limits_is_refused(server: Any, changed: dict[str, Any], says: str) -> None:
    answer = await post(server, correction(), correction(key="fix-2", **changed))
    assert (answer.status, answer.code) == (400, "malformed_event")
    assert says in answer.json["error"]["message"]
    assert (await server.call("GET", "/v1/ledger/entries")).json["entries"] == [], "all or nothing"


@pytest.mark.parametrize(
    "key", ["accrue:rental_1:mine", "tokens:rental_1:2:9:9",
            "accrue:rental_1:1:0-60:5", "waste:rental_1:1", "hold.open:rental_1", "settle:rental_1",
            "limit:team:ml:USD:1", "invoice.match:invoice_1:0"],
)  # fmt: skip
async def test_a_person_who_names_a_key_of_the_loops_is_refused(server: Any, key: str) -> None:
    answer = await post(server, correction(key=key))
    assert (answer.status, answer.code) == (400, "malformed_event")
    assert key in answer.json["error"]["message"]


async def test_a_correction_of_real_money_is_posted(server: Any) -> None:
    paid = [{"account": "Assets:Deposit:Aws", "nano": 5}, {"account": "Assets:Bank:Main", "nano": -5}]
    undone = [line | {"nano": -line["nano"]} for line in paid]
    deposit = correction(key="deposit-1", kind="deposit.pay", lines=paid)
    del deposit["corrects"]
    answer = await post(server, deposit, correction(corrects="deposit-1", lines=undone))
    assert answer.status == 200, answer.raw
    assert [each["outcome"] for each in answer.json["data"]] == ["posted", "posted"]
