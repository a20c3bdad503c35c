"""What an auditor asks: where a batch ever was, whether its decisions can be made again, and all of them to take along."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import msgspec
from aiohttp import web
from sqlalchemy.ext.asyncio import AsyncSession

from broker.api.compliance import of_the_house
from broker.api.ledger_exports import send_packed
from broker.api.policy_shapes import Replayed, ReplayQuery, Where
from broker.api.problems import not_found
from broker.api.registry import Call, Route, route
from broker.compliance import decisions, replaying
from broker.compliance.audit_export import export as exported
from broker.compliance.destruction import key_states
from broker.compliance.reuse import sources_of
from broker.compliance.whereabouts import told
from broker.keys import Role
from jobs.tables import Batch
from ledger import seal
from markets.tables import RentalRow

READERS: tuple[Role, ...] = ("compliance",)
ZIP_TYPE = "application/zip"


async def where(call: Call) -> Where:
    """Which machines, countries and operators ever held a batch's input, checkpoints or output, on what evidence.

    Also those that computed answers for other batches which this one was given again."""
    async with call.services.database.transaction() as session:
        batch = await session.get(Batch, call.path("batch_id"))
        if batch is None or call.caller.project not in (None, batch.project):
            raise not_found("batch_not_found", f"No batch {call.path('batch_id')!r}.")
        keys = [msgspec.to_builtins(each) for each in await key_states(session, batch)]
        found = await _told(session, batch.id)
        reused = [
            {"batch": each, "lines": lines, **await _told(session, each)}
            for each, lines in (await sources_of(session, batch.id)).items()
        ]
    for name in ("countries", "operators"):
        found[name] = sorted({*found[name], *(one for each in reused for one in each[name])})
    return Where(batch=batch.id, keys=keys, reused=reused, **found)


async def _told(session: AsyncSession, batch: str) -> dict[str, Any]:
    rows = await decisions.of_batch(session, batch)
    bodies = await decisions.bodies_by_hash(session, sorted({row.facts_hash for row in rows}))
    ids = {row.rental for row in rows if row.rental is not None}
    machines = {rental: row for rental in sorted(ids) if (row := await session.get(RentalRow, rental)) is not None}
    return told(rows, bodies, machines)


async def replay(call: Call, query: ReplayQuery) -> Replayed:
    """Make up to 1,000 sealed decisions again, as of their times, and compare bit for bit."""
    of_the_house(call)
    async with call.services.database.transaction() as session:
        found = await replaying.replay(session, call.services.secret, batch=query.batch, after_seq=query.after)
        head = await seal.head(session, "decisions")
    last = query.after + replaying.PAGE
    return Replayed(
        replayed=len(found),
        mismatches=[{"seq": each.seq, "batch": each.batch, "wrong": each.wrong} for each in found if each.wrong],
        next_after=last if last < head.seq else None,
    )


async def export(call: Call) -> web.StreamResponse:
    """All sealed decisions with their policies and facts, as a zip that verifies without our software."""
    of_the_house(call)
    with tempfile.TemporaryDirectory(prefix="broker-export-") as scratch:
        packed = Path(scratch) / "decisions.zip"
        await exported(call.services.database, call.services.secret, packed)
        return await send_packed(call, packed, "decisions.zip")


ROUTES: tuple[Route, ...] = (
    route("GET", "/v1/audit/where/{batch_id}", where, tag="audit", roles=READERS),
    route("GET", "/v1/audit/replay", replay, tag="audit", roles=READERS),
    route("GET", "/v1/audit/export", export, tag="audit", roles=READERS, produces=(ZIP_TYPE,)),
)
