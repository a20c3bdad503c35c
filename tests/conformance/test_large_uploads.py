"""A 300 MB file through `uploads`, by both stock clients, while the broker's memory stays flat."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from tests.conformance.test_node_client import node
from tests.conformance.world import new_key
from tests.support import real_broker as support

pytestmark = [pytest.mark.conformance, pytest.mark.timeout(600)]

SIZE = 300 * 1000 * 1000
MAX_GROWTH = 48 * 1024 * 1024


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[support.RealBroker]:
    with support.real_broker(tmp_path_factory.mktemp("large")) as running:
        running.upload(10, 8)  # what a first upload loads and pools is not growth
        yield running


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The file and its md5. Lines of a real batch, but as it is not run, one line again and again."""
    path = tmp_path_factory.mktemp("file") / "large.jsonl"
    line = b'{"custom_id": "%09d", "method": "POST", "url": "/v1/chat/completions"}\n'
    digest, size, number = hashlib.md5(), 0, 0
    with path.open("wb") as file:
        while size < SIZE:
            rows = b"".join(line % n for n in range(number, number + 10_000))[: SIZE - size]
            file.write(rows)
            digest.update(rows)
            size, number = size + len(rows), number + 10_000
    return path, digest.hexdigest()


class Watch:
    """The most resident memory of a process while the block runs, beyond what it had before."""

    def __init__(self, pid: int) -> None:
        self._process = psutil.Process(pid)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look)
        self.before = self.most = 0

    def _look(self) -> None:
        while not self._over.wait(0.02):
            self.most = max(self.most, self._process.memory_info().rss)

    def __enter__(self) -> Watch:
        self.before = self.most = self._process.memory_info().rss
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    @property
    def growth(self) -> int:
        return self.most - self.before


def by_python(broker: support.RealBroker, path: Path, md5: str) -> str:
    done = broker.openai.uploads.upload_file_chunked(file=path, mime_type="application/jsonl", purpose="batch", md5=md5)
    assert done.status == "completed"
    assert done.file
    return done.file.id


def by_node(broker: support.RealBroker, path: Path, md5: str) -> str:
    key = new_key(broker, "submitter")
    told: dict[str, str] = node("large.mjs", BASE_URL=f"{broker.url}/v1", API_KEY=key, FILE=str(path), MD5=md5)
    assert told["status"] == "completed"
    return told["file"]


@pytest.mark.parametrize("upload", [by_python, by_node])
def test_300_mb_go_up_in_flat_memory(
    upload: Callable[[support.RealBroker, Path, str], str], broker: support.RealBroker, large: tuple[Path, str]
) -> None:
    path, md5 = large
    with Watch(broker.pid) as watch:
        file_id = upload(broker, path, md5)
    file = broker.openai.files.retrieve(file_id)
    assert (file.bytes, file.filename) == (SIZE, "large.jsonl")
    content = hashlib.md5()
    with broker.openai.files.with_streaming_response.content(file_id) as streamed:
        for chunk in streamed.iter_bytes(1024 * 1024):
            content.update(chunk)
    assert content.hexdigest() == md5
    print(f"{upload.__name__}: the broker grew by {watch.growth / 1e6:.1f} MB")
    assert watch.growth <= MAX_GROWTH, f"the broker grew by {watch.growth} bytes while it took {SIZE}"
