"""Whom a project tells of its batches: the rows, and the secrets that deliveries are signed with."""

from __future__ import annotations

import base64
import secrets
from collections.abc import Sequence

import structlog
from sqlalchemy import delete, func, select, update
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col
from ulid import ULID

from broker.database import Database
from broker.envelope import Unopenable
from broker.sealed import unseal
from broker.tables import Delivery, Webhook
from broker.vault import DataKey, Vault
from jobs.clock import MICROSECONDS
from jobs.files import Page, page_of

log = structlog.get_logger()

SECRET_BYTES = 32
KEEP_EARLIER_US = 24 * 3600 * MICROSECONDS  # how long a secret that was replaced may still be signed with


async def sealing(vault: Vault) -> DataKey:
    """What all webhooks' secrets lie under. Not to be asked for inside a transaction. Raises Unopenable."""
    return await vault.data_key("webhooks")


async def adopt(database: Database, vault: Vault, secret: bytes) -> None:
    """Bring the secrets of before the vault, which lay under the broker's own `secret`, into the vault.

    One that does not open is left as it is: its webhook is disabled when it is next used, and says why.
    """
    async with database.transaction() as session:
        found = list(await session.scalars(select(col(Webhook.id)).where(col(Webhook.data_key).is_(None))))
    if not found:
        return
    key = await sealing(vault)
    async with database.transaction() as session:
        rows = select(Webhook).where(col(Webhook.id).in_(found), col(Webhook.data_key).is_(None)).with_for_update()
        for webhook in await session.scalars(rows):
            try:
                webhook.secret = key.close(unseal(secret, webhook.secret, webhook.id).encode(), webhook.id)
                if webhook.earlier_secret is not None:
                    earlier = unseal(secret, webhook.earlier_secret, webhook.id)
                    webhook.earlier_secret = key.close(earlier.encode(), webhook.id)
            except Unopenable as failure:
                log.error("webhook.unopenable", webhook=webhook.id, error=str(failure))
                continue
            webhook.data_key = key.id
            log.info("webhook.adopted", webhook=webhook.id, data_key=key.id)


async def create(
    session: AsyncSession, *, key: DataKey, project: str, name: str, url: str, events: Sequence[str], now_us: int
) -> tuple[Webhook, str]:
    """A new webhook and its secret, which is shown this once and kept sealed. The URL was checked by the caller."""
    webhook = Webhook(
        id=f"webhook_{ULID()}",
        project=project,
        name=name,
        url=url,
        secret=b"",
        secret_hint="",
        events=list(dict.fromkeys(events)),
        created_us=now_us,
        updated_us=now_us,
    )
    text = _new_secret(webhook, key)
    session.add(webhook)
    await session.flush()
    return webhook, text


async def count(session: AsyncSession, project: str) -> int:
    return int(await session.scalar(select(func.count()).where(col(Webhook.project) == project)) or 0)


async def find(session: AsyncSession, project: str, webhook_id: str) -> Webhook | None:
    """The project's webhook, locked, or None: also for another project's."""
    statement = select(Webhook).where(col(Webhook.id) == webhook_id, col(Webhook.project) == project)
    webhook: Webhook | None = await session.scalar(statement.with_for_update())
    return webhook


async def page(session: AsyncSession, project: str, *, after: str | None, limit: int) -> Page[Webhook]:
    """Newest first, older than `after`."""
    statement = select(Webhook).where(col(Webhook.project) == project)
    if after is not None:
        statement = statement.where(col(Webhook.id) < after)
    return page_of(list(await session.scalars(statement.order_by(col(Webhook.id).desc()).limit(limit + 1))), limit)


def rotate(webhook: Webhook, *, key: DataKey, keep_earlier: bool, now_us: int) -> str:
    """Give it another secret, and return that. The earlier one is signed with, too, for 24 hours, or never again."""
    webhook.earlier_secret = webhook.secret if keep_earlier else None
    webhook.earlier_until_us = now_us + KEEP_EARLIER_US if keep_earlier else None
    webhook.updated_us = now_us
    return _new_secret(webhook, key)


def signing_secrets(webhook: Webhook, *, key: DataKey, now_us: int) -> list[str]:
    """What to sign with now, newest first. Raises Unopenable."""
    found = [key.open(webhook.secret, webhook.id).decode()]
    if webhook.earlier_secret is not None and now_us < (webhook.earlier_until_us or 0):
        found.append(key.open(webhook.earlier_secret, webhook.id).decode())
    return found


async def disable(session: AsyncSession, webhook: Webhook, reason: str, now_us: int) -> None:
    """Send it nothing more, and give up what is on its way. It says why until it is enabled again."""
    webhook.disabled_us, webhook.disabled_reason = now_us, reason
    await give_up(session, webhook, now_us)


async def give_up(session: AsyncSession, webhook: Webhook, now_us: int) -> None:
    """Send nothing more of what is on its way to a webhook that is disabled."""
    reason = webhook.disabled_reason
    await session.execute(
        update(Delivery)
        .where(col(Delivery.webhook) == webhook.id, col(Delivery.next_us).is_not(None))
        .values(next_us=None, gave_up_us=now_us, last_error=f"the webhook was disabled: {reason}"[:300])
        .execution_options(synchronize_session=False)
    )


def enable(webhook: Webhook) -> None:
    """Send it what happens from now on. What was given up stays so; each can be retried."""
    webhook.disabled_us = webhook.disabled_reason = webhook.failing_since_us = None


async def remove(session: AsyncSession, webhook: Webhook) -> None:
    """Forget it and what was sent to it."""
    await forget_deliveries(session, webhook.id)
    await session.delete(webhook)


async def forget_deliveries(session: AsyncSession, webhook_id: str) -> None:
    await session.execute(delete(Delivery).where(col(Delivery.webhook) == webhook_id))


def _new_secret(webhook: Webhook, key: DataKey) -> str:
    text = "whsec_" + base64.b64encode(secrets.token_bytes(SECRET_BYTES)).decode()
    webhook.secret, webhook.data_key = key.close(text.encode(), webhook.id), key.id
    webhook.secret_hint = f"whsec_…{text[-4:]}"
    return text
