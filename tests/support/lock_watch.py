"""Watches that transactions lock rows in the order of `broker.lock_order`: on SQLite, too, where nobody waits in a ring."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Delete, Insert, Select, Update, event
from sqlalchemy.ext.asyncio import AsyncEngine

from broker.lock_order import ORDER, rank

ANY = "*"


@dataclass
class LockWatch:
    """`violations` says what was locked too late, `seen` which tables were locked at all."""

    violations: list[str] = field(default_factory=list)
    seen: set[str] = field(default_factory=set)
    _held: dict[int, list[tuple[str, frozenset[str]]]] = field(default_factory=dict)

    def began(self, connection: Any) -> None:
        self._held[id(connection.connection.dbapi_connection)] = []

    def executes(self, connection: Any, statement: Any, many: Any, params: Any, _options: Any) -> None:
        held = self._held.setdefault(id(connection.connection.dbapi_connection), [])
        for table in _locked(statement):
            ids = _texts(statement, many, params)
            name = next((f"{table}:{each}" for each in ("books", "decisions") if each in ids), table)
            mine = rank(name)
            if mine is None:
                continue
            # what this transaction made or locked before, nobody else can hold
            own = [theirs for other, theirs in held if other.removeprefix("new ") == name]
            is_ours = any(ids & theirs or ANY in theirs or name == "ledger_head" for theirs in own)
            # for a row that is added, or that is passed over when somebody has it, nobody waits
            is_skipping = isinstance(statement, Select) and statement._for_update_arg.skip_locked
            is_new = isinstance(statement, Insert) or is_skipping
            ids = frozenset({ANY}) if is_skipping else ids
            later = [
                other for other, _ in held if (rank(other.removeprefix("new ")) or 0) > mine and other[:4] != "new "
            ]
            if later and not is_ours and not is_new:
                self.violations.append(f"{name} after {', '.join(dict.fromkeys(later))}: {str(statement)[:120]}")
            held.append((f"new {name}" if is_new else name, ids))
            self.seen.add(name)


@contextmanager
def watch_locks(engine: AsyncEngine) -> Iterator[LockWatch]:
    """Fails when a transaction locked something too late."""
    watch = LockWatch()
    event.listen(engine.sync_engine, "begin", watch.began)
    event.listen(engine.sync_engine, "before_execute", watch.executes)
    try:
        yield watch
    finally:
        event.remove(engine.sync_engine, "begin", watch.began)
        event.remove(engine.sync_engine, "before_execute", watch.executes)
    assert not watch.violations, f"locked against the order {' > '.join(ORDER)}:\n" + "\n".join(watch.violations)


def _locked(statement: Any) -> Iterable[str]:
    if isinstance(statement, Select):
        asked = statement._for_update_arg
        if asked is None:
            return []
        tables = asked.of or statement.get_final_froms()
        return [getattr(each, "name", "") or getattr(getattr(each, "table", None), "name", "") for each in tables]
    if isinstance(statement, (Update, Delete, Insert)):
        return [getattr(statement.table, "name", "")]
    return []


def _texts(statement: Any, many: Any, params: Any) -> frozenset[str]:
    """The ids (and other texts) that a statement is about."""
    found: list[Any] = list(statement.compile().params.values())
    for each in [*(many or []), params or {}]:
        found += each.values() if isinstance(each, dict) else []
    flat = [one for each in found for one in (each if isinstance(each, (list, tuple)) else [each])]
    return frozenset(each for each in flat if isinstance(each, str))
