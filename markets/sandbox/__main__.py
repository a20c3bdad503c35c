"""`python -m markets.sandbox --dir DIR [--port N] [--catalogue FILE.toml]`: run the sandbox provider.

The first line on standard output is JSON {"url", "token", "pid", "dir"}; the log goes to standard error. Exit status:
0 it ended as asked (SIGTERM, shutdown, or idle), 3 another sandbox owns DIR, 4 the catalogue is wrong.
"""

from __future__ import annotations

import argparse
import asyncio
import fcntl
import json
import os
import secrets
import signal
import sys
import tomllib
from pathlib import Path

import structlog
from aiohttp import web
from pydantic import ValidationError

from markets.machine import write_whole
from markets.sandbox.catalogue import Catalogue, load
from markets.sandbox.process import ENDPOINT, LOCK
from markets.sandbox.provider import Provider
from markets.sandbox.server import Server

OWNED = 3
BAD_CATALOGUE = 4


def main() -> int:
    arguments = _parser().parse_args()
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.JSONRenderer(),
        ],
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    folder: Path = arguments.dir.absolute()
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    try:
        catalogue = load(arguments.catalogue)
    except (ValidationError, tomllib.TOMLDecodeError, OSError) as error:
        print(f"catalogue {arguments.catalogue}: {error}", file=sys.stderr)
        return BAD_CATALOGUE
    lock = os.open(folder / LOCK, os.O_CREAT | os.O_RDWR, 0o600)  # held until this process dies, however it dies
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        print(f"{folder}: another sandbox owns this folder; see {folder / ENDPOINT}", file=sys.stderr)
        return OWNED
    asyncio.run(_serve(folder, catalogue, arguments.port, arguments.idle_s))
    return 0


async def _serve(folder: Path, catalogue: Catalogue, port: int, idle_s: float) -> None:
    provider = Provider(folder, catalogue)
    token = _token(folder)
    server = Server(provider, token, idle_s=idle_s)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, server.stop.set)
    runner = web.AppRunner(server.application(), access_log=None, shutdown_timeout=1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", port)
    await site.start()
    url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    endpoint = json.dumps({"url": url, "token": token, "pid": os.getpid(), "dir": str(folder)})
    write_whole(folder / ENDPOINT, endpoint.encode())
    print(endpoint, flush=True)
    await server.stop.wait()
    await runner.cleanup()  # no request and no tick while the machines are ended
    await provider.end_all()
    provider.close()
    (folder / ENDPOINT).unlink(missing_ok=True)


def _token(folder: Path) -> str:
    """The API key of this folder's sandbox, made on its first start."""
    file = folder / "token"
    if not file.exists():
        write_whole(file, secrets.token_urlsafe(32).encode())
    return file.read_text()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m markets.sandbox", description=__doc__)
    parser.add_argument("--dir", type=Path, required=True, help="the provider's own data folder")
    parser.add_argument("--port", type=int, default=0, help="on 127.0.0.1; 0 takes a free one")
    parser.add_argument("--catalogue", type=Path, help="price list; default: the built-in one")
    parser.add_argument("--idle-s", type=float, default=300, help="end after so long without machines and requests")
    return parser


if __name__ == "__main__":
    sys.exit(main())
