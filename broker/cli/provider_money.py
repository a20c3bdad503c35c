"""`ledger prepaid`, `deposit`, `refund`, `escrow` and `pay`: money between us and a provider that no loop can know of.

Each is one event of docs/ledger-event.schema.json; what is taken is looked up first, so that no account is left with less than
nothing by a slip, and what the loops book back themselves (a deposit at a machine's end, a free first hour with the invoice) is
not booked twice.
"""

from __future__ import annotations

import time
import uuid
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Annotated, Any

import typer

from broker.cli import exits
from broker.cli.client import ApiFailure, Client
from broker.cli.exits import USAGE, Failure
from broker.cli.option_groups import Command, declare
from broker.cli.options import Target
from broker.cli.output import document, line

Document = dict[str, Any]
Market = Annotated[str, typer.Argument(help="The market's name, such as vast.", metavar="MARKET")]
Usd = Annotated[str, typer.Argument(help="How much, in USD.", metavar="USD")]
Rental = Annotated[str | None, typer.Option(help="The rental that it is for.")]
Reference = Annotated[str | None, typer.Option(help="Its number in your papers: under it, it is booked once.")]
_SIDE_HELP = "bank, prepaid (the balance there) or payable (with the next invoice)."
To = Annotated[str, typer.Option(help=_SIDE_HELP)]
From = Annotated[str, typer.Option("--from", help=_SIDE_HELP)]
_MOST = 10**9
# A market has no more of ours than we sent there. A bank's account may be in the red, and was not opened here.
_NEVER_LESS = ("Assets:Prepaid:", "Assets:Deposit:", "Assets:Receivable:", "Assets:Escrow:", "Assets:Wallet:")
_SIDES = {"prepaid": "Assets:Prepaid", "payable": "Liabilities:Payable"}


@dataclass(frozen=True, slots=True)
class Move:
    """`amount` of `unit` from one account to another. `command`: its name, where its kind is that of two."""

    kind: str
    market: str
    amount: str
    debit: str
    credit: str
    unit: str = "USD"
    kept: str | None = None
    command: str | None = None


def _account(kind: str, market: str) -> str:
    from ledger.accounts import of_market  # noqa: PLC0415 - commands that talk to a broker start without its rooms

    return of_market(kind, market)


def nano_of(text: str, what: str = "amount") -> int:
    """Raises Failure for what is no amount of money above nothing."""
    try:
        found = Decimal(text)
    except InvalidOperation as wrong:
        raise Failure(f"{what} {text!r} is not a number such as 25 or 12.50", USAGE) from wrong
    nano = int(found.scaleb(9)) if found.is_finite() and abs(found) < _MOST else 0
    if nano <= 0 or Decimal(nano).scaleb(-9) != found:
        raise Failure(f"{what} {text!r}: more than 0, below 1000000000, at most nine decimals", USAGE)
    return nano


def with_market(side: str, market: str) -> str:
    """The account that money comes from or goes to. Raises Failure for a side that there is not."""
    if side == "bank":
        return "Assets:Bank:Main"
    if side not in _SIDES:
        raise Failure(f"{side!r}: bank, prepaid or payable is meant", USAGE)
    return _account(_SIDES[side], market)


def event_of(move: Move, *, rental: str | None, reference: str | None, at_us: int) -> Document:
    """The event that books it. Pure but for the name that it gets where none is given."""
    nano = nano_of(move.amount)
    kept = 0 if move.kept is None else nano_of(move.kept, "--kept")
    if kept > nano:
        raise Failure(f"--kept {move.kept} is more than the deposit of {move.amount}", USAGE)
    moves = [(move.debit, nano - kept), (move.credit, -nano)]
    if kept:
        moves.append((_account("Expenses:Forfeited", move.market), kept))
    dims = {} if rental is None else {"rental": rental}
    return {
        # A transfer's number is its bank's: two markets, and the way there and back, may have the same.
        "key": f"{move.command or move.kind}:{move.market}:{reference or uuid.uuid4()}",
        "kind": move.kind, "occurred_at_us": at_us, "actor": "cli",
        "dims": dims,
        "lines": [{"account": account, "nano": each, "unit": move.unit} for account, each in moves if each],
        "facts": {"market": move.market},
    }  # fmt: skip


def _book(move: Move, target: Target, rental: str | None = None, reference: str | None = None) -> None:
    made = event_of(move, rental=rental, reference=reference, at_us=time.time_ns() // 1000)

    async def work(client: Client) -> int:
        known = sorted(each["name"] for each in (await client.get("/v1/markets"))["data"])
        if move.market not in known:
            raise Failure(f"there is no market {move.market!r}; those of this broker: {', '.join(known)}", USAGE)
        if rental is not None:
            await _require_rental(client, move.market, rental)
        await _require(client, move)
        try:
            answer = await client.post("/v1/ledger/events", {"events": [made]}, again=True)
        except ApiFailure as refused:
            if refused.code != "key_reused":
                raise
            raise Failure(
                f"--reference {reference} was booked before, as {move.command or move.kind} of {move.market}: nothing was posted"
            ) from refused
        if target.json:
            document(answer)
            return exits.OK
        [posted] = answer["data"]
        line(
            f"{posted['outcome']}: {move.amount} {move.unit} from {move.credit} to {move.debit} (entry {posted['seq']})"
        )
        return exits.OK

    target.run(work)


async def _require(client: Client, move: Move) -> None:
    """Raises Failure where less is there (or owed) than is taken, or where the rest is for the broker to book."""
    wanted = [(move.credit, 1)] if move.credit.startswith(_NEVER_LESS) else []
    wanted += [(move.debit, -1)] if move.kind == "invoice.pay" else []
    if not wanted:
        return
    books = await client.get("/v1/ledger/entries", {"limit": 1})
    if "by_hand" not in books:
        raise Failure(
            "the broker is older than this command and does not say what is there to take: nothing was posted"
        )
    for account, sign in wanted:
        there = max(Decimal(0), Decimal(books["by_hand"].get(account, {}).get(move.unit, "0")) * sign)
        if there >= Decimal(move.amount):
            continue
        own = Decimal(books["balances"].get(account, "0")) * sign - there if move.unit == "USD" else Decimal(0)
        besides = (
            f" besides {own:f} that the broker itself books back, with the machine's end or the month's invoice"
            if own > 0
            else ""
        )
        raise Failure(f"{account} has {there:f} {move.unit}{besides}, not {move.amount}: nothing was posted", USAGE)


async def _require_rental(client: Client, market: str, rental: str) -> None:
    """Raises Failure for a rental that the books do not know, or know as another market's."""
    known = (await client.get("/v1/ledger/entries", {"rental": rental, "limit": 1}))["entries"]
    if not known:
        raise Failure(
            f"--rental {rental}: the books know no such rental; `broker ledger show` has those there are", USAGE
        )
    offer_key = known[0]["offer_key"]
    if offer_key is not None and offer_key.split("/")[0] != market:
        raise Failure(f"--rental {rental} is at {offer_key}, not of {market}", USAGE)


def prepaid_fund(market: Market, amount: Usd, target: Target, *, reference: Reference = None) -> None:
    """Money was sent to the balance that the market keeps for us."""
    there = _account("Assets:Prepaid", market)
    _book(Move("prepaid.fund", market, amount, there, "Assets:Bank:Main"), target, reference=reference)


def prepaid_return(market: Market, amount: Usd, target: Target, *, reference: Reference = None) -> None:
    """The market paid balance back."""
    there = _account("Assets:Prepaid", market)
    _book(
        Move("prepaid.fund", market, amount, "Assets:Bank:Main", there, command="prepaid.return"),
        target,
        reference=reference,
    )


def deposit_pay(
    market: Market, amount: Usd, target: Target, *, source: From = "prepaid",
    rental: Rental = None, reference: Reference = None,
) -> None:  # fmt: skip
    """A security was left with the market. Those that an offer asks for are booked by the broker itself."""
    there = _account("Assets:Deposit", market)
    _book(Move("deposit.pay", market, amount, there, with_market(source, market)), target, rental, reference)


def deposit_return(
    market: Market, amount: Usd, target: Target, *, to: To = "prepaid", rental: Rental = None,
    kept: Annotated[str | None, typer.Option(help="What of it the market keeps: it is a cost.")] = None,
    reference: Reference = None,
) -> None:  # fmt: skip
    """A security came back, all of it or less what the market keeps."""
    there = _account("Assets:Deposit", market)
    move = Move("deposit.return", market, amount, with_market(to, market), there, kept=kept)
    _book(move, target, rental, reference)


def refund_expect(
    market: Market, amount: Usd, target: Target, *, rental: Rental = None, reference: Reference = None
) -> None:
    """The market owes us something back. A first hour that AWS interrupts is booked by the broker itself."""
    due, income = (_account(kind, market) for kind in ("Assets:Receivable", "Income:Refunds"))
    _book(Move("refund.expected", market, amount, due, income), target, rental, reference)


def refund_receive(
    market: Market,
    amount: Usd,
    target: Target,
    *,
    to: To = "prepaid",
    rental: Rental = None,
    reference: Reference = None,
) -> None:
    """What was expected came."""
    due = _account("Assets:Receivable", market)
    move = Move("refund.received", market, amount, with_market(to, market), due)
    _book(move, target, rental, reference)


Coins = Annotated[str, typer.Argument(help="How much, in the unit.", metavar="AMOUNT")]
Unit = Annotated[str, typer.Argument(help="The coin, such as AKT.", metavar="UNIT")]


def escrow_fund(market: Market, amount: Coins, unit: Unit, target: Target, *, reference: Reference = None) -> None:
    """Coins went from the wallet into the escrow of a lease."""
    there, wallet = (_account(kind, market) for kind in ("Assets:Escrow", "Assets:Wallet"))
    _book(Move("escrow.fund", market, amount, there, wallet, unit=unit), target, reference=reference)


def escrow_return(market: Market, amount: Coins, unit: Unit, target: Target, *, reference: Reference = None) -> None:
    """What was left in an escrow came back to the wallet."""
    there, wallet = (_account(kind, market) for kind in ("Assets:Escrow", "Assets:Wallet"))
    _book(Move("escrow.return", market, amount, wallet, there, unit=unit), target, reference=reference)


def pay(
    market: Market, amount: Usd, target: Target, *, source: From = "bank",
    reference: Reference = None,
) -> None:  # fmt: skip
    """What the market invoiced was paid: from the bank, or out of the balance there."""
    owed = _account("Liabilities:Payable", market)
    if source == "payable":
        raise Failure("--from payable: an invoice is paid from bank or prepaid", USAGE)
    _book(
        Move("invoice.pay", market, amount, owed, with_market(source, market)),
        target,
        reference=reference,
    )


def _group(about: str, commands: dict[str, Command]) -> typer.Typer:
    return declare(typer.Typer(no_args_is_help=True, help=about), commands)


GROUPS = {
    "prepaid": _group("The balance that a market keeps for us.", {"fund": prepaid_fund, "return": prepaid_return}),
    "deposit": _group("Securities that lie with a market.", {"pay": deposit_pay, "return": deposit_return}),
    "refund": _group("What a market owes us back.", {"expect": refund_expect, "receive": refund_receive}),
    "escrow": _group("Coins in the escrow of leases.", {"fund": escrow_fund, "return": escrow_return}),
}
