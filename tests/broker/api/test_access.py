"""Who may call what: generated from the registry, so that a new route cannot be forgotten."""

from __future__ import annotations

import json
from typing import Any, get_args

import pytest

from broker.keys import Role

WORKER_PATHS = ("/worker/v1/",)


def body_for(each: Any) -> dict[str, Any]:
    return {"data": b"{}", "headers": {"Content-Type": "application/json"}} if each.has_json_body else {}


async def test_without_a_key_every_guarded_route_is_401(server: Any) -> None:
    guarded = [each for each in server.routes if each.access in ("key", "worker", "bootstrap")]
    assert len(guarded) > 20
    for each in guarded:
        if each.access == "bootstrap":
            continue  # its body names the rental first; see test_worker_wire
        answer = await server.call(each.method, server.concrete(each), key=None, **body_for(each))
        assert (answer.status, answer.json["error"]["type"]) == (401, "authentication_error"), each.path
        wrong = await server.call(each.method, server.concrete(each), key="brk_nonsense", **body_for(each))
        assert wrong.status == 401, each.path


async def test_a_key_without_the_role_is_403_on_every_route(server: Any) -> None:
    for role in get_args(Role):
        key = await server.key(role)
        for each in server.routes:
            if each.access != "key":
                continue
            answer = await server.call(each.method, server.concrete(each), key=key, **body_for(each))
            if role in each.roles:
                assert answer.status not in (401, 403), f"{role} on {each.method} {each.path}: {answer.raw[:200]}"
            else:
                assert (answer.status, answer.code) == (403, "role_required"), f"{role} on {each.method} {each.path}"


async def test_an_api_key_does_not_open_the_worker_wire(server: Any) -> None:
    for each in server.routes:
        if each.access == "worker":
            answer = await server.call(each.method, server.concrete(each), **body_for(each))
            assert answer.status == 401, each.path


async def test_an_admin_names_the_project_with_the_header(server: Any) -> None:
    key = await server.key("submitter", project="mine")
    batch = await server.new_batch(key=key)
    path = f"/v1/batches/{batch['id']}"
    assert (await server.call("GET", path)).status == 404, "without a header an admin looks at the project `default`"
    assert (await server.call("GET", path, headers={"openai-project": "mine"})).status == 200
    unknown = await server.call("GET", path, headers={"openai-project": "nowhere"})
    assert (unknown.status, unknown.code) == (404, "project_not_found")


async def test_a_projects_key_cannot_name_another_project(server: Any) -> None:
    await server.key("submitter", project="theirs")
    mine = await server.key("submitter", "finance", project="mine")
    assert (await server.call("GET", "/v1/batches", key=mine, headers={"openai-project": "mine"})).status == 200
    answer = await server.call("GET", "/v1/batches", key=mine, headers={"openai-project": "theirs"})
    assert (answer.status, answer.code) == (404, "project_not_found")
    assert (await server.call("GET", "/v1/ledger/entries?project=theirs", key=mine)).status == 404
    assert (await server.call("GET", "/v1/ledger/export.csv?project=theirs", key=mine)).status == 404


@pytest.mark.parametrize("header", ["brk_", "Basic abc", "Bearer", "Bearer ", "Bearer a b", "bearer x" * 500])
async def test_a_strange_authorization_header_is_401(server: Any, header: str) -> None:
    answer = await server.call("GET", "/v1/models", key=None, headers={"Authorization": header})
    assert answer.status == 401
    assert answer.headers["WWW-Authenticate"].startswith("Bearer")


async def test_a_revoked_key_opens_nothing(server: Any) -> None:
    made = (await server.call("POST", "/v1/admin/keys", json={"principal": "ada", "roles": ["viewer"]})).json
    assert (await server.call("GET", "/v1/batches", key=made["key"])).status == 200
    for _ in range(2):
        assert (await server.call("DELETE", f"/v1/admin/keys/{made['id']}")).json == {"id": made["id"], "revoked": True}
    assert (await server.call("GET", "/v1/batches", key=made["key"])).status == 401
    assert (await server.call("DELETE", "/v1/admin/keys/key_none")).status == 404


async def test_keys_made_over_http_work_and_are_shown_once(server: Any) -> None:
    body = {"principal": "ada", "project": "eu-team", "roles": ["viewer"], "expires_in_s": 60}
    made = await server.call("POST", "/v1/admin/keys", json=body)
    assert made.status == 200
    assert made.json["project"] == "eu-team"
    assert (await server.call("GET", "/v1/batches", key=made.json["key"])).status == 200
    assert (await server.call("POST", "/v1/admin/keys", key=made.json["key"], json=body)).status == 403
    for wrong in (
        {**body, "roles": []},
        {**body, "roles": ["king"]},
        {**body, "project": "Not A Name"},
        {**body, "x": 1},
    ):
        assert (await server.call("POST", "/v1/admin/keys", json=wrong)).status == 400, json.dumps(wrong)
