"""What is left of a sealed batch when its key is destroyed, and what is done with a key that does not open."""

from __future__ import annotations

import asyncio
import base64
import hashlib
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import aiohttp
import msgspec
import pytest
from sqlalchemy import update
from sqlmodel import col

from broker.api import retry
from broker.compliance.destruction import Receipt
from broker.control.collect import Collector
from broker.control.finalise import Finaliser
from broker.control.garbage import GarbageCollector
from broker.control.validate import Validator
from broker.vault_tables import DataKeyRow
from broker.worker_objects import stored
from jobs.clock import MICROSECONDS
from jobs.tables import Batch, File
from tests.support.object_stores import keys_of
from tests.support.sealing_agent import key_row, objects_of, sealing_agent, work_sealed
from tests.support.wire_agent import Rent, offer, part_bytes, running_batch
from workers.agent import sealing


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
