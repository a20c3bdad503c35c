"""What every event must fulfil before anything else is asked. Pure; one function an invariant, a breach raises."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import get_args

from ledger import units
from ledger.accounts import CONTRA, check_account, is_memo, is_of_no_project, memo_accounts
from ledger.errors import MalformedEvent, Unbalanced
from ledger.event import Event, Facts, Kind

MAX_NANO = 2**63 - 1
MAX_TEXT = 512
_MAX_TIME_US = 253_402_300_800_000_000  # the year 10000: no month has a name after that
_KINDS: frozenset[str] = frozenset(get_args(Kind))
HOLD_KINDS: frozenset[str] = frozenset({"hold.open", "hold.extend", "hold.post", "hold.void", "hold.expire"})
_MEMO_ONLY: frozenset[str] = HOLD_KINDS | {
    "budget.grant",
    "saving.reuse",
    "saving.on_demand",
    "saving.api",
    "period.close",
}
# Which real accounts the other kinds may touch. Corrections undo whatever there is.
_PAYS = ("Assets:Bank:", "Assets:Wallet:", "Assets:Prepaid:", "Liabilities:Payable:")
_TOUCHES: Mapping[str, tuple[str, ...]] = {
    "usage.accrue": ("Expenses:", "Liabilities:Accrued:", "Assets:Prepaid:", "Assets:Credits:", "Assets:Escrow:"),
    "usage.waste": ("Expenses:",),
    "refund.expected": ("Assets:Receivable:", "Income:Refunds:", "Expenses:"),
    "refund.received": ("Assets:Receivable:", "Income:Refunds:", "Expenses:", "Liabilities:Accrued:", *_PAYS),
    "credit.grant": ("Assets:Credits:", "Income:Grants:"),
    "credit.apply": ("Assets:Credits:", "Liabilities:Accrued:", "Liabilities:Payable:"),
    "prepaid.fund": _PAYS,
    "deposit.pay": ("Assets:Deposit:", *_PAYS),
    "deposit.return": ("Assets:Deposit:", "Expenses:Forfeited:", "Liabilities:Accrued:", *_PAYS),
    "escrow.fund": ("Assets:Escrow:", "Assets:Wallet:", "Expenses:Fees:Gas:"),
    "escrow.return": ("Assets:Escrow:", "Assets:Wallet:", "Expenses:Fees:Gas:"),
    "escrow.spend": (
        "Assets:Escrow:",
        "Assets:Wallet:",
        "Expenses:",
        "Liabilities:Accrued:",
        "Equity:FX:",
        "Income:FX:",
    ),
    "commitment.buy": ("Assets:Commitments:", *_PAYS),
    "commitment.amortise": ("Assets:Commitments:", "Expenses:Compute:Committed:", "Expenses:Unused:"),
    "fx.buy": ("Assets:", "Equity:FX:", "Expenses:Fees:", "Liabilities:Payable:"),
    "fx.sell": ("Assets:", "Equity:FX:", "Income:FX:", "Expenses:Fees:"),
    "invoice.match": ("Liabilities:Accrued:", "Liabilities:Payable:", "Assets:Prepaid:", "Assets:Suspense:"),
    "invoice.variance": ("Expenses:", "Income:FX:", "Liabilities:", "Assets:Suspense:", "Assets:Prepaid:"),
    "invoice.pay": ("Liabilities:Payable:", "Income:FX:", "Expenses:Fees:", *_PAYS),
    "chargeback.bill": ("Assets:Chargeback:", "Income:Chargeback:"),
}
_SCOPE = re.compile(r"(?:org|team):[a-z0-9][a-z0-9-]{0,63}")
_UNIT = re.compile(r"[A-Z][A-Z0-9]{1,15}")


def check_event(event: Event) -> None:
    """Raises MalformedEvent, UnknownAccount or Unbalanced, naming the event's key and what to mend."""
    _check_fields(event)
    _check_lines(event)
    _check_balance(event)
    _check_memo(event)
    _check_shape(event)
    _check_added(event)


def period_of(occurred_at_us: int) -> str:
    """The UTC month that an event belongs to.

    >>> period_of(1_795_305_600_000_000)
    '2026-11'
    """
    return datetime.fromtimestamp(occurred_at_us // 1_000_000, tz=UTC).strftime("%Y-%m")


def _check_fields(event: Event) -> None:
    if event.kind not in _KINDS:
        raise MalformedEvent(
            f"event {event.key!r}: kind {event.kind!r} is unknown; one of {', '.join(sorted(_KINDS))} is meant"
        )
    texts = {"key": event.key, "actor": event.actor, "corrects": event.corrects, "hold": event.hold}
    dims = {f"dims.{name}": getattr(event.dims, name) for name in ("project", "batch", "rental", "offer_key")}
    for name, value in (texts | dims).items():
        _check_text(event, name, value, required=name in ("key", "actor"))
    if not _is_integer(event.occurred_at_us) or not 0 <= event.occurred_at_us < _MAX_TIME_US:
        raise MalformedEvent(
            f"event {event.key!r}: occurred_at_us {event.occurred_at_us!r} is not microseconds since 1970"
        )
    if event.dims.attempt is not None and not _is_integer(event.dims.attempt):
        raise MalformedEvent(f"event {event.key!r}: attempt {event.dims.attempt!r} is not a whole number")
    if event.kind in HOLD_KINDS and (event.hold is None or event.dims.project is None):
        raise MalformedEvent(f"event {event.key!r}: a {event.kind} names its hold and its project")
    of_node = any(line.account.startswith("Memo:Limit:") for line in event.lines)
    if event.kind == "budget.grant" and event.dims.project is None and not of_node:
        raise MalformedEvent(f"event {event.key!r}: a budget.grant names its project, or the node of the budget tree")
    if event.kind == "correction" and event.corrects is None:
        raise MalformedEvent(f"event {event.key!r}: a correction names the key of the entry that it corrects")


def _check_text(event: Event, name: str, value: object, *, required: bool) -> None:
    if value is None and not required:
        return
    # isprintable: no control characters, no lone surrogates; PostgreSQL and CSV readers choke on them.
    if not isinstance(value, str) or not 0 < len(value) <= MAX_TEXT or not value.isprintable():
        raise MalformedEvent(f"event {event.key!r}: {name} {value!r} is not 1 to {MAX_TEXT} printable characters")


def _check_lines(event: Event) -> None:
    for number, line in enumerate(event.lines):
        where = f"event {event.key!r}, line {number} ({line.account})"
        if not _is_integer(line.nano):
            raise MalformedEvent(f"{where}: amount {line.nano!r} is not an integer of nano-units")
        if line.nano == 0 or abs(line.nano) > MAX_NANO:
            raise MalformedEvent(
                f"{where}: amount {line.nano} is zero or beyond 64 bits; leave the line out or split it"
            )
        if not isinstance(line.unit, str) or not _UNIT.fullmatch(line.unit):
            raise MalformedEvent(f"{where}: unit {line.unit!r} is not a code such as USD")
        units.unit(line.unit)
        check_account(line.account)


def _check_balance(event: Event) -> None:
    if len(event.lines) < 2:
        raise Unbalanced(f"event {event.key!r} has {len(event.lines)} lines; a transaction has at least two")
    # Real and memo accounts balance apart, so that the real books balance when the memo set is left out.
    sums: dict[tuple[str, bool], int] = defaultdict(int)
    for line in event.lines:
        sums[line.unit, is_memo(line.account)] += line.nano
    for (unit, memo), nano in sums.items():
        if nano:
            books = "memo accounts" if memo else "accounts"
            raise Unbalanced(f"event {event.key!r}: debits and credits of its {books} differ by {nano} nano-{unit}")


def _check_memo(event: Event) -> None:
    allowed = memo_accounts(event.dims.project)
    for line in event.lines:
        if is_memo(line.account) and line.account not in allowed and not is_of_no_project(line.account):
            raise MalformedEvent(
                f"event {event.key!r} of project {event.dims.project}: {line.account} belongs to another project"
            )


def _check_shape(event: Event) -> None:
    """Why: a waste that is booked as an income is balanced, and wrong all the same."""
    touches = _TOUCHES.get(event.kind)
    for line in event.lines:
        if is_memo(line.account) or (event.kind not in _MEMO_ONLY and touches is None):
            continue
        if event.kind in _MEMO_ONLY:
            raise MalformedEvent(f"event {event.key!r}: a {event.kind} moves no real money, and {line.account} is real")
        if touches is not None and not line.account.startswith(touches):
            raise MalformedEvent(
                f"event {event.key!r}: a {event.kind} does not touch {line.account}; its accounts begin with {', '.join(touches)}"
            )


def _check_added(event: Event) -> None:
    if isinstance(event.scopes, tuple):
        for scope in event.scopes:
            if not _SCOPE.fullmatch(scope):
                raise MalformedEvent(f"event {event.key!r}: scope {scope!r} is not org:NAME or team:NAME")
        if len(set(event.scopes)) != len(event.scopes):
            raise MalformedEvent(f"event {event.key!r}: a scope is named twice")
    if isinstance(event.facts, Facts):
        for name in Facts.__struct_fields__:
            value = getattr(event.facts, name)
            if isinstance(value, str):
                _check_text(event, f"facts.{name}", value, required=False)
    if event.kind == "period.close":
        closes = {line.account.removeprefix("Memo:Closed:") for line in event.lines} - {CONTRA}
        if (
            len(closes) != 1
            or event.key != f"period.close:{min(closes)}"
            or min(closes) >= period_of(event.occurred_at_us)
        ):
            raise MalformedEvent(
                f"event {event.key!r}: a period.close debits Memo:Closed:YYYY-MM, has the key period.close:YYYY-MM, and "
                "happens after the end of that month"
            )


def _is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
