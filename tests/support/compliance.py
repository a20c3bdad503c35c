"""Policies, and the people who bring them into force: by the API, as compliance does."""

from __future__ import annotations

import time
from typing import Any

from broker.compliance.pinning import Repinner
from broker.tables import Policy
from jobs.tables import Batch
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


async def lease_under(server: Any, rent: Rent, **wishes: Any) -> tuple[Any, str]:
    batch = await running_batch(server, offer(), **wishes)
    agent = await rent()
    return agent, batch


async def pinned(server: Any, batch_id: str) -> Policy:
    async with server.services.database.transaction() as session:
        batch = await session.get_one(Batch, batch_id)
        return await session.get_one(Policy, batch.policy_hash)


async def waived(server: Any, **fields: Any) -> str:
    ann, bob = await officer(server, "ann"), await officer(server, "bob")
    body = {"policy": "p", "rule": "where", "projects": "default", "until": int(time.time()) + 3600, "reason": "a move"}
    made = await server.call("POST", "/v1/compliance/waivers", key=ann, json=body | fields)
    assert made.status == 200, made.raw
    await server.call("POST", f"/v1/compliance/proposals/{made.json['id']}/approve", key=bob, json={})
    return str(made.json["id"])
