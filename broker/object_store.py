"""The configured object store, opened and checked: one that silently overwrites is not used."""

from __future__ import annotations

import ipaddress
from contextlib import AsyncExitStack
from pathlib import Path
from urllib.parse import urlsplit

import structlog

from broker.settings import ObjectSettings, Settings
from jobs.objects import ObjectStore
from jobs.store_check import check_store

log = structlog.get_logger()


class BadStoreSettings(ValueError):
    """The section `objects` does not say which store is meant, or how to get in."""


async def opened_store(settings: Settings, stack: AsyncExitStack) -> ObjectStore:
    """The store, closed again by `stack`. Raises BadStoreSettings, StoreUnfit and StoreFailed (it does not answer)."""
    store = store_of(settings.objects, settings.data)
    stack.push_async_callback(store.close)
    await check_store(store)
    log.info("objects.ready", store=told(settings.objects, settings.data), direct=store.direct is not None)
    return store


def store_of(wanted: ObjectSettings, data: Path) -> ObjectStore:
    """The store that the settings name; nothing is asked of it yet. Raises BadStoreSettings and StoreFailed."""
    if wanted.kind == "local":
        return ObjectStore.local(_folder(wanted, data))
    if wanted.bucket is None:
        raise BadStoreSettings(f"objects.kind is {wanted.kind!r}, but objects.bucket is not set; name the bucket")
    for name in ("endpoint", "public_endpoint"):
        _require_safe(f"objects.{name}", getattr(wanted, name), allow_http=wanted.allow_http)
    if wanted.kind == "s3":
        return _s3(wanted, wanted.bucket)
    return _other(wanted, wanted.bucket)


def told(wanted: ObjectSettings, data: Path) -> str:
    """Which store it is, in a few words, without a secret."""
    if wanted.kind == "local":
        return f"local folder {_folder(wanted, data)}"
    below = f"/{wanted.prefix}" if wanted.prefix else ""
    return f"{wanted.kind} {wanted.bucket}{below} at {wanted.endpoint or wanted.region}"


def _folder(wanted: ObjectSettings, data: Path) -> Path:
    return wanted.folder or data / "objects"


def _s3(wanted: ObjectSettings, bucket: str) -> ObjectStore:
    from jobs.s3 import S3Keys, S3Place, s3_store  # noqa: PLC0415

    secret = _secret(wanted)
    if (wanted.access_key_id is None) != (secret is None):
        raise BadStoreSettings(
            "objects.access_key_id and objects.secret_access_key (or objects.secret_file) belong together: set both, or "
            "neither for the instance's own identity"
        )
    keys = None
    if wanted.access_key_id is not None and secret is not None:
        token = wanted.session_token.get_secret_value() if wanted.session_token else None
        keys = S3Keys(access_key_id=wanted.access_key_id, secret_access_key=secret, session_token=token)
    place = S3Place(
        bucket=bucket,
        region=wanted.region,
        prefix=wanted.prefix,
        endpoint=wanted.endpoint,
        public_endpoint=wanted.public_endpoint,
        path_style=wanted.endpoint is not None if wanted.path_style is None else wanted.path_style,
    )
    return s3_store(place, keys, sends_workers=wanted.direct)


def _other(wanted: ObjectSettings, bucket: str) -> ObjectStore:
    from jobs.other_stores import azure_store, gcs_store  # noqa: PLC0415

    if wanted.kind == "gcs":
        return gcs_store(bucket, wanted.prefix, endpoint=wanted.endpoint, service_account=wanted.secret_file)
    if wanted.account is None:
        raise BadStoreSettings("objects.kind is 'azure', but objects.account is not set; name the storage account")
    return azure_store(
        bucket, wanted.prefix, account=wanted.account, account_key=_secret(wanted), endpoint=wanted.endpoint
    )


def _secret(wanted: ObjectSettings) -> str | None:
    if wanted.secret_access_key is not None:
        return wanted.secret_access_key.get_secret_value()
    if wanted.secret_file is None:
        return None
    try:
        return wanted.secret_file.read_text("utf-8").strip()
    except OSError as error:
        raise BadStoreSettings(f"objects.secret_file {wanted.secret_file} cannot be read: {error.strerror}") from error


def _require_safe(name: str, url: str | None, *, allow_http: bool) -> None:
    """Signed requests and prompts travel there: encrypted, or within this machine."""
    if url is None:
        return
    parts = urlsplit(url)
    if parts.scheme == "https" and parts.hostname:
        return
    if parts.scheme != "http" or not parts.hostname:
        raise BadStoreSettings(f"{name} is {url!r}; it must be an https URL")
    if not allow_http and not _is_loopback(parts.hostname):
        raise BadStoreSettings(
            f"{name} is {url!r}: prompts would travel unencrypted; use https, or set objects.allow_http in a network of your own"
        )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
