"""Whose things a key may touch, and what each role may do at all: generated from the route table.

A new path parameter fails here until it is said what it names; a new route is asked like all others.
"""

from __future__ import annotations

import json
from typing import Any

import aiohttp
import pytest
from sqlalchemy.ext.asyncio import AsyncSession

from broker.api.registry import PARAMETERS, Route
from broker.control.place import await_worker
from broker.keys import Role, create_key
from broker.tables import Delivery
from jobs.clock import db_now
from markets import rentals
from tests.support.compliance import document
from tests.support.wire_agent import offer

TENANTS: tuple[Role, ...] = ("submitter", "viewer", "compliance", "finance", "operator", "admin")
# What belongs to one project, and an id of the same form that nobody has.
OWNED = {
    "batch_id": "batch_01J0000000000000000000NONE",
    "file_id": "file-01J0000000000000000000NONE",
    "upload_id": "upload_01J0000000000000000000NONE",
    "webhook_id": "webhook_01J0000000000000000000NONE",
    "event_id": "evt_01J0000000000000000000NONE",
    "key_id": "key_01J0000000000000000000NONE",
    "project": "nobodys",
    "rental": "rental_01J0000000000000000000NONE",
    "approval": "approval_01J0000000000000000000NONE",
}
# What belongs to no project, is a name that each project may use (market), or is the wire's: of one rental, whose session
# token is asked for instead of a key.
COMMON = {"team", "period", "model", "market", "rental_id", "shard_id", "token", "exception_id", "anomaly_id",
          "proposal_id"}  # fmt: skip
# What a route cannot do without, where its schema alone does not say it.
BODIES: dict[str, dict[str, Any]] = {
    "budgets.grant_budget": {"usd": "1"},
    "budgets.put_team_of_project": {"team": "x"},
    "uploads.complete_upload": {"part_ids": ["part_none"]},
}
QUERIES = {"/v1/ledger/exports": "?format=csv&period=2026-10", "/v1/reports/chargeback": "?period=2026-10"}
PROMPTS = ("/v1/files/{file_id}/content", "/v1/batches/{batch_id}/results", "/v1/batches/{batch_id}/lines")


def test_it_is_known_of_every_path_parameter_whether_it_is_a_tenants() -> None:
    assert PARAMETERS.keys() == OWNED.keys() | COMMON


async def a_rental(session: AsyncSession, project: str, now_us: int) -> str:
    """A machine that was rented for the project, with a worker that is awaited."""
    await rentals.record_intent(
        session,
        rental_id="rental_01J0000000000000000000MINE",
        offer=offer(),
        project=project,
        model="tiny",
        precision="auto",
        purpose={"batches": []},
        now_us=now_us,
    )
    await await_worker(session, "rental_01J0000000000000000000MINE", "0" * 64, now_us)
    return "rental_01J0000000000000000000MINE"


async def things_of(server: Any, project: str, key: str) -> dict[str, str]:
    """One thing of each kind, in a project."""
    batch = await server.new_batch(key=key)
    upload = {"bytes": 4, "filename": "in.jsonl", "mime_type": "application/jsonl", "purpose": "batch"}
    webhook = await server.call("POST", "/v1/webhook_endpoints", key=key, json={"url": "https://example.com/hook"})
    names = {
        "batch_id": batch["id"],
        "file_id": batch["input_file_id"],
        "upload_id": (await server.call("POST", "/v1/uploads", key=key, json=upload)).json["id"],
        "webhook_id": webhook.json["id"],
        "event_id": "evt_01J0000000000000000000MINE",
        "project": project,
    }
    for usd in ("1", "2"):  # the second is a raise, and waits
        wish = {"scope": f"project:{project}", "usd": usd}
        names["approval"] = (await server.call("PUT", "/v1/budgets/limits", key=key, json=wish)).json["approval"]
    async with server.services.database.transaction() as session:
        now_us = await db_now(session)
        made, _ = await create_key(session, principal="x", project=project, roles=["viewer"], now_us=now_us)
        names["key_id"] = made.id
        names["rental"] = await a_rental(session, project, now_us)
        session.add(
            Delivery(
                webhook=names["webhook_id"],
                event=names["event_id"],
                batch=batch["id"],
                type="batch.completed",
                created_us=now_us,
            )
        )
    return names


def asked(route: Route, names: dict[str, str]) -> tuple[str, dict[str, Any]]:
    """The path with these names and the query that the route requires, and a body that it takes."""
    path = route.path.format(**(dict.fromkeys(COMMON, "x") | names))
    required = [name for name, field in route.query.model_fields.items() if field.is_required()] if route.query else []
    query = "?" + "&".join(f"{name}=agent" for name in required) if required else ""
    query = QUERIES.get(route.path, query)
    if route.consumes == "multipart/form-data":
        form = aiohttp.FormData()
        form.add_field("data", b"data", filename="upload")
        return path + query, {"data": form}
    body = BODIES.get(route.operation, {})
    return path + query, {"json": body} if route.has_json_body else {}


def text_of(answer: Any, names: dict[str, str]) -> str:
    """The answer's body without the ids that were asked for."""
    text = answer.raw.decode()
    for name in sorted(names.values(), key=len, reverse=True):
        text = text.replace(name, "ID")
    return text


async def test_what_is_anothers_is_answered_like_what_is_not_there(server: Any) -> None:
    """404 with the same body: a caller learns nothing about what others have, whatever role it has in its own project."""
    theirs = await server.key(*TENANTS, project="theirs")
    mine = await server.key(*TENANTS, project="mine")
    names = await things_of(server, "mine", mine)
    scoped = [each for each in server.routes if each.access == "key" and OWNED.keys() & set(each.parameters)]
    assert len(scoped) >= 30
    for each in sorted(scoped, key=lambda route: route.method == "DELETE"):
        where = f"{each.method} {each.path}"
        path, body = asked(each, names)
        foreign = await server.call(each.method, path, key=theirs, **body)
        path, body = asked(each, OWNED)
        missing = await server.call(each.method, path, key=theirs, **body)
        assert (foreign.status, missing.status) == (404, 404), f"{where}: {foreign.raw[:200]} {missing.raw[:200]}"
        assert text_of(foreign, names) == text_of(missing, OWNED), where
        path, body = asked(each, names)
        own = await server.call(each.method, path, key=mine, **body)
        assert own.status in (200, 422) or own.code in NOT_ABOUT_IDS, f"{where}: {own.status} {own.raw[:200]}"


# Refusals of the owner's own request that show that it got past the question whose thing it is.
NOT_ABOUT_IDS = ("own_proposal", "four_eyes", "team_not_found", "invalid_upload", "delivery_not_found")


async def test_anothers_ids_in_queries_and_bodies_are_like_none(server: Any) -> None:
    theirs = await server.key(*TENANTS, project="theirs")
    mine = await server.key(*TENANTS, project="mine")
    names = await things_of(server, "mine", mine)
    in_queries = {"batch": "batch_id", "project": "project"}
    tried = 0
    for each in server.routes:
        if each.access != "key" or each.query is None or each.parameters or "text/event-stream" in each.produces:
            continue
        for query, kind in in_queries.items():
            if query in each.query.model_fields:
                tried += 1
                foreign = await server.call("GET", f"{each.path}?{query}={names[kind]}", key=theirs)
                missing = await server.call("GET", f"{each.path}?{query}={OWNED[kind]}", key=theirs)
                assert foreign.status == missing.status, each.path
                assert text_of(foreign, names) == text_of(missing, OWNED), each.path
    assert tried >= 2
    line = {"endpoint": "/v1/chat/completions", "completion_window": "24h"}
    for path, more in (("/v1/batches", line), ("/v1/quotes", {})):
        foreign = await server.call("POST", path, key=theirs, json={"input_file_id": names["file_id"], **more})
        missing = await server.call("POST", path, key=theirs, json={"input_file_id": OWNED["file_id"], **more})
        assert foreign.status == missing.status == 404
        assert text_of(foreign, names) == text_of(missing, OWNED), path


# What a key of one project is told by lists that are not of projects: nothing of the house, and no offer of that name.
OF_THE_HOUSE = {
    "/v1/admin/vault": 404,
    "/v1/admin/house-accounts": 404,
    "/v1/ledger/sealed.zip": 404,
    "/v1/ledger/invoices": 422,
    "/v1/reports/positions": 422,
    "/v1/ledger/exceptions": 422,
    "/v1/ledger/accounts": 404,
    "/v1/teams/moves": 404,
    "/v1/market/offers/history": 404,
    "/v1/market/offers/explain": 404,
    "/v1/market/pool": 404,
    "/metrics": 404,
}
# They change nothing: a document is judged, or a plan is made that nobody acts on.
ASKED_BY_POST = ("/v1/policies/test", "/v1/plans", "/v1/compliance/dry-run")


async def test_lists_of_one_project_hold_nothing_of_another(server: Any) -> None:
    theirs = await server.key(*TENANTS, project="theirs")
    mine = await server.key(*TENANTS, project="mine")
    names = await things_of(server, "mine", mine)
    wanted = [names[kind] for kind in ("batch_id", "file_id", "upload_id", "webhook_id", "key_id")]
    lists = [each for each in server.routes if each.access == "key" and each.method == "GET" and not each.parameters]
    for each in lists:
        path, _ = asked(each, {})
        answer = await server.call("GET", path, key=theirs)
        house = 404 if each.path.startswith(("/v1/compliance/", "/v1/audit/")) else 200
        assert answer.status == OF_THE_HOUSE.get(each.path, house), f"{each.path}: {answer.raw[:200]}"
        assert not [name for name in wanted if name.encode() in answer.raw], each.path


# What a project does for itself, without naming an id of its own in the path.
OF_A_PROJECT = {
    "files.upload_file", "uploads.create_upload", "batches.create", "quotes.create_quote", "policies.test_policy",
    "webhooks.create", "admin.create_api_key", "credentials.set_credential", "credentials.remove_credential",
    "finance.hosting", "finance.hardware", "finance.commitment", "finance.sizing", "budgets.put_limit",
}  # fmt: skip
REASON = {"reason": "because"}
# What the routes take that look at the body before they look at whose the key is.
HOUSE_BODIES: dict[str, dict[str, Any]] = {
    "ledger.add_rates": {"rates": [{"unit": "EUR", "rate": "1", "dated": "2026-11-01", "source": "x"}]},
    "ledger.post_events": {"events": [{}]},
    "ledger.set_mapping": {"suspense": "1", "rounding": "2", "rules": []},
    "ledger.decide_exception": {"decision": "accept", "reason": "because"},
    "finance.label_anomaly": {"label": "true"},
    "budgets.put_team": {"org": "x"},
    "compliance.propose_policy": {"text": document()},
    "compliance.propose_waiver": {"policy": "p", "rule": "r", "projects": "x", "until": 1, **REASON},
    "compliance.propose_break_glass": {"policy": "p", "projects": "x", **REASON},
    "compliance.propose_project": {"project": "x", "node": "a/b", "data_class": "internal"},
    "compliance.propose_model": {"model": "m", "projects": "x", "until": 1},
    "compliance.withdraw": REASON,
    "compliance.run_dry": {"text": document()},
    "credentials.give_up_house_account": {"account": "1"},
}


async def test_what_is_of_all_projects_is_changed_planned_and_counted_by_keys_of_all_alone(server: Any) -> None:
    """An operator of one project was shown the plan of everybody's batches, with their ids and limits, could ask it what if, and
    could hand in prices and places that all projects were planned by."""
    mine = await server.key(*TENANTS, project="mine")
    others = await server.new_batch()
    asked_for = [each for each in server.routes if each.access == "key" and (each.method != "GET" or each.of_house)]
    known = set[str]()
    for each in asked_for:
        if OWNED.keys() & set(each.parameters):
            continue
        known.add(each.operation)
        if each.operation in OF_A_PROJECT:
            continue
        path, _ = asked(each, {"period": "2026-10"})
        body: dict[str, Any] = {"json": HOUSE_BODIES.get(each.operation, {})}
        if each.consumes:
            body = {"data": b"x", "headers": {"Content-Type": each.consumes}}
        answer = await server.call(each.method, path, key=mine, **body)
        is_told_so = answer.status == 404 or answer.code == "all_projects_only"
        assert is_told_so, f"{each.operation}: {answer.raw[:200]}"
        assert others["id"].encode() not in answer.raw
    assert OF_A_PROJECT | HOUSE_BODIES.keys() <= known
    assert {each.path for each in asked_for if each.of_house} == {"/v1/plan", "/v1/market/cards", "/metrics"}
    assert (await server.call("GET", "/metrics")).status == 200


async def test_a_projects_administrator_rules_that_project_only(server: Any) -> None:
    """An admin key of one project that could make keys for another would be a key to every project."""
    admin = await server.key("admin", project="mine")
    await server.key("viewer", project="theirs")
    wish = {"principal": "ada", "roles": ["submitter"]}
    elsewhere = await server.call("POST", "/v1/admin/keys", key=admin, json={**wish, "project": "theirs"})
    unknown = await server.call("POST", "/v1/admin/keys", key=admin, json={**wish, "project": "nobodys"})
    assert (elsewhere.status, unknown.status) == (404, 404)
    assert elsewhere.raw.replace(b"theirs", b"P") == unknown.raw.replace(b"nobodys", b"P")
    at_home = await server.call("POST", "/v1/admin/keys", key=admin, json={**wish, "project": "mine"})
    unsaid = await server.call("POST", "/v1/admin/keys", key=admin, json=wish)
    assert (at_home.json["project"], unsaid.json["project"]) == ("mine", "mine")


@pytest.mark.parametrize("role", ["compliance", "finance", "operator", "viewer"])
async def test_only_submitters_read_prompts_and_answers(server: Any, role: Role) -> None:
    """Whoever reviews places or money has no need of what was asked. `lines` holds no text, and is a viewer's too."""
    content = [each for each in server.routes if each.path in PROMPTS]
    assert len(content) == len(PROMPTS)
    for each in content:
        assert role not in each.roles or (role == "viewer" and each.path.endswith("/lines")), each.path


def test_viewers_change_nothing_and_admin_routes_are_admins(server: Any) -> None:
    for each in server.routes:
        if each.access != "key":
            continue
        assert each.method == "GET" or "viewer" not in each.roles or each.path in ASKED_BY_POST, each.path
        if each.path.startswith("/v1/admin/"):
            assert each.roles <= {"admin", "operator"}, each.path


async def test_the_published_document_says_the_same_of_roles(server: Any) -> None:
    paths = json.loads((await server.call("GET", "/openapi.json", key=None)).raw)["paths"]
    for each in server.routes:
        if each.access == "key":
            assert paths[each.path][each.method.lower()]["x-roles"] == sorted(each.roles)
