"""What counts against the budgets of batches and tags: their own costs, and what is set aside for machines that serve them.

A machine serves the batches that it was rented for and, whoever it was rented for, those that the newest plan put on its
offer. A limit that looked at the first alone did not bind on another batch's machine.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from broker.budget_tables import BudgetRow
from broker.costs import batch_costs
from broker.tables import Assignment
from jobs.tables import Batch
from jobs.types import TERMINAL
from ledger.event import UNIT_USD
from ledger.holds import open_holds
from ledger.positions import Hold
from ledger.standing import in_parts
from ledger.tables import Entry, Head, Posting
from ledger.units import NANO_PER_TOKEN
from markets.tables import RentalRow

KINDS = ("batch", "tag")


@dataclass(frozen=True, slots=True)
class Early:
    """What was booked for budgets of batches and tags, by their ids, when entry `seq` was the newest.

    Adding up all that a tag's batches ever cost takes long, and the whole house waits at the head of the books: so it is
    read before the head is locked, and what was booked since then is added afterwards.
    """

    seq: int
    booked: Mapping[str, int]


def is_of_batches(row: BudgetRow) -> bool:
    """Whether it is a budget of a batch or a tag."""
    return row.scope.partition(":")[0] in KINDS


async def booked_early(session: AsyncSession, rows: Iterable[BudgetRow]) -> Early:
    """To be called before the head of the books is locked."""
    seq = (await session.execute(select(col(Head.seq)).where(col(Head.id) == 1))).scalar_one()
    mine = [row for row in rows if is_of_batches(row)]
    return Early(seq, {row.id: await booked_for(session, row, await batches_in(session, row)) for row in mine})


async def booked_since(session: AsyncSession, row: BudgetRow, seq: int) -> int:
    """What the budget's project was charged after entry `seq`: all of it, for it may be the budget's own."""
    query = (
        select(func.sum(col(Posting.nano)))
        .join(Entry, col(Entry.id) == col(Posting.entry_id))
        .where(col(Entry.seq) > seq, col(Entry.project) == row.project)
        .where(col(Posting.account).startswith("Expenses:"), col(Posting.unit) == row.unit, col(Posting.nano) > 0)
    )
    return int((await session.execute(query)).scalar_one() or 0)


async def tags_of(session: AsyncSession, project: str, batches: Collection[str]) -> list[str]:
    """The scopes of the tags that the batches carry."""
    tags: set[str] = set()
    for some in in_parts(sorted(batches)):
        for wishes in await session.scalars(select(col(Batch.wishes)).where(col(Batch.id).in_(some))):
            tags.update(f"tag:{project}/{key}={value}" for key, value in ((wishes or {}).get("tags") or {}).items())
    return sorted(tags)


async def batches_in(session: AsyncSession, row: BudgetRow) -> list[str]:
    """The batches that a batch's or a tag's budget is about."""
    kind, _, name = row.scope.partition(":")
    if kind == "batch":
        return [name]
    project, _, tag = name.partition("/")
    key, _, value = tag.partition("=")
    query = select(col(Batch.id), col(Batch.wishes)).where(col(Batch.project) == project)
    found = (await session.execute(query)).all()
    return [batch for batch, wishes in found if ((wishes or {}).get("tags") or {}).get(key) == value]


async def booked_for(session: AsyncSession, row: BudgetRow, batches: Sequence[str]) -> int:
    """What the batches have cost, in the budget's unit. Of tokens those of batches that have ended: the others' are held."""
    total = 0
    for some in in_parts(batches):
        if row.unit == UNIT_USD:
            total += sum(cost.nano for cost in (await batch_costs(session, some)).values())
            continue
        query = select(func.sum(col(Batch.used_input_tokens) + col(Batch.used_output_tokens)))
        query = query.where(col(Batch.id).in_(some), col(Batch.status).in_(TERMINAL))
        total += int((await session.execute(query)).scalar_one() or 0) * NANO_PER_TOKEN
    return total


@dataclass(frozen=True, slots=True)
class Held:
    """Nano-units: `nano` is set aside for the batches alone, `lent_nano` is what the newest plan expects them to cost on
    machines whose hold others have. The second is an expectation: it fills a limit, but never passes it."""

    nano: int
    lent_nano: int = 0

    def within(self, left_nano: int) -> int:
        """What counts where `left_nano` of the limit is not booked.

        >>> Held(6, 16).within(10), Held(12, 16).within(10), Held(6, 2).within(10)
        (10, 12, 8)
        """
        return self.nano + min(self.lent_nano, max(0, left_nano - self.nano))


async def held_for(session: AsyncSession, row: BudgetRow, batches: Sequence[str]) -> Held:
    """What open holds set aside for machines that serve any of the batches.

    Of a machine that was rented for one of them that goes on all of it, for any of them may use it; of a machine that was
    rented for others, or is kept for others after its own have ended, what the newest plan expects the batches to cost there.
    """
    wanted = set(batches)
    if row.unit != UNIT_USD:
        held = await open_holds(session, project=row.project, unit=row.unit)
        return Held(sum(each.remaining_nano + each.drawn_nano for each in held if each.batch in wanted))
    whole, lent = 0, defaultdict[tuple[str, str], int](int)
    for each in await _machines(session, row.project):
        if wanted.intersection(each.owners):
            whole += each.remaining_nano
        else:
            lent[each.offer_key, each.model] += each.remaining_nano
    planned = defaultdict[tuple[str, str], int](int)
    for one in await assigned(session, {offer for offer, _ in lent}):
        if one.batch in wanted:
            planned[one.offer_key, one.model] += one.cost_nano
    return Held(whole, sum(min(nano, lent[key]) for key, nano in planned.items() if key in lent))


@dataclass(frozen=True, slots=True)
class _Machine:
    """An open hold of a machine and the batches it was rented for that still need it: all of them where it serves nobody."""

    offer_key: str
    model: str
    remaining_nano: int
    owners: frozenset[str]


async def _machines(session: AsyncSession, project: str | None) -> list[_Machine]:
    held = await open_holds(session, project=project)
    rows = await _rentals(session, held)
    served = await served_by(session, list(rows.values()))
    found: list[_Machine] = []
    for each in held:
        rental = rows.get(each.rental or "")
        if rental is not None:
            owners = frozenset(served[rental.id]).intersection(rental.purpose.get("batches", ()))
            found.append(_Machine(rental.offer_key, rental.model, each.remaining_nano, owners))
    return found


@dataclass(frozen=True, slots=True)
class Assigned:
    """A batch in progress that the newest plan put on an offer, and what it is expected to cost there."""

    batch: str
    offer_key: str
    project: str
    model: str
    cost_nano: int


async def assigned(session: AsyncSession, offers: Collection[str]) -> list[Assigned]:
    """Who works on these offers now."""
    found: list[Assigned] = []
    for some in in_parts(sorted(offers)):
        query = (
            select(
                col(Assignment.batch),
                col(Assignment.offer_key),
                col(Batch.project),
                col(Batch.model),
                col(Assignment.cost_nano),
            )
            .join(Batch, col(Batch.id) == col(Assignment.batch))
            .where(col(Assignment.offer_key).in_(some), col(Batch.status) == "in_progress")
            .order_by(col(Assignment.offer_key), col(Assignment.rank), col(Assignment.batch))
        )
        found += [Assigned(b, o, p, m or "", int(c)) for b, o, p, m, c in (await session.execute(query)).all()]
    return found


async def served_by(session: AsyncSession, rows: Sequence[RentalRow]) -> dict[str, tuple[str, ...]]:
    """The batches that each rental serves, by its id: rented for or put there since, without those that have ended. All that
    it was rented for where none is left."""
    by_offer: dict[tuple[str, str, str], list[str]] = defaultdict(list)
    for one in await assigned(session, {row.offer_key for row in rows}):
        by_offer[one.offer_key, one.project, one.model].append(one.batch)
    purposes = {row.id: [str(each) for each in row.purpose.get("batches", ())] for row in rows}
    ended = await _ended(session, {batch for each in purposes.values() for batch in each})
    found: dict[str, tuple[str, ...]] = {}
    for row in rows:
        both = [*purposes[row.id], *by_offer.get((row.offer_key, row.project, row.model), [])]
        going = [batch for batch in dict.fromkeys(both) if batch not in ended]
        found[row.id] = tuple(going or purposes[row.id])
    return found


async def shut(session: AsyncSession, project: str, batches: Collection[str]) -> dict[str, str]:
    """Those of the batches whose own budget, or a tag's of theirs, is stopped by its breaker, and that budget's scope. They get
    no more work anywhere; what they have begun they finish."""
    query = select(col(BudgetRow.scope)).where(
        col(BudgetRow.project) == project, col(BudgetRow.state) == "open", col(BudgetRow.mode) == "enforce"
    )
    stopped = {scope for scope in await session.scalars(query) if scope.partition(":")[0] in KINDS}
    if not stopped:
        return {}
    found: dict[str, str] = {}
    for batch in batches:
        scopes = {f"batch:{batch}", *await tags_of(session, project, [batch])}
        if both := sorted(scopes & stopped):
            found[batch] = both[0]
    return found


async def ceilings(session: AsyncSession, project: str, spent: Mapping[str, int]) -> dict[str, tuple[int, str]]:
    """By batch the most that it may cost in all because of budgets of its own or of its tags, and the scope of the tightest.

    `spent` is what each of the batches that are to be planned has cost so far, in nano-USD. What a tag has left is given once:
    not to a batch what is set aside for another's machine, nor what an older batch of the tag is planned to cost.
    """
    query = select(BudgetRow).where(
        col(BudgetRow.project) == project, col(BudgetRow.unit) == UNIT_USD, col(BudgetRow.mode) == "enforce"
    )
    rows = [row for row in await session.scalars(query.order_by(col(BudgetRow.scope))) if is_of_batches(row)]
    if not rows:
        return {}
    machines = await _machines(session, project)
    planned = await _assignments(session, project)
    found: dict[str, tuple[int, str]] = {}
    for row in rows:
        mine = await batches_in(session, row)
        left = 0 if row.state == "open" else max(0, row.limit_nano - await booked_for(session, row, mine))
        for batch in set(mine) & spent.keys():
            room = max(0, left - _taken(batch, frozenset(mine), machines, planned))
            most = (spent[batch] + room, row.scope)
            found[batch] = min(found.get(batch, most), most)
    return found


def _taken(batch: str, mine: frozenset[str], machines: Sequence[_Machine], planned: Sequence[Assigned]) -> int:
    """What others of `mine` have of a limit before `batch`: their machines' holds, then what the older ones are planned to
    cost elsewhere. Ids are in the order in which batches were made: two of them never take from each other."""
    others = [each for each in machines if mine.intersection(each.owners) and batch not in each.owners]
    theirs = sum(each.remaining_nano for each in others)
    if any(batch in each.owners for each in machines):
        return theirs  # its own hold came before what is only planned
    covered = {(each.offer_key, each.model) for each in others}
    older = [each for each in planned if each.batch in mine and each.batch < batch]
    return theirs + sum(each.cost_nano for each in older if (each.offer_key, each.model) not in covered)


async def _assignments(session: AsyncSession, project: str) -> list[Assigned]:
    """What the newest plan expects of the project's batches in progress."""
    query = (
        select(col(Assignment.batch), col(Assignment.offer_key), col(Batch.model), col(Assignment.cost_nano))
        .join(Batch, col(Batch.id) == col(Assignment.batch))
        .where(col(Batch.project) == project, col(Batch.status) == "in_progress")
    )
    return [Assigned(b, o, project, m or "", int(c)) for b, o, m, c in (await session.execute(query)).all()]


async def _rentals(session: AsyncSession, held: Sequence[Hold]) -> dict[str, RentalRow]:
    found: dict[str, RentalRow] = {}
    for some in in_parts(sorted({each.rental for each in held if each.rental is not None})):
        found.update(
            {row.id: row for row in await session.scalars(select(RentalRow).where(col(RentalRow.id).in_(some)))}
        )
    return found


async def _ended(session: AsyncSession, batches: Collection[str]) -> set[str]:
    found: set[str] = set()
    for some in in_parts(sorted(batches)):
        query = select(col(Batch.id)).where(col(Batch.id).in_(some), col(Batch.status).in_(TERMINAL))
        found.update(await session.scalars(query))
    return found
