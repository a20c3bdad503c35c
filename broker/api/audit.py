"""What an auditor asks: where a batch ever was, whether its decisions can be made again, and all of them to take along."""

from __future__ import annotations

import msgspec
from aiohttp import web

from broker.api.compliance import of_the_house
from broker.api.policy_shapes import Replayed, ReplayQuery, Where
from broker.api.problems import not_found
from broker.api.registry import Call, Route, route
from broker.compliance import decisions, replaying
from broker.compliance.audit_export import export as exported
from broker.compliance.destruction import key_states
from broker.compliance.whereabouts import told
from broker.keys import Role
from jobs.tables import Batch
from ledger import seal
from markets.tables import RentalRow

READERS: tuple[Role, ...] = ("compliance",)
ZIP_TYPE = "application/zip"


async def where(call: Call) -> Where:
    """Which machines, countries and operators ever held a batch's input, checkpoints or output, on what evidence."""
    async with call.services.database.transaction() as session:
        batch = await session.get(Batch, call.path("batch_id"))
        if batch is None or call.caller.project not in (None, batch.project):
            raise not_found("batch_not_found", f"No batch {call.path('batch_id')!r}.")
        rows = await decisions.of_batch(session, batch.id)
        bodies = await decisions.bodies_by_hash(session, sorted({row.facts_hash for row in rows}))
        ids = {row.rental for row in rows if row.rental is not None}
        keys = [msgspec.to_builtins(each) for each in await key_states(session, batch)]
        machines = {rental: row for rental in sorted(ids) if (row := await session.get(RentalRow, rental)) is not None}
    return Where(batch=batch.id, keys=keys, **told(rows, bodies, machines))


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


async def export(call: Call) -> web.Response:
    """All sealed decisions with their policies and facts, as a zip that verifies without our software."""
    of_the_house(call)
    async with call.services.database.transaction() as session:
        body = await exported(session, call.services.secret)
    headers = {"Content-Disposition": 'attachment; filename="decisions.zip"'}
    return web.Response(body=body, content_type=ZIP_TYPE, headers=headers)


ROUTES: tuple[Route, ...] = (
    route("GET", "/v1/audit/where/{batch_id}", where, tag="audit", roles=READERS),
    route("GET", "/v1/audit/replay", replay, tag="audit", roles=READERS),
    route("GET", "/v1/audit/export", export, tag="audit", roles=READERS, produces=(ZIP_TYPE,)),
)
