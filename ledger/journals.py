"""The books as plain-text journals for beancount and hledger: other people's programs then check what ours says.

Amounts always have nine places: beancount infers its tolerance from the coarsest digits, and a balance of `0.00` would
let 0.004 pass unseen. Memo accounts (budgets, holds) are left out: real and memo lines of an entry balance apart.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from ledger.money import from_nano

PLACES = 9
_UNSAFE = re.compile(r"[^A-Za-z0-9_./-]")


@dataclass(frozen=True, slots=True)
class JournalEntry:
    """An entry with its real (not memo) lines: (account, unit, nano)."""

    id: str
    seq: int
    kind: str
    occurred_at_us: int
    project: str | None
    rental: str | None
    lines: tuple[tuple[str, str, int], ...]


def beancount(entries: Iterable[JournalEntry]) -> Iterator[str]:
    """The journal, text by text. Every account that occurs is opened on the first day; the last lines assert that all
    accounts have the balances that the books have, to the nano."""
    kept = list(entries)
    first = _day(min((each.occurred_at_us for each in kept), default=0))
    units = sorted({(account, unit) for each in kept for account, unit, _ in each.lines})
    yield 'option "title" "broker"\noption "operating_currency" "USD"\n\n'
    for account in sorted({account for account, _ in units}):
        yield f"{first} open {account}\n"
    yield "\n"
    for each in kept:
        tags = f" #{_tag(each.project)}" if each.project else ""
        links = f" ^{_tag(each.rental)}" if each.rental else ""
        yield f'{_day(each.occurred_at_us)} * "{each.kind}"{tags}{links}\n  entry_id: "{each.id}"\n'
        yield "".join(f"  {account}  {_amount(nano)} {unit}\n" for account, unit, nano in each.lines) + "\n"
    after = _day(max((each.occurred_at_us for each in kept), default=0) + 86_400_000_000)
    for (account, unit), nano in sorted(balances(kept).items()):
        yield f"{after} balance {account}  {_amount(nano)} ~ 0.{'0' * PLACES} {unit}\n"


def hledger(entries: Iterable[JournalEntry]) -> Iterator[str]:
    """The journal, text by text, with declared accounts and commodities: `hledger check --strict` takes it."""
    kept = list(entries)
    sums = balances(kept)
    for unit in sorted({unit for _, unit in sums}):
        yield f"commodity 1000.{'0' * PLACES} {unit}\n"
    for account in sorted({account for account, _ in sums}):
        yield f"account {account}\n"
    yield "\n"
    for each in kept:
        project = f"project:{_tag(each.project)}, " if each.project else ""
        yield f"{_day(each.occurred_at_us)} * ({each.seq}) {each.kind}  ; {project}entry:{each.id}\n"
        yield "".join(f"    {account}  {_amount(nano)} {unit}\n" for account, unit, nano in each.lines) + "\n"
    if kept:
        yield f"{_day(max(each.occurred_at_us for each in kept))} * balances of the books\n"
        for (account, unit), nano in sorted(sums.items()):
            yield f"    {account}  0 {unit} = {_amount(nano)} {unit}\n"


def balances(entries: Iterable[JournalEntry]) -> Mapping[tuple[str, str], int]:
    """Nano by (account, unit)."""
    sums: dict[tuple[str, str], int] = {}
    for each in entries:
        for account, unit, nano in each.lines:
            sums[account, unit] = sums.get((account, unit), 0) + nano
    return sums


def _amount(nano: int) -> str:
    return f"{from_nano(nano):.{PLACES}f}"


def _day(micros: int) -> str:
    return datetime.fromtimestamp(micros // 1_000_000, UTC).strftime("%Y-%m-%d")


def _tag(text: str | None) -> str:
    return _UNSAFE.sub("-", text or "")
