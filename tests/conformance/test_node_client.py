"""Each call of the official Node client, unmodified, by name: node/calls.mjs makes them, and here each has its verdict.

`make conformance` installs the client (`npm ci` in node/, locked) and runs this.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.conformance.world import BAD, LINES, world

pytestmark = [pytest.mark.conformance, pytest.mark.timeout(600)]

FOLDER = Path(__file__).parent / "node"
CALLS = (
    *("files.create", "files.list", "files.retrieve", "files.content", "files.delete", "files.waitForProcessing"),
    *("uploads.create", "uploads.parts.create", "uploads.complete", "uploads.cancel"),
    *("batches.create", "batches.retrieve", "batches.list", "batches.cancel"),
    *("models.list", "models.retrieve", "models.delete"),
    *("errors.NotFoundError", "errors.BadRequestError", "errors.AuthenticationError", "errors.PermissionDeniedError"),
    *("errors.UnprocessableEntityError", "retries"),
)


def node(script: str, **environment: str) -> Any:
    """The last line that a script of the folder prints, as JSON. Its failure is ours, with its words."""
    ran = subprocess.run(
        ["node", script], cwd=FOLDER, env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr[-4000:]
    return json.loads(ran.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What became of every call: all are made once, by one run of the script."""
    with world(tmp_path_factory.mktemp("node_client")) as (found, _):
        told: dict[str, Any] = node(
            "calls.mjs",
            BASE_URL=found.base_url,
            API_KEY=found.key,
            VIEWER_KEY=found.viewer,
            BATCH=found.batch,
            MODEL=found.model,
            LINES=str(LINES),
            BAD=str(BAD),
        )
    return told


@pytest.mark.parametrize("name", CALLS)
def test_the_node_client_may(name: str, outcome: dict[str, Any]) -> None:
    assert outcome["results"][name] == "ok"


def test_no_call_of_the_node_client_is_forgotten(outcome: dict[str, Any]) -> None:
    """What the client can do with files, uploads, batches and models is what is asked, name by name."""
    assert set(outcome["offered"]) <= set(CALLS)
    assert set(outcome["results"]) == set(CALLS)
    assert "batches.create" in outcome["offered"]


def test_the_client_is_installed_from_a_lock_that_names_no_host() -> None:
    lock = json.loads((FOLDER / "package-lock.json").read_text())
    assert lock["packages"]["node_modules/openai"]["integrity"].startswith("sha512-")
    assert "://" not in json.dumps([each.get("resolved") for each in lock["packages"].values()])
