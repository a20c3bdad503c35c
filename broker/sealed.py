"""How webhooks' secrets lay in the database before there was a vault: to be opened once, when a broker of then is upgraded.

AES-256-GCM; the key is derived from the data folder's secret for this purpose alone, and what a secret belongs to is part of
what is authenticated.
"""

from __future__ import annotations

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from broker.envelope import Unopenable

NONCE_BYTES = 12
_PURPOSE = b"broker sealed secrets v1"


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
