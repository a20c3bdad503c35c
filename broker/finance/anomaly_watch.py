"""Looking for anomalies in the books: by day for the whole, each project, provider and tag; and what is wrong with machines."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from decimal import Decimal

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from broker.control.convert import usd
from broker.costs import accrued_by_rental
from broker.finance.spend import DAY_US, HOUR_US, TAG, Cell, Facts, by_tag, cells, facts_of, grouped
from broker.finance.tables import AnomalyLabel
from broker.token_buying import is_bought
from jobs.tables import Part
from ledger.anomalies import Anomaly, MachineFacts, burning, daily, structural
from ledger.holds import open_holds
from ledger.money import to_nano
from ledger.positions import remaining
from markets.tables import RentalRow

WEEKS_BACK = 12
MONTH_HOURS = 720


async def anomalies(session: AsyncSession, *, day_us: int, now_us: int, project: str | None = None) -> list[Anomaly]:
    """Everything out of the ordinary on the UTC day that begins at `day_us`, dearest first, structural ones after."""
    since = day_us - WEEKS_BACK * 7 * DAY_US
    found = await cells(session, since_us=since, until_us=day_us + DAY_US, project=project)
    facts = await facts_of(session, found, ("project", "batch"))
    days = range(since // DAY_US, day_us // DAY_US + 1)
    told = [
        anomaly
        for scope, series, parts in _series(found, facts, days, project)
        if (
            anomaly := daily(
                scope, _from_first(series), day_us, parts={name: _from_first(each) for name, each in parts.items()}
            )
        )
    ]
    told.sort(key=lambda each: (each.expected_nano - each.actual_nano, each.scope))
    told += await _burning(session, found, now_us=now_us, project=project)
    return told + structural(await _machines(session, day_us=day_us, now_us=now_us, project=project), now_us)


def _series(
    found: Sequence[Cell], facts: Facts, days: range, project: str | None
) -> list[tuple[str, list[int], dict[str, list[int]]]]:
    """(scope, nano by day, the same by part). The whole by project and provider; projects by provider; providers and the
    batches' tags by project (within one project by provider). What carries a tag is what `spend --by tag:NAME` says of it."""
    scopes = [("provider", "project"), ("project", "provider")]
    made = [] if project else [("all", _by_day(found, days), _parts(found, facts, days, "project"))]
    for key, part in scopes:
        split: dict[str, list[Cell]] = defaultdict(list)
        for cell in found:
            [(value,)] = grouped([cell], facts, [key]) or [(("-"),)]
            split[value].append(cell)
        made += [
            (f"{key}:{value}", _by_day(own, days), _parts(own, facts, days, part))
            for value, own in sorted(split.items())
        ]
    part = "provider" if project else "project"
    return made + [
        (f"{TAG}{name}={value}", _by_day(own, days), _parts(own, facts, days, part))
        for (name, value), own in sorted(by_tag(found, facts).items())
    ]


def _by_day(found: Sequence[Cell], days: range) -> list[int]:
    sums = [0] * len(days)
    for cell in found:
        sums[cell.step - days.start] += cell.nano
    return sums


def _parts(found: Sequence[Cell], facts: Facts, days: range, key: str) -> dict[str, list[int]]:
    split: dict[str, list[Cell]] = defaultdict(list)
    for cell in found:
        [(value,)] = grouped([cell], facts, [key]) or [(("-"),)]
        split[value].append(cell)
    return {value: _by_day(own, days) for value, own in split.items()}


def _from_first(series: Sequence[int]) -> list[int]:
    """A series begins with its first spend: the days before there was any say nothing about it."""
    first = next((at for at, nano in enumerate(series) if nano), len(series))
    return list(series[first:])


async def _burning(session: AsyncSession, found: Sequence[Cell], *, now_us: int, project: str | None) -> list[Anomaly]:
    """Projects that burn their budget too fast now, by the hour. A project without a budget has no rate."""
    hours = await cells(session, since_us=now_us - 6 * HOUR_US, until_us=now_us, step_us=HOUR_US, project=project)
    told = []
    for name in sorted({cell.project for cell in hours if cell.project}):
        left = await remaining(session, name)
        if left is None:
            continue
        own = [0] * 6
        for cell in hours:
            if cell.project == name:
                own[min(5, max(0, 5 - (now_us // HOUR_US - cell.step)))] += cell.nano
        spent = sum(cell.nano for cell in found if cell.project == name)
        anomaly = burning(f"project:{name}", own, max(0, left) + spent, MONTH_HOURS, now_us)
        if anomaly is not None:
            told.append(anomaly)
    return told


async def _machines(session: AsyncSession, *, day_us: int, now_us: int, project: str | None) -> list[MachineFacts]:
    query = select(RentalRow).where(
        (col(RentalRow.ended_us) >= day_us) | (col(RentalRow.ended_us).is_(None)),
        col(RentalRow.started_us).is_not(None),
        col(RentalRow.started_us) < day_us + DAY_US,
    )
    if project is not None:
        query = query.where(col(RentalRow.project) == project)
    rows = list(await session.scalars(query.order_by(col(RentalRow.id))))
    ids = [row.id for row in rows]
    costs = await accrued_by_rental(session, ids)
    answered = await _answered(session, ids)
    held = {hold.rental for hold in await open_holds(session, project=project)}
    return [
        MachineFacts(
            rental=row.id,
            project=row.project,
            market=row.market,
            lines=answered.get(row.id, (0, 0))[0],
            cost_nano=costs.get(row.id, 0),
            quoted_nano_hour=_quoted(row),
            charged_nano_hour=row.price_nano_hour,
            batches=len(row.purpose.get("batches", ())) + (row.id in answered),
            is_over=row.state in ("ended", "lost", "failed") and row.settled,
            has_open_hold=row.id in held,
            idle_s=_idle_s(row, answered.get(row.id, (0, None))[1], now_us),
            started_us=row.started_us,
        )
        for row in rows
    ]


def _quoted(row: RentalRow) -> int:
    """Nano-USD per hour of the offer that the plan chose; 0 where it is not known."""
    price = row.facts.get("price")
    return to_nano(Decimal(str(price))) if price else 0


def _idle_s(row: RentalRow, newest_us: int | None, now_us: int) -> int | None:
    """How long a machine that runs has committed nothing; None for one that does not run, and for an executor: one that buys no
    tokens costs nothing, whatever an hour at its limits would."""
    if row.state != "running" or row.started_us is None or is_bought(row):
        return None
    return (now_us - max(row.started_us, newest_us or 0)) // 1_000_000


async def _answered(session: AsyncSession, ids: Sequence[str]) -> dict[str, tuple[int, int]]:
    """By rental: how many lines it answered, and when it last committed some."""
    found: dict[str, tuple[int, int]] = {}
    for at in range(0, len(ids), 500):
        query = (
            select(
                col(Part.placement_id),
                func.sum(col(Part.completed) + col(Part.failed)),
                func.max(col(Part.committed_us)),
            )
            .where(col(Part.placement_id).in_(ids[at : at + 500]), col(Part.counted).is_(True))
            .group_by(col(Part.placement_id))
        )
        found |= {rental: (int(count), int(last)) for rental, count, last in (await session.execute(query)).all()}
    return found


async def labels(session: AsyncSession, ids: Sequence[str]) -> dict[str, AnomalyLabel]:
    """What people said of these anomalies."""
    query = select(AnomalyLabel).where(col(AnomalyLabel.id).in_(ids))
    return {row.id: row for row in await session.scalars(query)}


def shown(each: Anomaly, label: AnomalyLabel | None) -> dict[str, object]:
    """An anomaly as JSON, with what a person said of it."""
    return {
        "id": each.id,
        "scope": each.scope,
        "rule": each.rule,
        "at_us": each.at_us,
        "actual_usd": usd(each.actual_nano),
        "expected_usd": usd(each.expected_nano),
        "low_usd": usd(each.low_nano),
        "high_usd": usd(each.high_nano),
        "score": str(each.score),
        "message": each.message,
        "contributors": [{"name": part.name, "usd": usd(part.nano)} for part in each.contributors],
        "label": None if label is None else label.label,
        "labelled_by": None if label is None else label.labelled_by,
    }
