"""What every event must fulfil before anything else is asked. Pure; one function an invariant, a breach raises."""

from __future__ import annotations

import re
from collections import defaultdict
from datetime import UTC, datetime
from typing import get_args

from ledger.accounts import check_account, is_memo, memo_accounts
from ledger.errors import MalformedEvent, Unbalanced
from ledger.event import Event, Kind

MAX_NANO = 2**63 - 1
MAX_TEXT = 512
_MAX_TIME_US = 253_402_300_800_000_000  # the year 10000: no month has a name after that
_KINDS: frozenset[str] = frozenset(get_args(Kind))
HOLD_KINDS: frozenset[str] = frozenset({"hold.open", "hold.extend", "hold.void", "hold.expire"})
_UNIT = re.compile(r"[A-Z][A-Z0-9]{1,15}")


def check_event(event: Event) -> None:
    """Raises MalformedEvent, UnknownAccount or Unbalanced, naming the event's key and what to mend."""
    _check_fields(event)
    _check_lines(event)
    _check_balance(event)
    _check_memo(event)


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
    if event.kind == "budget.grant" and event.dims.project is None:
        raise MalformedEvent(f"event {event.key!r}: a budget.grant names its project")
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
        if is_memo(line.account) and line.account not in allowed:
            raise MalformedEvent(
                f"event {event.key!r} of project {event.dims.project}: {line.account} belongs to another project"
            )


def _is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
