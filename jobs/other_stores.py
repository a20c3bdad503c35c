"""Google Cloud Storage and Azure Blob Storage through obstore ("unverified against the live service").

Both give a name once by themselves: Google by `x-goog-if-generation-match: 0`, Azure by `If-None-Match: *`, for puts and for
the copy that names a stream. Workers are not sent there directly: obstore signs a URL for a method and a key, but no headers,
so a signed GET would give all of the input instead of one shard, and a signed PUT could overwrite.
"""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from obstore.store import AzureStore, GCSStore
from obstore.store import ObjectStore as Backend

from jobs.objects import ObjectStore
from jobs.streams import AsideStreams

if TYPE_CHECKING:
    from obstore.store import AzureConfig, ClientConfig, GCSConfig, RetryConfig

RETRY: RetryConfig = {"max_retries": 4, "retry_timeout": timedelta(seconds=30)}
# An account that needs no token.
EMULATED = {"disable_oauth": True, "client_email": "", "private_key": "", "private_key_id": ""}
ONCE: RetryConfig = {"max_retries": 0, "retry_timeout": timedelta(seconds=30)}


def gcs_store(bucket: str, prefix: str, *, endpoint: str | None, service_account: Path | None) -> ObjectStore:
    """A bucket of Google's. `service_account` is its JSON file; None is the instance's identity. An `endpoint` is an emulator,
    which is asked without credentials when there is no file."""
    config: GCSConfig = {}
    if service_account is not None:
        config["service_account"] = str(service_account)
    if endpoint is not None:
        config["base_url"] = endpoint
        if service_account is None:
            # `skip_signature` does not reach deletions of obstore 0.12, which then ask Google for a token
            config["service_account_key"] = json.dumps(EMULATED | {"gcs_base_url": endpoint})

    def opened(retry: RetryConfig) -> Backend:
        return GCSStore(
            bucket, prefix=prefix or None, config=config, client_options=_client(endpoint), retry_config=retry
        )

    return _store(opened(RETRY), opened(ONCE))


def azure_store(
    container: str, prefix: str, *, account: str, account_key: str | None, endpoint: str | None
) -> ObjectStore:
    """A container of Azure's. Without `account_key` the instance's managed identity is used."""
    config: AzureConfig = {"account_name": account}
    if account_key is not None:
        config["account_key"] = account_key
    if endpoint is not None:
        config["endpoint"] = endpoint

    def opened(retry: RetryConfig) -> Backend:
        return AzureStore(
            container, prefix=prefix or None, config=config, client_options=_client(endpoint), retry_config=retry
        )

    return _store(opened(RETRY), opened(ONCE))


def _store(backend: Backend, creating: Backend) -> ObjectStore:
    return ObjectStore(backend, AsideStreams(backend), creating=creating)


def _client(endpoint: str | None) -> ClientConfig:
    return {
        "allow_http": (endpoint or "").startswith("http://"),
        "connect_timeout": "10s",
        "read_timeout": "60s",
        "timeout": "3600s",
    }
