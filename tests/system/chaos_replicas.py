"""A chaos world of two brokers on one PostgreSQL server and one S3 server, behind one URL.

Each broker is in a network of its own; the kernel cuts the cables between it and what it talks to."""

from __future__ import annotations

import asyncio
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psycopg
from chaos_schedule import Fault, Schedule
from chaos_world import World
from psycopg import sql

from markets.sandbox.process import ensure_running
from tests.support.islands import Cable, Sites
from tests.support.postgres_server import postgres_server
from tests.support.replicas import Replica
from tests.support.s3_server import ACCESS_KEY, SECRET_KEY, S3Server
from tests.support.wire import LOOPBACK, Wire

BROKERS = 2
PATIENCE_S = 4.0
# Longer than it takes until the silent broker leads no more, shorter than what its agents put up with.
CUT_S, FROZEN_S = 6.0, 8.0
# Two brokers start in each world, and start again after each kill.
WORLD_S = 300.0

SHARED = """
database_url = "postgresql://broker@{database}/postgres"

[database]
leader_patience_s = {patience}

[http]
public_url = "{url}"
"""
SANDBOX = """
[sandbox]
url = "http://{sandbox}"
token = "{token}"
"""
OBJECTS = """
[objects]
kind = "s3"
endpoint = "http://{store}"
allow_http = true
bucket = "{bucket}"
prefix = "{prefix}"
country = "DE"
operator = "tests"
"""


class SharedWorld(World):
    """The same story as a world of one broker, whose loops are half as busy: here there are two, and it is their machine that
    the worlds wait for. `data` holds what the brokers share of this machine: the provider."""

    pace_s = 1.0

    def __init__(self, folder: Path, schedule: Schedule, *, s3: S3Server) -> None:
        super().__init__(folder, schedule)
        self._s3, self._prefix = s3, f"seed/{schedule.seed}"
        self._deadline = time.monotonic() + WORLD_S
        self._open = ExitStack()
        self._calm = threading.Event()
        self._outages = ThreadPoolExecutor(thread_name_prefix="outage")
        self._cuts: list[tuple[Fault, Future[int]]] = []

    def _write_settings(self) -> None:
        super()._write_settings()
        (self.data / "objects").mkdir()  # stays empty: the store is S3
        self._database = self._open.enter_context(postgres_server())
        sandbox = asyncio.run(
            ensure_running(self.data / "sandbox", catalogue=self.folder / "catalogue.toml", idle_s=3600)
        )
        sites = Sites(BROKERS, ("front", "database", "store", "sandbox"))
        self._open.callback(sites.close)
        self._cables = sites.cables
        fronts = zip(sites.islands, self._cables["front"], strict=True)
        self._brokers = [Replica(self.data, number, *site) for number, site in enumerate(fronts)]
        self._front = Wire([broker.address for broker in self._brokers], health="/healthz")
        self._open.callback(self._front.close)
        self._url = f"http://{LOOPBACK}:{self._front.port}"
        served = {"database": self._database.port, "store": _port(self._s3.url), "sandbox": _port(sandbox.url)}
        at = {}
        for service, port in served.items():
            wire = Wire([(LOOPBACK, port)], host=sites.address(service))
            self._open.callback(wire.close)
            at[service] = f"{sites.address(service)}:{wire.port}"
        settings = (self.data / "broker.toml").read_text()
        before, _, after = settings.partition("[sandbox]")
        rest = after[after.index("[jobs]") :]
        shared = SHARED.format(**at, patience=PATIENCE_S, url=self._url)
        provider = SANDBOX.format(**at, token=sandbox.token)
        store = OBJECTS.format(**at, bucket=self._s3.bucket, prefix=self._prefix)
        store += f'access_key_id = "{ACCESS_KEY}"\nsecret_access_key = "{SECRET_KEY}"\n'
        for broker in self._brokers:
            (broker.folder / "broker.toml").write_text(before + shared + provider + store + rest)

    def _start_broker(self) -> None:
        """Both at once: they migrate, agree and make one admin key."""
        with ThreadPoolExecutor(BROKERS) as pool:
            list(pool.map(self._start, self._brokers))

    def _start(self, broker: Replica) -> None:
        """With the next named points armed. One that dies before it is ready is started again by the supervisor."""
        broker.start(self._armed(), must_answer=False, meanwhile=self._thaw)
        self._key = broker.told.get("admin_key") or self._key

    def _keep_alive(self) -> None:
        for broker in self._brokers:
            status = broker.process.poll() if broker.process else 0
            if status is None:
                continue
            if status == -signal.SIGKILL:
                self.kills += 1
            else:
                self.notes.append(f"broker exited with {status}")
            self._start(broker)

    def _thaw(self) -> None:
        super()._thaw()
        for cut in [each for each in self._cuts if each[1].done()]:
            self._cuts.remove(cut)
            self._tell_of(cut[0], cut[1].result())

    def _tell_of(self, fault: Fault, dropped: int) -> None:
        """One in which nobody had anything to say was no cut."""
        self.dropped += dropped
        if dropped:
            self.struck[fault.kind] += 1
        else:
            self.notes.append(f"{fault} dropped no packet")

    def _is_quiet(self) -> bool:
        return not self._cuts and super()._is_quiet()

    def _shake(self, fault: Fault) -> None:
        if fault.is_cut:  # counted once it is over
            self._cut(fault)
            return
        self.struck[fault.kind] += 1
        leader = self._leader()
        assert leader.process
        match fault.point:
            case "leader.kill":
                leader.kill()
            case "leader.freeze":
                leader.signal(signal.SIGSTOP)
                self._frozen.append((time.monotonic() + FROZEN_S, leader.process.pid))
            case "database.kill":
                self._database.kill()
                self._database.start()
            case "front.tear":
                self._front.tear()
            case other:
                raise ValueError(f"no fault {other!r} of the ground is known")

    def _cut(self, fault: Fault) -> None:
        """For a while, however long whoever asks the brokers waits for an answer meanwhile."""
        cables = self._cables[fault.point.removesuffix(".cut")]
        if fault.point == "database.cut":
            cables = [cables[self._brokers.index(self._leader())]]
        self._cuts.append((fault, self._outages.submit(self._outage, cables)))

    def _outage(self, cables: list[Cable]) -> int:
        """How many packets it has dropped."""
        for cable in cables:
            cable.cut()
        self._calm.wait(CUT_S)
        return sum(cable.mend() for cable in cables)

    def _leader(self) -> Replica:
        return next((broker for broker in self._brokers if broker.leads), self._brokers[0])

    def _stop_broker(self) -> None:
        for broker in self._brokers:
            status = broker.stop()
            if status:
                self.notes.append(f"broker ended with {status} after SIGTERM")

    def end(self) -> None:
        self._calm.set()
        self._outages.shutdown()
        for broker in getattr(self, "_brokers", ()):
            if broker.process and broker.process.poll() is None:
                broker.kill()
        with suppress(OSError):
            super().end()
        self._open.close()

    def _rows(self, query: str) -> list[tuple[Any, ...]]:
        with psycopg.connect(self._database.url()) as connection:
            return connection.execute(query.encode()).fetchall()

    def _more_secrets(self) -> tuple[str, ...]:
        return (SECRET_KEY,)

    def _kek(self) -> bytes:
        return (self._brokers[0].folder / "kek").read_bytes()

    def _object(self, key: str) -> bytes:
        content: bytes = self._s3.client.get_object(Bucket=self._s3.bucket, Key=f"{self._prefix}/{key}")["Body"].read()
        return content

    def _objects(self) -> Iterator[tuple[str, bytes]]:
        pages = self._s3.client.get_paginator("list_objects_v2").paginate(
            Bucket=self._s3.bucket, Prefix=f"{self._prefix}/"
        )
        for page in pages:
            for found in page.get("Contents", ()):
                key = found["Key"].removeprefix(f"{self._prefix}/")
                yield key, self._object(key)

    def _dump(self) -> Iterator[tuple[str, bytes]]:
        """Each table as text, bytes with their letters legible. What the brokers have agreed on is kept by design."""
        with psycopg.connect(self._database.url()) as connection:
            connection.execute("SET bytea_output = 'escape'")
            tables = connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'").fetchall()
            for (table,) in tables:
                copied = bytearray()
                with connection.cursor().copy(sql.SQL("COPY {} TO STDOUT").format(sql.Identifier(table))) as rows:
                    for row in rows:
                        copied += row
                yield table, bytes(copied)


def _port(url: str) -> int:
    port = urlsplit(url).port
    assert port is not None, f"{url} names no port"
    return port
