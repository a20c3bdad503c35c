"""Rates of exchange over HTTP and by the command line's requests."""

from __future__ import annotations

from typing import Any

import pytest

RATES = "/v1/ledger/rates"
ECB_FILE = "Date, USD, GBP, \n26 November 2026, 1.10, 0.88, \n"


async def test_a_file_of_the_bank_is_recorded_once_and_listed(server: Any) -> None:
    first = await server.call("POST", RATES, json={"text": ECB_FILE})
    assert (first.status, first.json["read"], first.json["new"]) == (200, 2, 2), first.raw
    assert (await server.call("POST", RATES, json={"text": ECB_FILE})).json["new"] == 0
    found = (await server.call("GET", f"{RATES}?unit=GBP")).json["data"]
    assert [(each["rate"], each["dated"], each["source"]) for each in found] == [
        ("1.250000000000", "2026-11-26", "ECB")
    ]


async def test_a_bad_rate_is_refused_with_what_is_wrong_and_nothing_is_recorded(server: Any) -> None:
    bad = {"text": "unit,rate,dated,source\nEUR,1.1,2026-11-26,own\nEUR,-1,2026-11-27,own\n"}
    answer = await server.call("POST", RATES, json=bad)
    assert (answer.status, answer.code) == (400, "bad_rates")
    assert "line 3" in answer.json["error"]["message"]
    later = {"rates": [{"unit": "EUR", "rate": "1.1", "dated": "2999-01-01", "source": "own"}]}
    assert (await server.call("POST", RATES, json=later)).code == "rate_of_tomorrow"
    assert (await server.call("POST", RATES, json={})).code == "no_rates"
    assert (await server.call("GET", RATES)).json["data"] == []


async def test_a_line_that_ends_before_its_unit_was_an_error_of_the_broker(server: Any) -> None:
    answer = await server.call("POST", RATES, json={"text": "rate,dated,source,unit\n1.1,2026-11-26,own\n"})
    assert (answer.status, answer.code) == (400, "bad_rates"), answer.raw
    assert "line 2: has no unit" in answer.json["error"]["message"]


async def test_a_source_cannot_say_otherwise_of_the_same_day(server: Any) -> None:
    row = {"unit": "EUR", "rate": "1.1", "dated": "2026-11-26", "source": "ECB"}
    assert (await server.call("POST", RATES, json={"rates": [row]})).status == 200
    answer = await server.call("POST", RATES, json={"rates": [row | {"rate": "1.2"}]})
    assert (answer.status, answer.code) == (422, "rate_reused")


@pytest.mark.parametrize("rate", ["-1", "0", "1,08", "nan", "1e3", ""])
async def test_a_rate_that_is_none_is_told_in_words(server: Any, rate: str) -> None:
    """It said "String should match pattern" and the pattern."""
    row = {"unit": "EUR", "rate": rate, "dated": "2026-11-26", "source": "ECB"}
    answer = await server.call("POST", RATES, json={"rates": [row]})
    assert (answer.status, answer.json["error"]["param"]) == (400, "rates.0.rate")
    assert "a decimal above 0 such as 1.08" in answer.json["error"]["message"]
