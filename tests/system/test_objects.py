"""A batch whose objects lie in S3, end to end: real broker, real S3 server, real agents that go to the store themselves."""

from __future__ import annotations

import hashlib
import json
import os
import signal
from pathlib import Path

import pytest

from tests.support.real_broker import real_broker
from tests.support.s3_server import S3Server

pytestmark = [pytest.mark.timeout(300), pytest.mark.objects]
LINES = 80


def test_a_batch_in_s3_survives_the_kill_of_its_worker_and_every_line_is_answered_once(
    s3: S3Server, tmp_path: Path
) -> None:
    objects = s3.settings()
    section = "\n[objects]\n" + "\n".join(f"{name} = {json.dumps(value)}" for name, value in objects.items())
    with real_broker(tmp_path, also=section) as broker:
        batch = broker.submit(LINES)
        committed = lambda: broker.batch(batch)["x_broker"]["counts"]["completed"]  # noqa: E731
        broker.until("some lines are committed", lambda: committed() >= 6)
        [machine] = [each for each in broker.machines() if each["state"] == "running"]
        os.kill(machine["pid"], signal.SIGKILL)
        assert committed() < LINES, "it was killed too late to show anything"
        ended = broker.ended(batch)
        assert (ended["status"], ended["request_counts"]["completed"]) == ("completed", LINES)
        answers = [
            json.loads(line) for line in broker.text(f"/v1/files/{ended['output_file_id']}/content").splitlines()
        ]
        assert sorted(each["custom_id"] for each in answers) == sorted(f"line-{n}" for n in range(LINES))
        [check] = [each for each in broker.get("/v1/doctor")["checks"] if each["name"] == "objects"]
        assert check["ok"], check
    pages = s3.client.get_paginator("list_objects_v2").paginate(Bucket=s3.bucket, Prefix=objects["prefix"])
    keys = [each["Key"].removeprefix(objects["prefix"] + "/") for page in pages for each in page["Contents"]]
    parts = [key for key in keys if f"default/{batch}/parts/" in key]
    assert len(parts) >= 2
    bodies = {
        key: s3.client.get_object(Bucket=s3.bucket, Key=f"{objects['prefix']}/{key}")["Body"].read() for key in keys
    }
    assert {key for key, body in bodies.items() if not body.startswith(b"brkseal\x01")} == {".owner", ".store"}, (
        "all is sealed"
    )
    assert all(hashlib.sha256(bodies[key]).hexdigest() in key for key in parts), "by the workers themselves"
    assert not (tmp_path / "data" / "objects").exists(), "nothing lies on the broker's disk"
    agents = "".join(log.read_text(errors="replace") for log in tmp_path.rglob("*.log"))
    assert "X-Amz-Signature" not in agents, "a signed request is a permission and stands in no log"
