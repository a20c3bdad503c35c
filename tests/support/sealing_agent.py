"""A worker that seals, as the wire sees it, and what lies in the store beneath."""

from __future__ import annotations

import base64
import hashlib
from typing import Any

from broker.vault_tables import ObjectKeyRow
from broker.worker_objects import stored
from tests.support.wire_agent import Agent, Rent, conforms, offer, part_bytes, running_batch
from workers.agent import sealing

SEALS: dict[str, Any] = {"seals": [1]}


async def objects_of(server: Any, prefix: str = "") -> dict[str, bytes]:
    """What whoever owns the store sees."""
    store = stored(server.services)
    return {key: await store.get(key) async for key in store.keys(prefix)}


async def sealing_agent(server: Any, rent: Rent, *, lines: int = 4, **wishes: Any) -> tuple[Agent, str]:
    batch = await running_batch(server, offer(), lines=lines, **wishes)
    agent: Agent = await rent()
    assert (await agent.hello(**SEALS)).status == 200
    await agent.heartbeat()
    return agent, batch


async def work_sealed(agent: Agent, lease: dict[str, Any], lines: range, seq: int = 0) -> Any:
    """Answer lines, seal the part as the lease says, store and commit it."""
    part = lease["seal"]["part"]
    content = sealing.seal(base64.b64decode(part["key"]), f"{part['context']}-{seq}", part_bytes(lines))
    return await commit_sealed(agent, lease, content, lines, seq)


async def commit_sealed(agent: Agent, lease: dict[str, Any], content: bytes, lines: range, seq: int = 0) -> Any:
    body = {
        "epoch": lease["epoch"],
        "nonce": lease["nonce"],
        "seq": seq,
        "sha256": hashlib.sha256(content).hexdigest(),
        "size": len(content),
        "sealed": True,
    }
    conforms("part.request", body)
    target = await agent.server.call("POST", lease["part_put"], key=agent.token, json=body)
    if target.status != 200:
        return target
    put = await agent.put(target.json, content)
    if put.status != 201:
        return put
    return await agent.commit(lease, target.json, content, lines, seq)


async def key_row(server: Any, owner: str) -> ObjectKeyRow:
    async with server.services.database.transaction() as session:
        return await session.get_one(ObjectKeyRow, owner)
