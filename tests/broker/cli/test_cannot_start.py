"""A broker that cannot start says what is wrong and how to mend it; the first things that a new operator gets wrong."""

from __future__ import annotations

import re
import socket
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from broker.compose import CannotStart, serve
from broker.market_set import UnknownMarket
from broker.migrate import upgrade
from broker.settings import Settings
from broker.store_identity import OtherStore
from tests.support.command_line import broker


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
