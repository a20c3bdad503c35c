"""Policies come into force by two people, hold at every point, and leave evidence that can be made again."""

from __future__ import annotations

import asyncio
import io
import json
import subprocess
import sys
import time
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select, text
from sqlalchemy.exc import DBAPIError

from broker.api.result_shapes import RetryCreate
from broker.api.retry import _wishes
from broker.compliance import proposals
from broker.compliance.judging import judge
from broker.compliance.pinning import Repinner
from broker.compliance.tables import DecisionRow, FactsRow, Grace, Proposal
from broker.settings import PathSettings
from broker.tables import Policy
from jobs.clock import db_now
from jobs.tables import Batch, OutboxEvent
from ledger import seal
from markets.tables import RentalRow
from tests.support.wire_agent import Rent, offer, running_batch

DAY_S = 86_400
SECOND_US = 1_000_000


def document(country: str = "DE", version: int = 1, name: str = "p", more: str = "") -> str:
    return (
        f"language: 1\npolicy: {name}\nversion: {version}\nrules:\n"
        "  - {id: where, effect: allow, on: [machine], "
        f"when: {{country: [{country}], location_tier: [named_datacenter]}}}}\n{more}"
    )


async def officer(server: Any, name: str) -> str:
    return str(await server.key("compliance", project=None, principal=name))


async def in_force(server: Any, body: str, *, nodes: tuple[str, ...] = ("*",), **fields: Any) -> str:
    """Proposed by ann, approved by bob."""
    ann, bob = await officer(server, "ann"), await officer(server, "bob")
    made = await server.call("POST", "/v1/compliance/policies", key=ann, json={"text": body, "nodes": nodes, **fields})
    assert made.status == 200, made.raw
    done = await server.call("POST", f"/v1/compliance/proposals/{made.json['id']}/approve", key=bob, json={})
    assert done.status == 200, done.raw
    return str(made.json["id"])


async def states(server: Any) -> dict[str, str]:
    found = await server.call("GET", "/v1/compliance/proposals")
    return {f"{each['kind']} {each['subject']}@{each['version']}": each["state"] for each in found.json["data"]}


async def repin(server: Any) -> list[str]:
    repinner = Repinner(server.services)
    await repinner.step()
    return repinner.changed


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


async def lease_under(server: Any, rent: Rent, **wishes: Any) -> tuple[Any, str]:
    batch = await running_batch(server, offer(), **wishes)
    agent = await rent()
    return agent, batch


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


# -- evidence


async def worked(server: Any, rent: Rent) -> str:
    await in_force(server, document("DE"))
    agent, batch = await lease_under(server, rent)
    await agent.hello()
    await agent.heartbeat()
    assert (await agent.lease())["lease"]
    return batch


async def test_an_auditor_is_told_where_a_batch_ever_was_and_on_what_evidence(server: Any, rent: Rent) -> None:
    batch = await worked(server, rent)
    found = (await server.call("GET", f"/v1/audit/where/{batch}")).json
    [machine] = found["machines"]
    assert (machine["country"], machine["held"]) == ("DE", ["input", "checkpoints", "output"])
    assert machine["evidence"][0]["kind"] == "provider_api"
    assert {each["path"] for each in found["data_paths"]} >= {"storage", "checkpoint", "control_plane"}


async def test_every_sealed_decision_is_made_again_bit_for_bit_and_a_changed_fact_is_noticed(
    server: Any, rent: Rent
) -> None:
    await worked(server, rent)
    first = (await server.call("GET", "/v1/audit/replay")).json
    assert first["replayed"] >= 2 and first["mismatches"] == []
    async with server.services.database.transaction() as session:
        rows = (await session.scalars(select(DecisionRow))).all()
        dialect = session.get_bind().dialect.name
        for name in ("broker_facts_update",):
            await session.execute(
                text(f"DROP TRIGGER {name}" + (" ON broker_facts" if dialect == "postgresql" else ""))
            )
        facts = await session.get_one(FactsRow, rows[-1].facts_hash)
        facts.body = facts.body.replace(b'"DE"', b'"FR"')
    again = (await server.call("GET", "/v1/audit/replay")).json
    assert "facts" in again["mismatches"][0]["wrong"]


async def test_an_export_verifies_without_our_software_and_a_flipped_byte_does_not(
    server: Any, rent: Rent, tmp_path: Path
) -> None:
    await worked(server, rent)
    answer = await server.call("GET", "/v1/audit/export")
    zipfile.ZipFile(io.BytesIO(answer.raw)).extractall(tmp_path)
    for options in ([], ["--openssl"]):
        told = await verified(tmp_path, *options)
        assert told.returncode == 0, told.stdout
    leaves = tmp_path / "decisions.jsonl"
    leaves.write_bytes(leaves.read_bytes().replace(b'"allow"', b'"a11ow"', 1))
    for options in ([], ["--openssl"]):
        told = await verified(tmp_path, *options)
        assert told.returncode == 1
        assert "leaf 1 does not follow" in told.stdout and "leaf 1 is not signed" in told.stdout


async def test_who_proposed_approved_and_withdrew_is_sealed_and_verifies_without_the_database(
    server: Any, tmp_path: Path
) -> None:
    """Only what a batch was pinned to was in the stream, and nothing of who had approved it."""
    await in_force(server, document())
    waiver = await waived(server, rule="where")
    path = f"/v1/compliance/proposals/{waiver}/withdraw"
    assert (await server.call("POST", path, key=await officer(server, "bob"), json={"reason": "over"})).status == 200
    zipfile.ZipFile(io.BytesIO((await server.call("GET", "/v1/audit/export")).raw)).extractall(tmp_path)
    records = [json.loads(leaf)["record"] for leaf in (tmp_path / "decisions.jsonl").read_bytes().splitlines()]
    said = [json.loads((tmp_path / "facts" / f"{each['facts_sha256']}.json").read_text()) for each in records]
    assert [(each["kind"], each["word"], each["principal"]) for each in said] == [
        ("policy", "proposed", "ann"),
        ("policy", "approved", "bob"),
        ("waiver", "proposed", "ann"),
        ("waiver", "approved", "bob"),
        ("withdrawal", "proposed", "bob"),
    ]
    assert said[-1]["subject"] == waiver
    assert (await verified(tmp_path)).returncode == 0
    file = tmp_path / "proposals" / f"{waiver}.json"
    file.write_bytes(file.read_bytes().replace(b"where", b"other"))
    told = await verified(tmp_path)
    assert told.returncode == 1 and f"proposal {waiver}" in told.stdout
    assert (await server.call("GET", "/v1/audit/replay")).json["mismatches"] == []


async def test_an_export_is_read_by_pages_and_whole(
    server: Any, rent: Rent, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was put together in memory, in one transaction, while the event loop stood still."""
    monkeypatch.setattr("broker.compliance.audit_export.PAGE", 2)
    await worked(server, rent)
    answer = await server.call("GET", "/v1/audit/export")
    zipfile.ZipFile(io.BytesIO(answer.raw)).extractall(tmp_path)
    told = await verified(tmp_path)
    assert told.returncode == 0, told.stdout
    async with server.services.database.transaction() as session:
        count = (await seal.head(session, "decisions")).seq
    assert count > 2 and len((tmp_path / "decisions.jsonl").read_bytes().splitlines()) == count
    assert (await server.call("GET", "/v1/audit/export")).raw == answer.raw, "equal content, equal zip"


async def verified(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-I", str(folder / "verify.py"), str(folder), *options]
    return await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, check=False)


async def test_sealed_bytes_hold_ids_hashes_and_codes_only(server: Any, rent: Rent) -> None:
    await worked(server, rent)
    packed = zipfile.ZipFile(io.BytesIO((await server.call("GET", "/v1/audit/export")).raw))
    for leaf in packed.read("decisions.jsonl").splitlines():
        record = json.loads(leaf)["record"]
        assert "somebody" not in json.dumps(record)
        assert set(record) == {
            "version", "at_us", "point", "batch", "rental", "offer_sha256", "policy_hash", "policy_sha256", "facts_sha256",
            "groups", "evaluator", "outcome", "reasons", "decision_sha256", "kind",
        }  # fmt: skip


# -- dry run


async def test_a_dry_run_tells_what_a_document_would_have_refused(server: Any, rent: Rent) -> None:
    await worked(server, rent)
    body = {"text": document("FR", 2), "nodes": ["*"]}
    told = (await server.call("POST", "/v1/compliance/dry-run", json=body)).json
    assert (told["placements"], told["refused"]) == (1, 1)
    assert told["refusals"][0]["field"] == "country"
    assert "would have refused 1" in told["sentence"]
    for nobody in ([], [""] * 101):  # for whom, or it means nothing; without a name it was an internal error
        answer = await server.call("POST", "/v1/compliance/dry-run", json={**body, "nodes": nobody})
        assert answer.status == 400 and b"nodes" in answer.raw, answer.raw
    async with server.services.database.transaction() as session:
        assert len((await session.scalars(select(Proposal))).all()) == 1  # nothing was proposed


# -- what a reader of the code found


async def pinned(server: Any, batch_id: str) -> Policy:
    async with server.services.database.transaction() as session:
        batch = await session.get_one(Batch, batch_id)
        return await session.get_one(Policy, batch.policy_hash)


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


# -- what was let pass is taken back


async def waived(server: Any, **fields: Any) -> str:
    ann, bob = await officer(server, "ann"), await officer(server, "bob")
    body = {"policy": "p", "rule": "where", "projects": "default", "until": int(time.time()) + 3600, "reason": "a move"}
    made = await server.call("POST", "/v1/compliance/waivers", key=ann, json=body | fields)
    assert made.status == 200, made.raw
    await server.call("POST", f"/v1/compliance/proposals/{made.json['id']}/approve", key=bob, json={})
    return str(made.json["id"])


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


async def test_a_flipped_bit_in_a_policy_or_a_proposal_of_an_export_is_noticed(
    server: Any, rent: Rent, tmp_path: Path
) -> None:
    """The verifier looked at leaves and facts: the text of the policy beside them could be anything."""
    await worked(server, rent)
    async with (
        server.services.database.transaction() as session
    ):  # what else is in the stream is no decision of residency
        await seal.append(session, "decisions", b'{"kind":"budget.breaker"}')
    answer = await server.call("GET", "/v1/audit/export")
    zipfile.ZipFile(io.BytesIO(answer.raw)).extractall(tmp_path)
    told = await verified(tmp_path)
    assert told.returncode == 0, told.stdout
    for folder, word in (("policies", "its policy is missing or changed"), ("proposals", "proposal")):
        [file, *_] = sorted((tmp_path / folder).glob("*.json"))
        kept = file.read_bytes()
        file.write_bytes(bytes([*kept[:9], kept[9] ^ 1, *kept[10:]]))
        told = await verified(tmp_path)
        assert told.returncode == 1 and word in told.stdout
        file.write_bytes(kept)
    assert (await server.call("GET", "/v1/audit/replay")).json["mismatches"] == []


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
