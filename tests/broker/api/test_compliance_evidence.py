"""What the policies decided is told, made again bit for bit, exported and verified without our software."""

from __future__ import annotations

import asyncio
import io
import json
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select, text

from broker.compliance.tables import DecisionRow, FactsRow, Proposal
from ledger import seal
from tests.support.compliance import (
    document,
    in_force,
    lease_under,
    officer,
    waived,
)
from tests.support.wire_agent import Rent


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
