"""Signed, expiring permission for one method on one object key, for stores that cannot sign URLs themselves.

A token is `payload.signature`, both base64url without padding: the payload is canonical JSON, the signature its
HMAC-SHA256. Whoever holds the token may do this one thing until it expires, so it travels in URLs that are not logged.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from collections.abc import Mapping
from typing import Literal

import msgspec

from jobs.errors import BadToken

Method = Literal["GET", "PUT"]


class Permission(msgspec.Struct, frozen=True, kw_only=True):
    """`method` on `key` until `expires_us`. `extra` restricts further (byte range, size, sha256): its reader's part."""

    method: Method
    key: str
    expires_us: int
    extra: dict[str, str | int] = {}


_permissions = msgspec.json.Decoder(Permission)


def sign(secret: bytes, method: Method, key: str, expires_us: int, extra: Mapping[str, str | int] | None = None) -> str:
    """A token for this permission."""
    permission = Permission(method=method, key=key, expires_us=expires_us, extra=dict(extra or {}))
    payload = msgspec.json.encode(permission, order="deterministic")
    return f"{_text(payload)}.{_text(_mac(secret, payload))}"


def verify(secret: bytes, token: str, method: Method, now_us: int) -> Permission:
    """What the token permits. Raises BadToken: forged, damaged, for the other method, or expired."""
    payload_text, _, signature_text = token.partition(".")
    try:
        payload, signature = _bytes(payload_text), _bytes(signature_text)
    except (binascii.Error, ValueError) as error:
        raise BadToken("the token is not one of ours") from error
    if not hmac.compare_digest(signature, _mac(secret, payload)):
        raise BadToken("the token's signature is not ours")
    permission = _permissions.decode(payload)
    if permission.method != method:
        raise BadToken(f"the token permits {permission.method}, not {method}")
    if permission.expires_us <= now_us:
        raise BadToken(f"the token expired at {permission.expires_us} µs; ask for a new one")
    return permission


def _mac(secret: bytes, payload: bytes) -> bytes:
    # the prefix keeps signatures of other things made with the same secret from passing as permissions
    return hmac.new(secret, b"broker object permission v1\n" + payload, hashlib.sha256).digest()


def _text(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).decode().rstrip("=")


def _bytes(text: str) -> bytes:
    return base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
