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
from broker.database import Database, sqlite_url
from broker.migrate import config, upgrade
from ledger.triggers import create_statements

ROOT = Path(__file__).resolve().parents[2]

# What revision 0001 installed. Whoever changes ledger/triggers.py writes a migration that drops and creates them anew,
# freezes the old text in 0001, and pins the new digest here.
TRIGGERS = {
    "sqlite": "b660af595072050a",
    "postgresql": "1c3ae9b005671f7f",
}


def test_there_is_a_single_head() -> None:
    assert len(ScriptDirectory.from_config(config("sqlite://")).get_heads()) == 1


def test_the_folder_of_migrations_is_no_package() -> None:
    """With an `__init__.py` it shadows the library alembic for `python -m`, while pytest still passes."""
    assert not (ROOT / "alembic" / "__init__.py").exists()
    assert not (ROOT / "tests" / "__init__.py").exists()


def test_the_migrations_make_what_the_tables_say(tmp_path: Path) -> None:
    url = sqlite_url(tmp_path / "broker.db")
    asyncio.run(upgrade(url))
    command.check(config(url))  # raises when autogenerate would change anything


def test_upgrade_downgrade_upgrade(tmp_path: Path) -> None:
    url = sqlite_url(tmp_path / "broker.db")
    asyncio.run(upgrade(url))
    command.downgrade(config(url), "base")
    asyncio.run(upgrade(url))


@pytest.mark.parametrize("dialect", sorted(TRIGGERS))
def test_the_triggers_change_only_with_a_migration(dialect: str) -> None:
    found = hashlib.sha256("\n".join(create_statements(dialect)).encode()).hexdigest()[:16]
    assert found == TRIGGERS[dialect], f"ledger/triggers.py changed for {dialect}: write a migration, then pin {found}"


async def test_the_migrated_books_are_guarded(database: Database) -> None:
    with pytest.raises(DBAPIError, match="ledger: the head"):
        async with database.transaction() as session:
            await session.execute(text("DELETE FROM ledger_head"))
