"""Two brokers, one PostgreSQL, one URL: the leader dies, is paused, is cut off; the database dies. Nothing is lost, nothing
is done twice, and the books are the provider's."""

from __future__ import annotations

import csv
import json
import signal
import urllib.error
from collections import Counter
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from tests.support import replicas as support

pytestmark = [pytest.mark.replicas, pytest.mark.timeout(600)]
LINES = 60


@pytest.fixture
def brokers(tmp_path: Path) -> Iterator[Any]:
    with support.replicas(tmp_path) as running:
        yield running


def some_committed(brokers: Any, batch_id: str) -> None:
    brokers.until("some lines are committed", lambda: brokers.committed(batch_id) >= 5)


def assert_nothing_lost(brokers: Any, batch_id: str) -> None:
    """Every line answered once, by the file and by the counts; each machine booked as the provider bills it."""
    batch = brokers.ended(batch_id)
    assert batch["status"] == "completed"
    assert batch["request_counts"] == {"total": LINES, "completed": LINES, "failed": 0}
    content = brokers.text(f"/v1/files/{batch['output_file_id']}/content")
    answered = Counter(json.loads(line)["custom_id"] for line in content.splitlines())
    assert answered == Counter(f"line-{number}" for number in range(LINES))
    booked: dict[str, Decimal] = {}
    for row in csv.DictReader(brokers.text("/v1/ledger/export.csv").splitlines()):
        if row["account"].startswith("Expenses:"):
            booked[row["rental"]] = booked.get(row["rental"], Decimal(0)) + Decimal(row["amount"])
    billed = {line["tag"]: Decimal(line["amount"]) for line in brokers.sandbox("/v1/invoices")["lines"]}
    assert booked == billed
    assert brokers.call("/v1/ledger/entries?limit=1")["findings"] == []


def test_when_the_leader_is_killed_the_other_finishes_the_batch(brokers: Any) -> None:
    leader = brokers.leader()
    batch_id = brokers.submit(LINES)
    some_committed(brokers, batch_id)
    leader.kill()
    assert brokers.leader() is brokers.other(leader)
    leader.start()
    assert_nothing_lost(brokers, batch_id)


def test_a_leader_that_was_paused_until_another_leads_writes_nothing_of_its_term(brokers: Any) -> None:
    leader = brokers.leader()
    batch_id = brokers.submit(LINES)
    some_committed(brokers, batch_id)
    leader.signal(signal.SIGSTOP)
    other = brokers.other(leader)
    brokers.until("the other leads", lambda: other.leads)
    leader.signal(signal.SIGCONT)
    brokers.until("the first knows", lambda: leader.events("leader.cut_off"))
    assert_nothing_lost(brokers, batch_id)


def test_when_the_database_is_killed_brokers_say_so_and_go_on_once_it_is_back(brokers: Any) -> None:
    brokers.leader()
    batch_id = brokers.submit(LINES)
    some_committed(brokers, batch_id)
    brokers.database.kill()
    refused = brokers.until("503", lambda: unavailable(brokers.replicas[0].url, brokers.key))
    assert int(refused["Retry-After"]) >= 1
    brokers.database.start()
    assert_nothing_lost(brokers, batch_id)
    for replica in brokers.replicas:
        assert replica.events("leader.cut_off") and not replica.events("loop.defect")


def unavailable(url: str, key: str) -> Any:
    """The headers of a 503, or None."""
    try:
        support.ask(f"{url}/v1/batches", key)
    except urllib.error.HTTPError as refused:
        assert refused.code == 503, refused.read()
        return refused.headers
    return None


def test_a_leader_cut_off_from_the_database_is_replaced_and_joins_again(brokers: Any) -> None:
    """The kernel drops every packet between them: nobody tells it, and nobody tells the database."""
    leader = brokers.leader()
    batch_id = brokers.submit(LINES)
    some_committed(brokers, batch_id)
    cable = brokers.cables["database"][brokers.replicas.index(leader)]
    cable.cut()
    other = brokers.other(leader)
    brokers.until("the other leads", lambda: other.leads)
    brokers.until("the first knows", lambda: leader.events("leader.cut_off"))
    cable.mend()
    assert_nothing_lost(brokers, batch_id)


def test_brokers_of_one_database_have_one_owner_one_secret_and_one_admin_key(brokers: Any) -> None:
    assert sorted("admin_key" in replica.told for replica in brokers.replicas) == [False, True]
    for replica in brokers.replicas:
        checks = json.loads(support.ask(f"{replica.url}/v1/doctor", brokers.key))["checks"]
        found = {each["name"]: each for each in checks}
        assert found["leader"]["ok"] and "in term" in found["leader"]["found"]
        assert found["replicas"]["ok"] and found["replicas"]["found"].startswith("2 brokers")
        assert not (replica.folder / "secret").exists() and not (replica.folder / "owner").exists()


@pytest.mark.parametrize("point", ["begin.before_txn", "finalise.before_txn"])
def test_a_broker_that_dies_while_it_validates_or_finishes_a_batch_is_succeeded_and_nothing_is_doubled(
    brokers: Any, point: str
) -> None:
    """Whoever of the two has claimed the batch is killed at this point, also where that is not the leader."""
    brokers.leader()
    for replica in brokers.replicas:
        replica.kill()
        replica.start({"BROKER_FAILPOINT": point})
    brokers.leader()
    batch_id = brokers.submit(LINES)
    dead = brokers.until("one has died", lambda: [each for each in brokers.replicas if each.process.poll() is not None])
    for replica in brokers.replicas:
        if replica not in dead:
            replica.kill()
            replica.start()
    for replica in dead:
        replica.start()
    assert_nothing_lost(brokers, batch_id)
    assert not any(replica.events("loop.defect") for replica in brokers.replicas)
