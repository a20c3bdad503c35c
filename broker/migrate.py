"""Bring a database to the newest schema: one Alembic chain, shipped inside the package (contract C8)."""

from __future__ import annotations

import asyncio
from importlib.resources import files
from pathlib import Path

from alembic.config import Config

import broker
from alembic import command


def config(url: str) -> Config:
    """Alembic's configuration for `url`. `%` is doubled: the configuration file format would interpolate it."""
    settings = Config()
    settings.set_main_option("script_location", str(_scripts()))
    settings.set_main_option("sqlalchemy.url", url.replace("%", "%%"))
    return settings


def _scripts() -> Path:
    # An editable install copies the shipped folder once and lets it go stale, so the checkout's own folder comes first.
    checkout = Path(broker.__file__).parent.parent / "alembic"
    return checkout if (checkout / "env.py").is_file() else Path(str(files("broker") / "migrations"))


async def upgrade(url: str, revision: str = "head") -> None:
    """Run all missing migrations. Alembic is synchronous and makes its own event loop, so it runs in a thread."""
    await asyncio.to_thread(command.upgrade, config(url), revision)
