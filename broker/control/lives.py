"""A rental's life as the ledger splits its cost: when its worker could answer, what it answered, and how it ended."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from broker.tables import Worker
from jobs.tables import Part
from ledger.waste import End, Timeline
from markets.tables import RentalRow

_MS_US = 1000


async def life_of(session: AsyncSession, row: RentalRow) -> Timeline:
    """The timeline of a rental whose end is confirmed. Raises ValueError for one that never started or has not ended."""
    if row.started_us is None or row.ended_us is None:
        raise ValueError(f"rental {row.id} has no confirmed start and end; its cost cannot be split yet")
    worker = await session.get(Worker, row.id)
    query = select(col(Part.counters), col(Part.counted), col(Part.committed_us)).where(
        col(Part.placement_id) == row.id
    )
    parts = (await session.execute(query)).all()
    return Timeline(
        started_us=row.started_us,
        ended_us=row.ended_us,
        ready_us=None if worker is None else worker.ready_us,
        gone_us=None if worker is None else _left_us(row, worker),
        busy_us=_busy_us([counters for counters, counted, _ in parts if counted]),
        retried_us=_busy_us([counters for counters, counted, _ in parts if not counted]),
        committed_us=max((committed for _, _, committed in parts), default=None),
        end=_end(row, worker),
        nobody=bool(row.purpose.get("leaked")),
    )


def _left_us(row: RentalRow, worker: Worker) -> int | None:
    """When its worker was gone by itself; one that is cut off by the machine's end was there until then.

    Settling sets `gone_us` of whoever is left, later than the end.
    """
    return None if worker.gone_us is None or worker.gone_us >= (row.ended_us or 0) else worker.gone_us


def _busy_us(counters: Sequence[dict[str, Any]]) -> int:
    return sum(int(each.get("busy_ms", 0)) for each in counters) * _MS_US


def _end(row: RentalRow, worker: Worker | None) -> End:
    if row.end_reason == "preempted":
        return "preempted"
    if row.end_reason in ("exited", "failed") and row.release_us is None:
        return "failed"
    return "failed" if worker is not None and worker.state == "failed" else "released"
