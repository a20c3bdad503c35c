"""Events on their way to webhooks: who gets what, when it is tried again, and when nobody is tried any more.

At least once: a delivery is claimed in one transaction, sent outside of any, and recorded in another. Whoever dies in
between leaves a claim that runs out, and it is sent again under the same id.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import delete, func, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from broker.tables import Delivery, Webhook
from broker.webhook_sender import Answer
from broker.webhooks import disable
from jobs import outbox
from jobs.clock import MICROSECONDS
from jobs.files import Page, page_of
from jobs.tables import OutboxEvent

BACKOFF_S = (5, 30, 5 * 60, 30 * 60, 2 * 3600, 5 * 3600, 10 * 3600)
PATIENCE_US = 5 * 86_400 * MICROSECONDS  # nothing but failures for so long: the webhook is disabled
JITTER_PPM = 200_000  # each wait is up to so much longer or shorter, so that receivers are not all tried at once
CLAIM_GRACE_US = 45 * MICROSECONDS  # beyond the time that an attempt may take


@dataclass(frozen=True, slots=True)
class Verdict:
    """What an attempt leads to: delivered, another attempt at `next_us`, or neither: given up. `disable` says why the
    webhook is not tried any more at all."""

    is_delivered: bool = False
    next_us: int | None = None
    disable: str | None = None


def judge(answer: Answer, *, attempts: int, failing_since_us: int, now_us: int, luck_ppm: int = 0) -> Verdict:
    """What to do after the `attempts`th attempt. `luck_ppm`, in [-JITTER_PPM, JITTER_PPM], is the jitter.

    >>> judge(Answer(204), attempts=1, failing_since_us=0, now_us=0)
    Verdict(is_delivered=True, next_us=None, disable=None)
    >>> [judge(Answer(500), attempts=n, failing_since_us=0, now_us=0).next_us for n in (1, 2, 7, 8)]
    [5000000, 30000000, 36000000000, None]
    >>> judge(Answer(410), attempts=1, failing_since_us=0, now_us=0).disable
    'it answered 410 Gone'
    """
    if answer.is_taken:
        return Verdict(is_delivered=True)
    if answer.is_gone:
        return Verdict(disable="it answered 410 Gone")
    if now_us - failing_since_us >= PATIENCE_US:
        return Verdict(disable="nothing but failures for 5 days")
    if attempts > len(BACKOFF_S):
        return Verdict()
    return Verdict(next_us=now_us + BACKOFF_S[attempts - 1] * (MICROSECONDS + luck_ppm))


async def expand(session: AsyncSession, now_us: int, limit: int) -> int:
    """Make a delivery of each new event for each webhook of its project that asked for it; how many events there were.

    Both in one transaction: an event is expanded once, whoever dies. A webhook is told of what happened since it was made.
    """
    events = await outbox.undelivered(session, limit)
    webhooks = await _listening(session, {event.project for event in events})
    for event in events:
        for webhook in webhooks.get(event.project, ()):
            if event.kind in webhook.events and event.created_us >= webhook.created_us:
                session.add(
                    Delivery(
                        webhook=webhook.id,
                        event=event.id,
                        batch=event.batch_id,
                        type=event.kind,
                        created_us=event.created_us,
                        next_us=now_us,
                    )
                )
    await outbox.delivered(session, [event.id for event in events], now_us)
    return len(events)


async def _listening(session: AsyncSession, projects: set[str]) -> Mapping[str, Sequence[Webhook]]:
    statement = select(Webhook).where(col(Webhook.project).in_(projects), col(Webhook.disabled_us).is_(None))
    found: dict[str, list[Webhook]] = {}
    for webhook in await session.scalars(statement):
        found.setdefault(webhook.project, []).append(webhook)
    return found


async def due(session: AsyncSession, now_us: int, limit: int) -> list[str]:
    """The webhooks that something is due for, the longest due first."""
    first = func.min(Delivery.next_us)
    statement = select(col(Delivery.webhook)).where(col(Delivery.next_us) <= now_us)
    return list(await session.scalars(statement.group_by(col(Delivery.webhook)).order_by(first).limit(limit)))


async def claim(session: AsyncSession, webhook_id: str, *, takes_us: int, now_us: int) -> Delivery | None:
    """The oldest due delivery of a webhook, for an attempt that ends within `takes_us`; None when there is none.

    The attempt counts from now, so that one that kills its process is not made for ever.
    """
    statement = (
        select(Delivery)
        .where(col(Delivery.webhook) == webhook_id, col(Delivery.next_us) <= now_us)
        .order_by(col(Delivery.event))
        .limit(1)
        .with_for_update(skip_locked=True)
    )
    claimed: Delivery | None = await session.scalar(statement)
    if claimed is not None:
        claimed.attempts += 1
        claimed.last_us = now_us
        claimed.next_us = now_us + takes_us + CLAIM_GRACE_US
    return claimed


async def record(
    session: AsyncSession, claimed: Delivery, answer: Answer, now_us: int, luck_ppm: int
) -> Verdict | None:
    """Write down what became of an attempt. None when it is ours no more: deleted, disabled, or claimed by another."""
    webhook = await session.get(Webhook, claimed.webhook, with_for_update=True)
    delivery = await session.get(Delivery, (claimed.webhook, claimed.event), with_for_update=True)
    if webhook is None or delivery is None or delivery.next_us is None or delivery.attempts != claimed.attempts:
        return None
    failing_since_us = now_us if webhook.failing_since_us is None else webhook.failing_since_us
    verdict = judge(
        answer, attempts=delivery.attempts, failing_since_us=failing_since_us, now_us=now_us, luck_ppm=luck_ppm
    )
    delivery.last_status, delivery.last_error = answer.status, answer.error
    delivery.next_us = verdict.next_us
    delivery.delivered_us = now_us if verdict.is_delivered else None
    delivery.gave_up_us = None if verdict.is_delivered or verdict.next_us is not None else now_us
    webhook.failing_since_us = None if verdict.is_delivered else failing_since_us
    if verdict.disable is not None:
        await disable(session, webhook, verdict.disable, now_us)
    return verdict


async def page(session: AsyncSession, webhook_id: str, *, after: str | None, limit: int) -> Page[Delivery]:
    """What was or is to be sent, newest event first, older than the event `after`."""
    statement = select(Delivery).where(col(Delivery.webhook) == webhook_id)
    if after is not None:
        statement = statement.where(col(Delivery.event) < after)
    return page_of(list(await session.scalars(statement.order_by(col(Delivery.event).desc()).limit(limit + 1))), limit)


def retry(delivery: Delivery, now_us: int) -> None:
    """Send it now, whatever became of it so far."""
    delivery.next_us, delivery.gave_up_us, delivery.delivered_us = now_us, None, None


async def prune(session: AsyncSession, before_us: int, limit: int) -> int:
    """Forget up to `limit` deliveries made before `before_us` that are over, and as many events; how many in all."""
    old = (
        select(col(Delivery.webhook), col(Delivery.event))
        .where(col(Delivery.created_us) < before_us, col(Delivery.next_us).is_(None))
        .limit(limit)
    )
    over = [tuple(row) for row in await session.execute(old)]
    for webhook_id, event_id in over:
        await session.execute(
            delete(Delivery).where(col(Delivery.webhook) == webhook_id, col(Delivery.event) == event_id)
        )
    return len(over) + await outbox.prune(session, before_us, limit)


async def event_of(session: AsyncSession, delivery: Delivery) -> OutboxEvent | None:
    """What is to be told; None when it was pruned."""
    return await session.get(OutboxEvent, delivery.event)
