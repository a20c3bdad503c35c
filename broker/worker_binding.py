"""What a worker's token is bound to, so that a copy of it is worth nothing (RFC 8705 §3 and RFC 9449 in spirit).

Where the broker ends TLS itself, it is the worker's client certificate: the connection shows it. Behind a proxy that ends
TLS it is a proof with each request: HMAC over method, path, time and body under the key that the agent made at hello.
"""

from __future__ import annotations

import hashlib
import hmac
import ssl
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from broker.authority import RENTAL_URI
from broker.worker_sessions import Refused, Session

PROOF_HEADER = "X-Worker-Proof"
# A worker's clock follows the broker's from hello on; a machine that was asleep is behind by as long as it slept.
PROOF_AGE_US = 600 * 1_000_000
WIRE = "/worker/v1/"


@dataclass(frozen=True, slots=True)
class Shown:
    """What came with a request: the serial number and rental of a client certificate, and a proof."""

    certificate: tuple[str, str] | None
    proof: str | None
    method: str
    path: str
    body: bytes = field(repr=False)


async def shown_by(request: web.Request) -> Shown:
    """What a request shows. Its body is read when there is a proof over it."""
    proof = request.headers.get(PROOF_HEADER)
    body = await request.read() if proof else b""
    # from the wire's own root: a proxy may have put the broker below a path of its own
    path = WIRE + request.path.partition(WIRE)[2]
    return Shown(_certificate(request), proof, request.method, path, body)


def _certificate(request: web.Request) -> tuple[str, str] | None:
    transport = request.transport
    tls: ssl.SSLObject | None = transport.get_extra_info("ssl_object") if transport else None
    certificate = tls.getpeercert() if tls else None
    if not certificate:
        return None
    named: Any = certificate.get("subjectAltName", ())
    rentals = [str(name).removeprefix(RENTAL_URI) for kind, name in named if kind == "URI"]
    return (str(certificate["serialNumber"]), rentals[0]) if rentals else None


def require_bound(claims: Session, pubkey: str | None, shown: Shown, speaks: bool, now_us: int) -> None:
    """Raises Refused 401 for a token that comes without what it is bound to. `speaks`: whether the certificate that was shown is
    the rental's, and neither revoked nor expired."""
    if claims.bound == "certificate" and not speaks:
        raise Refused(
            401,
            "certificate_required",
            f"The token of rental {claims.rental} goes with its client certificate, which was not shown, has expired "
            "or was revoked; stop.",
        )
    if claims.bound == "proof" and not is_proven(bytes.fromhex(pubkey or ""), shown, now_us):
        raise Refused(
            401,
            "proof_required",
            f"The token of rental {claims.rental} goes with a proof in {PROOF_HEADER}, which is missing, wrong or older "
            f"than {PROOF_AGE_US // 1_000_000} s; stop.",
        )


def is_proven(key: bytes, shown: Shown, now_us: int) -> bool:
    """Whether the proof is of this request, by this key, and of now."""
    time_text, _, mac = (shown.proof or "").partition(".")
    if not (key and time_text.isascii() and time_text.isdigit() and len(time_text) <= 20 and mac.isascii()):
        return False
    if abs(now_us - int(time_text)) > PROOF_AGE_US:
        return False
    digest = hashlib.sha256(shown.body).hexdigest()
    text = f"worker proof v1\n{shown.method}\n{shown.path}\n{time_text}\n{digest}"
    return hmac.compare_digest(mac, hmac.new(key, text.encode(), hashlib.sha256).hexdigest())
