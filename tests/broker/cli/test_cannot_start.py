"""A broker that cannot start says what is wrong and how to mend it; the first things that a new operator gets wrong."""

from __future__ import annotations

import base64
import re
import socket
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from broker.compose import CannotStart, _listen, serve
from broker.database import Database
from broker.keyring import BadKek, Keyring, LocalKek
from broker.market_set import UnknownMarket
from broker.migrate import upgrade
from broker.settings import HttpSettings, Settings
from broker.store_identity import OtherStore
from broker.vault import Vault
from tests.support.command_line import broker, quick


async def refused(kind: type[Exception], **settings: Any) -> str:
    with pytest.raises(kind) as raised:
        await serve(Settings(**settings), ready=lambda _: pytest.fail("it has started"))
    return str(raised.value)


def test_a_port_that_is_taken_is_told_in_one_line(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = broker("serve", "--data", str(tmp_path), "--port", port)
    assert (done.returncode, done.stdout) == (1, "")
    wanted = rf"broker: cannot listen on 127\.0\.0\.1:{port}: [^(\n]+; choose another --port\n"
    assert re.fullmatch(wanted, done.stderr), done.stderr


def can_listen(host: str) -> bool:
    """Whether this machine has such an address."""
    try:
        socket.create_server((host, 0), family=socket.AF_INET6).close()
    except OSError:
        return False
    return True


@pytest.mark.parametrize(
    ("host", "dialled"),
    [
        ("127.0.0.1", "127.0.0.1"),
        ("0.0.0.0", "127.0.0.1"),
        ("localhost", "127.0.0.1"),
        *([("::1", "::1"), ("::", "::1")] if can_listen("::1") else []),
        *([("::", "127.0.0.1")] if can_listen("::") else []),  # also in containers without any address of that family
    ],
)
def test_a_broker_listens_at_addresses_of_both_families(host: str, dialled: str) -> None:
    """`--host ::1` was "not supported", and its URL would have had no brackets."""
    with _listen(host, 0) as listening:
        socket.create_connection((dialled, listening.getsockname()[1]), timeout=10).close()


def test_an_empty_host_is_refused_in_words(tmp_path: Path) -> None:
    """`BROKER_HTTP__HOST=` in a file of settings bound to all addresses, and then ended as "a defect of the broker's own"."""
    done = quick("serve", "--data", str(tmp_path), env={"BROKER_HTTP__HOST": ""})
    assert done.returncode == 2
    assert re.search(r"http\.host.* 0\.0\.0\.0", done.stderr, re.DOTALL), done.stderr


async def test_a_database_of_a_newer_release_is_left_alone(tmp_path: Path) -> None:
    file = tmp_path / "broker.db"
    await upgrade(f"sqlite+aiosqlite:///{file}")
    with sqlite3.connect(file) as database:
        database.execute("UPDATE alembic_version SET version_num = '9999'")
    message = await refused(CannotStart, data=tmp_path, http={"port": 0})
    assert re.search(r"of another release: .*9999.*start the release", message), message


async def test_a_market_that_nobody_knows_is_told_with_those_that_are_known(tmp_path: Path) -> None:
    message = await refused(UnknownMarket, data=tmp_path, http={"port": 0}, markets=("nope",))
    assert re.search("'nope'.*local, sandbox, hosts, aws", message), message


@pytest.mark.parametrize(
    "url",
    ["ftp://broker", "broker.example.org", "https://", "https://b:x", "https://u:p@b", "https://b/?x=1", "https:// b"],
)
def test_a_public_url_that_no_worker_can_dial_is_refused_before_a_machine_is_rented(url: str) -> None:
    """ftp:// was taken, and each machine was rented before its launch said that it cannot be dialled."""
    with pytest.raises(ValueError, match="write https://HOST"):
        HttpSettings(public_url=url)


def test_a_public_url_in_clear_is_refused_where_the_port_speaks_tls(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="write https"):
        HttpSettings(public_url="http://b", tls_certificate=tmp_path / "c", tls_key=tmp_path / "k")
    assert HttpSettings(public_url="http://b/below/").public_url == "http://b/below"


async def test_a_key_that_is_another_than_it_was_under_its_name_is_told_before_it_seals_anything(
    tmp_path: Path,
) -> None:
    database = Database(f"sqlite+aiosqlite:///{tmp_path / 'broker.db'}")
    await upgrade(database.url)
    await Vault(database, Keyring("k", {"k": LocalKek(b"1" * 32)})).data_key("objects/p")
    await database.close()
    vault = {"keys": {"k": {"value": base64.b64encode(b"2" * 32).decode()}}}
    message = await refused(BadKek, data=tmp_path, http={"port": 0}, vault=vault)
    assert re.search(r"the key 'k' .* another key .* vault\.keys\.k", message), message


async def test_a_folder_that_lacks_what_the_database_speaks_of_is_told_with_where_it_lies(tmp_path: Path) -> None:
    """`objects.folder` was changed, or each of two brokers had its own: every file was "missing" from then on."""
    file = tmp_path / "broker.db"
    await upgrade(f"sqlite+aiosqlite:///{file}")
    with sqlite3.connect(file) as database:
        database.execute("INSERT INTO broker_agreed (name, value) VALUES ('store', x'41')")
        database.execute(
            "INSERT INTO jobs_file (id, project, purpose, filename, bytes, sha256, object_key, created_us) "
            "VALUES ('file-1', 'default', 'batch', 'in.jsonl', 3, '0', 'default/files/file-1', 1)"
        )
    message = await refused(OtherStore, data=tmp_path, http={"port": 0})
    assert re.search(rf"folder {tmp_path}/objects is not the store .* lie in A, .*\[objects\]", message), message
    done = broker("doctor", "--offline", "--data", str(tmp_path))
    assert (done.returncode, done.stderr) == (1, "")
    assert "is not the store of this" in " ".join(done.stdout.split()), done.stdout
