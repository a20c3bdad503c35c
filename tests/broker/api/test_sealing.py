"""Sealed batches over the API and the worker wire: what a worker is given and when, what lies in the store, and what is left
when a key is destroyed."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta
from typing import Any

import aiohttp
import msgspec
import pytest
from sqlalchemy import select, update
from sqlmodel import col

from broker.api import retry
from broker.compliance.destruction import Receipt
from broker.control.collect import Collector
from broker.control.finalise import Finaliser
from broker.control.garbage import GarbageCollector
from broker.control.validate import Validator
from broker.vault_tables import DataKeyRow, ObjectKeyRow
from broker.worker_objects import stored
from jobs.clock import MICROSECONDS
from jobs.tables import Batch, File, Part, Shard
from tests.support.object_stores import keys_of
from tests.support.wire_agent import Agent, Rent, conforms, offer, part_bytes, running_batch
from workers.agent import sealing
from workers.agent.intake import opened_shard
from workers.agent.lines import BadShard

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


# --- destruction -----------------------------------------------------------------------------------------------------


async def ended_batch(server: Any, rent: Rent) -> tuple[str, str, str]:
    """A completed batch, its input file and its output file."""
    agent, batch = await sealing_agent(server, rent)
    await work_sealed(agent, (await agent.lease())["lease"], range(4))
    await Finaliser(server.services).step()
    shown = (await server.call("GET", f"/v1/batches/{batch}")).json
    return batch, shown["input_file_id"], shown["output_file_id"]


async def test_deleting_results_destroys_the_batchs_key_and_leaves_a_receipt_that_replays(
    server: Any, rent: Rent
) -> None:
    batch, input_file, output_file = await ended_batch(server, rent)
    copies = await objects_of(server)  # a backup that somebody else keeps
    name = (await key_row(server, batch)).key_sha256
    assert (await server.call("DELETE", f"/v1/files/{output_file}")).status == 200
    row = await key_row(server, batch)
    assert row.sealed is None
    assert (await key_row(server, input_file)).sealed is not None, "the input has a key of its own, and is there"
    for key, content in copies.items():
        if f"/{batch}/" in key:
            store = stored(server.services)
            await store.delete(key)
            await store.put(key, content)
            with pytest.raises(Exception, match="was destroyed"):
                await server.services.store.get(key)
    assert (await server.call("DELETE", f"/v1/files/{input_file}")).status == 200
    where = (await server.call("GET", f"/v1/audit/where/{batch}")).json
    assert [(each["of"], each["state"], each["owner"]) for each in where["keys"]] == [
        ("input", "destroyed", input_file),
        ("parts and results", "destroyed", batch),
    ]
    assert [each["keys_destroyed"] for each in where["deleted"]] == [[batch], [input_file]]
    assert where["keys"][1]["key_sha256"] == name
    replayed = (await server.call("GET", "/v1/audit/replay")).json
    assert (replayed["mismatches"], replayed["replayed"] > 4) == ([], True)
    export = await server.call("GET", "/v1/audit/export")
    assert export.status == 200
    receipt = Receipt(
        owner=batch,
        key_sha256=name,
        created_us=row.created_us,
        destroyed_us=row.destroyed_us or 0,
        why="deleted",
    )
    assert hashlib.sha256(msgspec.json.encode(receipt)).hexdigest().encode() in export.raw, "by its hash, as facts are"


async def test_results_and_inputs_whose_time_is_over_lose_their_keys(server: Any, rent: Rent) -> None:
    batch, input_file, output_file = await ended_batch(server, rent)
    async with server.services.database.transaction() as session:
        await session.execute(update(File).where(col(File.id).in_([input_file, output_file])).values(expires_us=1))
    await Collector(server.services).step()
    assert (await key_row(server, batch)).sealed is None
    assert (await key_row(server, input_file)).sealed is None


async def test_a_part_under_way_when_the_key_is_destroyed_is_unreadable_and_hears_that_its_batch_has_ended(
    server: Any, rent: Rent
) -> None:
    """Cancelled, published, deleted; then the last part of a machine that was out of reach arrives. A refusal was a defect to
    it: three such batches, and a worker that did nothing wrong ended its machine."""
    agent, batch = await sealing_agent(server, rent)
    lease = (await agent.lease())["lease"]
    part = lease["seal"]["part"]
    late = sealing.seal(base64.b64decode(part["key"]), f"{part['context']}-0", part_bytes(range(4)))
    body = {"epoch": lease["epoch"], "nonce": lease["nonce"], "seq": 0, "sealed": True}
    body |= {"sha256": hashlib.sha256(late).hexdigest(), "size": len(late)}
    target = await server.call("POST", lease["part_put"], key=agent.token, json=body)
    assert (await server.call("POST", f"/v1/batches/{batch}/cancel")).status == 200
    server.services.database.clock_offset_us += 5 * 60 * MICROSECONDS
    await Finaliser(server.services).step()
    shown = (await server.call("GET", f"/v1/batches/{batch}")).json
    assert shown["status"] == "cancelled", shown
    assert (await server.call("DELETE", f"/v1/files/{shown['error_file_id']}")).status == 200
    assert (await key_row(server, batch)).sealed is None
    put = await agent.put(target.json, late)
    assert put.status == 201, "an orphan, which nobody can read"
    committed = await agent.commit(lease, target.json, late, range(4))
    assert committed.json.get("outcome") == "rejected_terminal", committed.raw
    delivered = await agent.deliver(lease, late, range(4), seq=1, sealed=True)
    assert delivered.json.get("outcome") == "rejected_terminal", delivered.raw
    before = await keys_of(server.services.store)
    anew = await server.call("POST", lease["part_put"], key=agent.token, json=body | {"seq": 2})
    assert (await agent.put(anew.json, late)).status == 201
    assert await keys_of(server.services.store) == before, "nothing is stored without a key"
    told = await agent.commit(lease, anew.json, late, range(4), seq=2)
    assert told.json.get("outcome") == "rejected_terminal", told.raw
    replayed = (await server.call("GET", "/v1/audit/replay")).json
    assert replayed["mismatches"] == []


async def test_a_batch_that_failed_at_its_start_and_a_broken_upload_lose_their_keys_in_time(server: Any) -> None:
    batch = await server.new_batch()
    async with server.services.database.transaction() as session:
        await session.execute(update(Batch).where(col(Batch.id) == batch["id"]).values(status="failed"))
    await server.services.begin_objects("default", "file-01ARZ3NDEKTSV4RRFFQ69G5FAV")  # and then it was killed
    collector = GarbageCollector(server.services)
    await collector.step()
    assert (await key_row(server, batch["id"])).sealed is not None
    server.services.database.clock_offset_us += int(timedelta(days=2) / timedelta(microseconds=1))
    await collector.step()
    assert (await key_row(server, batch["id"])).sealed is None
    assert (await key_row(server, "file-01ARZ3NDEKTSV4RRFFQ69G5FAV")).sealed is None
    assert (await key_row(server, batch["input_file_id"])).sealed is not None


async def test_erasing_a_project_destroys_all_of_its_keys_but_that_of_an_upload_under_way(
    server: Any, rent: Rent
) -> None:
    batch, input_file, _ = await ended_batch(server, rent)
    await server.services.begin_objects("default", "file-01ARZ3NDEKTSV4RRFFQ69G5FAV")
    assert (await server.call("DELETE", "/v1/admin/projects/default/data")).status == 200
    for owner in (batch, input_file):
        assert (await key_row(server, owner)).sealed is None
    assert (await key_row(server, "file-01ARZ3NDEKTSV4RRFFQ69G5FAV")).sealed is not None, "it would be unreadable"


async def left_alone_too_long(server: Any) -> None:
    """The garbage loop comes by when what is under way is older than orphan_grace_s."""
    server.services.database.clock_offset_us += int(timedelta(days=2) / timedelta(microseconds=1))
    await GarbageCollector(server.services).step()


async def test_an_upload_that_outlives_its_key_is_refused_and_not_answered_with_a_file_that_nobody_can_read(
    server: Any, input_lines: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was answered with 200, and every reading of the file with key_destroyed."""
    content, is_begun = input_lines(3000), asyncio.Event()
    keys = server.services.object_keys
    secret_of = keys.secret_of

    async def told(*args: Any) -> Any:
        found = await secret_of(*args)
        is_begun.set()
        return found

    monkeypatch.setattr(keys, "secret_of", told)

    async def slow() -> AsyncIterator[bytes]:
        yield b'--b\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n'
        yield b'--b\r\nContent-Disposition: form-data; name="file"; filename="in.jsonl"\r\n\r\n' + content[:400_000]
        await is_begun.wait()  # it is being sealed
        await left_alone_too_long(server)
        yield content[400_000:] + b"\r\n--b--\r\n"

    assert len(content) > 400_000
    headers = {"Content-Type": "multipart/form-data; boundary=b"}
    refused = await server.call("POST", "/v1/files", data=slow(), headers=headers)
    assert (refused.status, refused.code) == (422, "upload_too_late"), refused.raw
    assert (await server.call("GET", "/v1/files")).json["data"] == []
    assert [key for key in await objects_of(server) if "/files/" in key] == []
    again = await server.upload(content)
    await GarbageCollector(server.services).step()
    assert (await server.call("GET", f"/v1/files/{again}/content")).raw == content


async def test_a_retry_whose_input_outlives_its_key_is_refused(
    server: Any, rent: Rent, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = await running_batch(server, offer())
    assert (await server.call("POST", f"/v1/batches/{batch}/cancel")).status == 200
    server.services.database.clock_offset_us += 5 * 60 * MICROSECONDS
    await Finaliser(server.services).step()
    compose = retry._compose

    async def slowly(*args: Any) -> Any:
        stored_file = await compose(*args)
        await left_alone_too_long(server)
        return stored_file

    monkeypatch.setattr(retry, "_compose", slowly)
    refused = await server.call("POST", f"/v1/batches/{batch}/retry", json={})
    assert (refused.status, refused.code) == (422, "upload_too_late"), refused.raw
    monkeypatch.undo()
    assert (await server.call("POST", f"/v1/batches/{batch}/retry", json={})).status == 200


async def test_one_projects_key_that_does_not_open_stops_no_other_projects_batches(server: Any, rent: Rent) -> None:
    """Its data key was wrapped by a KEK that left the settings: the finalise loop ended at the first such batch, for all."""
    agent, batch = await sealing_agent(server, rent)
    await work_sealed(agent, (await agent.lease())["lease"], range(4))
    closed = await server.key("submitter", project="closed")
    stuck = (await server.new_batch(key=closed))["id"]
    async with server.services.database.transaction() as session:
        mine = col(DataKeyRow.owner) == "objects/closed"
        await session.execute(update(DataKeyRow).where(mine).values(kek="none-of-these"))
    server.services.object_keys._known.clear()
    server.services.vault._unwrapped.clear()
    await Validator(server.services).step()
    await Finaliser(server.services).step()
    assert (await server.call("GET", f"/v1/batches/{batch}")).json["status"] == "completed"
    assert (await server.call("GET", f"/v1/batches/{stuck}", key=closed)).json["status"] == "validating"
    form = aiohttp.FormData()
    form.add_field("purpose", "batch")
    form.add_field("file", b"{}", filename="in.jsonl")
    refused = await server.call("POST", "/v1/files", key=closed, data=form)
    assert (refused.status, refused.code) == (503, "key_unreadable")
