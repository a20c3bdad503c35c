"""Every operation that is served, asked with what its document allows and with what it forbids, by schemathesis."""

from __future__ import annotations

import contextlib
import hashlib
import json
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import openai
import pytest

from broker import worker_sessions
from jobs.signing import sign
from tests.conformance.world import new_key, request_lines, world
from tests.support import real_broker as support

if TYPE_CHECKING:
    from tests.conformance.api_fuzz import Fuzz

EXAMPLES = 25
POLICY = Path(__file__).resolve().parents[2] / "policies" / "no-community-hosts.yaml"


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[support.RealBroker]:
    with world(tmp_path_factory.mktemp("fuzz")) as (_, running):
        yield running


@dataclass(frozen=True)
class Inside:
    """What only the broker's own folder knows: its rows and its secret."""

    folder: Path

    def rows(self, statement: str) -> list[str]:
        with contextlib.closing(sqlite3.connect(f"file:{self.folder / 'broker.db'}?mode=ro", uri=True)) as database:
            return [str(row[0]) for row in database.execute(statement)]

    @property
    def secret(self) -> bytes:
        return (self.folder / "secret").read_bytes()

    def session(self) -> str:
        """The session token of a worker that is there."""
        rental, number = self.rows("SELECT rental || ' ' || session FROM broker_worker WHERE state = 'ready'")[
            0
        ].split()
        return worker_sessions.issue(
            self.secret, worker_sessions.fresh(rental, int(number), time.time_ns() // 1000, 600)
        )

    def token(self, method: Literal["GET", "PUT"], key: str, **extra: int | str) -> str:
        """A signed permission, as leases and part targets give it."""
        return sign(self.secret, method, key, time.time_ns() // 1000 + 600_000_000, extra)


class Makers:
    """Makes what an operation may be asked about: things that live, one of each, fresh, so that all can be destroyed."""

    def __init__(self, broker: support.RealBroker) -> None:
        self.broker, self.client, self.inside = broker, broker.openai, Inside(broker.data)
        self.upload = self.made = ""
        # Not ours: what is done to it (a limit, a threshold for approval) would stop the batches that are made here.
        self.project = "another"
        new_key(broker, "viewer", project=self.project)

    def file(self) -> list[str]:
        return [self.client.files.create(file=("in.jsonl", request_lines(400, bad=9)), purpose="batch").id]

    def batch(self) -> list[str]:
        """One that runs or waits, and the one that has ended with results. The one made before it is work no more."""
        if self.made:
            with contextlib.suppress(openai.APIStatusError):  # it has ended
                self.client.batches.cancel(self.made)
        made = self.client.batches.create(
            input_file_id=self.file()[0], endpoint="/v1/chat/completions", completion_window="24h"
        )
        self.made = made.id
        self.broker.until("it is validated", lambda: self.client.batches.retrieve(made.id).status != "validating")
        return [made.id, self.inside.rows("SELECT id FROM jobs_batch ORDER BY id LIMIT 1")[0]]

    def new_upload(self) -> list[str]:
        self.upload = self.client.uploads.create(bytes=8, filename="a", mime_type="b", purpose="batch").id
        return [self.upload]

    def parts(self) -> list[list[str]]:
        """The whole of the upload that was made last."""
        upload = self.upload or self.new_upload()[0]
        return [[self.client.uploads.parts.create(upload, data=b"12345678").id]]

    def key_id(self) -> list[str]:
        return [f"key_{new_key(self.broker, 'viewer').split('_')[1]}"]

    def tokens(self) -> list[str]:
        key = self.inside.rows("SELECT object_key FROM jobs_file ORDER BY id LIMIT 1")[0]
        part = f"default/fuzz/{time.time_ns()}"
        digest = hashlib.sha256(b"0").hexdigest()
        return [self.inside.token("GET", key, start=0, stop=10), self.inside.token("PUT", part, size=1, sha256=digest)]

    def session(self) -> str:
        """A worker's that is ready, with a batch to work on."""
        self.batch()
        ready = "SELECT rental FROM broker_worker WHERE state = 'ready'"
        self.broker.until("a worker is ready", lambda: self.inside.rows(ready))
        return self.inside.session()

    def webhook(self) -> list[str]:
        """What the document's own route made, asked before."""
        return self.inside.rows("SELECT id FROM broker_webhook WHERE disabled_us IS NULL ORDER BY id DESC LIMIT 1")


def fuzz(broker: support.RealBroker, examples: int) -> Fuzz:
    from tests.conformance.api_fuzz import Fuzz  # noqa: PLC0415 - schemathesis, for the one process that runs this

    make = Makers(broker)
    real: dict[str, Callable[[], Sequence[Any]]] = {
        "file_id": make.file,
        "input_file_id": make.file,
        "batch_id": make.batch,
        "upload_id": make.new_upload,
        "part_ids": make.parts,
        "md5": lambda: [hashlib.md5(b"12345678").hexdigest()],
        "key_id": make.key_id,
        "token": make.tokens,
        "webhook_id": make.webhook,
        "event_id": lambda: make.inside.rows("SELECT event FROM broker_delivery LIMIT 1"),
        "rental_id": lambda: make.inside.rows("SELECT rental FROM broker_worker"),
        "shard_id": lambda: make.inside.rows(
            "SELECT id FROM jobs_shard WHERE state != 'done' ORDER BY id DESC LIMIT 1"
        ),
        "model": lambda: [support.MODEL],
        "project": lambda: [make.project],
        "purpose": lambda: ["batch"],
        "endpoint": lambda: ["/v1/chat/completions"],
        "completion_window": lambda: ["24h"],
        "x_broker": lambda: [{"priority": 1, "on_infeasible": "queue"}],
        "url": lambda: ["https://hooks.example.com/x"],
        "event_types": lambda: [["batch.completed"]],
        "file": lambda: [request_lines(2, bad=9)],
        "data": lambda: [b"1234"],
        # Proposed only: nobody approves their own, so what these would forbid or allow stays as it is.
        "text": lambda: [POLICY.read_text()],
        "until": lambda: [int(time.time()) + 3600],
        "node": lambda: ["another"],
        "projects": lambda: ["another"],
        "proposal_id": lambda: make.inside.rows("SELECT id FROM broker_proposal ORDER BY id DESC LIMIT 1"),
        "key": lambda: make.inside.rows("SELECT key FROM markets_offer ORDER BY key LIMIT 1"),
    }
    keys = {"api_key": lambda: broker.key, "worker_session": make.session, "worker_bootstrap": lambda: "0" * 64}
    asked = Fuzz(broker.url, json.loads(broker.text("/openapi.json")), real, keys, examples)
    asked.run()
    return asked


def verdict(asked: Fuzz) -> None:
    assert not asked.problems, "\n\n".join(f"{name}\n{problem}" for name, problem in sorted(asked.problems.items()))
    operations = {f"{method.upper()} {path}" for path, item in asked.document["paths"].items() for method in item}
    assert set(asked.statuses) == operations, "every operation has answered"
    # An id of nothing never gets past the door: most operations must have answered what they are for, with one example each.
    print(len(asked.statuses), "operations asked:", {name: sorted(each) for name, each in asked.statuses.items()})
    refused = sorted(name for name, statuses in asked.statuses.items() if not any(each < 300 for each in statuses))
    assert len(refused) <= len(operations) // 3, f"too many operations were only ever refused: {refused}"


# One example of each took 31 CPU-seconds in `make test` and proved nothing that these do not.
@pytest.mark.conformance
@pytest.mark.timeout(840)
def test_no_operation_fails_or_answers_what_its_document_does_not_say(broker: support.RealBroker) -> None:
    verdict(fuzz(broker, EXAMPLES))
