"""Money between us and a provider by named commands: the books move, and a slip is told and posts nothing."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from broker.cli.exits import Failure
from broker.cli.provider_money import Move, _require, event_of
from broker.database import Database, sqlite_url
from ledger.accrual import Meter, accrue
from ledger.given_back import expect_refund, pay_deposit, return_deposit
from ledger.holds import open_hold
from tests.support.command_line import quick

NANO = 10**9
AT_US = 1_790_000_000_000_000


def run(data: Path, *arguments: str) -> Any:
    return quick("ledger", *arguments, "--data", str(data))


def balances(data: Path) -> dict[str, str]:
    done = run(data, "show", "--json")
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    assert found["balanced"], found["findings"]
    return {name: amount for name, amount in found["balances"].items() if amount != "0" and name.endswith(":Vast")}


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
        "Assets:Prepaid:Vast": "80.5", "Expenses:Forfeited:Vast": "2.5", "Income:Refunds:Vast": "-3",
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


def of_loops(data: Path, *booked: tuple[str, str, int]) -> None:
    """What the loops book: `deposit`, `returned` or `refund`, of a market's rental, in nano-USD."""

    async def work() -> None:
        database = Database(sqlite_url(data / "broker.db"))
        posting: dict[str, Any] = {"occurred_at_us": AT_US, "actor": "loop", "recorded_at_us": AT_US}
        async with database.transaction() as session:
            for what, market, nano in booked:
                meter = Meter(
                    f"rental_{market}", f"{market}/-/-/a/b/1/spot", market, "spot", "default", None, nano, AT_US
                )
                if what == "deposit":
                    await pay_deposit(session, meter, nano, **posting)
                elif what == "returned":
                    await return_deposit(session, meter, **posting)
                else:
                    hour_us = AT_US + 3_600_000_000
                    metered: dict[str, Any] = {"actor": "loop", "recorded_at_us": AT_US}
                    await open_hold(
                        session, hold_id=meter.rental, nano=nano, project="default", batch=None, rental=meter.rental,
                        offer_key=meter.offer_key, occurred_at_us=AT_US, **metered,
                    )  # fmt: skip
                    await accrue(session, meter, until_us=hour_us, final=True, **metered)
                    await expect_refund(session, meter, reason="interrupted", **metered)
        await database.close()

    asyncio.run(work())


def told(data: Path, *arguments: str) -> tuple[int, str]:
    done = run(data, *arguments)
    return done.returncode, done.stderr.strip()


def test_what_the_loops_book_back_is_not_booked_back_by_hand(data: Path) -> None:
    """A free first hour and a deposit of a machine: the invoice and the machine's end book them, once."""
    of_loops(data, ("refund", "aws", NANO // 10), ("deposit", "runpod", 2 * NANO))
    for slip in (("refund", "receive", "aws", "0.1"), ("deposit", "return", "runpod", "2")):
        code, says = told(data, *slip)
        assert code == 2 and f"has 0 USD besides {slip[3]} that the broker itself books back" in says, says
    assert told(data, "refund", "expect", "aws", "3", "--rental", "rental_aws")[0] == 0
    assert told(data, "deposit", "pay", "runpod", "5", "--from", "payable")[0] == 0
    assert told(data, "refund", "receive", "aws", "3.1", "--to", "bank")[0] == 2
    assert told(data, "refund", "receive", "aws", "3", "--to", "bank")[0] == 0
    of_loops(data, ("returned", "runpod", 0))
    assert told(data, "deposit", "return", "runpod", "5", "--to", "payable")[0] == 0
    books = json.loads(run(data, "show", "--json").stdout)
    assert books["balanced"], books["findings"]
    found = books["balances"]
    assert (found["Assets:Deposit:Runpod"], found["Assets:Receivable:Aws"]) == ("0", "0.1")


def test_no_door_takes_more_than_is_there(data: Path, tmp_path: Path) -> None:
    """A balance, a wallet and an escrow have no overdraft: what pays is looked at, too, in the unit that moves."""
    assert told(data, "prepaid", "fund", "lambda", "100")[0] == 0
    assert told(data, "deposit", "pay", "lambda", "7", "--from", "payable")[0] == 0
    for slip, says in (
        (("deposit", "pay", "lambda", "500"), "Assets:Prepaid:Lambda has 100 USD, not 500"),
        (("prepaid", "return", "lambda", "100.5"), "Assets:Prepaid:Lambda has 100 USD, not 100.5"),
        (("pay", "lambda", "8"), "Liabilities:Payable:Lambda has 7 USD, not 8"),
        (("pay", "akash", "1", "--from", "prepaid"), "Assets:Prepaid:Akash has 0 USD, not 1"),
        (("escrow", "return", "akash", "100", "AKT"), "Assets:Escrow:Akash has 0 AKT, not 100"),
        (("escrow", "fund", "akash", "5", "AKT"), "Assets:Wallet:Akash has 0 AKT, not 5"),
    ):
        code, said = told(data, *slip)
        assert code == 2 and f"{says}: nothing was posted" in said, (slip, said)
    bought = {
        "key": "coins", "kind": "fx.buy", "occurred_at_us": AT_US, "actor": "me", "dims": {},
        "lines": [{"account": account, "nano": nano * NANO, "unit": unit} for account, nano, unit in (
            ("Assets:Wallet:Akash", 5, "AKT"), ("Equity:FX:Liquidity:AKT", -5, "AKT"),
            ("Equity:FX:Liquidity:AKT", 4, "USD"), ("Assets:Bank:Main", -4, "USD"))],
    }  # fmt: skip
    (tmp_path / "coins.jsonl").write_text(json.dumps(bought))
    assert told(data, "post", str(tmp_path / "coins.jsonl")) == (0, "")
    for move, code in (
        (("fund", "akash", "5"), 0), (("return", "akash", "5.1"), 2), (("return", "akash", "5"), 0),
    ):  # fmt: skip
        assert told(data, "escrow", *move, "AKT")[0] == code, move


def test_one_reference_is_one_thing_of_one_market_and_one_way(data: Path) -> None:
    for once in (
        ("prepaid", "fund", "crusoe", "50", "--reference", "wire-8"),
        ("prepaid", "fund", "nebius", "50", "--reference", "wire-8"),
        ("prepaid", "return", "crusoe", "20", "--reference", "wire-8"),
    ):
        assert told(data, *once)[0] == 0, once
        code, says = told(data, *once)
        assert code != 0 and "--reference wire-8 was booked before, as prepaid." in says, says


def test_a_rental_of_nobody_or_of_another_market_is_refused(data: Path) -> None:
    of_loops(data, ("refund", "verda", NANO))
    for rental, says in (("rental_nobody", "the books know no such rental"), ("rental_verda", "not of vast")):
        code, said = told(data, "refund", "expect", "vast", "3", "--rental", rental)
        assert code == 2 and says in said, said


@pytest.mark.parametrize("amount", ["0", "-1", "nan", "1e30", "ten", "0.0000000001", ""])
def test_what_is_no_amount_is_refused(amount: str) -> None:
    with pytest.raises(Failure):
        event_of(Move("prepaid.fund", "m", amount, "A", "B"), rental=None, reference=None, at_us=0)


def test_a_market_keeps_no_more_than_was_left_with_it() -> None:
    with pytest.raises(Failure, match="more than the deposit"):
        event_of(Move("deposit.return", "m", "1", "A", "B", kept="2"), rental=None, reference=None, at_us=0)


async def test_an_older_broker_that_does_not_say_what_is_there_is_named() -> None:
    class Older:
        async def get(self, path: str, query: object = None) -> dict[str, Any]:
            return {"entries": [], "balances": {"A": "5"}}

    with pytest.raises(Failure, match="older than this command"):
        await _require(Older(), Move("deposit.return", "m", "1", "A", "Assets:Deposit:M"))  # type: ignore[arg-type]
