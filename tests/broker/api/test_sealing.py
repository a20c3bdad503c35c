"""Sealed batches over the API and the worker wire: what a worker is given and when, and what lies in the store."""

from __future__ import annotations

import base64
import hashlib
import json
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import select, update
from sqlmodel import col

from broker.control.finalise import Finaliser
from broker.vault_tables import DataKeyRow, ObjectKeyRow
from broker.worker_objects import stored
from jobs.clock import MICROSECONDS
from jobs.tables import Batch, Part, Shard
from tests.support.sealing_agent import SEALS, commit_sealed, objects_of, sealing_agent, work_sealed
from tests.support.wire_agent import Agent, Rent, conforms, offer, part_bytes, running_batch
from workers.agent import sealing
from workers.agent.intake import opened_shard
from workers.agent.lines import BadShard

# --- the whole way ---------------------------------------------------------------------------------------------------


async def test_a_worker_opens_its_shard_and_seals_its_parts_and_the_client_sees_no_difference(
    server: Any, rent: Rent
) -> None:
    agent, batch = await sealing_agent(server, rent)
    answer = await agent.lease()
    conforms("lease.response", answer)
    lease = answer["lease"]
    fetched = await server.call("GET", lease["input_get"], key=None)
    assert b"custom_id" not in fetched.raw
    shard = opened_shard(fetched.raw, lease["seal"]["input"])
    assert hashlib.sha256(shard).hexdigest() == lease["input_sha256"]
    assert (await work_sealed(agent, lease, range(0, 3))).json["outcome"] == "committed"
    partial = await server.call("GET", f"/v1/batches/{batch}/results")
    assert partial.raw.count(b"\n") == 3
    assert (await work_sealed(agent, lease, range(3, 4), seq=1)).json["outcome"] == "committed"
    await Finaliser(server.services).step()
    shown = (await server.call("GET", f"/v1/batches/{batch}")).json
    path = f"/v1/files/{shown['output_file_id']}/content"
    output = await server.call("GET", path)
    assert [json.loads(line)["custom_id"] for line in output.raw.splitlines()] == [f"line-{n}" for n in range(4)]
    assert output.headers["ETag"] == f'"{hashlib.sha256(output.raw).hexdigest()}"'
    middle = await server.call("GET", path, headers={"Range": "bytes=10-29"})
    assert (middle.status, middle.raw) == (206, output.raw[10:30])
    objects = await objects_of(server)
    assert {key.split("/")[-2] for key in objects} == {"files", lease["shard_id"], "results"}
    assert [key for key, content in objects.items() if b"custom_id" in content or content[:2] == b"\x1f\x8b"] == []


async def test_a_worker_that_cannot_seal_gets_its_shard_opened_and_its_parts_sealed_by_the_broker(
    server: Any, rent: Rent
) -> None:
    """An engine's image without `cryptography`: the store still holds nothing in clear."""
    batch = await running_batch(server, offer())
    agent: Agent = await rent()
    await agent.hello()
    await agent.heartbeat()
    lease = (await agent.lease())["lease"]
    assert "seal" not in lease
    shard = await server.call("GET", lease["input_get"], key=None)
    assert hashlib.sha256(shard.raw).hexdigest() == lease["input_sha256"]
    assert (await agent.work(lease, range(4))).json["outcome"] == "committed"
    parts = await objects_of(server, f"default/{batch}/parts")
    assert [content[:8] for content in parts.values()] == [b"brkseal\x01"]
    await Finaliser(server.services).step()
    assert (await server.call("GET", f"/v1/batches/{batch}")).json["status"] == "completed"


async def test_the_keys_of_a_lease_open_its_own_shard_and_nothing_else(server: Any, rent: Rent) -> None:
    """Two shards of one file: the first one's worker, given all ciphertext, reads the first shard's segments and no more."""
    rows = b"".join(
        json.dumps(
            {
                "custom_id": f"line-{n}",
                "method": "POST",
                "url": "/v1/chat/completions",
                "body": {"model": "tiny", "messages": [{"role": "user", "content": f"{n} {'x' * 400}"}]},
            }
        ).encode()
        + b"\n"
        for n in range(1500)
    )
    file_id = await server.upload(rows)
    agent, _ = await sealing_agent(server, rent, lines=2)
    lease = (await agent.lease())["lease"]
    key = f"default/files/{file_id}"
    sealed_range = await server.services.sealed_store.sealed_range(key, 0, 400_000)
    assert sealed_range is not None
    assert len(sealed_range.keys) == 7
    ciphertext = await stored(server.services).get(key)
    given = {
        "keys": base64.b64encode(b"".join(sealed_range.keys)).decode(),
        "context": sealed_range.context,
        "first": 0,
        "is_end": False,
        "skip": 0,
        "length": 400_000,
    }
    span = sealed_range.span
    assert opened_shard(ciphertext[span.at : span.until], given) == rows[:400_000]
    box = sealing.SEGMENT + sealing.TAG
    for numbers in ((1, 2, 3, 4, 5, 6, 7), (7, 8)):
        raw = b"".join(ciphertext[sealing.HEADER + n * box : sealing.HEADER + (n + 1) * box] for n in numbers)
        with pytest.raises(BadShard):
            opened_shard(raw, given)
    # neither does another batch's lease
    with pytest.raises(BadShard):
        opened_shard(ciphertext[sealing.HEADER :], lease["seal"]["input"])


# --- when a key is released ------------------------------------------------------------------------------------------


async def test_a_machine_that_contradicts_its_offer_at_the_hello_gets_no_key_and_no_input(
    server: Any, rent: Rent
) -> None:
    """Rented as eight H100, it shows one T4."""
    batch = await running_batch(server, offer())
    gpu = replace(offer(), accelerator=replace(offer().accelerator, kind="nvidia", name="H100", count=8))
    agent: Agent = await rent(of=gpu, batches=(batch,))
    refused = await agent.hello(**SEALS, accelerators=[{"name": "NVIDIA T4", "memory_mib": 15000}])
    assert (refused.status, refused.code) == (403, "residency_forbidden")
    assert "seal" not in refused.raw.decode()
    asked = await agent.post("leases", {"wait_s": 0}, "wrk_no.session")
    assert asked.status == 401
    again = await agent.hello(**SEALS)
    assert again.status == 401, "the rental is over for it, whatever it says now"
    async with server.services.database.transaction() as session:
        assert (await session.get_one(Batch, batch)).completed == 0


async def test_where_workers_must_seal_one_that_cannot_is_sent_away_at_the_hello(server: Any, rent: Rent) -> None:
    settings = server.services.settings
    strict = settings.objects.model_copy(update={"workers_must_seal": True})
    object.__setattr__(server.services, "settings", settings.model_copy(update={"objects": strict}))
    batch = await running_batch(server, offer())
    agent: Agent = await rent(batches=(batch,))
    refused = await agent.hello(seals=[])
    assert refused.status == 403
    assert "workers_must_seal" in refused.raw.decode()
    other: Agent = await rent(batches=(batch,))
    assert (await other.hello(**SEALS)).status == 200


async def test_a_lease_that_the_policy_no_longer_allows_releases_no_key(server: Any, rent: Rent) -> None:
    agent, batch = await sealing_agent(server, rent)
    async with server.services.database.transaction() as session:
        await session.execute(update(Batch).where(col(Batch.id) == batch).values(policy_hash="0" * 64))
    answer = await agent.lease()
    assert answer["lease"] is None


async def test_a_lease_whose_keys_cannot_be_had_is_free_at_once(server: Any, rent: Rent) -> None:
    """The KEK was away when the keys were to go out: the shard stayed with a machine that had got an error, until the lease ran
    out, and each of its further calls took another shard."""
    agent, batch = await sealing_agent(server, rent)
    async with server.services.database.transaction() as session:
        mine = col(DataKeyRow.owner) == "objects/default"
        kek = await session.scalar(select(col(DataKeyRow.kek)).where(mine))
        await session.execute(update(DataKeyRow).where(mine).values(kek="none-of-these"))
    server.services.object_keys._known.clear()
    server.services.vault._unwrapped.clear()
    failed = await agent.post("leases", {"wait_s": 0})
    assert (failed.status, failed.code) == (503, "key_unreadable")
    async with server.services.database.transaction() as session:
        assert [each.placement_id for each in await session.scalars(select(Shard))] == [None]
        await session.execute(update(DataKeyRow).where(mine).values(kek=kek))
    assert (await agent.lease())["lease"]["batch_id"] == batch


async def test_a_batch_whose_input_is_lost_keeps_no_machine_from_the_next(server: Any, rent: Rent) -> None:
    """Free at once, its shard was the first to be leased again at each call, and each call ended in the same error."""
    agent, lost = await sealing_agent(server, rent)
    other = await running_batch(server, offer(), rank=1)
    async with server.services.database.transaction() as session:
        key = (await session.get_one(Batch, lost)).input_key
    await server.services.store.delete(key)
    failed = await agent.post("leases", {"wait_s": 0})
    assert failed.status >= 400
    assert (await agent.lease())["lease"]["batch_id"] == other


async def test_keys_stand_in_no_log_and_no_row(server: Any, rent: Rent, capfd: pytest.CaptureFixture[str]) -> None:
    agent, batch = await sealing_agent(server, rent)
    lease = (await agent.lease())["lease"]
    await work_sealed(agent, lease, range(4))
    await Finaliser(server.services).step()
    root = await server.services.object_keys.root_of_batch("default", batch)
    given = [base64.b64decode(lease["seal"][of]["key" if of == "part" else "keys"])[:32] for of in ("input", "part")]
    shown = "".join(capfd.readouterr()).encode()
    async with server.services.database.transaction() as session:
        for table in (ObjectKeyRow, DataKeyRow, Part, Batch):
            shown += repr((await session.execute(select(table.__table__))).all()).encode()  # type: ignore[attr-defined]
    for key in (root, *given):
        assert key is not None
        for text in (key, key.hex().encode(), base64.b64encode(key), repr(key)[2:-1].encode()):
            assert text not in shown


# --- what goes wrong -------------------------------------------------------------------------------------------------


async def test_a_part_under_another_leases_key_is_withdrawn_and_its_lines_run_again(server: Any, rent: Rent) -> None:
    """A worker that was killed, and its successor: the first one's key opens nothing of the second's epoch."""
    agent, batch = await sealing_agent(server, rent)
    first = (await agent.lease())["lease"]
    server.services.database.clock_offset_us += 10 * 60 * MICROSECONDS
    other: Agent = await rent(batches=(batch,))
    await other.hello(**SEALS)
    await other.heartbeat()
    second = (await other.lease())["lease"]
    assert (second["shard_id"], second["epoch"]) == (first["shard_id"], first["epoch"] + 1)
    assert second["seal"]["part"]["key"] != first["seal"]["part"]["key"]
    stale = first["seal"]["part"]
    wrong = sealing.seal(base64.b64decode(stale["key"]), f"{second['seal']['part']['context']}-0", part_bytes(range(4)))
    assert (await commit_sealed(other, second, wrong, range(4))).json["outcome"] == "committed"
    await Finaliser(server.services).step()
    shown = (await server.call("GET", f"/v1/batches/{batch}")).json
    assert (shown["status"], shown["request_counts"]["completed"]) == ("in_progress", 0)
    third = (await other.lease())["lease"]
    assert (await work_sealed(other, third, range(4))).json["outcome"] == "committed"
    await Finaliser(server.services).step()
    assert (await server.call("GET", f"/v1/batches/{batch}")).json["status"] == "completed"


async def test_plaintext_that_is_said_to_be_sealed_reaches_no_store(server: Any, rent: Rent) -> None:
    """A faulty worker's `sealed: true` was believed, and its plaintext lay in the store until results were composed."""
    agent, batch = await sealing_agent(server, rent)
    lease = (await agent.lease())["lease"]
    for content in (part_bytes(range(4)), b"brkseal\x01 cut short"):
        refused = await commit_sealed(agent, lease, content, range(4))
        assert (refused.status, refused.code) == (422, "part_not_sealed"), refused.raw
        refused = await agent.deliver(lease, content, range(4), sealed=True)
        assert (refused.status, refused.code) == (422, "part_not_sealed"), refused.raw
    assert await objects_of(server, f"default/{batch}/parts") == {}
    assert (await work_sealed(agent, lease, range(4))).status == 200


async def test_a_sealed_part_for_a_batch_that_is_not_sealed_is_refused(server: Any, rent: Rent) -> None:
    """A batch of before the upgrade, and a worker of after: nobody could open what it would write."""
    batch = await running_batch(server, offer())
    async with server.services.database.transaction() as session:
        await session.delete(await session.get_one(ObjectKeyRow, batch))
    agent: Agent = await rent()
    await agent.hello(**SEALS)
    await agent.heartbeat()
    lease = (await agent.lease())["lease"]
    assert lease["seal"]["part"] is None
    refused = await commit_sealed(agent, lease, sealing.seal(bytes(32), "x", part_bytes(range(4))), range(4))
    assert (refused.status, refused.code) == (422, "batch_not_sealed")
    assert (await agent.work(lease, range(4))).json["outcome"] == "committed"
    await Finaliser(server.services).step()
    assert (await server.call("GET", f"/v1/batches/{batch}")).json["status"] == "completed"


async def test_the_kek_may_be_replaced_while_leases_are_out(server: Any, rent: Rent) -> None:
    """Rotation wraps keys; it changes none. A lease of before commits after."""
    agent, batch = await sealing_agent(server, rent)
    lease = (await agent.lease())["lease"]
    async with server.services.database.transaction() as session:
        await session.execute(update(DataKeyRow).values(kek="none-of-these"))
    server.services.object_keys._known.clear()
    assert (await work_sealed(agent, lease, range(2))).json["outcome"] == "committed", "what is unwrapped is remembered"
    async with server.services.database.transaction() as session:
        await session.execute(update(DataKeyRow).values(kek=server.services.vault.keyring.current))
    assert (await work_sealed(agent, lease, range(2, 4), seq=1)).json["outcome"] == "committed"
    await Finaliser(server.services).step()
    assert (await server.call("GET", f"/v1/batches/{batch}")).json["status"] == "completed"
