"""`serve`: the broker itself, owner of one data folder."""

from __future__ import annotations

import asyncio
import gc
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from json import dumps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from broker.cli import configuration, options
from broker.cli.connection import read_key
from broker.cli.exits import ERROR, OK, USAGE, Failure, ReaderLeft
from broker.owner import ADMIN_KEY, Owned, Ownership, take, write_private

if TYPE_CHECKING:
    from broker.settings import Settings


def serve(
    *,
    data: options.Data = None,
    port: Annotated[int | None, typer.Option(min=0, max=65535, help="Port to listen on; 0 takes a free one.")] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on (default 127.0.0.1).")] = None,
    database_url: Annotated[str | None, typer.Option(help="Default: SQLite in the data folder.")] = None,
    markets: Annotated[str | None, typer.Option(help="Which markets to use, such as local,sandbox.")] = None,
    config: Annotated[Path | None, typer.Option(help="TOML settings (default: DATA/broker.toml).")] = None,
    json: Annotated[bool, typer.Option("--json", help="Log as JSON lines also on a terminal.")] = False,
    new_admin_key: Annotated[
        bool, typer.Option("--new-admin-key", help="Make another admin key: the first was lost.")
    ] = False,
    exit_when_idle: Annotated[float | None, typer.Option(hidden=True, min=0)] = None,
) -> None:
    """Run a broker. The first line on standard output is JSON: its URL, and at the first start the admin key.

    SIGTERM ends it cleanly. Everything else that it says goes to standard error.
    """
    http = {name: value for name, value in (("host", host), ("port", port)) if value is not None}
    settings = configuration.load(
        config=config,
        data=data,
        database_url=database_url,
        markets=tuple(part.strip() for part in markets.split(",") if part.strip()) if markets else None,
        http=http or None,
    )
    # Imported here: what no command but those that do a broker's own work should wait for.
    from broker.cli import logs  # noqa: PLC0415
    from broker.model_set import model_profiles  # noqa: PLC0415
    from workers.errors import BadProfile  # noqa: PLC0415

    try:
        model_profiles(settings)
    except BadProfile as wrong:
        raise Failure(f"settings: {wrong}", USAGE) from wrong
    try:
        logs.configure(settings.log_level, "json" if json else settings.log_format)
    except KeyError as wrong:
        raise Failure(f"setting log_level = {settings.log_level!r}: no such level", USAGE) from wrong
    try:
        ownership = take(settings.data)
    except Owned as owned:
        raise Failure(str(owned), ERROR) from owned
    try:
        with _defects_told():
            _run(settings, ownership, exit_when_idle, new_admin_key)
    finally:
        ownership.close()
    raise typer.Exit(OK)


def _run(settings: Settings, ownership: Ownership, exit_when_idle: float | None, new_admin_key: bool) -> None:
    # Imported here: the broker's rooms, the solver and its libraries take a second that no other command should pay.
    from broker.compose import CannotStart, Ready  # noqa: PLC0415
    from broker.compose import serve as compose  # noqa: PLC0415
    from broker.database import Unreachable  # noqa: PLC0415
    from broker.envelope import Unopenable  # noqa: PLC0415
    from broker.keyring import BadKek, KekUnavailable  # noqa: PLC0415
    from broker.market_set import UnknownMarket  # noqa: PLC0415
    from broker.object_store import BadStoreSettings  # noqa: PLC0415
    from broker.store_identity import OtherStore  # noqa: PLC0415
    from broker.tls import BadTls  # noqa: PLC0415
    from jobs.errors import StoreFailed, StoreUnfit  # noqa: PLC0415

    def ready(told: Ready) -> None:
        if told.admin_key:
            write_private(settings.data / ADMIN_KEY, told.admin_key + "\n")
        ownership.announce(told.local_url, told.admin_key or read_key(settings.data))
        first_line = {"url": told.url} | ({"admin_key": told.admin_key} if told.admin_key else {})
        try:
            sys.stdout.write(dumps(first_line) + "\n")
            sys.stdout.flush()
        except BrokenPipeError as gone:
            raise ReaderLeft from gone
        # What is there now stays: each full collection would look through all of it (150 MB of modules and schemas), which was
        # a quarter of what a commit cost.
        gc.collect()
        gc.freeze()

    try:
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            runner.run(compose(settings, ready=ready, exit_when_idle_s=exit_when_idle, new_admin_key=new_admin_key))
    except CannotStart as wrong:
        raise Failure(str(wrong), ERROR) from wrong
    except UnknownMarket as wrong:
        raise Failure(f"settings: {wrong}", USAGE) from wrong
    except (BadStoreSettings, BadKek, BadTls) as wrong:
        raise Failure(str(wrong), USAGE) from wrong
    except Unopenable as closed:
        raise Failure(f"what the broker needs at its start lies sealed: {closed}", USAGE) from closed
    except (Unreachable, KekUnavailable) as away:
        raise Failure(str(away), ERROR) from away
    except (StoreFailed, StoreUnfit, OtherStore) as failure:
        raise Failure(f"the object store cannot be used: {failure}", ERROR) from failure


@contextmanager
def _defects_told() -> Iterator[None]:
    """The outermost edge: beyond it there is only Python's own trace, in plain text of many lines."""
    import structlog  # noqa: PLC0415 - brings rich along

    try:
        yield
    except (Failure, ReaderLeft):
        raise
    except Exception as defect:
        structlog.get_logger().exception("broker.crashed")
        kind = type(defect).__name__
        raise Failure(
            f"a defect of the broker's own has ended it: {kind}; the log (broker.crashed) says where", ERROR
        ) from defect


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """uvloop's where there is one (not on Windows); None: asyncio's own."""
    if find_spec("uvloop") is None:
        return None
    import uvloop  # noqa: PLC0415

    return uvloop.new_event_loop
