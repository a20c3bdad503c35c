"""The triggers that keep the sealed streams, checkpoints and rates append-only. DDL per dialect, as in ledger/triggers.py.

A leaf follows the last one of its stream and names its hash; a head moves forward only, to a leaf that is there.
"""

from __future__ import annotations

from ledger.triggers import append_only_function, refusal_function

_APPEND_ONLY = "ledger: sealed rows are never changed or removed"
_CHAIN = "ledger: a leaf follows the last of its stream and names its hash"
_HEAD = "ledger: the head of a stream moves forward to its newest leaf and is never removed"
_TABLES = ("ledger_seal", "ledger_checkpoint", "ledger_rate")
_STREAMS = ("books", "decisions")
_ZEROS = "0" * 64
_BREAKS_CHAIN = (
    "NEW.seq <> (SELECT COALESCE(MAX(seq), 0) + 1 FROM ledger_seal WHERE stream = NEW.stream) OR NEW.prev <> "
    f"COALESCE((SELECT hash FROM ledger_seal WHERE stream = NEW.stream AND seq = NEW.seq - 1), '{_ZEROS}')"
)
_BREAKS_HEAD = (
    "NEW.stream <> OLD.stream OR NEW.seq <= OLD.seq OR NOT EXISTS "
    "(SELECT 1 FROM ledger_seal WHERE stream = NEW.stream AND seq = NEW.seq AND hash = NEW.hash)"
)


def create_statements(dialect: str) -> list[str]:
    """DDL to run once after the tables exist; also puts the heads there. Raises ValueError for other dialects."""
    heads = [
        f"INSERT INTO ledger_seal_head (stream, seq, hash, peaks) VALUES ('{stream}', 0, '{_ZEROS}', "
        + ("X''" if dialect == "sqlite" else "''::bytea")
        + ")"
        for stream in _STREAMS
    ]
    if dialect == "sqlite":
        return [*_sqlite().values(), *heads]
    if dialect == "postgresql":
        return [*_FUNCTIONS.values(), *_postgresql().values(), *heads]
    raise ValueError(f"dialect {dialect!r} has no ledger triggers; sqlite and postgresql have")


def drop_statements(dialect: str) -> list[str]:
    """DDL that takes the triggers away again, to run before the tables are dropped."""
    if dialect == "sqlite":
        return [f"DROP TRIGGER IF EXISTS {name}" for name in _sqlite()]
    if dialect == "postgresql":
        triggers = [f"DROP TRIGGER IF EXISTS {name} ON {table}" for name, table in _postgresql()]
        return triggers + [f"DROP FUNCTION IF EXISTS {name}()" for name in _FUNCTIONS]
    raise ValueError(f"dialect {dialect!r} has no ledger triggers; sqlite and postgresql have")


def _sqlite() -> dict[str, str]:
    parts = {
        "ledger_seal_chain": ("INSERT ON ledger_seal", _BREAKS_CHAIN, _CHAIN),
        "ledger_seal_head_update": ("UPDATE ON ledger_seal_head", _BREAKS_HEAD, _HEAD),
        "ledger_seal_head_delete": ("DELETE ON ledger_seal_head", "1", _HEAD),
    }
    for table in _TABLES:
        parts[f"{table}_update"] = (f"UPDATE ON {table}", "1", _APPEND_ONLY)
        parts[f"{table}_delete"] = (f"DELETE ON {table}", "1", _APPEND_ONLY)
    return {
        name: f"CREATE TRIGGER {name} BEFORE {event} WHEN {condition} BEGIN SELECT RAISE(ABORT, '{message}'); END"
        for name, (event, condition, message) in parts.items()
    }


_FUNCTIONS = {
    "ledger_sealed": append_only_function("ledger_sealed", _APPEND_ONLY),
    "ledger_seal_chain": refusal_function("ledger_seal_chain", _BREAKS_CHAIN, _CHAIN),
    "ledger_seal_head_move": refusal_function("ledger_seal_head_move", _BREAKS_HEAD, _HEAD),
    "ledger_seal_head_stay": append_only_function("ledger_seal_head_stay", _HEAD),
}


def _postgresql() -> dict[tuple[str, str], str]:
    parts = [
        ("ledger_seal_chain", "BEFORE INSERT", "ledger_seal", "ROW", "ledger_seal_chain"),
        ("ledger_seal_head_move", "BEFORE UPDATE", "ledger_seal_head", "ROW", "ledger_seal_head_move"),
        ("ledger_seal_head_delete", "BEFORE DELETE", "ledger_seal_head", "ROW", "ledger_seal_head_stay"),
        ("ledger_seal_head_truncate", "BEFORE TRUNCATE", "ledger_seal_head", "STATEMENT", "ledger_seal_head_stay"),
    ]
    for table in _TABLES:
        parts.append((f"{table}_change", "BEFORE UPDATE OR DELETE", table, "ROW", "ledger_sealed"))
        parts.append((f"{table}_truncate", "BEFORE TRUNCATE", table, "STATEMENT", "ledger_sealed"))
    return {
        (name, table): f"CREATE TRIGGER {name} {when} ON {table} FOR EACH {scope} EXECUTE FUNCTION {function}()"
        for name, when, table, scope, function in parts
    }
