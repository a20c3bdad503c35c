"""Azurite, Microsoft's own stand-in for Azure Blob Storage, for the tests: `.ci/azurite FOLDER` installs it, BROKER_AZURITE names
its program."""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from email.utils import formatdate
from pathlib import Path
from typing import Any

from ulid import ULID

from tests.support.s3_server import free_ports

ACCOUNT, CONTAINER, VERSION = "tests", "tests", "2021-08-06"
KEY = base64.b64encode(b"thirty-two bytes of a test's key").decode()
START_WITHIN_S = 60


@dataclass(frozen=True)
class Azurite:
    """A running server with one container; `url` is the account's."""

    url: str

    def settings(self) -> dict[str, Any]:
        """The section `objects` of a broker that keeps its objects here, below a prefix that nobody else has."""
        return {
            "kind": "azure",
            "bucket": CONTAINER,
            "prefix": f"some/{ULID()}",
            "endpoint": self.url,
            "account": ACCOUNT,
            "secret_access_key": KEY,
            "country": "DE",
            "operator": "tests",
        }


@contextmanager
def azurite(folder: Path) -> Iterator[Azurite]:
    """Run a server until the block ends. It checks signatures; what it keeps is in its memory."""
    program = os.environ.get("BROKER_AZURITE")
    assert program, "BROKER_AZURITE names no program: `bash .ci/azurite FOLDER` installs Azurite there"
    (port,) = free_ports(1)
    command = [
        program, "--blobHost", "127.0.0.1", "--blobPort", str(port), "--inMemoryPersistence", "--silent",
        "--skipApiVersionCheck", "--disableTelemetry",
    ]  # fmt: skip
    log = folder / "azurite.log"
    with log.open("ab") as out:
        accounts = {**os.environ, "AZURITE_ACCOUNTS": f"{ACCOUNT}:{KEY}"}
        process = subprocess.Popen(command, stdout=out, stderr=out, cwd=folder, env=accounts)
    try:
        deadline = time.monotonic() + START_WITHIN_S
        while not _answers(port):
            assert process.poll() is None and time.monotonic() < deadline, f"Azurite is not up: {log.read_text()}"
            time.sleep(0.1)
        url = f"http://127.0.0.1:{port}/{ACCOUNT}"
        _make_container(url)
        yield Azurite(url)
    finally:
        process.kill()
        process.wait(30)


def _answers(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return False
    return True


def _make_container(url: str) -> None:
    """Create Container, signed by the account's key as Azure documents it; obstore makes none."""
    date = formatdate(usegmt=True)
    resource = f"/{ACCOUNT}/{ACCOUNT}/{CONTAINER}\nrestype:container"
    text = "PUT" + "\n" * 12 + f"x-ms-date:{date}\nx-ms-version:{VERSION}\n{resource}"
    mac = base64.b64encode(hmac.new(base64.b64decode(KEY), text.encode(), hashlib.sha256).digest()).decode()
    headers = {
        "x-ms-date": date,
        "x-ms-version": VERSION,
        "Content-Length": "0",
        "Authorization": f"SharedKey {ACCOUNT}:{mac}",
    }
    request = urllib.request.Request(f"{url}/{CONTAINER}?restype=container", method="PUT", headers=headers)
    urllib.request.urlopen(request, timeout=20).close()
