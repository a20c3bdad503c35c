"""The deliver loop: new events become deliveries, and each webhook that something is due for is sent it in a lane of its own.

A step starts lanes and does not wait for them: a receiver that takes its 15 seconds delays nobody but itself. A lane
claims in one transaction, sends outside of any, records in another, and goes on until nothing is due or an attempt fails.
"""

from __future__ import annotations

import asyncio
import random
import traceback
from dataclasses import dataclass, field

import structlog
from sqlalchemy.ext.asyncio import AsyncSession

from broker import deliveries, webhooks
from broker.api.event_shapes import batch_event
from broker.database import UNAVAILABLE
from broker.envelope import Unopenable
from broker.services import Services
from broker.tables import Delivery, Webhook
from broker.vault import DataKey
from broker.webhook_sender import Answer, Message, WebhookSender
from jobs.clock import MICROSECONDS, db_now

log = structlog.get_logger()

AT_ONCE = 500  # events expanded, or rows pruned, in one transaction
LANE_TURN = 50  # deliveries of a webhook before others get its lane
PRUNE_EVERY_US = 3600 * MICROSECONDS
DAY_US = 86_400 * MICROSECONDS


@dataclass(frozen=True, slots=True)
class Attempt:
    """A claimed delivery and all that sending it takes."""

    delivery: Delivery
    url: str
    message: Message
    secrets: list[str]
    now_us: int


@dataclass
class Deliverer:
    """Close it before its services."""

    services: Services
    sender: WebhookSender
    _lanes: dict[str, asyncio.Task[None]] = field(default_factory=dict)
    _pruned_us: int = 0

    async def step(self) -> None:
        """Expand what is new, start a lane for each webhook that something is due for, forget what is old."""
        most = self.services.settings.webhooks.concurrency
        is_more = True
        while is_more:
            async with self.services.database.transaction() as session:
                now_us = await db_now(session)
                is_more = await deliveries.expand(session, now_us, AT_ONCE) == AT_ONCE
                found = [] if is_more else await deliveries.due(session, now_us, most + len(self._lanes))
        for webhook_id in found:
            if webhook_id not in self._lanes and len(self._lanes) < most:
                self._start(webhook_id)
        if now_us >= self._pruned_us + PRUNE_EVERY_US:
            await self._prune(now_us)

    async def settled(self) -> None:
        """Wait until no lane runs. Raises what a lane raised."""
        while self._lanes:
            await asyncio.gather(*self._lanes.values())

    async def close(self, *, within_s: float) -> None:
        """Let attempts that are under way end within `within_s`; others are made again by the next start."""
        if self._lanes:
            _, late = await asyncio.wait(list(self._lanes.values()), timeout=within_s)
            for lane in late:
                lane.cancel()
            await asyncio.gather(*late, return_exceptions=True)
        await self.sender.close()

    async def _prune(self, now_us: int) -> None:
        before_us = now_us - self.services.settings.webhooks.keep_days * DAY_US
        async with self.services.database.transaction() as session:
            gone = await deliveries.prune(session, before_us, AT_ONCE)
        if gone:
            log.info("events.pruned", rows=gone)  # and there may be more: the next step goes on
        else:
            self._pruned_us = now_us

    def _start(self, webhook_id: str) -> None:
        lane = asyncio.create_task(self._lane(webhook_id), name=f"deliver {webhook_id}")
        self._lanes[webhook_id] = lane
        lane.add_done_callback(lambda ended: self._ended(webhook_id, ended))

    def _ended(self, webhook_id: str, lane: asyncio.Task[None]) -> None:
        del self._lanes[webhook_id]
        if lane.cancelled():
            return
        if (failure := lane.exception()) is None:
            self.services.nudge("deliver")  # there may be more to do: for it, or for one that found no free lane
        elif isinstance(failure, (*UNAVAILABLE, OSError)):
            log.warning("delivery.lane_failed", webhook=webhook_id, error=f"{type(failure).__name__}: {failure}")
        else:
            # formatted here: a renderer that shows local variables would print secrets
            log.error("delivery.defect", webhook=webhook_id, trace="".join(traceback.format_exception(failure)))

    async def _lane(self, webhook_id: str) -> None:
        try:
            key = await webhooks.sealing(self.services.vault)
        except Unopenable as failure:
            # no webhook's fault, and none can be signed for: what is due stays due until the key is here again
            log.error("delivery.vault_shut", webhook=webhook_id, error=str(failure))
            return
        for _ in range(LANE_TURN):
            async with self.services.database.transaction() as session:
                attempt = await self._claim(session, webhook_id, key)
            if attempt is None:
                return
            answer = await self.sender.send(attempt.url, attempt.message, attempt.secrets, attempt.now_us)
            self.services.failpoints.reached("deliver.after_send")
            await self._record(attempt.delivery, answer)
            if not answer.is_taken:
                return

    async def _claim(self, session: AsyncSession, webhook_id: str, key: DataKey) -> Attempt | None:
        now_us = await db_now(session)
        webhook = await session.get(Webhook, webhook_id, with_for_update=True)
        # Deleted or disabled while an event was expanded for it: without this the delivery would stay due for ever.
        if webhook is None:
            await webhooks.forget_deliveries(session, webhook_id)
            return None
        if webhook.disabled_us is not None:
            await webhooks.give_up(session, webhook, now_us)
            return None
        takes_us = round(self.services.settings.webhooks.timeout_s * MICROSECONDS)
        claimed = await deliveries.claim(session, webhook_id, takes_us=takes_us, now_us=now_us)
        if claimed is None:
            return None
        event = await deliveries.event_of(session, claimed)
        if event is None:
            claimed.next_us, claimed.gave_up_us, claimed.last_error = (
                None,
                now_us,
                "the event is too old, and forgotten",
            )
            return None
        try:
            secrets = webhooks.signing_secrets(webhook, key=key, now_us=now_us)
        except Unopenable as failure:
            log.error("webhook.unopenable", webhook=webhook.id, error=str(failure))
            await webhooks.disable(session, webhook, "its secret cannot be read any more; rotate it", now_us)
            return None
        message = Message(event.id, batch_event(event).model_dump_json().encode())
        return Attempt(claimed, webhook.url, message, secrets, now_us)

    async def _record(self, claimed: Delivery, answer: Answer) -> None:
        luck_ppm = random.randint(-deliveries.JITTER_PPM, deliveries.JITTER_PPM)
        async with self.services.database.transaction() as session:
            verdict = await deliveries.record(session, claimed, answer, await db_now(session), luck_ppm)
        said = log.info if answer.is_taken else log.warning
        said(
            "delivery.tried",
            webhook=claimed.webhook,
            about=claimed.event,  # `event` is structlog's own word
            attempt=claimed.attempts,
            status=answer.status,
            error=answer.error,
            disabled=verdict.disable if verdict else None,
        )
