"""Policies come into force by two people, and hold at every point."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from broker.api.result_shapes import RetryCreate
from broker.api.retry import _wishes
from broker.compliance.judging import judge
from broker.compliance.tables import Grace
from broker.settings import PathSettings
from broker.tables import Policy
from jobs.clock import db_now
from jobs.tables import Batch
from markets.tables import RentalRow
from tests.support.compliance import (
    DAY_S,
    SECOND_US,
    document,
    in_force,
    lease_under,
    officer,
    pinned,
    repin,
    states,
)
from tests.support.wire_agent import Rent, offer, running_batch

# -- lifecycle


async def test_a_policy_is_in_force_once_another_principal_has_approved_it(server: Any) -> None:
    ann, second_key = await officer(server, "ann"), await officer(server, "ann")
    made = await server.call("POST", "/v1/compliance/policies", key=ann, json={"text": document(), "nodes": ["*"]})
    assert made.json["state"] == "proposed"
    path = f"/v1/compliance/proposals/{made.json['id']}/approve"
    for key in (ann, second_key):  # two keys of one person are one person
        refused = await server.call("POST", path, key=key, json={})
        assert (refused.status, refused.code) == (403, "verdict_refused")
    submitter = await server.key("submitter", project=None, principal="bob")
    assert (await server.call("POST", path, key=submitter, json={})).status == 403
    done = await server.call("POST", path, key=await officer(server, "bob"), json={})
    assert done.json["state"] == "active"
    assert (await server.call("POST", path, key=await officer(server, "cid"), json={})).status == 403


async def test_a_new_version_supersedes_and_nothing_approved_is_edited(server: Any) -> None:
    await in_force(server, document())
    ann = await officer(server, "ann")
    same = await server.call("POST", "/v1/compliance/policies", key=ann, json={"text": document("FR"), "nodes": ["*"]})
    assert (same.status, same.code) == (422, "proposal_refused")
    assert "version 2" in same.json["error"]["message"]
    later = await in_force(server, document("FR", 2))
    assert await states(server) == {"policy p@1": "superseded", "policy p@2": "active"}
    difference = await server.call("GET", f"/v1/compliance/proposals/{later}/diff")
    assert difference.json["against"] == "p@2"
    for table in ("broker_proposal", "broker_verdict"):
        with pytest.raises(DBAPIError, match="never changed or removed"):
            async with server.services.database.transaction() as session:
                await session.execute(text(f"DELETE FROM {table}"))
    with pytest.raises(DBAPIError, match="never changed or removed"):
        async with server.services.database.transaction() as session:
            await session.execute(text("UPDATE broker_proposal SET subject = 'q'"))


async def test_a_policy_holds_from_its_date_on(server: Any) -> None:
    await in_force(server, document(), from_time=int(time.time()) + DAY_S)
    assert await states(server) == {"policy p@1": "approved"}
    server.services.database.clock_offset_us = 2 * DAY_S * SECOND_US
    assert await states(server) == {"policy p@1": "active"}


async def test_break_glass_needs_two_others_and_ends_by_itself(server: Any) -> None:
    await in_force(server, document())
    ann = await officer(server, "ann")
    body = {"policy": "p", "projects": "default", "hours": 2, "reason": "the region burns"}
    made = await server.call("POST", "/v1/compliance/break-glass", key=ann, json=body)
    path = f"/v1/compliance/proposals/{made.json['id']}/approve"
    bob = await officer(server, "bob")
    assert (await server.call("POST", path, key=bob, json={})).json["state"] == "proposed"
    assert (await server.call("POST", path, key=bob, json={})).status == 403
    assert (await server.call("POST", path, key=await officer(server, "cid"), json={})).json["state"] == "active"
    server.services.database.clock_offset_us = 2 * 3600 * SECOND_US + SECOND_US
    assert (await states(server))["break_glass p@None"] == "expired"


async def test_a_key_of_one_project_neither_proposes_nor_audits_for_the_house(server: Any) -> None:
    key = await server.key("compliance", project="default", principal="dora")
    body = {"text": document(), "nodes": ["*"]}
    assert (await server.call("POST", "/v1/compliance/policies", key=key, json=body)).status == 404
    assert (await server.call("GET", "/v1/audit/export", key=key)).status == 404


# -- where it holds


async def test_a_batch_is_held_against_the_policies_in_force_and_its_own_countries_only_narrow(
    server: Any, rent: Rent
) -> None:
    await in_force(server, document("DE"))
    agent, _ = await lease_under(server, rent, residency=["FR"])
    refused = await agent.hello()
    assert (refused.status, refused.code) == (403, "residency_forbidden")


async def test_a_job_may_raise_its_class_and_not_lower_it(server: Any, rent: Rent) -> None:
    rules = "  - {id: no-health, effect: deny, classes: {at_least: health}, when: {country: [DE]}}\n"
    await in_force(server, document("DE", more=rules))
    ann, bob = await officer(server, "ann"), await officer(server, "bob")
    body = {"project": "default", "node": "acme/ml/default", "data_class": "personal"}
    made = await server.call("POST", "/v1/compliance/projects", key=ann, json=body)
    await server.call("POST", f"/v1/compliance/proposals/{made.json['id']}/approve", key=bob, json={})
    for asked, outcome in (("public", 200), ("health", 403)):
        agent, batch = await lease_under(server, rent, data_class=asked)
        async with server.services.database.transaction() as session:
            row = await session.get_one(Batch, batch)
            policy = await session.get_one(Policy, row.policy_hash)
            await session.execute(text("DELETE FROM broker_assignment WHERE batch <> :b"), {"b": batch})
        assert policy.body["data_class"] == ("personal" if asked == "public" else "health")
        assert (await agent.hello()).status == outcome


async def test_data_above_internal_without_any_policy_may_run_nowhere(server: Any, rent: Rent) -> None:
    agent, _ = await lease_under(server, rent, data_class="personal")
    assert (await agent.hello()).status == 403


async def test_running_work_is_judged_by_the_new_policy_and_drained_by_its_deadline(server: Any, rent: Rent) -> None:
    await in_force(server, document("DE"))
    agent, _ = await lease_under(server, rent)
    assert (await agent.hello()).status == 200
    await agent.heartbeat()
    lease = (await agent.lease())["lease"]
    held = {name: lease[name] for name in ("shard_id", "epoch", "nonce")} | {"in_flight": [], "suspects": {}}
    await in_force(server, document("FR", 2), drain_by=int(time.time()) + 3600)
    assert await repin(server) == []  # the approval has pinned it anew
    assert (await agent.heartbeat(leases=[held])).json["lost"] == []  # until the deadline it may finish
    server.services.database.clock_offset_us = 3700 * SECOND_US
    async with server.services.database.transaction() as session:
        await session.execute(text("UPDATE jobs_shard SET lease_expires_us = lease_expires_us + 4000000000"))
        await session.execute(text("UPDATE broker_worker SET seen_us = seen_us + 3700000000"))
    ending = await agent.heartbeat(leases=[held])
    if ending.status == 401:  # its token, too, has ended since; a lease that nobody renews ends by itself
        return
    assert ending.json["lost"] == [lease["shard_id"]]
    assert (await agent.lease())["stop"]


async def test_without_a_deadline_a_lease_that_the_new_policy_forbids_ends_with_the_next_heartbeat(
    server: Any, rent: Rent
) -> None:
    await in_force(server, document("DE"))
    agent, _ = await lease_under(server, rent)
    await agent.hello()
    await agent.heartbeat()
    lease = (await agent.lease())["lease"]
    held = {name: lease[name] for name in ("shard_id", "epoch", "nonce")} | {"in_flight": [], "suspects": {}}
    await in_force(server, document("FR", 2))
    assert await repin(server) == []  # the approval has pinned it anew
    assert (await agent.heartbeat(leases=[held])).json["lost"] == [lease["shard_id"]]
    assert (await agent.lease())["lease"] is None


async def test_a_waiver_lets_one_rule_go_until_it_expires(server: Any, rent: Rent) -> None:
    await in_force(server, document("FR"))
    ann, bob = await officer(server, "ann"), await officer(server, "bob")
    body = {"policy": "p", "rule": "where", "projects": "default", "until": int(time.time()) + 3600, "reason": "a move"}
    made = await server.call("POST", "/v1/compliance/waivers", key=ann, json=body)
    await server.call("POST", f"/v1/compliance/proposals/{made.json['id']}/approve", key=bob, json={})
    agent, _ = await lease_under(server, rent)
    assert (await agent.hello()).status == 200
    await agent.heartbeat()
    assert (await agent.lease())["lease"] is not None
    server.services.database.clock_offset_us = 3601 * SECOND_US
    other = await rent()
    assert (await other.hello()).status == 403


async def test_a_machine_that_calls_from_another_country_is_ended_before_it_gets_anything(
    server: Any, rent: Rent, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from broker.compliance.networks import country_of  # noqa: PLC0415

    table = tmp_path / "networks.csv"
    table.write_text("network,country\n8.8.8.0/24,US\n2001:4860::/32,US\n9.0.0.0/8,DE\n")
    assert [country_of(table, each) for each in ("8.8.8.8", "2001:4860::1", "9.1.1.1", "10.0.0.1", "8.8.9.1", None)] == [
        "US", "US", "DE", None, None, None
    ]  # fmt: skip
    await running_batch(server, offer())
    agent = await rent()

    async def from_us(*_: Any) -> str:
        return "US"

    monkeypatch.setattr("broker.api.worker.observed_country", from_us)
    refused = await agent.hello()
    assert (refused.status, refused.code) == (403, "residency_forbidden")
    assert "calls from an address in US" in refused.json["error"]["message"]


# -- what a reader of the code found


async def test_a_batch_that_named_the_projects_own_rules_is_under_a_later_policy_all_the_same(
    server: Any, rent: Rent
) -> None:
    """`residency: ["internal"]` was a word that meant nothing beside a document: such a batch kept its policy for good."""
    _, batch_id = await lease_under(server, rent, residency=["internal"])
    await in_force(server, document("FR"))
    assert await repin(server) == []  # the approval has pinned it anew
    body = (await pinned(server, batch_id)).body
    assert body["layers"] == ["p@1"] and "internal.token_api" in [rule["id"] for rule in body["rules"]]


async def test_a_raised_class_reaches_what_runs_also_where_no_document_speaks_of_it(server: Any, rent: Rent) -> None:
    _, batch_id = await lease_under(server, rent)
    ann, bob = await officer(server, "ann"), await officer(server, "bob")
    wish = {"project": "default", "node": "org/team/default", "data_class": "health", "reason": "patients"}
    made = await server.call("POST", "/v1/compliance/projects", key=ann, json=wish)
    assert made.status == 200, made.raw
    await server.call("POST", f"/v1/compliance/proposals/{made.json['id']}/approve", key=bob, json={})
    assert await repin(server) == []  # the approval has pinned it anew
    assert (await pinned(server, batch_id)).body["data_class"] == "health"


async def test_a_change_without_a_deadline_takes_back_the_time_that_an_earlier_one_gave(
    server: Any, rent: Rent
) -> None:
    _, batch_id = await lease_under(server, rent)
    await in_force(server, document("FR"), drain_by=int(time.time()) + DAY_S)
    await repin(server)
    async with server.services.database.transaction() as session:
        assert await session.get(Grace, batch_id) is not None
    await in_force(server, document("PL", 2))
    await repin(server)
    async with server.services.database.transaction() as session:
        assert await session.get(Grace, batch_id) is None


async def test_one_person_cannot_take_a_project_out_from_under_its_policies_by_moving_its_team(server: Any) -> None:
    finance = await server.key("finance", project=None, principal="fay")
    assert (await server.call("PUT", "/v1/teams/ml", key=finance, json={"org": "acme"})).status == 200
    assert (await server.call("PUT", "/v1/teams/projects/default", key=finance, json={"team": "ml"})).status == 200
    await in_force(server, document(), nodes=("acme/*",))
    for path, body in (("teams/projects/default", {"team": None}), ("teams/ml", {"org": "other"})):
        refused = await server.call("PUT", f"/v1/{path}", key=finance, json=body)
        assert (refused.status, refused.code) == (422, "policies_would_change"), refused.raw


async def test_of_two_words_about_a_project_the_one_that_was_given_last_counts(server: Any) -> None:
    ann, bob = await officer(server, "ann"), await officer(server, "bob")
    made = []
    for name in ("health", "internal"):
        wish = {"project": "default", "node": "org/team/default", "data_class": name, "reason": "as it is"}
        made.append((await server.call("POST", "/v1/compliance/projects", key=ann, json=wish)).json["id"])
    for proposal in reversed(made):
        await server.call("POST", f"/v1/compliance/proposals/{proposal}/approve", key=bob, json={})
    found = await server.call("GET", "/v1/compliance/proposals")
    states_of = {each["id"]: each["state"] for each in found.json["data"]}
    assert [states_of[each] for each in made] == ["active", "superseded"]


async def test_a_dry_run_judges_a_job_by_its_projects_class_where_it_asks_for_a_lower_one(
    server: Any, rent: Rent
) -> None:
    """A job may only raise its class; the dry run believed the lower one, and told of no refusal."""
    ann, bob = await officer(server, "ann"), await officer(server, "bob")
    wish = {"project": "default", "node": "org/team/default", "data_class": "health", "reason": "patients"}
    made = (await server.call("POST", "/v1/compliance/projects", key=ann, json=wish)).json["id"]
    await server.call("POST", f"/v1/compliance/proposals/{made}/approve", key=bob, json={})
    await in_force(server, document("DE"))
    agent, _ = await lease_under(server, rent, data_class="public")
    await agent.hello()
    await agent.heartbeat()
    assert (await agent.lease())["lease"]
    rules = "  - {id: no-health, effect: deny, classes: {at_least: health}, when: {country: [DE]}}\n"
    body = {"text": document("DE", 2, more=rules), "nodes": ["*"]}
    assert (await server.call("POST", "/v1/compliance/dry-run", json=body)).json["refused"] == 1


async def test_a_retry_does_not_lower_the_class_of_what_is_done_again(server: Any) -> None:
    made = await server.new_batch(lines=1, x_broker={"on_infeasible": "queue", "data_class": "health"})
    async with server.services.database.transaction() as session:
        await session.execute(text("UPDATE jobs_batch SET status = 'failed'"))
        batch = await session.get_one(Batch, made["id"])
    for asked, expected in (("internal", "health"), ("secret", "secret"), (None, "health")):
        body = RetryCreate.model_validate({"x_broker": {"data_class": asked}})
        assert _wishes(batch, body, 0).data_class == expected


@pytest.mark.parametrize("path", ["storage", "checkpoint", "log", "registry", "control_plane"])
async def test_every_data_path_is_judged_when_work_is_handed_out(server: Any, rent: Rent, path: str) -> None:
    """In the US it is refused, unstated it is refused, in Germany it is allowed: each path for itself."""
    rule = f"  - {{id: path, effect: require, on: [{path}], when: {{country: [DE]}}}}\n"
    await in_force(server, document("DE", more=rule))
    agent, batch_id = await lease_under(server, rent)
    words = []
    for country in ("DE", "US", None):
        stated = PathSettings(country=country, evidence="said so") if country else None
        settings = server.services.settings
        place = {"storage": "objects", "checkpoint": "objects"}.get(path)
        if place:
            settings = settings.model_copy(update={"objects": settings.objects.model_copy(update={"country": country})})
        else:
            settings = settings.model_copy(
                update={"residency": settings.residency.model_copy(update={path: stated or PathSettings()})}
            )
        services = replace(server.services, settings=settings)
        async with server.services.database.transaction() as session:
            rental, batch = await session.get_one(RentalRow, agent.rental), await session.get_one(Batch, batch_id)
            words.append((await judge(session, services, rental, batch, await db_now(session))).decision.outcome)
    assert words == ["allow", "deny", "deny"]


async def test_officers_of_the_house_get_their_keys_by_the_api_and_an_administrator_of_one_project_makes_none(
    server: Any,
) -> None:
    """No door made such a key but the first start: nobody could approve what another had proposed."""
    body = {"principal": "ann", "roles": ["compliance"], "all_projects": True}
    made = await server.call("POST", "/v1/admin/keys", json=body)
    assert (made.status, made.json["project"]) == (200, None)
    listed = await server.call("GET", "/v1/compliance/proposals", key=made.json["key"])
    assert listed.status == 200
    both = await server.call("POST", "/v1/admin/keys", json=body | {"project": "default"})
    assert both.status == 400
    own = await server.key("admin", project="default", principal="dora")
    assert (await server.call("POST", "/v1/admin/keys", key=own, json=body)).status == 403
