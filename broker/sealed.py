"""Secrets of others in the database: sealed under the broker's own, so that a copy of the database is worth nothing.

AES-256-GCM; the key is derived from the data folder's secret for this purpose alone. What a secret belongs to is part of
what is authenticated: a sealed secret that is moved to another row does not open there.
"""

from __future__ import annotations

import secrets

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

NONCE_BYTES = 12
_PURPOSE = b"broker sealed secrets v1"


class Unopenable(Exception):
    """Sealed under another secret, for another owner, or damaged."""


def seal(secret: bytes, plain: str, owner: str) -> bytes:
    """Nonce and ciphertext of `plain`, which belongs to `owner` (an id)."""
    nonce = secrets.token_bytes(NONCE_BYTES)
    return nonce + AESGCM(_key(secret)).encrypt(nonce, plain.encode(), owner.encode())


def unseal(secret: bytes, sealed: bytes, owner: str) -> str:
    """What was sealed. Raises Unopenable."""
    nonce, ciphertext = sealed[:NONCE_BYTES], sealed[NONCE_BYTES:]
    try:
        return AESGCM(_key(secret)).decrypt(nonce, ciphertext, owner.encode()).decode()
    except (InvalidTag, ValueError) as error:
        raise Unopenable(
            f"the sealed secret of {owner} does not open: the data folder's secret is another, or it is damaged"
        ) from error


def _key(secret: bytes) -> bytes:
    return HKDF(algorithm=SHA256(), length=32, salt=None, info=_PURPOSE).derive(secret)
