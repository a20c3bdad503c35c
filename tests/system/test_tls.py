"""A broker with TLS of its own, and real agents that it knows by their certificates."""

from __future__ import annotations

import sqlite3
import ssl
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from tests.support.real_broker import real_broker
from tests.support.tls_files import server_certificate


def test_a_batch_is_done_over_mutual_tls(tmp_path: Path) -> None:
    http = server_certificate(tmp_path)
    more = (
        f'\n[http]\ntls_certificate = "{http.tls_certificate}"\ntls_key = "{http.tls_key}"\ntls_ca = "{http.tls_ca}"\n'
    )
    with real_broker(tmp_path, also=more) as broker:
        assert broker.url.startswith("https://127.0.0.1:")
        batch = broker.submit(12)
        assert broker.ended(batch)["status"] == "completed"
        with pytest.raises(urllib.error.URLError):
            urllib.request.urlopen(f"{broker.url}/healthz", context=ssl.create_default_context())
    with sqlite3.connect(broker.data / "broker.db") as database:
        rows = database.execute("SELECT rental, revoked_reason FROM broker_certificate").fetchall()
    assert rows
    assert all(reason and reason.startswith("goodbye") for _, reason in rows), rows
