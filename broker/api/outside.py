"""What a broker stands on that lies outside of it: certificates and their ends, other people's clocks, weights, quotas.

Each check is a value; the doctor's route makes a list of them. Nobody is asked here whom the broker does not speak to anyway.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from pathlib import Path

import aiohttp
from cryptography import x509
from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col
from yarl import URL

from broker.api.health_shapes import Check
from broker.settings import HttpSettings, ObjectSettings, Settings
from broker.tls import BadTls, hosts_of, names, server_context, shown_certificate
from broker.vault_tables import CertificateRow
from jobs.clock import MICROSECONDS
from markets.price_book import Listed
from markets.rentals import OPEN
from markets.tables import RentalRow
from workers.catalogue import SCHEME
from workers.profile import ModelProfile

# A person needs days to renew a server's certificate; workers renew theirs by themselves at half of 24 hours.
SOON = timedelta(days=14)
LATE_WORKER_US = 3 * 3600 * MICROSECONDS
ANSWER_WITHIN_S = 5.0
# A Date header has whole seconds; AWS refuses signatures that are 5 minutes off, others at 15.
SKEW_WARN_S, SKEW_FAIL_S = 10.0, 240.0


def certificates(http: HttpSettings, public_url: str | None, authority: str | None, now: datetime) -> list[Check]:
    """Of the server, which must be of the host that workers dial, and of the authority for workers (`authority`, PEM)."""
    found = []
    if http.tls_certificate is not None:
        name, mend = "certificate of the server", "put a renewed certificate there: the broker shows it within a minute"
        try:
            shown = shown_certificate(http.tls_certificate)
            server_context(http)
        except BadTls as error:
            found.append(Check(name=name, ok=False, found=str(error), mend=mend))
        else:
            host = URL(public_url or "").host
            found.append(
                certificate_check(name, shown.not_valid_after_utc, now, mend, begins=shown.not_valid_before_utc)
            )
            if host is not None and not names(shown, host):
                said = f"workers dial {host}, and it names {', '.join(hosts_of(shown)) or 'nobody'}: they do not believe it"
                mend = "a certificate with that subject alternative name, or http.public_url with a name that it has"
                found.append(Check(name="name of the server", ok=False, found=said, mend=mend))
    if authority is not None:
        ends = x509.load_pem_x509_certificate(authority.encode()).not_valid_after_utc
        mend = "delete its row in broker_authority and restart: a new one is made, and workers say hello to it anew"
        found.append(certificate_check("certificate of the authority", ends, now, mend))
    return found


def certificate_check(name: str, ends: datetime, now: datetime, mend: str, *, begins: datetime | None = None) -> Check:
    """
    >>> at = datetime(2026, 12, 1, tzinfo=UTC)
    >>> [certificate_check("c", at + timedelta(days=n), at, "renew").state for n in (30, 3, -1)]
    ['ok', 'warn', 'fail']
    >>> certificate_check("c", at + timedelta(days=30), at, "renew", begins=at + timedelta(hours=1)).state
    'fail'
    """
    if begins is not None and begins > now:
        found = f"begins at {begins:%Y-%m-%d %H:%M}Z: nobody believes it before"
        return Check(
            name=name, ok=False, found=found, mend="see this machine's clock, or put another certificate there"
        )
    left = ends - now
    when = f"{ends:%Y-%m-%d %H:%M}Z"
    if left <= timedelta(0):
        return Check(name=name, ok=False, found=f"ended at {when}: nobody believes it", mend=mend)
    found = f"good until {when}, {left.days} days more"
    return Check(name=name, ok=True, found=found, mend=mend if left < SOON else None)


async def worker_certificates(session: AsyncSession, now_us: int) -> Check:
    """Those of machines that run: one that ends in three hours should have been renewed nine hours ago."""
    newest = (
        select(func.max(col(CertificateRow.expires_us)))
        .join(RentalRow, col(RentalRow.id) == col(CertificateRow.rental))
        .where(col(RentalRow.state).in_(OPEN), col(CertificateRow.revoked_us).is_(None))
        .group_by(col(CertificateRow.rental))
    )
    ends = list(await session.scalars(newest))
    late = sum(each < now_us + LATE_WORKER_US for each in ends)
    found = f"{len(ends)} workers have one" + (f"; {late} did not renew theirs in time" if late else "")
    mend = "see the workers' own logs; without a certificate they stop" if late else None
    return Check(name="certificates of workers", ok=True, found=found, mend=mend)


def spoken_to(settings: Settings, asked: Iterable[str]) -> dict[str, str]:
    """Whose clock matters, by name: the object store's, and those of markets; `asked` are base URLs of price sources."""
    found = {"objects": _store_url(settings.objects)}
    if "aws" in settings.markets:
        for region in settings.aws.regions:
            found[f"aws {region}"] = settings.aws.endpoint_url or f"https://ec2.{region}.amazonaws.com"
    if "sandbox" in settings.markets:
        found["sandbox"] = settings.sandbox.url or ""
    found |= {URL(url).host or url: url for url in asked}
    return {name: url for name, url in found.items() if url}


def _store_url(objects: ObjectSettings) -> str:
    if objects.kind == "local":
        return ""
    own = {
        "s3": f"https://s3.{objects.region}.amazonaws.com",
        "gcs": "https://storage.googleapis.com",
        "azure": f"https://{objects.account}.blob.core.windows.net",
    }
    return objects.endpoint or own[objects.kind]


async def clocks(urls: Mapping[str, str]) -> list[Check]:
    """This machine's clock against the Date header of each; a host that does not answer is told by its market."""
    timeout = aiohttp.ClientTimeout(total=ANSWER_WITHIN_S)
    async with aiohttp.ClientSession(timeout=timeout, trust_env=True) as session:
        skews = await asyncio.gather(*(_skew_s(session, url) for url in urls.values()))
    return [skew_check(name, skew) for name, skew in sorted(zip(urls, skews, strict=True)) if skew is not None]


async def _skew_s(session: aiohttp.ClientSession, url: str) -> float | None:
    try:
        began = time.time()
        async with session.head(url, allow_redirects=False) as answer:
            said, between = answer.headers.get("Date"), (began + time.time()) / 2
        return None if said is None else parsedate_to_datetime(said).timestamp() + 0.5 - between
    except (aiohttp.ClientError, TimeoutError, OSError, ValueError, OverflowError):
        return None


def skew_check(name: str, skew_s: float) -> Check:
    """
    >>> skew_check("s3", 0.4).state, skew_check("s3", -60.0).state, skew_check("s3", 600.0).state
    ('ok', 'warn', 'fail')
    """
    found = f"its clock is {abs(skew_s):.0f} s {'ahead of' if skew_s > 0 else 'behind'} this machine's"
    mend = "synchronise this machine's clock: signed requests are refused when it is minutes off"
    if abs(skew_s) > SKEW_FAIL_S:
        return Check(name=f"clock of {name}", ok=False, found=found, mend=mend)
    return Check(name=f"clock of {name}", ok=True, found=found, mend=mend if abs(skew_s) > SKEW_WARN_S else None)


def weights(models: Mapping[str, ModelProfile], cache: Path) -> list[Check]:
    """Of models that this machine serves: whether they are here, and can be read; and whether more can be fetched."""
    found = []
    for name, profile in sorted(models.items()):
        if "process" not in profile.launches or not profile.weights:
            continue
        if profile.weights.startswith(SCHEME):
            folder = cache / "weights"
            named = sorted(folder.glob("*")) if folder.is_dir() else []
            if not any(file.is_file() and file.stat().st_size > 0 and file.suffix != ".lock" for file in named):
                mend = f"`broker models fetch {name}`, or let the first machine wait for them"
                found.append(Check(name=f"weights of {name}", ok=True, found=f"not in {folder} yet", mend=mend))
        elif profile.weights.startswith(("/", ".", "~")):
            found.append(_weights_check(name, Path(profile.weights).expanduser()))
    at = next(each for each in (cache, *cache.parents) if each.exists())
    writable = os.access(at, os.W_OK | os.X_OK)
    told = f"{cache} can {'' if writable else 'not '}be written"
    advice = None if writable else "set `cache` to a folder that the broker's user can write"
    found.append(Check(name="cache", ok=writable, found=told, mend=advice))
    return found


def _weights_check(name: str, path: Path) -> Check:
    readable = path.exists() and os.access(path, os.R_OK | (os.X_OK if path.is_dir() else 0))
    empty = readable and path.is_dir() and not any(path.iterdir())
    if readable and not empty:
        return Check(name=f"weights of {name}", ok=True, found=f"{path} can be read", mend=None)
    why = "is empty" if empty else "cannot be read" if path.exists() else "is not on this machine"
    mend = f"put the weights there, or mend `weights` in [models.{name}]; where only rented machines have them, ignore this"
    return Check(name=f"weights of {name}", ok=True, found=f"{path} {why}", mend=mend)


def quotas(listed: Sequence[Listed]) -> list[Check]:
    """What the markets grant to our accounts, as they said it last; one that is used up rents nothing more."""
    newest: dict[str, tuple[datetime, int, str]] = {}
    for each in listed:
        quota = each.offer.quota
        if quota is not None:
            said = (each.offer.observed_at, quota.left, quota.unit)
            newest[quota.group] = max(newest.get(quota.group, said), said)
    return [
        Check(
            name=f"quota {group}",
            ok=True,
            found=f"{left} {unit} are left, said at {at.astimezone(UTC):%Y-%m-%d %H:%M}Z",
            mend=None if left > 0 else "ask the provider for more, or wait until machines have ended",
        )
        for group, (at, left, unit) in sorted(newest.items())
    ]
