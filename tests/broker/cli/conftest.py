"""One broker with sandbox machines, real agents and a scripted engine, for all tests of the commands."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from broker.demo.folder import SETTINGS
from broker.demo.kill import end_leftovers
from tests.support.command_line import MODEL, offers, start, stop, until

WEBHOOKS = """
[webhooks]
allow_http = true
allow_private = true
deliver_s = 1
"""


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The data folder of a broker that serves while the tests run, with offers to choose from."""
    folder = tmp_path_factory.mktemp("served") / "data"
    folder.mkdir()
    (folder / "broker.toml").write_text(SETTINGS + MODEL + WEBHOOKS)
    process, _ = start(folder)
    try:
        until(lambda: offers(folder) != [], "the first poll of the sandbox")
        yield folder
        stop(process)
    finally:
        process.kill()
        process.wait()
        end_leftovers(folder)
