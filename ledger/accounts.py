"""The chart of accounts: every account name there is, and the functions that make them.

Dimensions (project, batch, rental …) are columns of the entry; an account name says only what kind of money it is and
with whom. Names are those of beancount: components of letters, digits and `-`, the first a capital or a digit.

Real accounts, `<P>` the market (`<C>` a commitment's id, `<U>` a unit); debits are positive:

    Expenses:Compute:<class>:<P>   instance time and tokens that were of use; a rental's waste is moved out of it
    Expenses:Startup|Idle|Retried|Zombie:<P>, Expenses:Lost:<why>:<P>, Expenses:Unused:<C>   what was paid for in vain
    Expenses:Storage|Egress:<P>, Expenses:Fees:Gas|Broker:<P>, Expenses:Forfeited:<P>   what else providers take: Egress is
                                   for data in either direction, Forfeited what of a deposit is not returned
    Expenses:Variance:<P>          invoiced beyond what was accrued (negative: below)
    Liabilities:Accrued:<P>        used, not yet invoiced (a credit balance)
    Liabilities:Payable:<P>        invoiced, not yet paid
    Assets:Prepaid|Deposit|Escrow:<P>   with the provider, and ours: a wallet, a security, a lease's escrow (AKT, in lots)
    Assets:Credits:<P>             granted by the provider, not yet used; against Income:Grants:<P>
    Assets:Receivable:<P>          a refund that is due; against Income:Refunds:<P>
    Assets:Commitments:<C>         bought ahead, amortised hour by hour to Compute:Committed and Unused
    Assets:Bank:<name>, Assets:Wallet:<name>   where money and virtual currencies lie
    Assets:Suspense:<P>            invoiced and not explained: waits for a person's decision, blocks the close
    Assets:Chargeback:<project>    billed within the house; against Income:Chargeback:<project>
    Equity:FX:Liquidity:<U>        the other side of all <U> that we hold; its USD balance is what the lots still held did cost
    Income:FX:Realised             gains (negative: losses are debits) when units are spent at another rate than their lot's

Every expense of a rental, Variance included, is its cost: what the shares of batches sum to.

The memo accounts are a set that balances in itself, so that the real books balance without it:

    Memo:Contra → Memo:Budget:<project>   a grant
    Memo:Budget → Memo:Held               a hold is opened or extended: set aside before anything is spent
    Memo:Held → Memo:Drawn                an accrual uses what was set aside (beyond the hold: straight from the budget)
    Memo:Held → Memo:Budget, Memo:Drawn → Memo:Spent   the hold is resolved: the remainder is given back
    Memo:Contra → Memo:Saved:<project>    an answer was reused: what it would have cost, which nobody owes or budgets
    Memo:Contra → Memo:Avoided:<OnDemand|Api>:<project>   what the same work would have cost more (negative: less) at the
                                          on-demand or the API price of the moment of decision; alternatives, never added up
    Memo:Contra → Memo:Limit:<scope>      what a node of the budget tree may commit (ledger/limits.py)
    Memo:Contra → Memo:Closed:<YYYY-MM>   one nano: the month is closed

The balance of `Memo:Budget:<project>` is therefore granted − accrued − unspent remainder of the open holds.
"""

from __future__ import annotations

import hashlib
import re
from typing import Literal

from ledger.errors import UnknownAccount

CONTRA = "Memo:Contra"
REALISED = "Income:FX:Realised"
SUSPENSE = "Assets:Suspense:"

# What an hour is called in the books, by the pricing of the offer. A bid is a spot price of one's own making.
_CLASSES = {"on_demand": "OnDemand", "spot": "Spot", "bid": "Spot", "reserved": "Committed", "token": "Tokens"}
# Machines of our own: their hour has an internal price and nobody sends an invoice for it.
_OWN_MARKETS = frozenset({"local", "hosts"})

_NAME = "[A-Z0-9][A-Za-z0-9-]*"
_CHART = (
    f"Expenses:Compute:(?:OnDemand|Spot|Committed|Tokens|Local):{_NAME}",
    f"Expenses:(?:Idle|Startup|Retried|Zombie|Unused|Variance|Storage|Egress|Forfeited):{_NAME}",
    f"Expenses:Fees:(?:Gas|Broker):{_NAME}",
    f"Expenses:Lost:(?:Preempted|FailedNode|Rejected):{_NAME}",
    f"Liabilities:(?:Accrued|Payable):{_NAME}",
    f"Assets:(?:Prepaid|Receivable|Deposit|Escrow|Credits|Commitments|Bank|Wallet|Suspense|Chargeback):{_NAME}",
    f"Income:(?:Refunds|Grants|Chargeback):{_NAME}",
    REALISED,
    "Equity:FX:Liquidity:[A-Z][A-Z0-9]{1,15}",
    f"Memo:(?:Budget|Held|Drawn|Spent|Saved|Limit):{_NAME}",
    f"Memo:Avoided:(?:OnDemand|Api):{_NAME}",
    "Memo:Closed:[0-9]{4}-[0-9]{2}",
    CONTRA,
)
_KNOWN = re.compile("|".join(f"(?:{pattern})" for pattern in _CHART))
_PLAIN = re.compile(r"[a-z0-9]+(?:[.-][a-z0-9]+)*")


def component(name: str) -> str:
    """The account component of a market's or a project's name; two names never share one.

    Plain names stay readable (`.` becomes `-`, and `-` itself `--`); all others are made safe and carry a digest, so
    that `Vast_ai` and `vast.ai` are two accounts.

    >>> component("vast.ai"), component("prime-intellect"), component("project_1")
    ('Vast-ai', 'Prime--intellect', 'Project-1-X3092c59e4c')
    """
    if _PLAIN.fullmatch(name):
        safe = name.replace("-", "--").replace(".", "-")
        return safe[0].upper() + safe[1:]
    safe = re.sub(r"[^A-Za-z0-9]+", "-", name).strip("-") or "X"
    return f"{safe[0].upper()}{safe[1:]}-X{hashlib.sha256(name.encode()).hexdigest()[:10]}"


def compute(market: str, pricing: str) -> str:
    """The expense account of instance time.

    >>> compute("sandbox", "spot"), compute("local", "on_demand")
    ('Expenses:Compute:Spot:Sandbox', 'Expenses:Compute:Local:Local')
    """
    if market in _OWN_MARKETS:
        return f"Expenses:Compute:Local:{component(market)}"
    if pricing not in _CLASSES:
        raise UnknownAccount(
            f"market {market}: no account for pricing {pricing!r}; one of {', '.join(_CLASSES)} is meant"
        )
    return f"Expenses:Compute:{_CLASSES[pricing]}:{component(market)}"


def accrued(market: str) -> str:
    """What was used of a market and not yet invoiced."""
    return f"Liabilities:Accrued:{component(market)}"


def of_market(kind: str, market: str) -> str:
    """The account of that kind with a market; the kind is one of the chart's, such as `Assets:Prepaid`.

    >>> of_market("Liabilities:Payable", "vast.ai")
    'Liabilities:Payable:Vast-ai'
    """
    account = f"{kind}:{component(market)}"
    check_account(account)
    return account


def liquidity(unit: str) -> str:
    """The other side of all that we hold of a unit."""
    return f"Equity:FX:Liquidity:{unit}"


def budget(project: str) -> str:
    """What a project may still commit."""
    return f"Memo:Budget:{component(project)}"


def held(project: str) -> str:
    """What is set aside for a project's rentals and not yet used."""
    return f"Memo:Held:{component(project)}"


def drawn(project: str) -> str:
    """What was accrued under holds that are still open."""
    return f"Memo:Drawn:{component(project)}"


def spent(project: str) -> str:
    """What was accrued for good: its hold is resolved, or there was none."""
    return f"Memo:Spent:{component(project)}"


def saved(project: str) -> str:
    """What answers that were reused would have cost at the quoted price; no part of any budget."""
    return f"Memo:Saved:{component(project)}"


def avoided(against: Literal["OnDemand", "Api"], project: str) -> str:
    """What the same work would have cost more elsewhere; no part of any budget."""
    return f"Memo:Avoided:{against}:{component(project)}"


def limit(scope: str) -> str:
    """What a node of the budget tree may commit."""
    return f"Memo:Limit:{component(scope)}"


def closed(period: str) -> str:
    """One nano once the month is closed."""
    return f"Memo:Closed:{period}"


def memo_accounts(project: str | None) -> frozenset[str]:
    """The memo accounts that an event of `project` may touch, beside those of limits and periods."""
    if project is None:
        return frozenset({CONTRA})
    own = {budget(project), held(project), drawn(project), spent(project), saved(project), CONTRA}
    return frozenset(own | {avoided("OnDemand", project), avoided("Api", project)})


def is_of_no_project(account: str) -> bool:
    """Whether it is a memo account of a limit or of a period."""
    return account.startswith(("Memo:Limit:", "Memo:Closed:"))


def is_memo(account: str) -> bool:
    return account.startswith("Memo:")


def check_account(account: str) -> None:
    """Raises UnknownAccount when the chart has no such account."""
    if not _KNOWN.fullmatch(account):
        raise UnknownAccount(
            f"account {account!r} is not in the chart of accounts (ledger/accounts.py); use its functions to make names"
        )
