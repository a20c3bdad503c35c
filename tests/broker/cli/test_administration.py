"""Webhooks, projects, keys and approvals, from the command line."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from broker.owner import owner
from tests.support.command_line import new_key, prompts, quick, until


class Receiver(HTTPServer):
    """Somebody's own server: it answers `status`, and keeps what it was told."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.told: list[dict[str, Any]] = []
        self.status = 200

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/hook"


class Handler(BaseHTTPRequestHandler):
    server: Receiver

    def do_POST(self) -> None:
        self.server.told.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.send_response(self.server.status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        return


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def by(data: Path, key: str) -> dict[str, str]:
    """The environment of somebody with this key."""
    live = owner(data)
    assert live is not None
    return {"BROKER_URL": str(live.url), "BROKER_API_KEY": key}


def told(*arguments: str, env: dict[str, str], code: int = 0) -> Any:
    done = quick(*arguments, "--json", env=env)
    assert done.returncode == code, done.stderr
    return json.loads(done.stdout)


def test_a_webhook_is_told_of_the_end_of_a_batch_and_its_deliveries_are_listed(
    data: Path, receiver: Receiver, tmp_path: Path
) -> None:
    env = by(data, new_key(data, "hooked", "hooked", "submitter"))
    made = told("webhooks", "create", receiver.url, "--name", "ours", env=env)
    assert made["signing_secret"].startswith("whsec_")
    done = quick("submit", prompts(tmp_path, "hello"), "--model", "scripted", "--json", env=env)
    batch_id = json.loads(done.stdout)["batch"]["id"]
    until(lambda: receiver.told, "the webhook is told")
    assert [(each["type"], each["data"]["id"]) for each in receiver.told] == [("batch.completed", batch_id)]

    def delivered() -> list[Any]:
        found = told("webhooks", "deliveries", made["id"], env=env)["data"]
        return [each for each in found if each["status"] == "delivered"]

    (delivery,) = until(delivered, "the delivery is noted")
    assert delivery["batch_id"] == batch_id
    again = told("webhooks", "resend", made["id"], delivery["event_id"], env=env)
    assert again["status"] == "pending"
    until(lambda: len(receiver.told) == 2, "the webhook is told again")


def test_a_webhook_is_tried_rotated_switched_off_and_deleted(data: Path, receiver: Receiver) -> None:
    env = by(data, new_key(data, "switched", "switched", "submitter"))
    created = quick("webhooks", "create", receiver.url, "--event", "batch.paused", env=env)
    webhook, secret = created.stdout.splitlines()[1].split("\t")[0], created.stdout.splitlines()[2].split()[0]
    assert told("webhooks", "test", webhook, env=env)["status_code"] == 200
    receiver.status = 500
    assert quick("webhooks", "test", webhook, env=env).returncode == 1
    assert told("webhooks", "rotate", webhook, "--keep", env=env)["signing_secret"] != secret
    assert told("webhooks", "disable", webhook, env=env)["x_broker"]["enabled"] is False
    assert "disabled: by switched" in quick("webhooks", "list", env=env).stdout
    assert told("webhooks", "enable", webhook, env=env)["x_broker"]["enabled"] is True
    assert quick("webhooks", "delete", webhook, env=env).stdout == f"{webhook} is deleted\n"
    assert told("webhooks", "list", env=env)["data"] == []
    assert quick("webhooks", "delete", webhook, env=env).returncode == 1


def test_limits_of_a_project_are_set_and_go_back(data: Path, tmp_path: Path) -> None:
    env = by(data, new_key(data, "small", "small", "submitter"))
    at = ("--data", str(data))
    shown = quick("projects", "set", "small", "--limit", "max_lines=2", "--approve-above", "0.5", *at).stdout
    assert "max_lines\t2\town" in shown
    assert "batches above $0.50 need approval (own)" in shown
    refused = quick("submit", prompts(tmp_path, "a", "b", "c"), "--model", "scripted", "--json", env=env)
    assert refused.returncode == 3, "the file has too many lines"
    back = json.loads(quick("projects", "set", "small", "--limit", "max_lines=none", *at, "--json").stdout)
    assert "max_lines" not in back["own"]
    assert json.loads(quick("projects", "show", "small", *at, "--json").stdout) == back


def test_a_second_person_approves_or_rejects_what_costs_too_much(data: Path, tmp_path: Path) -> None:
    asker = new_key(data, "asker", "careful", "submitter", "operator")
    env, other = by(data, asker), by(data, new_key(data, "decider", "careful", "operator", "viewer"))
    assert quick("projects", "set", "careful", "--approve-above", "0", "--data", str(data)).returncode == 0

    def waiting() -> str:
        done = quick("submit", prompts(tmp_path, "hello"), "--model", "scripted", "--detach", "--json", env=env)
        batch_id = str(json.loads(done.stdout)["batch"]["id"])
        until(lambda: told("status", batch_id, env=env)["batch"]["x_broker"]["approval"], "it waits for approval")
        return batch_id

    first = waiting()
    own = quick("approve", first, env=env)
    assert own.returncode == 1 and "own_proposal" in own.stderr
    assert told("approve", first, env=other)["id"] == first
    assert quick("status", first, "-w", env=env).returncode == 0
    second = waiting()
    told("reject", second, "--reason", "too dear", env=other)
    ended = quick("status", second, env=env)
    assert ended.returncode == 6
    assert "decider rejected it: too dear" in ended.stdout


def test_a_revoked_key_is_worth_nothing(data: Path) -> None:
    made = json.loads(
        quick("keys", "create", "guest", "--role", "viewer", "--lasts", "12h", "--data", str(data), "--json").stdout
    )
    env = by(data, made["key"])
    assert made["expires_at"] is not None
    assert told("list", env=env)["object"] == "list"
    assert quick("keys", "revoke", made["id"], "--data", str(data)).stdout == f"{made['id']} is revoked\n"
    assert "invalid_api_key" in quick("list", env=env).stderr
    assert quick("keys", "create", "x", "--role", "viewer", "--lasts", "soon").returncode == 2
