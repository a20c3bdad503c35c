"""A real S3 server for the tests: SeaweedFS, which checks signatures and preconditions as Amazon's does.

One server a process, started when a test first asks for it; every user gets a prefix of its own.
"""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from ulid import ULID

ACCESS_KEY, SECRET_KEY = "tests-access", "tests-secret-0123456789"
START_WITHIN_S = 60


class S3Server:
    """`url` of a running server. `client` is boto3's, for what tests do behind the broker.

    Tests share `bucket`, below prefixes of their own: this server keeps several volumes for each bucket.
    """

    def __init__(self, url: str, pid: int, bucket: str | None = None) -> None:
        import boto3  # noqa: PLC0415

        self.url, self.pid, self.bucket = url, pid, bucket or "tests"
        self.client: Any = boto3.client(
            "s3",
            endpoint_url=url,
            aws_access_key_id=ACCESS_KEY,
            aws_secret_access_key=SECRET_KEY,
            region_name="us-east-1",
        )

        if bucket is None:
            self.client.create_bucket(Bucket=self.bucket)

    def settings(self) -> dict[str, Any]:
        """The section `objects` of a broker that keeps its objects here, below a prefix that nobody else has."""
        return {
            "kind": "s3",
            "bucket": self.bucket,
            "prefix": f"some/{ULID()}",
            "endpoint": self.url,
            "region": "us-east-1",
            "access_key_id": ACCESS_KEY,
            "secret_access_key": SECRET_KEY,
            "country": "DE",
            "operator": "tests",
        }


def free_ports(count: int) -> list[int]:
    """Free now, and all different."""
    with ExitStack() as stack:
        found = []
        for _ in range(count):
            listening = stack.enter_context(socket.socket())
            listening.bind(("127.0.0.1", 0))
            found.append(listening.getsockname()[1])
        return found


@contextmanager
def s3_server(folder: Path) -> Iterator[S3Server]:
    """Run a server below `folder` until the block ends. Its unix sockets lie in a short path of their own."""
    s3, s3_grpc, filer, filer_grpc, master, master_grpc, volume, volume_grpc = free_ports(8)
    weed = Path(sys.executable).with_name("weed")
    (folder / "data").mkdir(parents=True)
    config = folder / "s3.json"
    credentials = [{"accessKey": ACCESS_KEY, "secretKey": SECRET_KEY}]
    config.write_text(json.dumps({"identities": [{"name": "tests", "credentials": credentials, "actions": ["Admin"]}]}))
    sockets = Path(tempfile.mkdtemp(prefix="s3-"))
    arguments = [
        f"-dir={folder / 'data'}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-s3", f"-s3.port={s3}", f"-s3.config={config}",
        f"-s3.port.grpc={s3_grpc}", "-s3.port.iceberg=0", "-s3.port.lance=0", "-s3.iam=false",
        f"-s3.localSocket={sockets / 's3'}", "-filer", f"-filer.port={filer}", f"-filer.port.grpc={filer_grpc}",
        f"-filer.localSocket={sockets / 'filer'}", f"-master.port={master}", f"-master.port.grpc={master_grpc}",
        f"-volume.port={volume}", f"-volume.port.grpc={volume_grpc}", "-volume.max=100", "-master.volumeSizeLimitMB=256",
    ]  # fmt: skip
    log = folder / "weed.log"
    with log.open("ab") as out:
        process = subprocess.Popen([weed, "server", *arguments], stdout=out, stderr=out, cwd=folder)
    try:
        _until_up(f"http://127.0.0.1:{s3}", process, log)
        yield S3Server(f"http://127.0.0.1:{s3}", process.pid)
    finally:
        process.kill()
        process.wait(30)
        shutil.rmtree(sockets, ignore_errors=True)
        shutil.rmtree(folder / "data", ignore_errors=True)


def _until_up(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    """Up is when it can store: the gateway answers earlier than the volumes behind it."""
    deadline = time.monotonic() + START_WITHIN_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            break
        try:
            with urllib.request.urlopen(url + "/status", timeout=2):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.1)
    raise AssertionError(f"the S3 server is not up within {START_WITHIN_S} s:\n{log.read_text()[-3000:]}")
