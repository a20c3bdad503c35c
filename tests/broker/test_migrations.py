"""One chain of migrations, and it makes exactly the tables that the code expects."""

from __future__ import annotations

import asyncio
import hashlib
from pathlib import Path

import pytest
from alembic.script import ScriptDirectory
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from alembic import command
from broker.database import Database
from broker.migrate import config, upgrade
from jobs import leases, outbox
from jobs.tables import Batch, Shard
from ledger.triggers import create_statements

ROOT = Path(__file__).resolve().parents[2]

# What revisions 0001 and 0006 (the head) installed. Whoever changes ledger/triggers.py writes a migration that replaces them,
# and pins the new digest here.
TRIGGERS = {
    "sqlite": "05bf649a05757488",
    "postgresql": "68a9696a63840ba7",
}


def test_there_is_a_single_head() -> None:
    assert len(ScriptDirectory.from_config(config("sqlite://")).get_heads()) == 1


def test_the_folder_of_migrations_is_no_package() -> None:
    """With an `__init__.py` it shadows the library alembic for `python -m`, while pytest still passes."""
    assert not (ROOT / "alembic" / "__init__.py").exists()
    assert not (ROOT / "tests" / "__init__.py").exists()


def test_the_migrations_make_what_the_tables_say(empty_url: str) -> None:
    asyncio.run(upgrade(empty_url))
    command.check(config(empty_url))  # raises when autogenerate would change anything


def test_upgrade_downgrade_upgrade(empty_url: str) -> None:
    asyncio.run(upgrade(empty_url))
    command.downgrade(config(empty_url), "base")
    asyncio.run(upgrade(empty_url))


@pytest.mark.parametrize("dialect", sorted(TRIGGERS))
def test_the_triggers_change_only_with_a_migration(dialect: str) -> None:
    found = hashlib.sha256("\n".join(create_statements(dialect)).encode()).hexdigest()[:16]
    assert found == TRIGGERS[dialect], f"ledger/triggers.py changed for {dialect}: write a migration, then pin {found}"


async def test_the_migrated_books_are_guarded(database: Database) -> None:
    with pytest.raises(DBAPIError, match="ledger: the head"):
        async with database.transaction() as session:
            await session.execute(text("DELETE FROM ledger_head"))


async def test_a_filled_database_is_upgraded_and_its_batches_go_on(empty_url: str) -> None:
    """Rows written before the batch API was widened are batches without pause, reuse, tags and retries."""
    await upgrade(empty_url, "0001")
    database = Database(empty_url)
    async with database.transaction() as session:
        for statement in FILLED:
            await session.execute(text(statement))
    await upgrade(empty_url)
    async with database.transaction() as session:
        batch = await session.get_one(Batch, "batch_1")
        shard = await session.get_one(Shard, "shard_1")
        lease = await leases.lease(session, placement_id="rental_1", batch_ids=["batch_1"], ttl_s=60)
        events = await outbox.after(session, "batch_1", 0, limit=10)
    await database.close()
    assert (batch.invalid, batch.reused, batch.saved_nano, batch.paused_us, batch.retry_of) == (0, 0, 0, None, None)
    assert (shard.reserved, shard.reserved_lines, shard.follows, shard.prefix) == ([], 0, {}, None)
    assert lease is not None
    assert lease.shard_id == "shard_1"
    assert [(event.id, event.number) for event in events] == [("event_1", 1), ("event_2", 2)]
    assert batch.events == 2


FILLED = (
    "INSERT INTO broker_project (id, name, created_us) VALUES ('default', 'default', 1)",
    "INSERT INTO jobs_file (id, project, purpose, filename, bytes, sha256, object_key, created_us)"
    " VALUES ('file-1', 'default', 'batch', 'in.jsonl', 10, 'ab', 'default/files/file-1', 1)",
    "INSERT INTO jobs_batch (id, project, principal, endpoint, model, input_file_id, input_key, completion_window, status,"
    " version, created_us, expires_us, total, completed, failed, expired, cancelled, input_tokens, output_tokens,"
    " used_input_tokens, used_output_tokens, used_cached_tokens, errors_total, policy_hash, priority, line_order)"
    " VALUES ('batch_1', 'default', 'admin', '/v1/completions', 'm', 'file-1', 'default/files/file-1', '24h', 'in_progress',"
    " 1, 1, 9000000000000000, 2, 0, 0, 0, 0, 5, 5, 0, 0, 0, 0, 'hash', 0, 'input')",
    "INSERT INTO jobs_shard (id, batch_id, number, first_idx, lines, start, stop, sha256, input_tokens, output_tokens, state,"
    " epoch, done, done_lines, in_flight, suspects)"
    " VALUES ('shard_1', 'batch_1', 0, 0, 2, 0, 10, 'ab', 5, 5, 'pending', 0, '[]', 0, '[]', '{}')",
    "INSERT INTO jobs_outbox (id, kind, batch_id, project, payload, created_us)"
    " VALUES ('event_2', 'batch.in_progress', 'batch_1', 'default', '{}', 2),"
    " ('event_1', 'batch.validating', 'batch_1', 'default', '{}', 1)",
)
