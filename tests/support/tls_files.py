"""Server certificates for tests that speak TLS."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from broker.settings import HttpSettings


def server_certificate(folder: Path, *, days: int = 1, host: str = "127.0.0.1") -> HttpSettings:
    """A certificate for 127.0.0.1, or the name `host`, that signs itself, as a small installation has one."""
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.now(UTC)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(days=days))
        .add_extension(x509.SubjectAlternativeName([_alternative(host)]), critical=False)
        .sign(key, hashes.SHA256())
    )
    encoding = serialization.Encoding.PEM
    (folder / "tls.pem").write_bytes(made.public_bytes(encoding))
    (folder / "tls.key").write_bytes(
        key.private_bytes(encoding, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    certificate = folder / "tls.pem"
    return HttpSettings(tls_certificate=certificate, tls_key=folder / "tls.key", tls_ca=certificate)


def _alternative(host: str) -> x509.GeneralName:
    return x509.IPAddress(IPv4Address(host)) if host[-1].isdigit() else x509.DNSName(host)
