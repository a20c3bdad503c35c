"""The sealed decisions as one zip that verifies without our software: leaves, chain, policies, facts, public key, and a verifier.

`decisions.jsonl` has each leaf's exact bytes, a line each; `decisions.chain` the chain's hash after each (hex):
SHA-256(previous ‖ SHA-256(0x00 ‖ leaf)). A leaf is {"record": …, "key": …, "signature": base64}; the signature is Ed25519 over
the exact bytes of `record`. Facts and policies lie by the hashes that records name, proposals by their ids, which pins name with
their hashes. Leaves without a record are other things that the broker decided (a budget's breaker): they are in the chain.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping
from importlib.resources import files
from typing import Any

import msgspec
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from broker.compliance.decisions import public_pem
from broker.compliance.tables import FactsRow, Proposal
from broker.tables import Policy
from ledger import seal
from solver.residency import Policy as ResidencyPolicy

PAGE = 1000
# Zips of equal content are equal: the time of their members is not that of the export.
_EPOCH = (1980, 1, 1, 0, 0, 0)


async def export(session: AsyncSession, secret: bytes) -> bytes:
    """The whole stream `decisions` so far, with what its records name."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as packed:
        leaves, chain, after = [], [], 0
        while page := await seal.leaves(session, "decisions", after_seq=after, limit=PAGE):
            leaves += [leaf.payload + b"\n" for leaf in page]
            chain += [leaf.hash for leaf in page]
            after = page[-1].seq
        _add(packed, "decisions.jsonl", b"".join(leaves))
        _add(packed, "decisions.chain", "".join(f"{each}\n" for each in chain).encode())
        _add(packed, "public.pem", public_pem(secret))
        for facts in await session.scalars(select(FactsRow).order_by(col(FactsRow.hash))):
            _add(packed, f"facts/{facts.hash}.json", facts.body)
        for policy in await session.scalars(select(Policy).order_by(col(Policy.hash))):
            _add(packed, f"policies/{policy.hash}.json", encoded(policy.body))
        for proposal in await session.scalars(select(Proposal).order_by(col(Proposal.id))):
            _add(packed, f"proposals/{proposal.id}.json", msgspec.json.encode(proposal.body, order="sorted"))
        _add(packed, "verify.py", files("broker.compliance").joinpath("verify_decisions.py").read_bytes())
    return buffer.getvalue()


def encoded(body: Mapping[str, Any]) -> bytes:
    """A policy's exact bytes, of which records name the sha256."""
    return msgspec.json.encode(msgspec.convert(body, ResidencyPolicy), order="deterministic")


def _add(packed: zipfile.ZipFile, name: str, content: bytes) -> None:
    packed.writestr(zipfile.ZipInfo(name, _EPOCH), content, zipfile.ZIP_DEFLATED)
