"""The triggers that keep the books append-only and balanced, whoever writes to the database. DDL per dialect.

An entry is inserted unsealed, then its postings, then it is sealed; sealing checks the balance and is the only update
there is. Each refusal is an integrity error whose message begins with "ledger:". PostgreSQL also refuses at COMMIT an
entry that was never sealed; SQLite has no deferred triggers, there the audit (ledger/audit.py) reports it. A bigint of
PostgreSQL rounds a float on its way in, before any trigger sees it: ledger/rules.py refuses floats for both.

Whoever owns the database can drop triggers: they guard against mistakes. Tampering is what the seal will show.
"""

from __future__ import annotations

# Everything of an entry but `sealed`.
_ENTRY_COLUMNS = (
    "id",
    "seq",
    "key",
    "kind",
    "occurred_at_us",
    "recorded_at_us",
    "period",
    "actor",
    "project",
    "batch",
    "rental",
    "offer_key",
    "attempt",
    "corrects",
    "hold",
    "payload",
    "sha256",
)

_APPEND_ONLY = "ledger: the books are append-only; post a correction"
_INSERT_UNSEALED = "ledger: an entry is inserted unsealed and sealed when its postings are there"
_GAP = "ledger: seq must be one more than the last"
_TWO_LINES = "ledger: an entry needs at least two postings"
_UNBALANCED = "ledger: debits and credits differ in a unit"
_SEALED = "ledger: no postings into a sealed or unknown entry"
_AMOUNT = "ledger: an amount is an integer of nano-units and not zero"
_HEAD = "ledger: the head moves forward to the newest entry and is never removed"
# until 0006 it moved by one; several entries that are written at once move it once
_HEAD_ASTRAY = "NEW.seq <= OLD.seq OR NEW.seq <> (SELECT MAX(seq) FROM ledger_entry)"
_NEVER_SEALED = "ledger: an entry was never sealed"


def create_statements(dialect: str) -> list[str]:
    """DDL to run once after the tables exist; also puts the head row there. Raises ValueError for other dialects."""
    if dialect == "sqlite":
        return [*_sqlite_triggers().values(), _HEAD_ROW]
    if dialect == "postgresql":
        return [*_POSTGRESQL_FUNCTIONS.values(), *_postgresql_triggers().values(), _HEAD_ROW]
    raise ValueError(f"dialect {dialect!r} has no ledger triggers; sqlite and postgresql have")


def head_statements(dialect: str) -> list[str]:
    """DDL that replaces the head's trigger of before revision 0006. Raises ValueError for other dialects."""
    if dialect == "sqlite":
        return ["DROP TRIGGER ledger_head_update", _sqlite_triggers()["ledger_head_update"]]
    if dialect == "postgresql":
        return [_POSTGRESQL_FUNCTIONS["ledger_head_move"].replace("CREATE FUNCTION", "CREATE OR REPLACE FUNCTION", 1)]
    raise ValueError(f"dialect {dialect!r} has no ledger triggers; sqlite and postgresql have")


def drop_statements(dialect: str) -> list[str]:
    """DDL that takes the triggers away again, to run before the tables are dropped."""
    if dialect == "sqlite":
        return [f"DROP TRIGGER IF EXISTS {name}" for name in _sqlite_triggers()]
    if dialect == "postgresql":
        triggers = [f"DROP TRIGGER IF EXISTS {name} ON {table}" for name, table in _postgresql_triggers()]
        return triggers + [f"DROP FUNCTION IF EXISTS {name}()" for name in _POSTGRESQL_FUNCTIONS]
    raise ValueError(f"dialect {dialect!r} has no ledger triggers; sqlite and postgresql have")


_HEAD_ROW = "INSERT INTO ledger_head (id, seq) VALUES (1, 0)"


def _sqlite_triggers() -> dict[str, str]:
    unchanged = " AND ".join(f"NEW.{column} IS OLD.{column}" for column in _ENTRY_COLUMNS)
    parts = {
        "ledger_entry_unsealed": ("INSERT ON ledger_entry", "NEW.sealed <> 0", _INSERT_UNSEALED),
        "ledger_entry_seq": (
            "INSERT ON ledger_entry",
            "NEW.seq <> (SELECT COALESCE(MAX(seq), 0) + 1 FROM ledger_entry)",
            _GAP,
        ),
        "ledger_entry_update": (
            "UPDATE ON ledger_entry",
            f"NOT (OLD.sealed = 0 AND NEW.sealed = 1 AND {unchanged})",
            _APPEND_ONLY,
        ),
        "ledger_entry_two_lines": (
            "UPDATE ON ledger_entry",
            "NEW.sealed = 1 AND (SELECT COUNT(*) FROM ledger_posting WHERE entry_id = NEW.id) < 2",
            _TWO_LINES,
        ),
        "ledger_entry_balance": (
            "UPDATE ON ledger_entry",
            "NEW.sealed = 1 AND EXISTS "
            "(SELECT 1 FROM ledger_posting WHERE entry_id = NEW.id GROUP BY unit HAVING SUM(nano) <> 0)",
            _UNBALANCED,
        ),
        "ledger_entry_delete": ("DELETE ON ledger_entry", "1", _APPEND_ONLY),
        "ledger_posting_sealed": (
            "INSERT ON ledger_posting",
            "NOT EXISTS (SELECT 1 FROM ledger_entry WHERE id = NEW.entry_id AND sealed = 0)",
            _SEALED,
        ),
        "ledger_posting_amount": ("INSERT ON ledger_posting", "typeof(NEW.nano) <> 'integer' OR NEW.nano = 0", _AMOUNT),
        "ledger_posting_update": ("UPDATE ON ledger_posting", "1", _APPEND_ONLY),
        "ledger_posting_delete": ("DELETE ON ledger_posting", "1", _APPEND_ONLY),
        "ledger_head_update": ("UPDATE ON ledger_head", f"NEW.id <> 1 OR {_HEAD_ASTRAY}", _HEAD),
        "ledger_head_delete": ("DELETE ON ledger_head", "1", _HEAD),
    }
    return {
        name: f"CREATE TRIGGER {name} BEFORE {event} WHEN {condition} BEGIN SELECT RAISE(ABORT, '{message}'); END"
        for name, (event, condition, message) in parts.items()
    }


# USING MESSAGE and not a format string: a percent sign would be read as a parameter by the driver.
def _refuse(message: str) -> str:
    return f"RAISE EXCEPTION USING MESSAGE = '{message}', ERRCODE = 'integrity_constraint_violation';"


def _function(name: str, body: str, declare: str = "") -> str:
    return f"CREATE FUNCTION {name}() RETURNS trigger LANGUAGE plpgsql AS $body$ {declare} BEGIN {body} END $body$"


def append_only_function(name: str, message: str) -> str:
    """PostgreSQL's function for a trigger that refuses always."""
    return _function(name, _refuse(message))


def refusal_function(name: str, condition: str, message: str) -> str:
    """PostgreSQL's function for a trigger before a row's change that refuses when the condition holds."""
    return _function(name, f"IF {condition} THEN {_refuse(message)} END IF; RETURN NEW;")


_POSTGRESQL_FUNCTIONS = {
    "ledger_append_only": _function("ledger_append_only", _refuse(_APPEND_ONLY)),
    "ledger_entry_insert": _function(
        "ledger_entry_insert",
        f"IF NEW.sealed THEN {_refuse(_INSERT_UNSEALED)} END IF; "
        f"IF NEW.seq <> (SELECT COALESCE(MAX(seq), 0) + 1 FROM ledger_entry) THEN {_refuse(_GAP)} END IF; "
        "RETURN NEW;",
    ),
    "ledger_entry_seal": _function(
        "ledger_entry_seal",
        "sealing := NEW; sealing.sealed := OLD.sealed; "
        f"IF OLD.sealed OR NOT NEW.sealed OR sealing IS DISTINCT FROM OLD THEN {_refuse(_APPEND_ONLY)} END IF; "
        f"IF (SELECT COUNT(*) FROM ledger_posting WHERE entry_id = NEW.id) < 2 THEN {_refuse(_TWO_LINES)} END IF; "
        "IF EXISTS (SELECT 1 FROM ledger_posting WHERE entry_id = NEW.id GROUP BY unit HAVING SUM(nano) <> 0) "
        f"THEN {_refuse(_UNBALANCED)} END IF; "
        "RETURN NEW;",
        declare="DECLARE sealing ledger_entry;",
    ),
    "ledger_entry_commit": _function(
        "ledger_entry_commit",
        "IF NOT EXISTS (SELECT 1 FROM ledger_entry WHERE id = NEW.id AND sealed) "
        f"THEN {_refuse(_NEVER_SEALED)} END IF; "
        "RETURN NULL;",
    ),
    "ledger_posting_insert": _function(
        "ledger_posting_insert",
        "IF NOT EXISTS (SELECT 1 FROM ledger_entry WHERE id = NEW.entry_id AND NOT sealed) "
        f"THEN {_refuse(_SEALED)} END IF; "
        f"IF NEW.nano = 0 THEN {_refuse(_AMOUNT)} END IF; "
        "RETURN NEW;",
    ),
    "ledger_head_move": _function(
        "ledger_head_move",
        f"IF TG_OP <> 'UPDATE' THEN {_refuse(_HEAD)} END IF; "
        f"IF NEW.id <> 1 OR {_HEAD_ASTRAY} THEN {_refuse(_HEAD)} END IF; "
        "RETURN NEW;",
    ),
}


def _postgresql_triggers() -> dict[tuple[str, str], str]:
    parts = [
        ("ledger_entry_insert", "BEFORE INSERT", "ledger_entry", "FOR EACH ROW", "ledger_entry_insert"),
        ("ledger_entry_seal", "BEFORE UPDATE", "ledger_entry", "FOR EACH ROW", "ledger_entry_seal"),
        ("ledger_entry_delete", "BEFORE DELETE", "ledger_entry", "FOR EACH ROW", "ledger_append_only"),
        ("ledger_entry_truncate", "BEFORE TRUNCATE", "ledger_entry", "FOR EACH STATEMENT", "ledger_append_only"),
        ("ledger_posting_insert", "BEFORE INSERT", "ledger_posting", "FOR EACH ROW", "ledger_posting_insert"),
        ("ledger_posting_change", "BEFORE UPDATE OR DELETE", "ledger_posting", "FOR EACH ROW", "ledger_append_only"),
        ("ledger_posting_truncate", "BEFORE TRUNCATE", "ledger_posting", "FOR EACH STATEMENT", "ledger_append_only"),
        ("ledger_head_move", "BEFORE UPDATE OR DELETE", "ledger_head", "FOR EACH ROW", "ledger_head_move"),
        ("ledger_head_truncate", "BEFORE TRUNCATE", "ledger_head", "FOR EACH STATEMENT", "ledger_head_move"),
    ]
    triggers = {
        (name, table): f"CREATE TRIGGER {name} {when} ON {table} {scope} EXECUTE FUNCTION {function}()"
        for name, when, table, scope, function in parts
    }
    triggers["ledger_entry_commit", "ledger_entry"] = (
        "CREATE CONSTRAINT TRIGGER ledger_entry_commit AFTER INSERT ON ledger_entry "
        "DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION ledger_entry_commit()"
    )
    return triggers
