"""The sealed streams as files, and what a verifier needs beside them. It knows the format; ledger/verify.py reads it.

A folder `sealed/` with, for each stream, `<stream>.jsonl` (the leaves' exact bytes, a line each) and `<stream>.chain` (the
chain's hash after each leaf, hex, a line each), and `checkpoints.txt`, all signed checkpoints, one after the other.
`manifest.json` beside it has the sha256 of every file of the export, `manifest.sig` is that manifest's sha256 as a signed note.

By the two files of a stream a flipped bit is named: line k of the chain must follow from line k−1 and leaf k.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from sqlalchemy import insert, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from ledger import checkpoint, seal
from ledger.errors import LedgerError
from ledger.seal import STREAMS, Stream
from ledger.tables import CheckpointRow

FOLDER = "sealed"
CHECKPOINTS = "checkpoints.txt"
MANIFEST = "manifest.json"
SIGNATURE = "manifest.sig"
SUMS = "SHA256SUMS"
PAGE = 2000
Begin = Callable[[], AbstractAsyncContextManager[AsyncSession]]


class Signer(msgspec.Struct, frozen=True):
    """Who signs: a name (without spaces and plus signs) and a key."""

    name: str
    key: Ed25519PrivateKey


def origin_of(signer: Signer, stream: Stream) -> str:
    return f"{signer.name}/{stream}"


async def seal_now(session: AsyncSession, signer: Signer, stream: Stream, *, now_us: int) -> str | None:
    """Sign where the stream is now and keep the note; None when it is empty or that was signed before."""
    head = await seal.head(session, stream)
    if not await _is_new(session, head):
        return None
    note = checkpoint.sign_checkpoint(
        signer.key,
        signer.name,
        checkpoint.Checkpoint(origin=origin_of(signer, stream), size=head.seq, root=head.root, chain=head.hash),
    )
    row = {"stream": stream, "size": head.seq, "root": head.root, "note": note, "at_us": now_us}
    await session.execute(insert(CheckpointRow), [row])
    return note


async def has_grown(session: AsyncSession) -> bool:
    """Whether there is anything to sign."""
    for stream in STREAMS:
        if await _is_new(session, await seal.head(session, stream)):
            return True
    return False


async def _is_new(session: AsyncSession, head: seal.Head) -> bool:
    known = select(col(CheckpointRow.size)).where(
        col(CheckpointRow.stream) == head.stream, col(CheckpointRow.size) == head.seq
    )
    return head.seq > 0 and (await session.execute(known)).first() is None


async def notes(session: AsyncSession) -> list[tuple[str, int, str]]:
    """All checkpoints: stream, size and note, by stream and size."""
    query = select(col(CheckpointRow.stream), col(CheckpointRow.size), col(CheckpointRow.note))
    rows = (await session.execute(query.order_by(col(CheckpointRow.stream), col(CheckpointRow.size)))).all()
    return [(stream, size, note) for stream, size, note in rows]


async def write(begin: Begin, folder: Path) -> dict[str, int]:
    """Write `sealed/` into the folder, up to the newest checkpoint of each stream; leaves by stream.

    `begin` makes a transaction; each page is read in one of its own: the streams only grow at their end.
    """
    target = folder / FOLDER
    target.mkdir(parents=True, exist_ok=True)
    async with begin() as session:
        kept = await notes(session)
    (target / CHECKPOINTS).write_text("".join(note for _, _, note in kept), encoding="utf-8")
    counts: dict[str, int] = {}
    for stream in STREAMS:
        until = max((size for each, size, _ in kept if each == stream), default=0)
        await _write_stream(begin, target, stream, until)
        counts[stream] = until
    return counts


async def _write_stream(begin: Begin, target: Path, stream: Stream, until: int) -> None:
    with (target / f"{stream}.jsonl").open("wb") as bodies, (target / f"{stream}.chain").open("w") as chain:
        after = 0
        while after < until:
            async with begin() as session:
                page = await seal.leaves(session, stream, after_seq=after, limit=min(PAGE, until - after))
            if not page:
                raise LedgerError(f"stream {stream} ends at {after}, its newest checkpoint says {until}")
            for leaf in page:
                if b"\n" in leaf.payload:
                    raise LedgerError(f"leaf {leaf.seq} of {stream} has a line break; leaves are one line each")
                bodies.write(leaf.payload + b"\n")
                chain.write(f"{leaf.hash}\n")
            after = page[-1].seq


def write_manifest(folder: Path) -> None:
    """List all files of the folder; an export with a manifest of its own has no need of it."""
    own = (MANIFEST, SIGNATURE, SUMS)
    files = sorted(each for each in folder.rglob("*") if each.is_file() and each.name not in own)
    listed = [
        {
            "name": each.relative_to(folder).as_posix(),
            "bytes": each.stat().st_size,
            "sha256": hashlib.sha256(each.read_bytes()).hexdigest(),
        }
        for each in files
    ]
    (folder / MANIFEST).write_bytes(msgspec.json.format(msgspec.json.encode({"kind": "sealed", "files": listed})))


def sign_manifest(folder: Path, signer: Signer) -> None:
    """Sign the manifest that lies in the folder. To be called last."""
    digest = hashlib.sha256((folder / MANIFEST).read_bytes()).hexdigest()
    text = f"{signer.name}/manifest\nsha256 {digest}\n"
    (folder / SIGNATURE).write_text(checkpoint.signed(signer.key, signer.name, text), encoding="utf-8")
