"""What a broker stands on, beside its database and its markets: the disk, the clock, its secrets' permissions, its receivers.

Each check is a value; the doctor's route and `broker doctor --offline` both make a list of them.
"""

from __future__ import annotations

import shutil
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from broker.api.health_shapes import Check
from broker.keyring import KekUnavailable
from broker.model_settings import ModelSettings
from broker.settings import Settings
from broker.tables import Webhook
from broker.vault import PROVING_ROWS, Closed, Vault
from jobs.clock import MICROSECONDS, db_now

GB = 1_000_000_000
DISK_WARN_BYTES, DISK_FAIL_BYTES = 5 * GB, GB // 2
SKEW_WARN_S, SKEW_FAIL_S = 2.0, 30.0
OTHERS = 0o077


def disk(data: Path) -> Check:
    """A full disk stops intake and commits."""
    return disk_check(data, shutil.disk_usage(data).free)


def disk_check(data: Path, free_bytes: int) -> Check:
    """
    >>> disk_check(Path("/data"), 100 * GB).state, disk_check(Path("/data"), 3 * GB).state, disk_check(Path("/data"), 9).state
    ('ok', 'warn', 'fail')
    """
    found = f"{free_bytes / GB:.1f} GB are free where {data} is"
    mend = "make room, or move the data folder (docs/operations.md)"
    if free_bytes < DISK_FAIL_BYTES:
        return Check(name="disk", ok=False, found=found, mend=mend)
    return Check(name="disk", ok=True, found=found, mend=mend if free_bytes < DISK_WARN_BYTES else None)


async def clock(session: AsyncSession) -> Check:
    """This machine's clock against the database's, which rules leases (contract C7)."""
    before_s = time.time()
    database_s = await db_now(session) / MICROSECONDS
    return clock_check(database_s - (before_s + time.time()) / 2)


def clock_check(skew_s: float) -> Check:
    """
    >>> clock_check(0.1).state, clock_check(-5).state, clock_check(60).state
    ('ok', 'warn', 'fail')
    """
    found = f"the database's clock is {abs(skew_s):.1f} s {'ahead of' if skew_s > 0 else 'behind'} this machine's"
    mend = "synchronise both clocks (chrony, systemd-timesyncd): signatures and leases have times in them"
    if abs(skew_s) > SKEW_FAIL_S:
        return Check(name="clock", ok=False, found=found, mend=mend)
    return Check(name="clock", ok=True, found=found, mend=mend if abs(skew_s) > SKEW_WARN_S else None)


async def receivers(session: AsyncSession) -> Check:
    """Webhooks that do nothing but fail, and those that were disabled for it."""
    failing = select(func.count()).where(col(Webhook.disabled_us).is_(None), col(Webhook.failing_since_us).is_not(None))
    disabled = select(func.count()).where(col(Webhook.disabled_us).is_not(None))
    count, gone = int(await session.scalar(failing) or 0), int(await session.scalar(disabled) or 0)
    mend = "`broker webhooks list` and `broker webhooks deliveries ID` say which, and what they answer"
    found = f"{count} webhooks are failing, {gone} are disabled"
    return Check(name="webhooks", ok=True, found=found, mend=mend if count else None)


def secrets(files: Iterable[Path]) -> list[Check]:
    """Secrets that others on this machine can read, each named."""
    open_ones = [file for file in files if file.is_file() and file.stat().st_mode & OTHERS]
    if not open_ones:
        return [Check(name="secrets", ok=True, found="readable by their owner alone", mend=None)]
    return [
        Check(
            name="secrets", ok=False, found=f"{file} has mode {file.stat().st_mode & 0o777:o}", mend=f"chmod 600 {file}"
        )
        for file in open_ones
    ]


async def vault(known: Vault) -> Check:
    """Whether everything that lies sealed opens: each data key is opened, because a name of a key says nothing of its value."""
    wrappings = await known.wrappings()
    here = ", ".join(each.kek for each in wrappings if each.is_here)
    lost = [f"{each.data_keys} data keys under {each.kek}" for each in wrappings if each.data_keys and not each.is_here]
    mend = "name the key in vault.keys again"
    if not lost:
        try:
            closed = await known.closed()
        except KekUnavailable as silent:
            return Check(
                name="vault", ok=False, found=str(silent), mend="see the key's policy, and whether AWS KMS answers"
            )
        lost, mend = _closed(closed, {each.kek: each.data_keys for each in wrappings})
    if lost:
        return Check(name="vault", ok=False, found=f"cannot be opened: {'; '.join(lost)}", mend=mend)
    return Check(name="vault", ok=True, found=f"opens with {here}", mend=None)


def _closed(closed: Sequence[Closed], of_kek: Mapping[str, int]) -> tuple[list[str], str]:
    """What does not open, and how to mend it: all that was tried of a KEK is another key, a few are damaged rows. Pure."""
    counts = Counter(each.kek for each in closed)
    others = [kek for kek, count in sorted(counts.items()) if count >= min(of_kek[kek], PROVING_ROWS)]
    rows = [f"{each.data_key} of {each.owner} under {each.kek}" for each in closed if each.kek not in others]
    mends = []
    if others:
        mends.append(
            "the key is another than it was under its name: give it its former value in vault.keys, and a new one a new name"
        )
    if rows:
        mends.append("the key opens others, so the row is damaged: take it (broker_data_key) from a backup")
    return [f"{counts[kek]} of the data keys under {kek}" for kek in others] + rows, "; ".join(mends)


def callers(settings: Settings) -> list[Check]:
    """A table of countries asks for addresses, and behind a proxy all machines have the proxy's: nobody is found to call from
    elsewhere, or everybody is."""
    http = settings.http
    is_behind = http.tls_certificate is None and (http.public_url or "").startswith("https:")
    if settings.residency.ip_countries is None or not is_behind or http.trusted_proxies:
        return []
    found = "machines come through a proxy, and all have its address: residency.ip_countries says nothing of them"
    mend = 'name it: http.trusted_proxies = ["10.0.0.0/8"], and let it set X-Forwarded-For'
    return [Check(name="addresses of workers", ok=True, found=found, mend=mend)]


def images(models: Mapping[str, ModelSettings]) -> list[Check]:
    """Images that are not named by digest: what runs tomorrow may be another than today's."""
    return [
        Check(
            name=f"image of {name}",
            ok=True,
            found=f"{model.image} is a tag, which may mean another image tomorrow",
            mend=f'name it by digest in [models.{name}]: image = "…@sha256:…"',
        )
        for name, model in sorted(models.items())
        if model.image and "@sha256:" not in model.image
    ]
