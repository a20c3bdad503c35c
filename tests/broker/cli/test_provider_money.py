"""Money between us and a provider by named commands: the books move, and a slip is told and posts nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from broker.cli.exits import Failure
from broker.cli.provider_money import Move, event_of
from tests.support.command_line import quick


def run(data: Path, *arguments: str) -> Any:
    return quick("ledger", *arguments, "--data", str(data))


def balances(data: Path) -> dict[str, str]:
    done = run(data, "show", "--json")
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    assert found["balanced"], found["findings"]
    ours = (":Vast", ":Main")
    return {name: amount for name, amount in found["balances"].items() if amount != "0" and name.endswith(ours)}


def test_money_goes_to_a_market_and_comes_back(data: Path) -> None:
    for told in (
        ("prepaid", "fund", "vast", "100", "--reference", "wire-7"),
        ("deposit", "pay", "vast", "12.50"),
        ("deposit", "return", "vast", "12.50", "--kept", "2.50"),
        ("refund", "expect", "vast", "3"),
        ("refund", "receive", "vast", "3"),
        ("prepaid", "return", "vast", "20"),
    ):
        done = run(data, *told)
        assert done.returncode == 0, (told, done.stderr)
    assert balances(data) == {
        "Assets:Bank:Main": "-80", "Assets:Prepaid:Vast": "80.5", "Expenses:Forfeited:Vast": "2.5",
        "Income:Refunds:Vast": "-3",
    }  # fmt: skip
    for slip, says in (
        (("prepaid", "fund", "vast", "100", "--reference", "wire-7"), "was booked before"),
        (("prepaid", "fund", "vasst", "100"), "there is no market 'vasst'; those of this broker: "),
        (("deposit", "return", "vast", "1"), "Assets:Deposit:Vast has 0 USD, not 1"),
        (("pay", "vast", "5"), "Liabilities:Payable:Vast has 0 USD"),
    ):
        done = run(data, *slip)
        assert done.returncode in (1, 2) and says in done.stderr, (slip, done.stderr)
    assert balances(data)["Assets:Prepaid:Vast"] == "80.5"


@pytest.mark.parametrize("amount", ["0", "-1", "nan", "1e30", "ten", "0.0000000001", ""])
def test_what_is_no_amount_is_refused(amount: str) -> None:
    with pytest.raises(Failure):
        event_of(Move("prepaid.fund", "m", amount, "A", "B"), rental=None, reference=None, at_us=0)


def test_a_market_keeps_no_more_than_was_left_with_it() -> None:
    with pytest.raises(Failure, match="more than the deposit"):
        event_of(Move("deposit.return", "m", "1", "A", "B", kept="2"), rental=None, reference=None, at_us=0)
