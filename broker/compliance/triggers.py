"""The triggers that keep proposals, verdicts, facts and decisions append-only. DDL per dialect."""

from __future__ import annotations

TABLES = ("broker_proposal", "broker_verdict", "broker_facts", "broker_decision")
_MESSAGE = "compliance: what was proposed and decided is never changed or removed"
_FUNCTION = "broker_compliance_append_only"


def create_statements(dialect: str) -> list[str]:
    """DDL to run once after the tables exist. Raises ValueError for other dialects."""
    if dialect == "sqlite":
        return [
            f"CREATE TRIGGER {name} BEFORE {event} ON {table} BEGIN SELECT RAISE(ABORT, '{_MESSAGE}'); END"
            for name, event, table in _names()
        ]
    if dialect == "postgresql":
        function = (
            f"CREATE FUNCTION {_FUNCTION}() RETURNS trigger LANGUAGE plpgsql AS "
            f"$$ BEGIN RAISE EXCEPTION '{_MESSAGE}'; END $$"
        )
        return [
            function,
            *(
                f"CREATE TRIGGER {name} BEFORE {event} ON {table} FOR EACH ROW EXECUTE FUNCTION {_FUNCTION}()"
                for name, event, table in _names()
            ),
        ]
    raise ValueError(f"dialect {dialect!r} has no compliance triggers; sqlite and postgresql have")


def drop_statements(dialect: str) -> list[str]:
    """DDL that takes the triggers away again, to run before the tables are dropped."""
    if dialect == "sqlite":
        return [f"DROP TRIGGER IF EXISTS {name}" for name, _, _ in _names()]
    if dialect == "postgresql":
        dropped = [f"DROP TRIGGER IF EXISTS {name} ON {table}" for name, _, table in _names()]
        return [*dropped, f"DROP FUNCTION IF EXISTS {_FUNCTION}()"]
    raise ValueError(f"dialect {dialect!r} has no compliance triggers; sqlite and postgresql have")


def _names() -> list[tuple[str, str, str]]:
    return [(f"{table}_{event.lower()}", event, table) for table in TABLES for event in ("UPDATE", "DELETE")]
