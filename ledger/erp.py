"""Journal lines for an ERP: the month's books by general-ledger account and cost centre. Pure.

How an account of ours becomes one of theirs is a mapping with a version. What no rule names goes to the suspense account,
is told, and keeps the month from being closed: a guess would be found by nobody.
"""

from __future__ import annotations

import re
from calendar import monthrange
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from decimal import ROUND_HALF_EVEN, Decimal
from fnmatch import fnmatchcase

import msgspec

from ledger.export import safe_cell
from ledger.money import from_nano

PERIOD = r"[0-9]{4}-(?:0[1-9]|1[0-2])"
COLUMNS = (
    "external_id", "journal", "date", "currency", "account", "cost_centre", "debit", "credit", "memo", "mapping_version",
)  # fmt: skip
# Currencies whose smallest coin is not a hundredth (ISO 4217).
_PLACES = {"JPY": 0, "KRW": 0, "VND": 0, "CLP": 0, "ISK": 0, "KWD": 3, "BHD": 3, "JOD": 3, "OMR": 3, "TND": 3}


class Rule(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`account` is a pattern of our account names (`Expenses:Compute:*`), `project` one of project names."""

    account: str
    gl: str
    project: str = "*"
    cost_centre: str = ""


class AccountMap(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The first rule that matches holds. `suspense` takes what none matches, `rounding` the cents that rounding leaves."""

    suspense: str
    rounding: str
    rules: tuple[Rule, ...]


class BadMap(ValueError):
    """The account mapping cannot be used: what is wrong with it."""


@dataclass(frozen=True, slots=True)
class Sum:
    """The month's postings of one account, unit and project, debits positive."""

    account: str
    unit: str
    project: str | None
    nano: int


@dataclass(frozen=True, slots=True)
class Journal:
    """Rows of COLUMNS, and the accounts (with project) that no rule named: they block the close."""

    rows: tuple[tuple[str, ...], ...]
    unmapped: tuple[str, ...]


def parse_map(text: bytes) -> AccountMap:
    """Raises BadMap with what is wrong and where."""
    try:
        parsed = msgspec.json.decode(text, type=AccountMap)
    except msgspec.DecodeError as wrong:
        raise BadMap(
            f"the mapping cannot be read: {wrong}; it is {{suspense, rounding, rules: [{{account, gl}}]}}"
        ) from wrong
    for name, value in (("suspense", parsed.suspense), ("rounding", parsed.rounding)):
        if not value.strip():
            raise BadMap(f"{name} is empty; name the general-ledger account")
    for number, rule in enumerate(parsed.rules):
        if not rule.account.strip() or not rule.gl.strip():
            raise BadMap(f"rules[{number}]: account and gl are both needed, found {rule.account!r} and {rule.gl!r}")
    return parsed


def journal(sums: Iterable[Sum], mapping: AccountMap, *, period: str, version: str) -> Journal:
    """One line for each general-ledger account, cost centre and currency; debits equal credits in each currency, to the cent,
    with one rounding line where rounding to the smallest coin left something.

    Debits and credits are never negative. `external_id` is the same in every export of the same mapping, so that an import
    done twice books once. Raises BadMap for a period that is none.
    """
    if not re.fullmatch(PERIOD, period):
        raise BadMap(f"period {period!r} is not YYYY-MM")
    exact: dict[tuple[str, str, str], int] = defaultdict(int)
    unmapped: set[str] = set()
    for each in sums:
        rule = _rule_of(mapping, each)
        if rule is None:
            unmapped.add(f"{each.account} of {each.project or 'no project'}")
        gl, centre = (mapping.suspense, "") if rule is None else (rule.gl, rule.cost_centre)
        exact[each.unit, gl, centre] += each.nano
    return Journal(tuple(_rows(exact, mapping, period, version)), tuple(sorted(unmapped)))


def _rule_of(mapping: AccountMap, of: Sum) -> Rule | None:
    return next(
        (
            rule
            for rule in mapping.rules
            if fnmatchcase(of.account, rule.account) and fnmatchcase(of.project or "", rule.project)
        ),
        None,
    )


def _rows(
    exact: dict[tuple[str, str, str], int], mapping: AccountMap, period: str, version: str
) -> Iterator[tuple[str, ...]]:
    left: dict[str, Decimal] = defaultdict(Decimal)
    for (unit, gl, centre), nano in sorted(exact.items()):
        amount = _rounded(nano, unit)
        left[unit] -= amount
        if amount:
            yield _row(unit, gl, centre, amount, "", period, version)
    for unit, amount in sorted(left.items()):
        if amount:
            yield _row(unit, mapping.rounding, "", amount, "rounding to the smallest coin", period, version)


def _rounded(nano: int, unit: str) -> Decimal:
    return from_nano(nano).quantize(Decimal(1).scaleb(-_PLACES.get(unit, 2)), rounding=ROUND_HALF_EVEN)


def _row(unit: str, gl: str, centre: str, amount: Decimal, memo: str, period: str, version: str) -> tuple[str, ...]:
    parts: Sequence[str] = ("broker", period, unit, gl, centre or "-", memo and "rounding")
    return (
        safe_cell("/".join(part for part in parts if part)),
        f"broker-{period}",
        _last_day(period),
        unit,
        safe_cell(gl),
        safe_cell(centre or None),
        f"{amount:f}" if amount > 0 else "",
        f"{-amount:f}" if amount < 0 else "",
        memo or f"compute {period}",
        version,
    )


def _last_day(period: str) -> str:
    year, month = (int(part) for part in period.split("-"))
    return f"{period}-{monthrange(year, month)[1]:02}"
