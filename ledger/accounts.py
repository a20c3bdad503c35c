"""The chart of accounts: every account name there is, and the functions that make them.

Dimensions (project, batch, rental …) are columns of the entry; an account name says only what kind of money it is and
with whom. Names are those of beancount: components of letters, digits and `-`, the first a capital or a digit.

The memo accounts are a set that balances in itself, so that the real books balance without it:

    Memo:Contra → Memo:Budget:<project>   a grant
    Memo:Budget → Memo:Held               a hold is opened or extended: set aside before anything is spent
    Memo:Held → Memo:Drawn                an accrual uses what was set aside (beyond the hold: straight from the budget)
    Memo:Held → Memo:Budget, Memo:Drawn → Memo:Spent   the hold is resolved: the remainder is given back
    Memo:Contra → Memo:Saved:<project>    an answer was reused: what it would have cost, which nobody owes or budgets

The balance of `Memo:Budget:<project>` is therefore granted − accrued − unspent remainder of the open holds.
"""

from __future__ import annotations

import hashlib
import re

from ledger.errors import UnknownAccount

CONTRA = "Memo:Contra"

# What an hour is called in the books, by the pricing of the offer. A bid is a spot price of one's own making.
_CLASSES = {"on_demand": "OnDemand", "spot": "Spot", "bid": "Spot", "reserved": "Committed", "token": "Tokens"}
# Machines of our own: their hour has an internal price and nobody sends an invoice for it.
_OWN_MARKETS = frozenset({"local", "hosts"})

_NAME = "[A-Z0-9][A-Za-z0-9-]*"
_CHART = (
    f"Expenses:Compute:(?:OnDemand|Spot|Committed|Tokens|Local):{_NAME}",
    f"Expenses:(?:Idle|Startup|Variance):{_NAME}",
    f"Expenses:Lost:(?:Preempted|FailedNode|Rejected):{_NAME}",
    f"Liabilities:(?:Accrued|Payable):{_NAME}",
    f"Assets:(?:Prepaid|Receivable):{_NAME}",
    f"Income:Refunds:{_NAME}",
    f"Memo:(?:Budget|Held|Drawn|Spent|Saved):{_NAME}",
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


def memo_accounts(project: str | None) -> frozenset[str]:
    """The memo accounts that an event of `project` may touch."""
    if project is None:
        return frozenset()
    return frozenset({budget(project), held(project), drawn(project), spent(project), saved(project), CONTRA})


def is_memo(account: str) -> bool:
    return account.startswith("Memo:")


def check_account(account: str) -> None:
    """Raises UnknownAccount when the chart has no such account."""
    if not _KNOWN.fullmatch(account):
        raise UnknownAccount(
            f"account {account!r} is not in the chart of accounts (ledger/accounts.py); use its functions to make names"
        )
