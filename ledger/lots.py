"""Lots: what a unit that is not the books' own was bought for, spent first in, first out.

A purchase (`fx.buy`) debits an asset in the unit and credits `Equity:FX:Liquidity:<U>`, which takes the cost in the other
currency as a debit: its two balances are what is still held, and what that did cost. Spending (`escrow.spend`, `fx.sell`)
goes the other way at the lots' cost; the difference to the rate of the day is `Income:FX:Realised`. Integers only: the last
of a lot takes what is left of its cost, so that a lot's parts sum to its cost, to the nano.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace

from sqlalchemy import insert, select, update
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from ledger import accounts
from ledger.errors import LotsExhausted, MalformedEvent
from ledger.event import Event
from ledger.money import div_half_even, in_units
from ledger.tables import Lot as LotRow

KINDS = frozenset({"fx.buy", "fx.sell", "escrow.spend"})


@dataclass(frozen=True, slots=True)
class Lot:
    """What is left (`left_nano`, at `left_cost_nano`) of one purchase of `unit`, entry `seq`."""

    unit: str
    seq: int
    cost_unit: str
    nano: int
    cost_nano: int
    left_nano: int
    left_cost_nano: int
    bought_us: int


def consume(pool: Sequence[Lot], nano: int) -> tuple[list[Lot], int]:
    """The lots that change when `nano` of their unit are spent, oldest first, and what those did cost. Pure.

    Raises LotsExhausted when there is not so much.

    >>> lot = Lot("AKT", 1, "USD", 3, 10, 3, 10, 0)
    >>> [consume([lot], 1)[1], consume([replace(lot, left_nano=1, left_cost_nano=4)], 1)[1]]
    [3, 4]
    """
    left, cost, changed = nano, 0, []
    for lot in sorted(pool, key=lambda each: each.seq):
        if left == 0:
            break
        if lot.left_nano == 0:
            continue
        taken = min(left, lot.left_nano)
        part = (
            lot.left_cost_nano if taken == lot.left_nano else div_half_even(lot.left_cost_nano * taken, lot.left_nano)
        )
        changed.append(replace(lot, left_nano=lot.left_nano - taken, left_cost_nano=lot.left_cost_nano - part))
        left, cost = left - taken, cost + part
    if left:
        unit = pool[0].unit if pool else "?"
        raise LotsExhausted(
            f"{in_units(nano, unit)} would be spent, the lots hold {in_units(nano - left, unit)}; book what was bought"
        )
    return changed, cost


def admit(event: Event, pools: Mapping[str, Sequence[Lot]]) -> None:
    """Raises MalformedEvent when the event moves a unit at another cost than its lots say, LotsExhausted."""
    if event.kind not in KINDS:
        return
    for unit in units_of(event):
        moved, cost, _ = _moves(event, unit)
        if moved == 0:
            raise MalformedEvent(f"event {event.key!r}: a {event.kind} moves {unit} against {accounts.liquidity(unit)}")
        if event.kind == "fx.buy" and not (moved < 0 <= cost):
            raise MalformedEvent(
                f"event {event.key!r}: a purchase credits {accounts.liquidity(unit)} in {unit} and debits its cost"
            )
        if event.kind != "fx.buy":
            due = consume(pools.get(unit, ()), moved)[1] if moved > 0 else None
            if due is None or -cost != due:
                raise MalformedEvent(
                    f"event {event.key!r}: {in_units(abs(moved), unit)} leave the lots at {-cost} nano, by first in, first out "
                    f"they did cost {due}"
                )


def moved(event: Event, seq: int, pools: dict[str, list[Lot]]) -> list[Lot]:
    """The lots that the event makes or changes; `pools` follow."""
    if event.kind not in KINDS:
        return []
    changed: list[Lot] = []
    for unit in units_of(event):
        nano, cost, cost_unit = _moves(event, unit)
        pool = pools.setdefault(unit, [])
        if event.kind == "fx.buy":
            lot = Lot(unit, seq, cost_unit, -nano, cost, -nano, cost, event.occurred_at_us)
            pool.append(lot)
            changed.append(lot)
            continue
        spent = {lot.seq: lot for lot in consume(pool, nano)[0]}
        pools[unit] = [spent.get(lot.seq, lot) for lot in pool]
        changed += spent.values()
    return changed


def units_of(event: Event) -> list[str]:
    """The units whose lots the event moves."""
    prefix = accounts.liquidity("")
    return sorted({line.account.removeprefix(prefix) for line in event.lines if line.account.startswith(prefix)})


def _moves(event: Event, unit: str) -> tuple[int, int, str]:
    """Nano of the unit and of its cost on the unit's liquidity account, and the cost's unit."""
    lines = [line for line in event.lines if line.account == accounts.liquidity(unit)]
    costs = {line.unit for line in lines if line.unit != unit}
    if len(costs) > 1:
        raise MalformedEvent(
            f"event {event.key!r}: {unit} is exchanged for several currencies at once; post one event each"
        )
    nano = sum(line.nano for line in lines if line.unit == unit)
    return nano, sum(line.nano for line in lines if line.unit != unit), next(iter(costs), "USD")


async def pools(session: AsyncSession, events: Sequence[Event]) -> dict[str, list[Lot]]:
    """What is left of every lot of the units that the events move."""
    units = {unit for event in events if event.kind in KINDS for unit in units_of(event)}
    return {unit: await pool(session, unit) for unit in sorted(units)}


async def pool(session: AsyncSession, unit: str) -> list[Lot]:
    """The lots of a unit that are not spent, oldest first."""
    return [lot for lot in await all_lots(session, unit) if lot.left_nano]


async def all_lots(session: AsyncSession, unit: str | None = None) -> list[Lot]:
    """Every lot there ever was, of one unit or of all."""
    names = [each.name for each in fields(Lot)]
    query = select(*(col(getattr(LotRow, name)) for name in names)).order_by(col(LotRow.unit), col(LotRow.seq))
    if unit is not None:
        query = query.where(col(LotRow.unit) == unit)
    return [Lot(*row) for row in (await session.execute(query)).all()]


async def write(session: AsyncSession, made: Iterable[Lot], changed: Iterable[Lot]) -> None:
    """Keep the cache of lots."""
    if rows := [asdict(lot) for lot in made]:
        await session.execute(insert(LotRow), rows)
    for lot in changed:
        await session.execute(
            update(LotRow)
            .where(col(LotRow.unit) == lot.unit, col(LotRow.seq) == lot.seq)
            .values(left_nano=lot.left_nano, left_cost_nano=lot.left_cost_nano)
            .execution_options(synchronize_session=False)
        )
