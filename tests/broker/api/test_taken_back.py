"""What was let pass, by a waiver, an approval or a broken glass, is taken back, and lets nothing pass any more."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from sqlalchemy import select, text

from broker.compliance import proposals
from jobs.clock import db_now
from jobs.tables import OutboxEvent
from tests.support.compliance import (
    DAY_S,
    document,
    in_force,
    lease_under,
    officer,
    states,
    waived,
)
from tests.support.wire_agent import Rent


async def test_a_waiver_that_is_withdrawn_lets_nothing_pass_any_more_and_running_work_is_asked_anew(
    server: Any, rent: Rent
) -> None:
    """It could only expire: who had waived a rule by mistake had to wait for its end."""
    await in_force(server, document("FR"))
    waiver = await waived(server)
    agent, _ = await lease_under(server, rent)
    await agent.hello()
    await agent.heartbeat()
    lease = (await agent.lease())["lease"]
    held = {name: lease[name] for name in ("shard_id", "epoch", "nonce")} | {"in_flight": [], "suspects": {}}
    assert (await agent.heartbeat(leases=[held])).json["lost"] == []
    path, bob = f"/v1/compliance/proposals/{waiver}/withdraw", await officer(server, "bob")
    done = await server.call("POST", path, key=bob, json={"reason": "a mistake"})
    assert (done.status, done.json["state"]) == (200, "withdrawn")
    assert (await agent.heartbeat(leases=[held])).json["lost"] == [lease["shard_id"]]
    assert (await server.call("POST", path, key=bob, json={"reason": "again"})).code == "verdict_refused"
    assert (await states(server))["withdrawal " + waiver + "@None"] == "active"
    assert (await server.call("GET", "/v1/audit/replay")).json["mismatches"] == []


@pytest.mark.parametrize("first", ["withdrawn", "changed"])
async def test_a_waiver_that_is_withdrawn_lives_on_in_no_change_of_policy_that_gives_time(
    server: Any, rent: Rent, first: str
) -> None:
    """Until its deadline a change lets go on what the earlier policy allowed: also what only the waiver had let pass."""
    await in_force(server, document("FR"))
    waiver = await waived(server)
    agent, _ = await lease_under(server, rent)
    await agent.hello()
    await agent.heartbeat()
    lease = (await agent.lease())["lease"]
    held = {name: lease[name] for name in ("shard_id", "epoch", "nonce")} | {"in_flight": [], "suspects": {}}
    bob, path = await officer(server, "bob"), f"/v1/compliance/proposals/{waiver}/withdraw"

    async def change() -> None:
        await in_force(server, document("PL", 2), drain_by=int(time.time()) + DAY_S)

    async def withdraw() -> None:
        done = await server.call("POST", path, key=bob, json={"reason": "a mistake"})
        assert done.status == 200, done.raw

    if first == "changed":
        await change()
        assert (await agent.heartbeat(leases=[held])).json["lost"] == [], "until the deadline it may finish"
        await withdraw()
    else:
        await withdraw()
        await change()
    assert (await server.call("GET", lease["input_get"], key=None)).code == "object_gone"
    assert (await agent.heartbeat(leases=[held])).json["lost"] == [lease["shard_id"]]
    assert (await server.call("GET", "/v1/audit/replay")).json["mismatches"] == []


async def test_what_narrows_is_not_taken_back_by_one_person(server: Any) -> None:
    proposal = await in_force(server, document())
    path = f"/v1/compliance/proposals/{proposal}/withdraw"
    refused = await server.call("POST", path, key=await officer(server, "bob"), json={"reason": "in the way"})
    assert (refused.status, refused.code) == (403, "verdict_refused")
    assert await states(server) == {"policy p@1": "active"}


async def test_a_models_approval_can_be_withdrawn(server: Any) -> None:
    ann, bob = await officer(server, "ann"), await officer(server, "bob")
    body = {"model": "tiny", "projects": "default", "until": int(time.time()) + 3600, "reason": "a trial"}
    made = (await server.call("POST", "/v1/compliance/models", key=ann, json=body)).json["id"]
    await server.call("POST", f"/v1/compliance/proposals/{made}/approve", key=bob, json={})
    async with server.services.database.transaction() as session:
        known = await proposals.in_force(session, await db_now(session))
    assert known.approved_until_us("tiny", "default")
    await server.call("POST", f"/v1/compliance/proposals/{made}/withdraw", key=ann, json={"reason": "it is over"})
    async with server.services.database.transaction() as session:
        known = await proposals.in_force(session, await db_now(session))
    assert known.approved_until_us("tiny", "default") is None


async def test_a_broken_glass_is_heard_by_webhooks_and_metrics_and_can_be_closed(server: Any) -> None:
    await in_force(server, document())
    ann = await officer(server, "ann")
    body = {"policy": "p", "projects": "default", "hours": 24, "reason": "the region burns"}
    made = (await server.call("POST", "/v1/compliance/break-glass", key=ann, json=body)).json["id"]
    for name in ("bob", "cid"):
        path = f"/v1/compliance/proposals/{made}/approve"
        await server.call("POST", path, key=await officer(server, name), json={})
    assert b'broker_break_glass{state="in_force"} 1.0' in (await server.call("GET", "/metrics")).raw
    await server.call("POST", f"/v1/compliance/proposals/{made}/withdraw", key=ann, json={"reason": "it rained"})
    assert b'broker_break_glass{state="in_force"} 0.0' in (await server.call("GET", "/metrics")).raw
    async with server.services.database.transaction() as session:
        rows = await session.scalars(select(OutboxEvent).where(text("kind = 'compliance.break_glass'")))
        told = sorted(rows, key=lambda each: each.number)
    assert [each.payload["state"] for each in told] == ["proposed", "approved", "active", "withdrawn"]
    assert {each.project for each in told} == {"default"}
    assert all("burns" not in json.dumps(each.payload) for each in told)


async def test_a_waiver_is_of_the_rule_that_was_looked_at_and_not_of_what_a_later_version_says_under_its_id(
    server: Any,
) -> None:
    """An id is a name: whoever wrote the next version could put anything behind a rule that two people had waived."""
    more = "  - {id: not-them, effect: deny, when: {operator: [Shady]}}\n"
    other = "  - {id: not-them, effect: deny, when: {operator: [Good]}}\n"
    await in_force(server, document(more=more))
    await waived(server, rule="not-them")
    for version, rules, count in ((1, more, 1), (2, more, 1), (3, other, 0)):
        if version > 1:
            await in_force(server, document(version=version, more=rules))
        async with server.services.database.transaction() as session:
            known = await proposals.in_force(session, await db_now(session))
        assert len(known.waivers) == count, version
