"""Health, metrics and the doctor."""

from __future__ import annotations

import time
from typing import Any

from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import text

from broker.control.loops import LoopState


async def test_a_living_process_says_so_without_a_key(server: Any) -> None:
    assert (await server.call("GET", "/healthz", key=None)).json == {"status": "ok", "problems": [], "leads": True}
    assert (await server.call("GET", "/readyz", key=None)).status == 200


async def test_readiness_names_a_loop_that_is_late_or_has_not_run(server: Any) -> None:
    server.loops["plan"] = LoopState(5.0, runs=3, last_end=time.monotonic() - 1000)
    server.loops["poll"] = LoopState(60.0)
    answer = await server.call("GET", "/readyz", key=None)
    assert answer.status == 503
    assert answer.json["status"] == "unready"
    assert [problem.split()[1] for problem in answer.json["problems"]] in (["plan", "poll"], ["poll", "plan"])
    doctor = (await server.call("GET", "/v1/doctor")).json
    assert doctor["ok"] is False


async def test_readiness_names_a_schema_of_another_version(server: Any) -> None:
    async with server.services.database.transaction() as session:
        await session.execute(text("UPDATE alembic_version SET version_num = '0000'"))
    answer = await server.call("GET", "/readyz", key=None)
    assert answer.status == 503
    assert "0000" in answer.json["problems"][0]


async def test_metrics_count_state_without_ids(server: Any) -> None:
    batch = await server.new_batch()
    server.loops["plan"] = LoopState(5.0, runs=3, failures=1, seconds=0.5)
    await server.call("GET", f"/v1/batches/{batch['id']}")
    answer = await server.call("GET", "/metrics")
    assert answer.status == 200
    assert answer.headers["Content-Type"].startswith("text/plain")
    exposed = answer.raw.decode()
    assert batch["id"] not in exposed
    samples = {
        (sample.name, *sorted(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(exposed)
        for sample in family.samples
    }
    assert samples["broker_batches", "validating"] == 1
    assert samples["broker_lines_total", "completed"] == 0
    assert samples["broker_tokens_total", "output"] == 0
    assert samples[("broker_held_usd",)] == 0
    assert samples["broker_loop_runs_total", "plan"] == 3
    assert samples["broker_loop_failures_total", "plan"] == 1
    counted = {key[1:]: value for key, value in samples.items() if key[0] == "broker_http_requests_total"}
    assert counted[tuple(sorted(["GET", "/v1/batches/{batch_id}", "200"]))] == 1


async def test_the_doctor_looks_at_everything_and_says_how_to_mend(server: Any) -> None:
    answer = (await server.call("GET", "/v1/doctor")).json
    by_name = {check["name"]: check for check in answer["checks"]}
    assert {"database", "loops", "objects", "model tiny", "workers", "ledger"} <= set(by_name)
    assert by_name["database"]["ok"]
    assert by_name["objects"]["ok"]
    assert by_name["ledger"]["ok"]
    assert not by_name["model tiny"]["ok"], "no offer can run it yet"
    assert by_name["model tiny"]["mend"]
    assert {"disk", "clock", "webhooks"} <= set(by_name)
    assert by_name["clock"]["state"] == "ok"
    assert all(check["mend"] for check in answer["checks"] if not check["ok"])
