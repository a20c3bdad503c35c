"""Known secrets go through a whole broker, and stand in none of its logs, rows, exports and answers."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import io
import json
import os
import subprocess
import sys
import urllib.error
import urllib.request
import zipfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel
from sqlalchemy import select

from broker.database import Database, sqlite_url
from broker.keyring import open_keyring
from broker.object_keys import ObjectKeys, part_secret
from broker.sealed_store import SealedStore
from broker.settings import SECRET_SETTINGS, Settings, VaultSettings
from broker.vault import Vault
from jobs.objects import ObjectStore
from jobs.tables import File, Part
from tests.support.canary import Leak, forms, leaks_in, secrets_leaked
from tests.support.real_broker import RealBroker, real_broker

KEK = base64.b64encode(b"canary-kek-of-thirty-two-bytes-7").decode()
SECRETS = {
    "kek": KEK,
    "provider key": "AKIAcanary0provider1key",
    "provider secret": "wJalrcanary2provider/secret+3",
    "unread key": "canary8unread9key",
    "engine key": "sk-canary4engine5key",
    "prompt": "canary6prompt7 what is the meaning",
}
# Where they live by design: the key file; agent.json is the single-use token's. Inputs and results lie sealed in the store.
HOMES = ("kek", "admin.key", "broker.lock", "secret", "agent.json", "broker.toml", "executions.log")


def asked(url: str, key: str, body: Any = None, method: str | None = None) -> bytes:
    """An answer, of whatever status."""
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {key}"}, method=method)
    if body is not None:
        request.data = json.dumps(body).encode()
        request.add_header("Content-Type", "application/json")
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return bytes(answer.read())
    except urllib.error.HTTPError as refused:
        return refused.read()


def test_known_secrets_stand_in_no_log_row_export_or_answer(tmp_path: Path) -> None:
    file = tmp_path / "kek"
    file.write_text(KEK)
    file.chmod(0o600)
    more = f"""
[vault.keys.house]
file = "{file}"

[models.elsewhere]
engine = "url"
base_url = "http://127.0.0.1:9"
api_key = "{SECRETS["engine key"]}"
"""
    values = {"access_key_id": SECRETS["provider key"], "secret_access_key": SECRETS["provider secret"]}
    with real_broker(tmp_path, also=more) as broker:
        secrets, texts = dict(SECRETS), {}
        hook = json.loads(asked(f"{broker.local}/v1/webhook_endpoints", broker.key, {"url": "https://example.com/x"}))
        secrets["webhook secret"] = hook["signing_secret"]
        made = json.loads(asked(f"{broker.local}/v1/admin/keys", broker.key, {"principal": "x", "roles": ["viewer"]}))
        secrets |= {"viewer's key": made["key"].split("_")[2], "admin's key": broker.key.split("_")[2]}
        texts["kept"] = asked(f"{broker.local}/v1/credentials/aws", broker.key, {"values": values})
        texts["misplaced"] = asked(f"{broker.local}/v1/credentials/aws", broker.key, {"values": list(values.values())})
        texts["mistyped"] = asked(f"{broker.local}/v1/credentials/aws", broker.key, {"valeus": values})
        texts["wrong key"] = asked(f"{broker.local}/v1/models", made["key"][:-1] + "x")
        # its own answer quotes it to whoever sent it; the log must not
        asked(f"{broker.local}/v1/models", SECRETS["unread key"] * 800)
        texts["forbidden"] = asked(f"{broker.local}/v1/doctor", made["key"])
        asked(f"{broker.local}/v1/models/{made['key']}", made["key"])
        batch = broker.submit(6, prompt=SECRETS["prompt"])
        broker.ended(batch)
        secrets["sandbox token"] = json.loads((broker.data / "sandbox" / "endpoint.json").read_text())["token"]
        texts |= answers(broker, batch)
    leaks = secrets_leaked(secrets, [tmp_path], homes=(*HOMES, "endpoint.json"), texts=texts)
    assert [leak for leak in leaks if not at_home(leak)] == []
    keys = asyncio.run(keys_over(broker.data, file))
    assert {each.partition(" ")[0] for each in keys} == {"vault", "owner", "lease", "segment"}
    assert keys_found(keys, [each for each in tmp_path.rglob("*") if each.is_file() and each != file]) == []


# What a list needs to be one; where prompts and answers belong.
QUERIES = {
    "/v1/ledger/exports": f"?format=audit&period={datetime.now(UTC):%Y-%m}",
    "/v1/reports/chargeback": f"?period={datetime.now(UTC):%Y-%m}",
    "/v1/costs": "?by=a",
}
OF_PROMPTS = ("/v1/batches/{batch_id}/results", "/v1/batches/{batch_id}/lines")


def answers(broker: RealBroker, batch: str) -> dict[str, bytes]:
    """Of every route that is read and names no more than a batch, generated from the document: exports are unpacked."""
    found = {}
    for path, methods in json.loads(asked(f"{broker.local}/openapi.json", broker.key))["paths"].items():
        concrete = path.replace("{batch_id}", batch) + QUERIES.get(path, "")
        if "x-roles" in methods.get("get", {}) and "{" not in concrete and path not in OF_PROMPTS:
            found[path] = unpacked(asked(broker.local + concrete, broker.key))
    for path in ("/v1/audit/export", "/v1/audit/where/{batch_id}", "/v1/ledger/sealed.zip"):
        assert batch.encode() in found[path], f"{path} is not what it should be: {found[path][:300]!r}"
    return found


def unpacked(raw: bytes) -> bytes:
    if not raw.startswith(b"PK"):
        return raw
    with zipfile.ZipFile(io.BytesIO(raw)) as packed:
        return b"\n".join(packed.read(name) for name in packed.namelist())


async def keys_over(data: Path, kek: Path) -> dict[str, bytes]:
    """Every key that the objects of the broker were ever sealed or given out with, by name."""
    database = Database(sqlite_url(data / "broker.db"))
    keyring = open_keyring(VaultSettings.model_validate({"keys": {"house": {"file": str(kek)}}}), data, may_make=False)
    vault = Vault(database, keyring)
    store = SealedStore(ObjectStore.local(data / "objects"), ObjectKeys(database, vault))
    async with database.transaction() as session:
        parts = (await session.execute(select(Part.key, Part.batch_id))).all()
        files = (await session.scalars(select(File))).all()
    found = {"vault data key": (await vault.data_key("objects/default")).plain}
    for key, batch in parts:
        root = await store.secrets.root_of_batch("default", batch)
        assert root is not None, "a batch is sealed unless somebody turned it off"
        stored = await store.inner.get(key)
        assert hashlib.sha256(stored).hexdigest() in key, "its worker sealed it"
        found |= {f"owner {batch}": root, f"lease of {key}": part_secret(root, key).key}
    for file in files:
        sealed = await store.sealed_range(file.object_key, 0, file.bytes)
        assert sealed is not None
        found[f"segment of {file.id}"] = sealed.keys[0]
    await database.close()
    return found


def keys_found(keys: dict[str, bytes], files: list[Path]) -> list[tuple[str, str]]:
    contents = {str(file): file.read_bytes() for file in files}
    return [
        (name, where)
        for name, key in keys.items()
        for form in (key, key.hex().encode(), base64.b64encode(key)[:-2], base64.urlsafe_b64encode(key)[:-2])
        for where, content in contents.items()
        if form in content
    ]


def at_home(leak: Leak) -> bool:
    """The sandbox is a provider: its own books know its own token."""
    return leak.secret == "sandbox token" and "/sandbox/" in leak.where


def test_the_search_finds_what_it_is_to_find(tmp_path: Path) -> None:
    secret = {"it": "canary+secret/0123"}
    for form, text in forms(secret["it"]).items():
        assert leaks_in(secret, "x", b"before " + text + b" after"), form
    for before in (b"", b"a", b"ab"):
        assert leaks_in(secret, "x", base64.b64encode(before + secret["it"].encode() + b"zz")), before
    (tmp_path / "log").write_text("all is well")
    assert secrets_leaked(secret, [tmp_path]) == []


@pytest.mark.parametrize(
    "environment",
    [
        {"BROKER_VAULT__KEYS": json.dumps({"k": {"value": [SECRETS["engine key"]]}})},
        {"BROKER_VAULT__KEYS": json.dumps({"k": {"valeu": SECRETS["engine key"]}})},
        {"BROKER_MODELS": json.dumps({"m": {"api_key": SECRETS["engine key"]}})},
        {"BROKER_MODELS": json.dumps({"m": {"engine": "url", "env": {"HF_TOKEN": {"x": SECRETS["engine key"]}}}})},
    ],
)
def test_settings_that_are_wrong_are_told_without_secrets(environment: dict[str, str], tmp_path: Path) -> None:
    command = [sys.executable, "-m", "broker", "serve", "--data", str(tmp_path)]
    done = subprocess.run(command, env=os.environ | environment, capture_output=True, timeout=60, check=False)
    assert done.returncode == 2
    assert b"setting " in done.stderr
    assert leaks_in(SECRETS, "stderr", done.stdout + done.stderr) == []


def test_every_setting_that_is_a_secret_is_known_as_one() -> None:
    def secret_names(model: type[BaseModel]) -> set[str]:
        found = set()
        for name, info in model.model_fields.items():
            found |= {name} if "SecretStr" in str(info.annotation) else set()
            parts = [info.annotation, *getattr(info.annotation, "__args__", ())]
            for part in parts:
                if isinstance(part, type) and issubclass(part, BaseModel):
                    found |= secret_names(part)
        return found

    assert secret_names(Settings) <= SECRET_SETTINGS
