"""The official Node client verifies what the deliver loop sends."""

from __future__ import annotations

import json
import os
import subprocess
import time
from pathlib import Path

import pytest

from broker.webhook_sender import Message, signed_headers

pytestmark = pytest.mark.conformance

FOLDER = Path(__file__).parent / "node"
NEW, EARLIER = (
    "whsec_bmV3IHNlY3JldCBvZiAzMiBieXRlcywgbm8gbW9yZSE=",
    "whsec_b2xkIHNlY3JldCBvZiAzMiBieXRlcywgbm8gbW9yZSE=",
)


@pytest.mark.parametrize("secret", [NEW, EARLIER])
def test_the_node_client_unwraps_a_delivery_with_each_of_its_secrets(secret: str) -> None:
    body = '{"id":"evt_1","object":"event","type":"batch.completed","created_at":1,"data":{"id":"batch_ü"}}'
    headers = signed_headers(Message("evt_1", body.encode()), [NEW, EARLIER], time.time_ns() // 1000)
    delivery = json.dumps({"headers": headers, "body": body, "secret": secret})
    environment = {**os.environ, "DELIVERY": delivery}
    ran = subprocess.run(
        ["node", "unwrap.mjs"], cwd=FOLDER, env=environment, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr[-2000:]
    told = json.loads(ran.stdout.splitlines()[-1])
    assert told == {"event": json.loads(body), "forged": "InvalidWebhookSignatureError"}
