"""Alembic's entry: the metadata of all rooms, an async engine, batch mode on SQLite."""

from __future__ import annotations

import asyncio

from sqlalchemy import pool, text
from sqlalchemy.engine import Connection, make_url
from sqlalchemy.ext.asyncio import create_async_engine
from sqlmodel import SQLModel

from alembic import context
from broker import budget_tables, vault_tables
from broker import tables as broker_tables
from broker.compliance import tables as compliance_tables
from broker.database import LIVELINESS
from broker.finance import tables as finance_tables
from jobs import tables as jobs_tables
from ledger import tables as ledger_tables
from markets import tables as markets_tables

config = context.config
# importing them is what fills the metadata
ROOMS = (
    broker_tables, budget_tables, vault_tables, compliance_tables, finance_tables, jobs_tables, ledger_tables, markets_tables,
)  # fmt: skip


# Brokers that start together migrate one after the other; the later ones find nothing left to do.
MIGRATION_LOCK = 0x62726B02


def migrate(connection: Connection) -> None:
    context.configure(
        connection=connection,
        target_metadata=SQLModel.metadata,
        render_as_batch=connection.dialect.name == "sqlite",
        compare_type=True,
    )
    with context.begin_transaction():
        if connection.dialect.name == "postgresql":
            connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": MIGRATION_LOCK})
        context.run_migrations()


async def online() -> None:
    url = config.get_main_option("sqlalchemy.url") or ""
    # one that was cut off is not waited for: whoever keeps this process alive starts it again
    lively = {} if make_url(url).get_backend_name() == "sqlite" else LIVELINESS
    engine = create_async_engine(url, poolclass=pool.NullPool, connect_args=lively)
    async with engine.connect() as connection:
        await connection.run_sync(migrate)
        await connection.commit()
    await engine.dispose()


if context.is_offline_mode():
    context.configure(
        url=config.get_main_option("sqlalchemy.url"), target_metadata=SQLModel.metadata, literal_binds=True
    )
    with context.begin_transaction():
        context.run_migrations()
else:
    asyncio.run(online())
