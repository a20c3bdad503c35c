"""The ledger as people see it: entries with their postings, what they sum to, and the CSV."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from aiohttp import web
from pydantic import ConfigDict, Field
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from broker.api import shapes
from broker.api.auth import PROJECT_HEADER, no_such_project
from broker.api.files import whole_or_aborted
from broker.api.registry import Call, Route, route
from broker.control.convert import usd
from broker.database import as_of_now
from ledger.audit import LedgerFinding, check
from ledger.book import Balance, Recorded, balances, entries
from ledger.event import UNIT_USD
from ledger.export import COLUMNS, csv_text, rows_of
from ledger.given_back import loops_own
from ledger.holds import open_holds
from markets.tables import RentalRow

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
PAGE_ENTRIES = 500
_ID = r"^[A-Za-z0-9_-]{1,64}$"


class ExportQuery(shapes.Own):
    """Which entries: all given filters must hold. A key of one project sees that project only."""

    model_config = ConfigDict(extra="forbid")

    project: str | None = Field(default=None, max_length=64)
    batch: str | None = Field(default=None, pattern=_ID)
    rental: str | None = Field(default=None, pattern=_ID)


class EntryQuery(ExportQuery):
    """With paging: `after` is the `seq` of the last entry of the page before."""

    kind: str | None = Field(default=None, max_length=64)
    after: int = Field(default=0, ge=0, lt=2**62)
    limit: int = Field(default=100, ge=1, le=1000)


async def list_entries(call: Call, query: EntryQuery) -> shapes.Ledger:
    """Entries of the ledger in their order, with balances; the books are checked while at it."""
    project = _project(call, query.project)
    chosen: dict[str, Any] = {"project": project, "batch": query.batch, "rental": query.rental}
    async with call.services.database.transaction() as session:
        await as_of_now(session)
        page = await entries(session, **chosen, kind=query.kind, after_seq=query.after, limit=query.limit + 1)
        sums = await balances(session, **chosen)
        own = await loops_own(session, **chosen)
        held = await open_holds(session, project=project)
        findings = await check(session, ended_rentals=await _ended(session))
    held = [each for each in held if query.rental in (None, each.rental) and query.batch in (None, each.batch)]
    accrued = sum(each.nano for each in sums if each.unit == UNIT_USD and each.account.startswith("Expenses:"))
    return shapes.Ledger(
        entries=[entry_shape(each) for each in page[: query.limit]],
        balances={each.account: usd(each.nano) for each in sums if each.unit == UNIT_USD},
        by_hand=_by_hand(sums, own),
        accrued_usd=usd(accrued),
        held_usd=usd(sum(each.remaining_nano for each in held)),
        balanced=not any(each.severity == "error" for each in findings),
        findings=_told(findings, project),
        has_more=len(page) > query.limit,
    )


def _by_hand(sums: Sequence[Balance], own: Mapping[tuple[str, str], int]) -> dict[str, dict[str, str]]:
    found: dict[str, dict[str, str]] = defaultdict(dict)
    for each in sums:
        if each.account.startswith(("Assets:", "Liabilities:")):
            found[each.account][each.unit] = usd(each.nano - own.get((each.account, each.unit), 0))
    return found


async def _ended(session: AsyncSession) -> frozenset[str]:
    """Rentals that are over and booked to the end: none of them may have a hold that is still open."""
    over = select(col(RentalRow.id)).where(
        col(RentalRow.state).in_(("ended", "lost", "failed")), col(RentalRow.settled).is_(True)
    )
    return frozenset(await session.scalars(over))


def _told(findings: list[LedgerFinding], project: str | None) -> list[str]:
    """The findings; a project is only told how many there are, since they name what belongs to others."""
    if project is not None and findings:
        return [f"{len(findings)} findings in the books of this broker; an administrator can read them"]
    return [f"{each.severity}: {each.code} {each.subject}: {each.message}" for each in findings]


def _project(call: Call, named: str | None) -> str | None:
    """The project whose entries may be seen. A key of all projects sees all, unless it names one."""
    own = call.caller.project
    if own is None:
        return named or (call.project if PROJECT_HEADER in call.request.headers else None)
    if named is not None and named != own:
        raise no_such_project(named)
    return own


async def export_csv(call: Call, query: ExportQuery) -> web.StreamResponse:
    """The ledger as CSV, one row a posting, streamed.

    Each page is read in a transaction of its own: the books only grow at their end, so the pages fit together, and a slow
    reader holds nobody up.
    """
    project = _project(call, query.project)
    answer = web.StreamResponse(
        headers={"Content-Type": "text/csv; charset=utf-8", "Content-Disposition": 'attachment; filename="ledger.csv"'}
    )
    page = await _page(call, query, project, after_seq=0)
    async with whole_or_aborted(call.request):
        await answer.prepare(call.request)
        await answer.write(csv_text([COLUMNS]).encode())
        while page:
            await answer.write(csv_text(row for entry in page for row in rows_of(entry)).encode())
            page = await _page(call, query, project, after_seq=page[-1].seq)
        await answer.write_eof()
    return answer


async def _page(call: Call, query: ExportQuery, project: str | None, *, after_seq: int) -> list[Recorded]:
    async with call.services.database.transaction() as session:
        return await entries(
            session, project=project, batch=query.batch, rental=query.rental, after_seq=after_seq, limit=PAGE_ENTRIES
        )


def entry_shape(entry: Recorded) -> shapes.Entry:
    """An entry with its postings, debits positive."""
    event = entry.event
    moment = _EPOCH + timedelta(microseconds=event.occurred_at_us)
    return shapes.Entry(
        seq=entry.seq,
        id=entry.entry_id,
        key=event.key,
        kind=event.kind,
        occurred_at=moment.strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
        project=event.dims.project,
        batch=event.dims.batch,
        rental=event.dims.rental,
        offer_key=event.dims.offer_key,
        corrects=event.corrects,
        hold=event.hold,
        postings=[shapes.Posting(account=line.account, unit=line.unit, amount=usd(line.nano)) for line in event.lines],
    )


ROUTES: tuple[Route, ...] = (
    route("GET", "/v1/ledger/entries", list_entries, tag="ledger", roles=("finance",)),
    route("GET", "/v1/ledger/export.csv", export_csv, tag="ledger", roles=("finance",), produces=("text/csv",)),
)
