"""A project's own limits hold where they are set, are named where they refuse, and go back to the broker's."""

from __future__ import annotations

from typing import Any

import pytest

from broker.control.validate import Validator

PATH = "/v1/admin/projects/default"


async def patch(server: Any, **body: Any) -> Any:
    answer = await server.call("PATCH", PATH, json=body)
    assert answer.status == 200, answer.raw
    return answer.json


async def test_settings_are_shown_changed_and_given_back(server: Any) -> None:
    before = (await server.call("GET", PATH)).json
    assert (before["own"], before["approve_above_usd"], before["limits"]["max_lines"]) == ([], None, 50_000)
    changed = await patch(server, limits={"max_lines": 7, "max_n": 2}, approve_above_usd="12.50")
    assert (changed["limits"]["max_lines"], changed["limits"]["max_n"]) == (7, 2)
    assert (changed["approve_above_usd"], changed["own"]) == ("12.5", ["max_lines", "max_n", "approve_above_usd"])
    again = await patch(server, limits={"max_n": 3})
    assert (again["limits"]["max_lines"], again["limits"]["max_n"], again["approve_above_usd"]) == (7, 3, "12.5")
    assert await patch(server, limits={"max_lines": None, "max_n": None}, approve_above_usd=None) == before


@pytest.mark.parametrize("body", [{"limits": {"max_lines": 0}}, {"limits": {"lines": 5}}, {"approve_above_usd": "-1"}])
async def test_a_wrong_limit_is_refused(server: Any, body: dict[str, Any]) -> None:
    assert (await server.call("PATCH", PATH, json=body)).status == 400
    assert (await server.call("GET", "/v1/admin/projects/nowhere")).status == 404


async def test_a_file_and_an_upload_above_the_projects_limit_are_refused_by_its_name(server: Any) -> None:
    await patch(server, limits={"max_file_bytes": 1000, "max_upload_bytes": 2000})
    with pytest.raises(AssertionError, match="max_file_bytes"):
        await server.upload(b"x" * 1001)
    body = {"bytes": 2001, "filename": "a", "mime_type": "application/jsonl", "purpose": "batch"}
    large = await server.call("POST", "/v1/uploads", json=body)
    assert large.status == 400
    assert "max_upload_bytes" in large.json["error"]["message"]


@pytest.mark.parametrize(("name", "value"), [("max_lines", 2), ("max_line_bytes", 100), ("max_output_tokens", 15)])
async def test_a_batch_above_the_projects_limit_fails_by_its_name_and_other_projects_have_theirs(
    server: Any, name: str, value: int
) -> None:
    await patch(server, limits={name: value})
    other = await server.key("submitter", project="other")
    here, there = await server.new_batch(), await server.new_batch(key=other)
    await Validator(server.services).step()
    failed = (await server.call("GET", f"/v1/batches/{here['id']}")).json
    assert failed["status"] == "failed"
    assert name in failed["errors"]["data"][0]["message"]
    assert (await server.call("GET", f"/v1/batches/{there['id']}", key=other)).json["status"] == "in_progress"
