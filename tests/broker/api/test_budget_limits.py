"""Budgets over HTTP: a raise waits for another person, a limit for nobody; the tree is the house's."""

from __future__ import annotations

from typing import Any


async def put(server: Any, key: str, **wish: Any) -> Any:
    return await server.call("PUT", "/v1/budgets/limits", key=key, json=wish)


async def test_a_raise_waits_for_another_person_and_not_for_another_key_of_the_same(server: Any) -> None:
    mine = await server.key("finance", principal="ada")
    other_key = await server.key("finance", principal="ada")
    hers = await server.key("finance", principal="grace")
    made = (await put(server, mine, scope="project:default", usd="10")).json
    assert (made["approval"], made["budget"]["limit"], made["budget"]["percent"]) == (None, "10", 0)
    raised = (await put(server, mine, scope="project:default", usd="20")).json
    assert raised["budget"]["limit"] == "10", "until it is approved"
    path = f"/v1/budgets/changes/{raised['approval']}/approve"
    for key in (mine, other_key):
        assert (await server.call("POST", path, key=key)).code == "four_eyes"
    assert (await server.call("POST", path, key=hers)).json["limit"] == "20"
    assert (await server.call("POST", path, key=hers)).code == "already_decided"
    narrowed = (await put(server, mine, scope="project:default", usd="5")).json
    assert (narrowed["approval"], narrowed["budget"]["limit"]) == (None, "5")
    entries = (await server.call("GET", "/v1/ledger/entries?kind=budget.grant", key=mine)).json["entries"]
    assert [each["postings"][0]["amount"] for each in entries] == ["10", "10", "-15"]


async def test_what_is_no_node_or_no_amount_is_refused_with_what_is_meant(server: Any) -> None:
    key = await server.key("finance", principal="ada")
    assert (await put(server, key, scope="project:other", usd="1")).code == "scope_not_found"
    for wish, code in (
        ({"scope": "planet:earth", "usd": "1"}, "invalid_value"),
        ({"scope": "team:nobody", "usd": "1"}, "scope_not_found"),
        ({"scope": "batch:batch_none", "usd": "1"}, "scope_not_found"),
        ({"scope": "project:default"}, "invalid_value"),
        ({"scope": "project:default", "usd": "1", "tokens": 5}, "invalid_value"),
        ({"scope": "tag:default/a=b", "usd": "1", "window": "month"}, "invalid_value"),
        ({"scope": "tag:default", "usd": "1"}, "invalid_value"),
        ({"scope": "project:default", "usd": "1", "emails": ["a@example.com\nBcc: b@example.com"]}, "invalid_value"),
        ({"scope": "project:default", "usd": "1", "emails": ["a@example.com\n"]}, "invalid_value"),
        ({"scope": "project:default", "usd": "1", "emails": ["nobody"]}, "invalid_value"),
    ):
        assert (await put(server, key, **wish)).code == code, wish


async def test_teams_make_a_tree_and_a_key_of_one_project_sees_its_own_part(server: Any) -> None:
    house = "admin"
    assert (await server.call("PUT", "/v1/teams/ml", key=house, json={"org": "acme"})).json["projects"] == []
    member = await server.call("PUT", "/v1/teams/projects/default", key=house, json={"team": "ml"})
    assert member.json == {"team": "ml"}
    assert (await put(server, house, scope="team:ml", tokens=1_000_000, window="month")).json["budget"][
        "unit"
    ] == "tokens"
    own = await server.key("finance", project="default")
    assert (await server.call("GET", "/v1/budgets/limits", key=own)).json["data"] == []
    assert (await server.call("PUT", "/v1/teams/ml", key=own, json={"org": "mine"})).status == 404
    assert (await server.call("GET", "/v1/teams", key=own)).json["data"] == [
        {"name": "ml", "org": "acme", "projects": ["default"]}
    ]
