"""The sealed streams over HTTP: the public key, signed checkpoints, leaves; and posting events that people know of."""

from __future__ import annotations

import asyncio
import tempfile
import zipfile
from pathlib import Path
from typing import Literal

from aiohttp import web
from pydantic import ConfigDict, Field

from broker.api import shapes
from broker.api.files import whole_or_aborted
from broker.api.problems import bad_request, not_found
from broker.api.registry import Call, Route, route
from broker.control.seal import seal_streams
from broker.finance.account_maps import unmapped
from broker.ledger_key import ledger_signer
from jobs.clock import db_now
from ledger import seal, sealed_export
from ledger.accounts import is_memo
from ledger.book import post_many
from ledger.checkpoint import verifier_key
from ledger.errors import LedgerError, MalformedEvent
from ledger.event import Event, Exists, decoded
from ledger.periods import close

_CHUNK = 1 << 20
# What the loops post by themselves: nobody else may say what a machine cost or what is set aside for it.
_BY_LOOPS = frozenset({"hold.open", "hold.extend", "hold.post", "hold.void", "hold.expire", "usage.accrue", "usage.waste",
                       "saving.reuse", "saving.on_demand", "saving.api", "budget.grant",
                       "commitment.amortise", "period.close"})  # fmt: skip
# How the loops' own keys begin: they read them back (a meter its newest one), or count them.
_KEYS_OF_LOOPS = ("accrue:", "tokens:", "waste:", "besides.", "hold.", "settle", "saving.", "budget.grant:", "limit:",
                  "period.close:", "commitment.amortise:", "back:", "invoice.match:", "invoice.variance:")  # fmt: skip
_MOST = 1000


class LedgerKey(shapes.Own):
    """Whose signature checkpoints carry, as a verifier key of the signed-note format."""

    public_key: str


class Checkpoints(shapes.Own):
    """All signed checkpoints, one after the other, and how far each stream is."""

    checkpoints: str
    heads: dict[str, int]


class EventsIn(shapes.Own):
    """Events of the books, as contract C6 has them; all are posted, or none when one is refused."""

    model_config = ConfigDict(extra="forbid")

    events: list[dict[str, object]] = Field(min_length=1, max_length=_MOST)


class PostedEvent(shapes.Own):
    """`exists`: the same event was in the books before."""

    key: str
    seq: int
    outcome: Literal["posted", "exists"]


class PostedEvents(shapes.Own):
    data: list[PostedEvent]


async def public_key(call: Call) -> LedgerKey:
    """The key that `broker ledger verify` needs. Keep it where the broker's owner cannot change it."""
    signer = await asyncio.to_thread(ledger_signer, call.services.settings)
    return LedgerKey(public_key=verifier_key(signer.key, signer.name))


async def checkpoints(call: Call) -> Checkpoints:
    """What was signed so far."""
    async with call.services.database.transaction() as session:
        notes = [note for _, _, note in await sealed_export.notes(session)]
        heads = {stream: (await seal.head(session, stream)).seq for stream in seal.STREAMS}
    return Checkpoints(checkpoints="".join(notes), heads=heads)


async def sealed_zip(call: Call) -> web.StreamResponse:
    """The sealed streams with their checkpoints, signed now, as a zip that `broker ledger verify` reads."""
    _require_all(call)
    answer = web.StreamResponse(
        headers={"Content-Type": "application/zip", "Content-Disposition": 'attachment; filename="sealed.zip"'}
    )
    await seal_streams(call.services)
    with tempfile.TemporaryDirectory(prefix="broker-sealed-") as name:
        folder = Path(name) / "export"
        await sealed_export.write(call.services.database.transaction, folder)
        signer = await asyncio.to_thread(ledger_signer, call.services.settings)
        packed = await asyncio.to_thread(_packed, folder, signer)
        async with whole_or_aborted(call.request):
            await answer.prepare(call.request)
            with packed.open("rb") as opened:
                while chunk := await asyncio.to_thread(opened.read, _CHUNK):
                    await answer.write(chunk)
            await answer.write_eof()
    return answer


def _require_all(call: Call) -> None:
    """The books are the house's. A key of one project is told that there are none, as with another's project."""
    if call.caller.project is not None:
        raise not_found("books_not_found", "The whole books are for keys of all projects.")


def _packed(folder: Path, signer: sealed_export.Signer) -> Path:
    sealed_export.write_manifest(folder)
    sealed_export.sign_manifest(folder, signer)
    target = folder.parent / "sealed.zip"
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as packed:
        for file in sorted(each for each in folder.rglob("*") if each.is_file()):
            packed.write(file, file.relative_to(folder).as_posix())
    return target


async def post_events(call: Call, body: EventsIn) -> PostedEvents:
    """Post what people know and no loop does: top-ups, deposits, refunds, credits, exchanges, commitments, corrections.

    The actor is the caller's key, whatever the event says. Keys that begin as the broker's own do, holds, memo lines and
    scopes are refused: they would move budgets, or be read by a loop as its own.
    """
    _require_all(call)
    try:
        events = [_event(each, call.caller.key_id) for each in body.events]
        async with call.services.database.transaction() as session:
            now_us = await db_now(session)
            answers = await post_many(session, [(event, now_us) for event in events])
    except LedgerError as refused:
        raise bad_request(refused.code, str(refused), "events") from refused
    return PostedEvents(
        data=[
            PostedEvent(key=event.key, seq=each.seq, outcome="exists" if isinstance(each, Exists) else "posted")
            for event, each in zip(events, answers, strict=True)
        ]
    )


async def close_period(call: Call) -> PostedEvent:
    """Close a month that has ended: what belongs to it is booked in the next one from now on.

    Not while money is in suspense, nor while the account mapping, where there is one, leaves an account of the month without a
    name.
    """
    _require_all(call)
    period = call.path("period")
    try:
        async with call.services.database.transaction() as session:
            now_us = await db_now(session)
            if loose := await unmapped(session, period):
                message = (
                    f"{period} has accounts that the mapping does not name: {', '.join(loose[:5])}; map them first"
                )
                raise bad_request("unmapped_accounts", message, "period")
            posted = await close(session, period, now_us=now_us, actor=call.caller.key_id)
    except LedgerError as refused:
        raise bad_request(refused.code, str(refused), "period") from refused
    return PostedEvent(key=f"period.close:{period}", seq=posted.seq, outcome="posted")


def _event(given: dict[str, object], actor: str) -> Event:
    event = decoded({**given, "actor": actor})
    if event.kind in _BY_LOOPS:
        raise MalformedEvent(f"event {event.key!r}: a {event.kind} is posted by the broker itself")
    if event.key.startswith(_KEYS_OF_LOOPS):
        raise MalformedEvent(f"event {event.key!r}: keys that begin like this are the broker's own; choose another")
    if event.hold is not None:
        raise MalformedEvent(f"event {event.key!r}: hold {event.hold!r}: only the broker draws on holds; leave it out")
    # A memo line moves what a budget has left: that is a limit's to say, with a second person (`broker budget set`).
    if memo := [line.account for line in event.lines if is_memo(line.account)]:
        raise MalformedEvent(f"event {event.key!r}: {memo[0]} is kept by the broker; leave memo lines out")
    if isinstance(event.scopes, tuple):
        raise MalformedEvent(f"event {event.key!r}: scopes are said by the broker alone; leave them out")
    return event


ROUTES: tuple[Route, ...] = (
    route("GET", "/v1/ledger/key", public_key, tag="ledger", roles=("finance", "viewer", "compliance")),
    route("GET", "/v1/ledger/checkpoints", checkpoints, tag="ledger", roles=("finance", "compliance")),
    route("GET", "/v1/ledger/sealed.zip", sealed_zip, tag="ledger", roles=("finance", "compliance"),
          produces=("application/zip",)),
    route("POST", "/v1/ledger/periods/{period}/close", close_period, tag="ledger", roles=("finance",), errors=(400,)),
    route("POST", "/v1/ledger/events", post_events, tag="ledger", roles=("finance",)),
)  # fmt: skip
