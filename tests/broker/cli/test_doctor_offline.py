"""The doctor without a broker: what is wrong before, or instead of, a start."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import SecretStr
from sqlalchemy import update
from sqlmodel import col

from broker.api.health_shapes import Check
from broker.api.offline import offline_checks
from broker.api.surroundings import images, secrets
from broker.database import Database
from broker.keyring import open_keyring
from broker.migrate import upgrade
from broker.model_settings import ModelSettings
from broker.settings import KekSettings, Settings, VaultSettings
from broker.vault import Vault
from broker.vault_tables import DataKeyRow


async def found(settings: Settings) -> dict[str, Check]:
    return {check.name: check for check in (await offline_checks(settings)).checks}


async def test_a_folder_before_its_first_start_is_in_order(tmp_path: Path) -> None:
    """It was not, for want of models, where the running broker's doctor said that all is in order."""
    checks = await found(Settings(data=tmp_path))
    assert {name for name, check in checks.items() if check.state != "ok"} == {"models"}
    assert checks["models"].state == "warn"
    assert "smollm2" in checks["models"].found
    assert "does not exist yet" in checks["database"].found
    assert not (tmp_path / "broker.db").exists(), "looking made a database"


async def test_a_folder_that_is_not_there_is_all_that_is_said_of_it(tmp_path: Path) -> None:
    checks = await found(Settings(data=tmp_path / "none"))
    assert set(checks) == {"data", "models"}
    assert not checks["data"].ok
    assert checks["data"].mend


async def test_a_schema_of_another_version_is_told(tmp_path: Path) -> None:
    await upgrade(f"sqlite+aiosqlite:///{tmp_path / 'broker.db'}", "0001")
    database = (await found(Settings(data=tmp_path)))["database"]
    assert not database.ok
    assert "revision 0001" in database.found
    assert "migrates" in (database.mend or "")


async def test_a_database_that_is_down_is_told_without_its_password(tmp_path: Path) -> None:
    settings = Settings(data=tmp_path, database_url="postgresql://broker:hunter2@127.0.0.1:1/broker")
    database = (await found(settings))["database"]
    assert not database.ok
    assert "hunter2" not in database.found


async def test_a_key_that_does_not_open_what_is_sealed_is_told_and_none_is_made(tmp_path: Path) -> None:
    """All was "in order" with another key under the name of before, by which the vault opened nothing."""
    assert "first start" in (await found(Settings(data=tmp_path)))["vault"].found
    await upgrade(f"sqlite+aiosqlite:///{tmp_path / 'broker.db'}")
    assert "first start" in (await found(Settings(data=tmp_path)))["vault"].found
    assert not (tmp_path / "kek").exists(), "looking made a key"
    database = Database(f"sqlite+aiosqlite:///{tmp_path / 'broker.db'}")
    await Vault(database, open_keyring(named("k", b"1"), tmp_path)).data_key("objects/p")
    await database.close()
    assert (await found(Settings(data=tmp_path, vault=named("k", b"1"))))["vault"].found == "opens with k"
    for vault, told in (
        (named("k", b"2"), "cannot be opened: 1 of the data keys under k"),
        (named("other", b"1"), "cannot be opened: 1 data keys under k"),
        (VaultSettings(), "the database holds secrets"),
        (named("k", b""), "0 bytes"),
    ):
        check = (await found(Settings(data=tmp_path, vault=vault)))["vault"]
        assert (check.ok, told in check.found, bool(check.mend)) == (False, True, True), check
    assert not (tmp_path / "kek").exists()


async def test_one_damaged_data_key_is_named_and_not_taken_for_another_key(tmp_path: Path) -> None:
    await upgrade(f"sqlite+aiosqlite:///{tmp_path / 'broker.db'}")
    database = Database(f"sqlite+aiosqlite:///{tmp_path / 'broker.db'}")
    vault = Vault(database, open_keyring(named("k", b"1"), tmp_path))
    await vault.data_key("whole")
    damaged = await vault.data_key("damaged")
    async with database.transaction() as session:
        await session.execute(update(DataKeyRow).where(col(DataKeyRow.id) == damaged.id).values(wrapped=b"\x01"))
    await database.close()
    check = (await found(Settings(data=tmp_path, vault=named("k", b"1"))))["vault"]
    assert (check.ok, check.found) == (False, f"cannot be opened: {damaged.id} of damaged under k")
    assert "damaged: take it" in (check.mend or "") and "another" not in (check.mend or "")


def named(name: str, of: bytes) -> VaultSettings:
    return VaultSettings(keys={name: KekSettings(value=SecretStr(base64.b64encode(of * 32).decode()))})


def test_the_command_says_it_and_its_exit_code_too(tmp_path: Path) -> None:
    argv = [sys.executable, "-m", "broker", "doctor", "--offline", "--json", "--data", str(tmp_path)]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    told = json.loads(done.stdout)
    assert (done.returncode, told["ok"]) == (0, True)
    assert {check["name"]: check["state"] for check in told["checks"]}["models"] == "warn"
    assert not list(tmp_path.glob("broker.*")), "a broker was started"


def test_secrets_that_others_can_read_are_named_with_the_command_that_mends_it(tmp_path: Path) -> None:
    for name, mode in (("secret", 0o600), ("admin.key", 0o644)):
        (tmp_path / name).touch()
        (tmp_path / name).chmod(mode)
    (check,) = secrets(tmp_path / name for name in ("secret", "admin.key", "not-there"))
    assert (check.state, check.mend) == ("fail", f"chmod 600 {tmp_path / 'admin.key'}")
    (tmp_path / "admin.key").chmod(0o600)
    (check,) = secrets([tmp_path / "admin.key"])
    assert check.state == "ok"


@pytest.mark.parametrize(
    ("image", "states"), [("vllm/vllm-openai@sha256:" + "a" * 64, []), ("vllm/vllm-openai:v1", ["warn"])]
)
def test_an_image_that_may_change_is_a_warning(image: str, states: list[str]) -> None:
    model = ModelSettings(engine="vllm", weights="w", image=image, image_tag_may_move=True, launches=("container",))
    assert [check.state for check in images({"m": model})] == states
