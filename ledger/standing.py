"""Where the books stand, as far as the events that are to be posted depend on it: read once under the lock, then followed.

One path for every caller: a single event, a batch of them, a replay. What is refused is refused by the same words.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import structlog
from sqlalchemy import insert, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from ledger import accounts, lots, positions
from ledger.errors import HoldExceeded, HoldResolved, HoldUnknown, KeyReused, MalformedEvent
from ledger.event import UNIT_USD, Event
from ledger.money import in_units
from ledger.positions import RESOLUTIONS, Hold
from ledger.rules import HOLD_KINDS, period_of
from ledger.tables import Entry, HoldState, ScopeUse

log = structlog.get_logger("ledger")
IN_AT_ONCE = 500  # values in one IN


@dataclass
class Standing:
    """`budgets` are what projects may still commit, by project and unit, None without a grant."""

    corrected: set[str]
    holds: dict[str, Hold]
    budgets: dict[tuple[str, str], int | None]
    closed: set[str]
    pools: dict[str, list[lots.Lot]]
    _opened: dict[str, Hold] = field(default_factory=dict)
    _moved: dict[str, Hold] = field(default_factory=dict)
    _uses: defaultdict[tuple[str, str, str], int] = field(default_factory=lambda: defaultdict(int))
    _lots: dict[tuple[str, int], lots.Lot] = field(default_factory=dict)
    _new_lots: dict[tuple[str, int], lots.Lot] = field(default_factory=dict)

    def admit(self, event: Event) -> None:
        """Raises MalformedEvent, HoldUnknown, HoldResolved, HoldExceeded, KeyReused, LotsExhausted."""
        if event.corrects is not None and event.corrects not in self.corrected:
            raise MalformedEvent(f"event {event.key!r} corrects {event.corrects!r}, which is not in the books")
        if event.hold is not None:
            self._admit_hold(event, event.hold)
        lots.admit(event, self.pools)

    def period(self, event: Event) -> str:
        """The month that the event is booked in: its own, or the first open one after it."""
        period = period_of(event.occurred_at_us)
        while period in self.closed:
            period = following(period)
        return period

    def follow(self, event: Event, seq: int, period: str) -> None:
        """The event is admitted as entry `seq`."""
        self.corrected.add(event.key)
        if event.hold is not None:
            self._follow_hold(event, event.hold, seq)
        project = event.dims.project
        if project is not None:
            self._follow_budget(event, project)
            for use, nano in uses_of(event, project, period):
                self._uses[use] += nano
        if event.kind == "period.close":
            self.closed.update(closed_by(event))
        for each in lots.moved(event, seq, self.pools):
            key = (each.unit, each.seq)
            (self._new_lots if each.seq == seq or key in self._new_lots else self._lots)[key] = each

    async def write(self, session: AsyncSession) -> None:
        """Keep what the caches say of what was followed."""
        if self._opened:
            await session.execute(insert(HoldState), [asdict(hold) for hold in self._opened.values()])
        for hold in self._moved.values():
            await session.execute(
                update(HoldState)
                .where(col(HoldState.id) == hold.id)
                .values(**asdict(hold))
                .execution_options(synchronize_session=False)
            )
        await self._write_uses(session)
        await lots.write(session, self._new_lots.values(), self._lots.values())

    async def _write_uses(self, session: AsyncSession) -> None:
        rows = [
            {"scope": scope, "unit": unit, "window": window, "nano": nano}
            for (scope, unit, window), nano in sorted(self._uses.items())
            if nano
        ]
        if not rows:
            return
        dialect: Any = sqlite if session.get_bind().dialect.name == "sqlite" else postgresql
        statement = dialect.insert(ScopeUse)
        added = ScopeUse.__table__.c.nano + statement.excluded.nano  # type: ignore[attr-defined]
        await session.execute(
            statement.on_conflict_do_update(index_elements=["scope", "unit", "window"], set_={"nano": added}), rows
        )

    def _admit_hold(self, event: Event, hold_id: str) -> None:
        hold = self.holds.get(hold_id)
        if event.kind == "hold.open":
            if hold is not None:
                raise KeyReused(
                    f"event {event.key!r}: hold {hold.id} was opened by entry {hold.opened_seq}; extend it or use a new id"
                )
        else:
            _admit_change(event, hold)
        if event.kind in ("hold.open", "hold.extend"):
            self._admit_budget(event)

    def _admit_budget(self, event: Event) -> None:
        project, unit = event.dims.project or "", unit_of(event)
        taken = -sum(line.nano for line in event.lines if line.account == accounts.budget(project))
        left = self.budgets.get((project, unit))
        if taken > 0 and left is not None and taken > left:
            log.warning("ledger.hold_refused", hold=event.hold, project=project, asked_nano=taken, remaining_nano=left)
            raise HoldExceeded(
                f"hold {event.hold} asks for {in_units(taken, unit)}, project {project} has {in_units(left, unit)} left of "
                "its budget; grant more, ask for less, or wait until other holds are resolved"
            )

    def _follow_hold(self, event: Event, hold_id: str, seq: int) -> None:
        if event.kind == "hold.open":
            self.holds[hold_id] = self._opened[hold_id] = positions.opened(event, seq)
            return
        after = positions.moved(self.holds[hold_id], event)
        self.holds[hold_id] = after
        (self._opened if hold_id in self._opened else self._moved)[hold_id] = after

    def _follow_budget(self, event: Event, project: str) -> None:
        for line in event.lines:
            if line.account == accounts.budget(project):
                key = (project, line.unit)
                left = self.budgets.get(key)
                if left is not None or event.kind == "budget.grant":
                    self.budgets[key] = (left or 0) + line.nano


def _admit_change(event: Event, hold: Hold | None) -> None:
    if hold is None:
        raise HoldUnknown(f"event {event.key!r}: hold {event.hold!r} was never opened")
    if hold.resolved is not None:
        raise HoldResolved(
            f"event {event.key!r}: hold {hold.id} was resolved before ({hold.resolved}); open a new hold"
        )
    if hold.project != event.dims.project:
        raise MalformedEvent(
            f"event {event.key!r}: hold {hold.id} is of project {hold.project}, not {event.dims.project}"
        )
    if positions.scopes_text(event) != hold.scopes:
        raise MalformedEvent(
            f"event {event.key!r}: hold {hold.id} counts against [{hold.scopes}], the event against "
            f"[{positions.scopes_text(event)}]; what was set aside somewhere goes back there"
        )
    lines = [line for line in event.lines if line.account == accounts.held(hold.project)]
    if any(line.unit != hold.unit for line in lines):
        raise MalformedEvent(
            f"event {event.key!r}: hold {hold.id} is in {hold.unit}, the event moves another unit of it"
        )
    given_back = -sum(line.nano for line in lines)
    if event.kind in RESOLUTIONS and given_back != hold.remaining_nano:
        raise MalformedEvent(
            f"event {event.key!r}: gives back {given_back} of the {hold.remaining_nano} nano left in hold {hold.id}"
        )
    if given_back > hold.remaining_nano:
        raise MalformedEvent(
            f"event {event.key!r}: takes {given_back} of the {hold.remaining_nano} nano left in hold {hold.id}"
        )


async def standing(session: AsyncSession, events: Sequence[Event]) -> Standing:
    """As far as these events depend on it. The books are locked."""
    holds = {event.hold for event in events if event.hold is not None}
    corrected = {event.corrects for event in events if event.corrects is not None}
    budgets = {
        (event.dims.project, unit_of(event)) for event in events if event.kind in HOLD_KINDS and event.dims.project
    }
    return Standing(
        corrected=await _keys(session, corrected),
        holds={hold.id: hold for hold in await _holds(session, holds)},
        budgets={key: await positions.remaining(session, key[0], unit=key[1]) for key in sorted(budgets)},
        closed=await closed_periods(session),
        pools=await lots.pools(session, events),
    )


async def closed_periods(session: AsyncSession) -> set[str]:
    """The months that are closed."""
    query = select(col(Entry.key)).where(col(Entry.kind) == "period.close")
    return {key.removeprefix("period.close:") for key in await session.scalars(query)}


def closed_by(event: Event) -> set[str]:
    """The months that a period.close closes."""
    prefix = "Memo:Closed:"
    return {line.account.removeprefix(prefix) for line in event.lines if line.account.startswith(prefix)}


def following(period: str) -> str:
    """The month after.

    >>> following("2026-12")
    '2027-01'
    """
    year, month = int(period[:4]), int(period[5:])
    return f"{year + month // 12:04d}-{month % 12 + 1:02d}"


def uses_of(event: Event, project: str, period: str) -> Iterable[tuple[tuple[str, str, str], int]]:
    """What the event adds to the use of each node that it counts against: (scope, unit, window) and nano."""
    scopes = (f"project:{project}", *(event.scopes if isinstance(event.scopes, tuple) else ()))
    held, used = accounts.held(project), (accounts.drawn(project), accounts.spent(project))
    for line in event.lines:
        if line.account == held:
            windows: tuple[str, ...] = ("held",)
        elif line.account in used:
            windows = ("all", period)
        else:
            continue
        for scope in scopes:
            for window in windows:
                yield (scope, line.unit, window), line.nano


def unit_of(event: Event) -> str:
    """The unit of a hold's or a grant's event; they have one."""
    return event.lines[0].unit if event.lines else UNIT_USD


async def _keys(session: AsyncSession, keys: set[str]) -> set[str]:
    found: set[str] = set()
    for some in in_parts(sorted(keys)):
        found.update(await session.scalars(select(col(Entry.key)).where(col(Entry.key).in_(some))))
    return found


async def _holds(session: AsyncSession, ids: set[str]) -> list[Hold]:
    found: list[Hold] = []
    for some in in_parts(sorted(ids)):
        found += await positions.holds(session, some)
    return found


def in_parts(values: Sequence[str]) -> Iterable[Sequence[str]]:
    """As many as go into one IN."""
    return (values[at : at + IN_AT_ONCE] for at in range(0, len(values), IN_AT_ONCE))
