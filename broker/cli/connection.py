"""Which broker a command talks to: the one it was pointed at, the data folder's live one, or one that it starts."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from broker.cli import configuration, logins
from broker.cli.client import Client
from broker.cli.exits import USAGE, Failure
from broker.client_settings import ClientSettings
from broker.owner import ADMIN_KEY, owner

IDLE_S = 15
START_WITHIN_S = 90.0
LOG = "broker.log"
LOG_TAIL_BYTES = 2000


@dataclass(frozen=True)
class Address:
    """Where a broker answers. `embedded`: this command started it, and it ends by itself when it has nothing to do."""

    url: str
    key: str | None
    embedded: bool


@asynccontextmanager
async def connect(settings: ClientSettings) -> AsyncIterator[Client]:
    """A client of the broker that these settings mean. Raises Failure when none can be reached or started."""
    address = await find(settings)
    if settings.tls_ca is not None:
        _require_certificates(settings.tls_ca)
    async with Client(address.url, address.key, settings.project, settings.tls_ca) as client:
        yield client


def _require_certificates(tls_ca: Path) -> None:
    """Raises Failure (usage) for what is no PEM of certificates."""
    import ssl  # noqa: PLC0415 - where it is needed at all

    try:
        ssl.create_default_context().load_verify_locations(cafile=tls_ca)
    except OSError as wrong:
        raise Failure(f"setting tls_ca = {str(tls_ca)!r} is no PEM of certificates: {wrong}", USAGE) from wrong


async def find(settings: ClientSettings) -> Address:
    """BROKER_URL first, then the data folder's owner, then a new broker for that folder."""
    if settings.url:
        return Address(settings.url, settings.api_key or await logins.current(settings.url), embedded=False)
    live = owner(settings.data)
    child = None if live else _start(settings.data)
    return await _answering(settings, child)


def _start(data: Path) -> subprocess.Popen[bytes]:
    """A broker of its own session: it outlives this command. It says what it does in DATA/broker.log.

    Raises Failure (usage) when the folder's settings are wrong: the broker would say so only in its log.
    """
    configuration.load(data=data)
    data.mkdir(parents=True, exist_ok=True)
    argv = [sys.executable, "-m", "broker", "serve", "--data", str(data), "--exit-when-idle", str(IDLE_S)]
    with (data / LOG).open("ab") as log:
        return subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=log, start_new_session=True
        )


async def _answering(settings: ClientSettings, child: subprocess.Popen[bytes] | None) -> Address:
    """Wait until the folder's owner is ready. The owner need not be our child: another command may have been faster."""
    data = settings.data
    give_up = time.monotonic() + START_WITHIN_S
    while time.monotonic() < give_up:
        live = owner(data)
        if live and live.url:
            key = _key(settings, live.key)
            async with Client(live.url, key) as client:
                if await client.is_ready():
                    return Address(live.url, key, embedded=child is not None)
        elif live is None and child is not None and child.poll() is not None:
            raise Failure(f"the broker for {data} ended with exit status {child.returncode}:\n{log_tail(data)}")
        elif live is None and child is None:
            child = _start(data)  # the owner that we saw went away while we waited
        await asyncio.sleep(0.05)
    raise Failure(f"the broker for {data} was not ready within {START_WITHIN_S:.0f} s:\n{log_tail(data)}")


def _key(settings: ClientSettings, owners: str | None) -> str | None:
    return settings.api_key or owners or read_key(settings.data)


def read_key(data: Path) -> str | None:
    """The admin key that the first start left in the data folder, for local commands; None if there is none."""
    file = data / ADMIN_KEY
    return file.read_text(encoding="utf-8").strip() if file.exists() else None


def log_tail(data: Path) -> str:
    """The end of the embedded broker's log, for an error message."""
    file = data / LOG
    if not file.exists():
        return f"(nothing was logged in {file})"
    text = file.read_bytes()[-LOG_TAIL_BYTES:].decode(errors="replace")
    return f"{text}\n(more in {file})"
