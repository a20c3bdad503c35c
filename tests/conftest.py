"""Fixtures that every room's tests share."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import AsyncIterator, Iterator

import pytest

from broker.database import Database
from tests.support.databases import Databases, open_databases
from tests.support.object_stores import azure, object_store, s3

__all__ = ["azure", "object_store", "s3"]  # fixtures

# Tests start some hundred processes. Where this is set, as in many images, each would compile anew all that it imports.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False
# What a shell starts in the background (`make test &`) ignores Ctrl-C, and so would the commands that tests interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# What one of these starts (a broker with its machines, a provider, a host) serves all tests that use it: on one worker of
# pytest-xdist, not on each. With `--dist loadgroup`, as `make test` has it.
SHARED = ("data", "ended", "shared_sandbox", "shared_host")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--database", action="store_true", help="run only the tests that are given a database")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Tests that share something are marked with it. With --database: the tests whose outcome may depend on which database
    they run on."""
    for item in items:
        names = getattr(item, "fixturenames", ())
        if shared := next((name for name in SHARED if name in names), None):
            item.add_marker(pytest.mark.xdist_group(shared))
    if config.getoption("--database"):
        touching = [item for item in items if "databases" in getattr(item, "fixturenames", ())]
        config.hook.pytest_deselected(items=[item for item in items if item not in touching])
        items[:] = touching


@pytest.fixture(scope="session")
def databases(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Databases]:
    """Where tests get their databases: SQLite, or PostgreSQL with BROKER_TEST_DATABASE_URL."""
    databases = open_databases(tmp_path_factory.mktemp("databases"))
    yield databases
    databases.close()


@pytest.fixture
def empty_url(databases: Databases) -> Iterator[str]:
    """A database of its own without any table."""
    url = databases.empty()
    yield url
    databases.drop(url)


@pytest.fixture
def migrated_url(databases: Databases) -> Iterator[str]:
    """A database of its own with the newest schema and no rows."""
    url = databases.migrated()
    yield url
    databases.drop(url)


@pytest.fixture
async def database(migrated_url: str) -> AsyncIterator[Database]:
    """A migrated, empty database of its own."""
    database = Database(migrated_url)
    yield database
    await database.close()


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """With CI=true nothing is skipped: a judge that is quietly absent is a failure."""
    outcome = yield
    report = outcome.get_result()
    if report.skipped and os.environ.get("CI") == "true":
        report.outcome = "failed"
        report.longrepr = f"{item.nodeid} was skipped, and in CI nothing is: {report.longrepr}"
