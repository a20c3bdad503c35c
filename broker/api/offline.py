"""What can be checked without a running broker: settings, folder, secrets, database, object store."""

from __future__ import annotations

import os
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from pathlib import Path

from sqlalchemy.engine import make_url

from broker.api import outside, surroundings
from broker.api.health import database_problems
from broker.api.health_shapes import Check, Doctor
from broker.database import Database, Unreachable, sqlite_url
from broker.keyring import OWN_KEK, BadKek, open_keyring
from broker.model_set import model_profiles
from broker.object_store import BadStoreSettings, store_of, told
from broker.owner import owner
from broker.settings import Settings
from broker.store_identity import refusal, standing_of
from broker.vault import Vault, has_data_keys
from jobs.errors import StoreFailed, StoreUnfit
from jobs.objects import ObjectStore
from jobs.store_check import check_store
from workers.catalogue import built_in_models

SECRETS = ("secret", "admin.key", "ssh_authority", "kek", "ledger.key")


async def offline_checks(settings: Settings) -> Doctor:
    """Look at what `settings` name, changing nothing but two objects that are written and deleted again."""
    checks = [_folder(settings.data)]
    if checks[0].ok:
        checks += [_owner(settings.data), surroundings.disk(settings.data)]
        checks += surroundings.secrets(settings.data / name for name in SECRETS)
        database = await _database(settings)
        checks += [database, await _vault(settings, is_database_ready=database.ok)]
        checks += [await _objects(settings, is_database_ready=database.ok)]
        checks += outside.certificates(settings.http, settings.http.public_url, None, datetime.now(UTC))
        checks += outside.weights(model_profiles(settings), settings.cache)
    checks += surroundings.images(settings.models) + surroundings.callers(settings)
    if not settings.models:
        built_in = ", ".join(sorted(built_in_models()))
        # the running broker serves these, and its doctor says so: to try it out they are enough
        found = f"none is configured; there is what the broker brings along: {built_in}"
        checks.append(Check(name="models", ok=True, found=found, mend="add a section [models.NAME] to broker.toml"))
    return Doctor(ok=all(each.ok for each in checks), checks=checks)


def _folder(data: Path) -> Check:
    if not data.is_dir():
        return Check(
            name="data", ok=False, found=f"{data} is no folder", mend="check --data, or start `broker serve` on it"
        )
    ok = os.access(data, os.R_OK | os.W_OK | os.X_OK)
    found = f"{data} can be {'read and written' if ok else 'not written by this user'}"
    return Check(name="data", ok=ok, found=found, mend=None if ok else "run as the user whose broker it is")


def _owner(data: Path) -> Check:
    live = owner(data)
    found = f"pid {live.pid} serves it at {live.url}" if live else "no broker serves it now"
    return Check(name="owner", ok=True, found=found, mend=None)


async def _database(settings: Settings) -> Check:
    url = settings.database_url or sqlite_url(settings.data / "broker.db")
    shown = make_url(url).render_as_string(hide_password=True)
    if _is_to_be_made(url):
        return Check(name="database", ok=True, found=f"{shown} does not exist yet; `broker serve` makes it", mend=None)
    try:
        database = Database(url)
    except Unreachable as missing:
        return Check(name="database", ok=False, found=str(missing), mend="install what it names")
    try:
        problems = await database_problems(database)
    finally:
        await database.close()
    mend = (
        "`broker serve` migrates an older schema; see database_url and whether the database is up" if problems else None
    )
    return Check(name="database", ok=not problems, found="; ".join(problems) or f"{shown} answers", mend=mend)


def _is_to_be_made(url: str) -> bool:
    """SQLite makes an empty file of whatever it is asked to open: it is not asked then."""
    parsed = make_url(url)
    return parsed.get_backend_name() == "sqlite" and not Path(parsed.database or "").exists()


async def _vault(settings: Settings, *, is_database_ready: bool) -> Check:
    """Whether the key-encryption keys are such, and open what the database holds. A key that a start would make is not made."""
    url = settings.database_url or sqlite_url(settings.data / "broker.db")
    database = Database(url) if is_database_ready and not _is_to_be_made(url) else None
    try:
        holds = database is not None and await has_data_keys(database)
        if not (holds or settings.vault.keys or (settings.data / OWN_KEK).exists()):
            return Check(name="vault", ok=True, found="`broker serve` makes its key at its first start", mend=None)
        keyring = open_keyring(settings.vault, settings.data, may_make=False)
        if not holds or database is None:
            return Check(
                name="vault", ok=True, found=f"has {', '.join(sorted(keyring.keys))}; nothing is sealed", mend=None
            )
        return await surroundings.vault(Vault(database, keyring))
    except BadKek as wrong:
        return Check(name="vault", ok=False, found=str(wrong), mend="see the section `vault` of broker.toml")
    finally:
        if database is not None:
            await database.close()


async def _objects(settings: Settings, *, is_database_ready: bool) -> Check:
    where = told(settings.objects, settings.data)
    mend = "see the section `objects` of broker.toml, and whether the store is up and lets us in"
    async with AsyncExitStack() as stack:
        try:
            store = store_of(settings.objects, settings.data)
            stack.push_async_callback(store.close)
            await check_store(store)
            other = await _other_store(settings, store, where) if is_database_ready else None
        except (BadStoreSettings, StoreFailed, StoreUnfit) as failure:
            return Check(name="objects", ok=False, found=f"{where}: {failure}", mend=mend)
    if other is not None:
        return Check(name="objects", ok=False, found=other, mend="`broker serve` does not start on it")
    return Check(name="objects", ok=True, found=f"{where}: names are given once", mend=None)


async def _other_store(settings: Settings, store: ObjectStore, where: str) -> str | None:
    """Why the store is not that of the database, or None. Raises StoreFailed."""
    url = settings.database_url or sqlite_url(settings.data / "broker.db")
    if _is_to_be_made(url):
        return None
    database = Database(url)
    try:
        return refusal(await standing_of(database, store), where)
    finally:
        await database.close()
