"""Envelope encryption, pure: bytes under a data key, data keys under a key-encryption key (KEK).

AES-256-GCM (NIST SP 800-38D) with a fresh 96-bit nonce. Every box is bound to a `context`, text that says what it belongs
to and where: a box that is moved to another row, project or purpose does not open there. Changing the KEK means wrapping
the data keys again; what lies under them stays as it is.

A box is: one byte of format (1), 12 bytes of nonce, ciphertext with its 16-byte tag.
"""

from __future__ import annotations

import hashlib
import secrets

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

KEY_BYTES = 32
NONCE_BYTES = 12
TAG_BYTES = 16
FORMAT = b"\x01"


class Unopenable(Exception):
    """A box was closed under another key, belongs elsewhere, or is damaged: GCM cannot tell which."""

    code = "secret_unreadable"


def new_key() -> bytes:
    """256 random bits."""
    return secrets.token_bytes(KEY_BYTES)


def fingerprint(key: bytes) -> str:
    """A name for a key that tells nothing about it: 16 hex digits of a hash for this purpose alone.

    >>> fingerprint(bytes(32))
    'be6af51c07560479'
    """
    return hashlib.sha256(b"broker key name v1\x00" + key).hexdigest()[:16]


def close(key: bytes, plain: bytes, context: str) -> bytes:
    """A box of `plain` under `key` (32 bytes), bound to `context`."""
    nonce = secrets.token_bytes(NONCE_BYTES)
    return FORMAT + nonce + AESGCM(key).encrypt(nonce, plain, FORMAT + context.encode())


def open_box(key: bytes, box: bytes, context: str) -> bytes:
    """What was closed in. Raises Unopenable."""
    nonce, sealed = box[1 : 1 + NONCE_BYTES], box[1 + NONCE_BYTES :]
    if not box.startswith(FORMAT) or len(sealed) < TAG_BYTES:
        raise Unopenable(f"what is stored for {context} is not a box of ours: {len(box)} bytes")
    try:
        return AESGCM(key).decrypt(nonce, sealed, FORMAT + context.encode())
    except InvalidTag as error:
        raise Unopenable(
            f"what is stored for {context} does not open: another key, another place, or damaged"
        ) from error
