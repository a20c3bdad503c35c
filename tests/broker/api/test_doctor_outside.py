"""What the doctor says of certificates, other people's clocks, weights, quotas and projects' credentials."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from broker.api import outside
from broker.settings import HttpSettings, ObjectSettings, Settings
from jobs.clock import db_now
from markets import price_book
from markets.offer import QuotaShare
from tests.support.tls_files import server_certificate
from tests.support.wire_agent import offer
from workers.profile import ModelProfile

NOW = datetime.now(UTC)


def states(checks: list[Any]) -> dict[str, str]:
    return {each.name: each.state for each in checks}


def test_a_certificate_that_ends_soon_is_told_before_and_one_that_cannot_be_read_is_not_in_order(
    tmp_path: Path,
) -> None:
    http = server_certificate(tmp_path, days=90)
    ends = outside.x509.load_pem_x509_certificate((tmp_path / "tls.pem").read_bytes()).not_valid_after_utc
    for at, state in ((ends - timedelta(days=60), "ok"), (ends - timedelta(days=2), "warn"), (ends, "fail")):
        assert states(outside.certificates(http, "https://127.0.0.1", None, at)) == {"certificate of the server": state}
    (early,) = outside.certificates(http, None, None, ends - timedelta(days=100))
    assert early.state == "fail" and "begins at" in early.found
    gone = HttpSettings(tls_certificate=tmp_path / "gone.pem", tls_key=tmp_path / "tls.key")
    (told,) = outside.certificates(gone, None, None, NOW)
    assert told.state == "fail" and "gone.pem" in told.found


@pytest.mark.parametrize(
    ("host", "dialled", "is_its"),
    [
        ("127.0.0.1", "https://127.0.0.1:8443", True),
        ("broker.example.com", "https://Broker.example.com:8443/below", True),
        ("*.example.com", "https://broker.example.com", True),
        ("*.example.com", "https://a.broker.example.com", False),  # a star is one label
        ("*.example.com", "https://example.com", False),
        ("broker.example.com", "https://127.0.0.1", False),  # no public_url: workers are told the listening address
        ("broker.example.com", "https://broker.example.org", False),
    ],
)
def test_a_certificate_of_another_host_than_workers_dial_is_not_in_order(
    host: str, dialled: str, is_its: bool, tmp_path: Path
) -> None:
    """Each machine was rented, booted and paid for, and then could not say hello."""
    found = states(outside.certificates(server_certificate(tmp_path, host=host), dialled, None, NOW))
    assert found.get("name of the server") == (None if is_its else "fail")


@pytest.fixture
async def clock_of_an_hour_ago() -> Any:
    async def late(request: web.Request) -> web.Response:
        return web.Response(headers={"Date": format_datetime(datetime.now(UTC) - timedelta(hours=1), usegmt=True)})

    application = web.Application()
    application.router.add_route("*", "/{path:.*}", late)
    runner = web.AppRunner(application)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    await runner.cleanup()


async def test_a_clock_that_is_an_hour_off_the_stores_is_not_in_order(
    clock_of_an_hour_ago: str, tmp_path: Path
) -> None:
    store = ObjectSettings(kind="s3", bucket="b", endpoint=clock_of_an_hour_ago)
    urls = outside.spoken_to(Settings(data=tmp_path, markets=("local",), objects=store), ["http://127.0.0.1:1/"])
    assert set(urls) == {"objects", "127.0.0.1"}
    (told,) = await outside.clocks(urls)  # whoever does not answer is told by his market
    assert (told.name, told.state) == ("clock of objects", "fail")
    assert "3600 s behind" in told.found or "3599 s behind" in told.found


def test_weights_that_this_machine_should_have_are_looked_for(tmp_path: Path) -> None:
    there, empty = tmp_path / "model.gguf", tmp_path / "empty"
    there.write_bytes(b"x")
    empty.mkdir()
    models = {
        name: ModelProfile(id=name, engine="llamacpp", weights=weights, launches=("process",))
        for name, weights in (
            ("there", str(there)), ("gone", str(tmp_path / "gone.gguf")), ("empty", str(empty)), ("fetched", "catalogue:x"),
        )
    }  # fmt: skip
    models["hub"] = replace(models["there"], id="hub", weights="org/name")  # the engine fetches it
    assert states(outside.weights(models, tmp_path / "cache")) == {
        "weights of there": "ok",
        "weights of gone": "warn",
        "weights of empty": "warn",
        "weights of fetched": "warn",
        "cache": "ok",
    }


async def test_quotas_that_are_used_up_and_keys_that_are_refused_are_shown_to_whom_they_concern(server: Any) -> None:
    async def opener(values: Any, mark: str) -> Any:
        raise AssertionError("the doctor opens nothing")

    server.services.accounts.openers = {"aws": opener}
    values = {"values": {"access_key_id": "AKIA", "secret_access_key": "x"}}
    mine, theirs = await server.key("operator", project="mine"), await server.key("operator", project="theirs")
    assert (await server.call("POST", "/v1/credentials/aws", key=mine, json=values)).status == 200
    limited = replace(offer(), quota=QuotaShare("eu/g", 4, 0, "vCPU"))
    async with server.services.database.transaction() as session:
        now_us = await db_now(session)
        await price_book.store_offers(session, "sandbox", [limited], now_us=now_us)
        await price_book.poll_failed(session, "aws~mine", error="not_authorized: AuthFailure", now_us=now_us)
    for key, sees in (("admin", True), (mine, True), (theirs, False)):
        checks = {each["name"]: each for each in (await server.call("GET", "/v1/doctor", key=key)).json["checks"]}
        assert checks["quota eu/g"]["state"] == "warn"
        assert ("credentials of mine at aws" in checks) is sees
        assert not sees or checks["credentials of mine at aws"]["state"] == "fail"
        assert "certificates of workers" in checks
