"""The section `objects`: what is missing or unsafe is refused by its name, before anything is asked of a store."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from broker.object_store import BadStoreSettings, store_of, told
from broker.settings import ObjectSettings

S3 = {"kind": "s3", "bucket": "acme", "endpoint": "http://127.0.0.1:9", "access_key_id": "a", "secret_access_key": "s"}


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"bucket": None}, "objects.bucket"),
        ({"kind": "gcs", "bucket": None}, "objects.bucket"),
        ({"kind": "azure"}, "objects.account"),
        ({"access_key_id": None}, "objects.access_key_id"),
        ({"secret_access_key": None}, "objects.secret_access_key"),
        ({"secret_access_key": None, "secret_file": "/nowhere"}, "objects.secret_file"),
        ({"endpoint": "http://10.0.0.5:9000"}, "objects.endpoint"),  # prompts in the clear
        ({"endpoint": "ftp://127.0.0.1"}, "objects.endpoint"),
        ({"public_endpoint": "http://s3.example.org"}, "objects.public_endpoint"),
    ],
)
def test_what_is_missing_or_unsafe_is_named(tmp_path: Path, changes: dict[str, Any], named: str) -> None:
    with pytest.raises(BadStoreSettings, match=named):
        store_of(ObjectSettings(**(S3 | changes)), tmp_path)


@pytest.mark.parametrize("prefix", ["/a", "a/", "a//b", "a b"])
def test_a_prefix_is_a_clean_path(prefix: str) -> None:
    with pytest.raises(ValueError, match="prefix"):
        ObjectSettings(prefix=prefix)


async def test_a_secret_may_lie_in_a_file_of_its_own_and_is_never_told(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("a secret in a file\n")
    wanted = ObjectSettings(**(S3 | {"secret_access_key": None, "secret_file": secret, "prefix": "x"}))
    store = store_of(wanted, tmp_path)
    assert store.direct is not None
    signed = await store.direct.signed_get("p/x", 0, 1, 60)
    assert signed.url.startswith("http://127.0.0.1:9/acme/x/p/x?")
    assert "a secret" not in repr(wanted) + told(wanted, tmp_path) + signed.url
    await store.close()


@pytest.mark.parametrize("kind", ["gcs", "azure"])
async def test_stores_that_cannot_bind_a_signature_to_a_part_are_reached_through_the_broker(
    tmp_path: Path, kind: str
) -> None:
    key = "c2VjcmV0"  # base64, as Azure's are
    wanted = ObjectSettings(
        kind=kind, bucket="acme", account="acme", endpoint="http://127.0.0.1:9", secret_access_key=key
    )
    store = store_of(wanted, tmp_path)
    assert store.direct is None
    await store.close()
