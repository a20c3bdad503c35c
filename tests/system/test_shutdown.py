"""SIGTERM with work in flight: what was begun ends, what is new is sent elsewhere, and nothing is lost."""

from __future__ import annotations

import http.client
import json
import os
import signal
import sqlite3
from contextlib import closing
from pathlib import Path
from urllib.parse import urlsplit

from tests.support.opened import opened_object
from tests.support.real_broker import RealBroker

BOUNDARY = "b0undary"
CONTENT = b'{"custom_id": "a"}\n'


def form() -> bytes:
    head = (
        f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n--{BOUNDARY}\r\n'
        'Content-Disposition: form-data; name="file"; filename="in.jsonl"\r\n\r\n'
    )
    return head.encode() + CONTENT + f"\r\n--{BOUNDARY}--\r\n".encode()


def asked(broker: RealBroker, method: str, path: str) -> tuple[int, dict[str, str], bytes]:
    """Status, headers, body; (0, …) when nobody listens any more."""
    connection = http.client.HTTPConnection(urlsplit(broker.url).netloc, timeout=60)
    try:
        connection.request(method, path, headers={"Authorization": f"Bearer {broker.key}", "Content-Length": "0"})
        answer = connection.getresponse()
        return answer.status, dict(answer.getheaders()), answer.read()
    except ConnectionError:
        return 0, {}, b""
    finally:
        connection.close()


def test_an_upload_in_flight_ends_and_new_work_is_sent_elsewhere(tmp_path: Path) -> None:
    broker = RealBroker(tmp_path, settings="http.shutdown_timeout_s = 60\n")
    upload = http.client.HTTPConnection(urlsplit(broker.url).netloc, timeout=60)
    upload.putrequest("POST", "/v1/files")
    upload.putheader("Authorization", f"Bearer {broker.key}")
    upload.putheader("Content-Type", f"multipart/form-data; boundary={BOUNDARY}")
    upload.putheader("Content-Length", str(len(form())))
    upload.endheaders(form()[:-40])
    broker.until("the upload has begun", lambda: "broker_http_requests_open 2.0" in broker.text("/metrics"))

    os.kill(broker.pid, signal.SIGTERM)
    refused = broker.until(
        "new work is refused", lambda: (got := asked(broker, "POST", "/v1/quotes"))[0] == 503 and got
    )
    assert int(refused[1]["Retry-After"]) > 0
    assert json.loads(refused[2])["error"]["code"] == "stopping"
    assert asked(broker, "GET", "/readyz")[0] == 503, "a load balancer would go on sending requests"
    assert asked(broker, "GET", "/v1/batches")[0] == 200, "reading goes on"

    upload.send(form()[-40:])
    answer = upload.getresponse()
    assert answer.status == 200
    file = json.loads(answer.read())
    assert broker.stop() == 0
    stored = next((broker.data / "objects").rglob(file["id"]))
    with closing(sqlite3.connect(broker.data / "broker.db")) as rows:
        opened = opened_object(
            lambda query: rows.execute(query).fetchall(),
            (broker.data / "kek").read_bytes(),
            f"default/files/{file['id']}",
            stored.read_bytes(),
        )
    assert opened == CONTENT
    assert '"broker.stopping"' in (tmp_path / "broker.log").read_text()
