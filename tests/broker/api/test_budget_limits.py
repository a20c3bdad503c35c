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
    assert member.json == {"team": "ml", "approval": None}
    assert (await put(server, house, scope="team:ml", tokens=1_000_000, window="month")).json["budget"][
        "unit"
    ] == "tokens"
    own = await server.key("finance", project="default")
    assert (await server.call("GET", "/v1/budgets/limits", key=own)).json["data"] == []
    assert (await server.call("PUT", "/v1/teams/ml", key=own, json={"org": "mine"})).status == 404
    assert (await server.call("GET", "/v1/teams", key=own)).json["data"] == [
        {"name": "ml", "org": "acme", "projects": ["default"], "approval": None}
    ]


async def test_who_approves_a_raise_is_shown_all_that_it_changes(server: Any) -> None:
    """The approval named the limit alone, and an hour without limit and `alert_only` came with it."""
    mine, hers = await server.key("finance", principal="ada"), await server.key("finance", principal="grace")
    await put(server, mine, scope="project:default", usd="10", per_hour_usd="2")
    await put(server, mine, scope="project:default", usd="11", mode="alert_only", emails=["a@example.com"])
    [change] = (await server.call("GET", "/v1/budgets/changes", key=hers)).json["data"]
    assert change["reason"] == (
        "the limit is raised: limit $10 → $11; an hour $2 → unlimited; mode enforce → alert_only; "
        "letters to nobody → a@example.com"
    )


async def test_a_raise_does_not_undo_what_was_narrowed_after_it_was_proposed(server: Any) -> None:
    """The approval wrote everything as it was when it was proposed: also the mode and the hour that were narrowed since."""
    mine, hers = await server.key("finance", principal="ada"), await server.key("finance", principal="grace")
    await put(server, mine, scope="project:default", usd="10")
    raised = (await put(server, mine, scope="project:default", usd="20")).json
    await put(server, hers, scope="project:default", usd="5", per_hour_usd="1")
    answer = await server.call("POST", f"/v1/budgets/changes/{raised['approval']}/approve", key=hers)
    assert (answer.status, answer.code) == (422, "change_stale")
    [limit] = (await server.call("GET", "/v1/budgets/limits", key=hers)).json["data"]
    assert (limit["limit"], limit["per_hour_usd"]) == ("5", "1")
    assert (await server.call("POST", f"/v1/budgets/changes/{raised['approval']}/reject", key=hers)).status == 200


async def test_nobody_takes_a_project_or_a_team_out_from_under_a_limit_alone(server: Any) -> None:
    """Moving it was as good as a raise, and one person could do it."""
    mine = await server.key("finance", project=None, principal="ada")
    hers = await server.key("finance", project=None, principal="grace")
    await server.key("submitter", principal="bob")  # makes the project
    for team, org in (("ml", "acme"), ("free", "other")):
        await server.call("PUT", f"/v1/teams/{team}", key=mine, json={"org": org})
    await server.call("PUT", "/v1/teams/projects/default", key=mine, json={"team": "ml"})
    await put(server, mine, scope="org:acme", usd="1")
    await put(server, mine, scope="team:ml", usd="1")
    for path, wish in (
        ("/v1/teams/ml", {"org": "other"}),
        ("/v1/teams/projects/default", {"team": "free"}),
        ("/v1/teams/projects/default", {"team": None}),
    ):
        asked = await server.call("PUT", path, key=mine, json=wish)
        assert asked.json.get("approval"), (wish, asked.json)
        tree = (await server.call("GET", "/v1/teams", key=mine)).json["data"]
        assert {"name": "ml", "org": "acme", "projects": ["default"], "approval": None} in tree
        one = f"/v1/teams/moves/{asked.json['approval']}"
        assert (await server.call("POST", f"{one}/approve", key=mine)).code == "four_eyes"
        assert (await server.call("POST", f"{one}/reject", key=hers)).json["outcome"] == "rejected"
    asked = await server.call("PUT", "/v1/teams/projects/default", key=mine, json={"team": "free"})
    late = await server.call("PUT", "/v1/teams/projects/default", key=mine, json={"team": None})
    [first, second] = (await server.call("GET", "/v1/teams/moves", key=hers)).json["data"]
    assert first["reason"].startswith(
        "project:default from ml to free: the budgets of org:acme, team:ml would not hold"
    )
    assert (await server.call("POST", f"/v1/teams/moves/{first['id']}/approve", key=hers)).json["outcome"] == "approved"
    assert (await server.call("POST", f"/v1/teams/moves/{first['id']}/approve", key=hers)).code == "already_decided"
    assert second["id"] == late.json["approval"]
    assert (await server.call("POST", f"/v1/teams/moves/{second['id']}/approve", key=hers)).code == "move_stale"
    back = await server.call("PUT", "/v1/teams/projects/default", key=mine, json={"team": "ml"})
    assert back.json == {"team": "ml", "approval": None}, "what only narrows waits for nobody"
