"""The anomaly loop: looks at the books of yesterday and of today so far, keeps each finding once, and tells of it.

An anomaly has the same id each time that it is found, and what people said of it (`AnomalyLabel`) stays with the id. What is
about one project goes to that project's webhooks, signed as all of them; what is about the whole house is no project's
business and is logged.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import msgspec
import structlog
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from broker.finance.anomaly_watch import anomalies, shown
from broker.finance.spend import DAY_US
from broker.finance.tables import AnomalyRow
from broker.services import Services
from jobs import ids
from jobs.clock import db_now
from jobs.tables import OutboxEvent
from ledger.anomalies import Anomaly
from ledger.standing import in_parts
from markets.tables import RentalRow

log = structlog.get_logger()
EVENT = "ledger.anomaly"


@dataclass
class AnomalyWatch:
    services: Services

    async def step(self) -> None:
        """Reading is long and keeps nobody from writing; keeping is short."""
        found: dict[str, Anomaly] = {}
        async with self.services.database.transaction(of_one_moment=True) as session:
            now_us = await db_now(session)
            today_us = now_us // DAY_US * DAY_US
            for day_us in (today_us - DAY_US, today_us):
                found |= {each.id: each for each in await anomalies(session, day_us=day_us, now_us=now_us)}
        async with self.services.database.transaction() as session:
            await keep(session, found, await db_now(session))


async def keep(session: AsyncSession, found: Mapping[str, Anomaly], now_us: int) -> list[Anomaly]:
    """Keep those that were not found before, and tell of each. Those that are new, in the order of their ids."""
    known: set[str] = set()
    for some in in_parts(sorted(found)):
        known.update(await session.scalars(select(col(AnomalyRow.id)).where(col(AnomalyRow.id).in_(some))))
    fresh = [found[each] for each in sorted(found.keys() - known)]
    for each in fresh:
        facts = shown(each, None)
        body = msgspec.json.encode(facts, order="deterministic")
        session.add(
            AnomalyRow(id=each.id, scope=each.scope, rule=each.rule, at_us=each.at_us, found_us=now_us, body=body)
        )
        log.warning(
            "ledger.anomaly",
            anomaly=each.id,
            scope=each.scope,
            rule=each.rule,
            actual_nano=each.actual_nano,
            expected_nano=each.expected_nano,
        )
        if (project := await _project_of(session, each)) is not None:
            session.add(
                OutboxEvent(
                    id=ids.event_id(), number=1, kind=EVENT, batch_id=each.id, project=project, payload=facts,
                    created_us=now_us,
                )
            )  # fmt: skip
    await session.flush()
    return fresh


async def _project_of(session: AsyncSession, each: Anomaly) -> str | None:
    """Whose it is; None: of the whole house (providers, tags over projects)."""
    kind, _, name = each.scope.partition(":")
    if kind == "project":
        return name
    if kind != "rental":
        return None
    found: str | None = await session.scalar(select(col(RentalRow.project)).where(col(RentalRow.id) == name))
    return found
