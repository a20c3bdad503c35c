"""Who this agent is beyond its token: a client certificate where the broker ends TLS itself, else a proof by a shared key.

Certificate: the key is made here and never leaves the machine (modules of the image: `cryptography`, or the program
`openssl`); the request's signature proves that we have it. Proof: HMAC-SHA256 (RFC 2104) over method, path, time and body
under the `pubkey` that this process made for hello; a token that was copied from a log or a proxy is worth nothing
without it.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import importlib.util
import os
import secrets
import shutil
import ssl
import subprocess
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workers.agent.log import event

PROOF_HEADER = "X-Worker-Proof"
_OPENSSL_TIMEOUT_S = 30


@dataclass(frozen=True, slots=True)
class CertificateRequest:
    """A fresh key in `folder` (mode 0700), and the request for its certificate, in PEM."""

    folder: Path
    csr: str


def make_request() -> CertificateRequest | None:
    """A key and a certificate request; None, with the reason in the log, where this machine can make none."""
    folder = Path(tempfile.mkdtemp(prefix="worker-identity-"))
    try:
        if importlib.util.find_spec("cryptography") is not None:
            return CertificateRequest(folder, _by_module(folder))
        program = shutil.which("openssl")
        if program is not None:
            return CertificateRequest(folder, _by_program(program, folder))
        reason = "neither the module cryptography nor the program openssl is here"
    except (OSError, subprocess.SubprocessError, ImportError) as error:
        reason = f"{type(error).__name__}: {error}"
    shutil.rmtree(folder, ignore_errors=True)
    event("identity.no_certificate", reason=reason, instead="key-bound token")
    return None


def _by_module(folder: Path) -> str:
    from cryptography import x509  # noqa: PLC0415 - of the image, where it has it
    from cryptography.hazmat.primitives import hashes, serialization  # noqa: PLC0415
    from cryptography.hazmat.primitives.asymmetric import ec  # noqa: PLC0415

    key = ec.generate_private_key(ec.SECP256R1())
    encoded = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    _write(folder / "key.pem", encoded)
    request = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(key, hashes.SHA256())
    return request.public_bytes(serialization.Encoding.PEM).decode()


def _by_program(program: str, folder: Path) -> str:
    key = folder / "key.pem"
    _write(key, b"")
    for arguments in (
        ("ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", str(key)),
        ("req", "-new", "-sha256", "-key", str(key), "-subj", "/CN=worker", "-out", str(folder / "csr.pem")),
    ):
        subprocess.run([program, *arguments], check=True, capture_output=True, timeout=_OPENSSL_TIMEOUT_S)
    return (folder / "csr.pem").read_text(encoding="ascii")


def _write(file: Path, content: bytes) -> None:
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as opened:
        opened.write(content)


def trusting(broker_ca: str | None) -> ssl.SSLContext:
    """TLS to the broker: what the system trusts, and `broker_ca` (PEM) where it is given."""
    context = ssl.create_default_context()
    if broker_ca:
        context.load_verify_locations(cadata=broker_ca)
    return context


def presenting(broker_ca: str | None, request: CertificateRequest, certificate: str) -> ssl.SSLContext:
    """TLS to the broker with a client certificate. The key's folder is emptied: the context has read it."""
    context = trusting(broker_ca)
    _write(request.folder / "certificate.pem", certificate.encode())
    context.load_cert_chain(request.folder / "certificate.pem", request.folder / "key.pem")
    shutil.rmtree(request.folder, ignore_errors=True)
    return context


class Identity:
    """What this process is known by, from hello to its end. `pubkey` (hex) is made once."""

    def __init__(self, *, wants_certificate: bool, broker_ca: str | None) -> None:
        self.pubkey = secrets.token_hex(32)
        self._wants_certificate = wants_certificate
        self._broker_ca = broker_ca
        self._asked: CertificateRequest | None = None
        self._renew_s: float | None = None
        self._since = 0.0

    async def introduction(self) -> dict[str, Any]:
        """What hello says of it."""
        if self._wants_certificate and self._asked is None:
            self._asked = await asyncio.to_thread(make_request)
        return {"proof": True, "csr": self._asked.csr if self._asked else None}

    def adopt(self, answer: Mapping[str, Any]) -> tuple[ssl.SSLContext | None, Prover | None]:
        """What to connect and to prove with from now on, as the answer to hello has it."""
        if answer.get("binding") == "certificate" and self._asked is not None:
            self._renew_s = answer["certificate_renew_s"]
            return self._presenting(answer["certificate"]), None
        if answer.get("binding") == "proof":
            prover = Prover(self.pubkey)
            prover.set_clock(answer["now_us"])
            return None, prover
        return None, None

    async def renewal(self) -> str | None:
        """A request for the next certificate once half the life of the present one is over; the same until it is answered."""
        if self._renew_s is None or time.monotonic() - self._since < self._renew_s:
            return None
        if self._asked is None:
            self._asked = await asyncio.to_thread(make_request)
        return self._asked.csr if self._asked else None

    def renewed(self, certificate: str | None) -> ssl.SSLContext | None:
        """What to connect with from now on, when the heartbeat brought a certificate."""
        return self._presenting(certificate) if certificate and self._asked is not None else None

    def _presenting(self, certificate: str) -> ssl.SSLContext:
        assert self._asked is not None
        context = presenting(self._broker_ca, self._asked, certificate)
        self._asked, self._since = None, time.monotonic()
        event("identity.certificate")
        return context


class Prover:
    """Proves with each request that its sender made `pubkey`. Knows the broker's clock, not the machine's."""

    def __init__(self, pubkey: str) -> None:
        self._key = bytes.fromhex(pubkey)
        self._ahead_us = 0

    def set_clock(self, broker_us: int) -> None:
        """The broker's time now; from here on the monotonic clock counts."""
        self._ahead_us = broker_us - time.monotonic_ns() // 1000

    def header(self, method: str, path: str, body: bytes) -> str:
        """The value of X-Worker-Proof: `<microseconds UTC>.<hex>`."""
        now_us = time.monotonic_ns() // 1000 + self._ahead_us
        return f"{now_us}.{proof(self._key, method, path, now_us, body)}"


def proof(key: bytes, method: str, path: str, now_us: int, body: bytes) -> str:
    """What is compared.

    >>> proof(bytes(32), "POST", "/worker/v1/leases", 0, b"{}")[:16]
    'ecb66cfcf45661f3'
    """
    text = f"worker proof v1\n{method}\n{path}\n{now_us}\n{hashlib.sha256(body).hexdigest()}"
    return hmac.new(key, text.encode(), hashlib.sha256).hexdigest()
