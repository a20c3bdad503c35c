"""The sealed decisions as one zip that verifies without our software: leaves, chain, policies, facts, public key, and a verifier.

`decisions.jsonl` has each leaf's exact bytes, a line each; `decisions.chain` the chain's hash after each (hex):
SHA-256(previous ‖ SHA-256(0x00 ‖ leaf)). A leaf is {"record": …, "key": …, "signature": base64}; the signature is Ed25519 over
the exact bytes of `record`. Facts and policies lie by the hashes that records name, proposals by their ids, which pins name with
their hashes. Leaves without a record are other things that the broker decided (a budget's breaker): they are in the chain.
"""

from __future__ import annotations

import asyncio
import shutil
import tempfile
import zipfile
from collections.abc import AsyncIterator, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

import msgspec
from sqlalchemy import select
from sqlmodel import col

from broker.compliance.decisions import public_pem
from broker.compliance.tables import FactsRow, Proposal
from broker.database import Database
from broker.tables import Policy
from ledger import seal
from solver.residency import Policy as ResidencyPolicy

PAGE = 1000
# Zips of equal content are equal: the time of their members is not that of the export.
_EPOCH = (1980, 1, 1, 0, 0, 0)


async def export(database: Database, secret: bytes, packed: Path) -> None:
    """The whole stream `decisions` so far, with what its records name, written to the file `packed`.

    By pages, each in a transaction of its own, and packed in a thread: a stream of years is larger than memory, and longer
    than the others can wait. All that is read is only ever added to, and what records name is there before they are.
    """
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        await _add_stream(database, archive)
        _add(archive, "public.pem", public_pem(secret))
        async for members in _named(database):
            await asyncio.to_thread(_add_all, archive, members)
        _add(archive, "verify.py", files("broker.compliance").joinpath("verify_decisions.py").read_bytes())


async def _add_stream(database: Database, archive: zipfile.ZipFile) -> None:
    """Leaves, and the chain, which waits in a file of its own: members of a zip are written one after the other."""
    with tempfile.TemporaryFile() as chain:
        with archive.open(_member("decisions.jsonl"), "w", force_zip64=True) as stream:
            after = 0
            while True:
                async with database.transaction() as session:
                    page = await seal.leaves(session, "decisions", after_seq=after, limit=PAGE)
                if not page:
                    break
                after = page[-1].seq
                await asyncio.to_thread(stream.write, b"".join(leaf.payload + b"\n" for leaf in page))
                chain.write("".join(f"{leaf.hash}\n" for leaf in page).encode())
        chain.seek(0)
        with archive.open(_member("decisions.chain"), "w", force_zip64=True) as stream:
            await asyncio.to_thread(shutil.copyfileobj, chain, stream)


async def _named(database: Database) -> AsyncIterator[list[tuple[str, bytes]]]:
    """What records name, by pages: facts, policies, proposals."""
    async for rows in _pages(database, FactsRow, FactsRow.hash):
        yield [(f"facts/{each.hash}.json", each.body) for each in rows]
    async for rows in _pages(database, Policy, Policy.hash):
        yield [(f"policies/{each.hash}.json", encoded(each.body)) for each in rows]
    async for rows in _pages(database, Proposal, Proposal.id):
        yield [(f"proposals/{each.id}.json", msgspec.json.encode(each.body, order="sorted")) for each in rows]


async def _pages(database: Database, table: Any, name: Any) -> AsyncIterator[list[Any]]:
    """All rows in the order of their names."""
    after = ""
    while True:
        async with database.transaction() as session:
            query = select(table).where(col(name) > after).order_by(col(name)).limit(PAGE)
            rows = list(await session.scalars(query))
        if not rows:
            return
        yield rows
        after = str(getattr(rows[-1], name.key))


def encoded(body: Mapping[str, Any]) -> bytes:
    """A policy's exact bytes, of which records name the sha256."""
    return msgspec.json.encode(msgspec.convert(body, ResidencyPolicy), order="deterministic")


def _add_all(archive: zipfile.ZipFile, members: list[tuple[str, bytes]]) -> None:
    for name, content in members:
        _add(archive, name, content)


def _add(archive: zipfile.ZipFile, name: str, content: bytes) -> None:
    archive.writestr(_member(name), content)


def _member(name: str) -> zipfile.ZipInfo:
    member = zipfile.ZipInfo(name, _EPOCH)
    member.compress_type = zipfile.ZIP_DEFLATED
    return member
