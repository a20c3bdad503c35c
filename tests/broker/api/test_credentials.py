"""Provider credentials over the API: values go in, and nothing of them comes out of any route."""

from __future__ import annotations

from typing import Any

import pytest

VALUES = {"access_key_id": "AKIA-canary-8c1f", "secret_access_key": "canary-wJalr-77aa"}


async def test_what_was_kept_is_the_adapters_and_nobody_elses(server: Any) -> None:
    operator = await server.key("operator", project="mine", principal="ada")
    kept = await server.call("POST", "/v1/credentials/aws", key=operator, json={"values": VALUES})
    assert (kept.status, kept.json["names"], kept.json["version"]) == (200, sorted(VALUES), 1)
    again = await server.call("POST", "/v1/credentials/aws", key=operator, json={"values": VALUES})
    assert (again.json["version"], again.json["updated_by"]) == (2, "ada")
    shown = await server.call("GET", "/v1/credentials", key=operator)
    assert [each["market"] for each in shown.json["data"]] == ["aws"]
    for answer in (kept, again, shown):
        assert b"canary" not in answer.raw
    given = await server.services.credentials.for_project("mine", "aws")
    assert {name: value.get_secret_value() for name, value in given.items()} == VALUES
    theirs = await server.key("operator", project="theirs")
    assert (await server.call("GET", "/v1/credentials", key=theirs)).json["data"] == []
    foreign = await server.call("DELETE", "/v1/credentials/aws", key=theirs)
    missing = await server.call("DELETE", "/v1/credentials/gcp", key=theirs)
    assert (foreign.status, missing.status) == (404, 404)
    assert foreign.raw.replace(b"aws", b"gcp") == missing.raw
    assert (await server.call("DELETE", "/v1/credentials/aws", key=operator)).status == 200
    assert await server.services.credentials.for_project("mine", "aws") is None


@pytest.mark.parametrize(
    "body",
    [
        {"values": {"access_key_id": 5550123}},  # a number where text belongs
        {"values": {"canary-AKIA": "x"}},  # the value where the name belongs
        {"values": {"canary-AKIA": ["x"]}},
        {"values": {"key": ""}},
        {"values": {"key": "canary" * 4000}},
        {"values": "canary"},
        {"values": {}},
        {"canary": 1, "values": VALUES},
        {"values": {f"n{n}": "canary" for n in range(33)}},
    ],
)
async def test_what_is_wrong_with_credentials_is_told_without_them(server: Any, body: dict[str, Any]) -> None:
    answer = await server.call("POST", "/v1/credentials/aws", json=body)
    assert answer.status == 400
    assert b"canary" not in answer.raw
    assert b"5550123" not in answer.raw


async def test_the_vault_is_for_administrators_of_all_projects(server: Any) -> None:
    await server.call("POST", "/v1/credentials/aws", json={"values": VALUES})
    standing = (await server.call("POST", "/v1/admin/vault/rewrap")).json
    assert standing["rewrapped"] == 0
    assert [(kek["data_keys"], kek["current"], kek["here"]) for kek in standing["keks"]] == [(1, True, True)]
    assert (await server.call("GET", "/v1/admin/vault")).json["keks"] == standing["keks"]
    admin = await server.key("admin", project="mine")
    assert (await server.call("POST", "/v1/admin/vault/rewrap", key=admin)).status == 404
