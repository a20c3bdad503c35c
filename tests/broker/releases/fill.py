"""Fill a database with this checkout's own code and pack it: `python tests/broker/releases/fill.py OUT.tar.gz [POSTGRES_URL]`.

Run it in a checkout of the release whose schema is meant; without a URL the database is SQLite.
"""

from __future__ import annotations

import gzip
import io
import os
import re
import signal
import socket
import sqlite3
import subprocess
import sys
import tarfile
import tempfile
from contextlib import closing
from pathlib import Path

sys.path.insert(0, str(Path.cwd()))

from tests.support import real_broker
from tests.support.real_broker import RealBroker


def main(out: Path, url: str | None) -> None:
    folder = Path(tempfile.mkdtemp())
    if url:
        real_broker.SETTINGS = f'database_url = "{url}"\n{real_broker.SETTINGS}'
    broker = RealBroker(folder, latency=0.25)
    first = submit(broker, 6)
    broker.until("the first has ended", lambda: broker.batch(first)["status"] == "completed", 120)
    second = submit(broker, 80)
    broker.until("some of the second", lambda: broker.batch(second)["request_counts"]["completed"] >= 12, 120)
    os.kill(broker.pid, signal.SIGKILL)
    sql = dumped(broker.data / "broker.db", url).replace(str(folder), "/srv/broker")
    sql = re.sub(r'"hostname": "[^"]*"', '"hostname": "machine"', sql).replace(f"'{socket.gethostname()}:", "'machine:")
    # psql's own commands and comments are nothing that a driver understands
    lines = [line for line in sql.split("\n") if not line.startswith(("\\", "--"))]
    pack(out, "\n".join(lines).encode(), broker.data / "objects")
    broker.destroy()


def submit(broker: RealBroker, lines: int) -> str:
    batch = broker.openai.batches.create(
        input_file_id=broker.upload(lines, 16), endpoint="/v1/chat/completions", completion_window="30d"
    )
    return batch.id


def dumped(file: Path, url: str | None) -> str:
    if url:
        ran = subprocess.run(["pg_dump", "--inserts", "--no-owner", url], capture_output=True, text=True, check=True)
        return ran.stdout
    with closing(sqlite3.connect(file)) as database:
        return "\n".join(database.iterdump()) + "\n"


def pack(out: Path, sql: bytes, objects: Path) -> None:
    files = {"dump.sql": sql}
    files |= {
        f"objects/{file.relative_to(objects)}": file.read_bytes()
        for file in sorted(objects.rglob("*"))
        if file.is_file()
    }
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w") as tar:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    with out.open("wb") as file, gzip.GzipFile(fileobj=file, mode="wb", mtime=0, filename="") as packed:
        packed.write(raw.getvalue())


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else None)
