"""The broker's own certificate authority for workers: EC P-256, its key sealed in the vault, shared by all replicas.

A worker makes its key on its machine and asks with a PKCS#10 request (RFC 2986), whose signature proves that it has the
key; of what the request says only the public key counts. It gets a client certificate for 24 hours that names its rental
(`spiffe://broker/rental/ID`). Serial numbers are kept, and looked up at each request: a revoked one is worth nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import structlog
from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from sqlalchemy import select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from broker.database import Database
from broker.vault import Vault
from broker.vault_tables import AuthorityRow, CertificateRow
from jobs.clock import db_now

log = structlog.get_logger()

LIFE = timedelta(hours=24)
# Machines without a time server are minutes off; so may be the replicas of one broker.
SKEW = timedelta(hours=1)
AUTHORITY_LIFE = timedelta(days=3650)
NAME = "workers"
RENTAL_URI = "spiffe://broker/rental/"
MOST_CSR_CHARS = 4_096


class BadCsr(Exception):
    """A certificate request cannot be granted; the message says why."""

    code = "bad_csr"


@dataclass(frozen=True, slots=True)
class Issued:
    """A certificate in PEM, and what is kept of it. Times are microseconds UTC."""

    pem: str
    serial: str
    public_key_sha256: str
    expires_us: int


@dataclass(frozen=True)
class Authority:
    """Signs for workers. `certificate` is the PEM by which others know its signature."""

    certificate: str
    key: ec.EllipticCurvePrivateKey = field(repr=False)

    def issue(self, csr_pem: str, rental: str, now_us: int) -> Issued:
        """A client certificate for the rental's worker. Raises BadCsr."""
        request, public = checked_csr(csr_pem)
        del request  # what it says of itself is not asked
        now = datetime.fromtimestamp(now_us / 1e6, UTC).replace(microsecond=0)
        serial = x509.random_serial_number()
        issuer = x509.load_pem_x509_certificate(self.certificate.encode())
        certificate = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, rental[:64])]))
            .issuer_name(issuer.subject)
            .public_key(public)
            .serial_number(serial)
            .not_valid_before(now - SKEW)
            .not_valid_after(now + LIFE)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(x509.SubjectAlternativeName([x509.UniformResourceIdentifier(RENTAL_URI + rental)]), False)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), critical=True)
            .add_extension(_usage(signs_certificates=False), critical=True)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key()), critical=False)
            .sign(self.key, hashes.SHA256())
        )
        return Issued(
            pem=certificate.public_bytes(serialization.Encoding.PEM).decode(),
            serial=f"{serial:x}",
            public_key_sha256=_key_hash(public),
            expires_us=round((now + LIFE).timestamp() * 1e6),
        )


def checked_csr(csr_pem: str) -> tuple[x509.CertificateSigningRequest, ec.EllipticCurvePublicKey]:
    """A request whose signature shows that its sender has the key, and that key. Raises BadCsr."""
    if len(csr_pem) > MOST_CSR_CHARS:
        raise BadCsr(f"the certificate request has {len(csr_pem)} characters; at most {MOST_CSR_CHARS} are read")
    try:
        request = x509.load_pem_x509_csr(csr_pem.encode())
        public, is_signed = request.public_key(), request.is_signature_valid
    except (ValueError, UnsupportedAlgorithm, InvalidSignature) as error:
        raise BadCsr(f"the certificate request cannot be read: {error}") from error
    if not isinstance(public, ec.EllipticCurvePublicKey) or not isinstance(public.curve, ec.SECP256R1):
        raise BadCsr("the certificate request has another kind of key; make one on the curve P-256 (prime256v1)")
    if not is_signed:
        raise BadCsr("the certificate request is not signed by its own key")
    return request, public


async def open_authority(database: Database, vault: Vault) -> Authority:
    """The authority of this database, made at the first use. Raises Unopenable."""
    key = await vault.data_key("authority")
    for _ in range(2):
        async with database.transaction() as session:
            row = await session.get(AuthorityRow, NAME)
            now_us = await db_now(session)
        if row is not None:
            plain = key.open(row.sealed, f"the key of the authority {NAME}")
            private = serialization.load_der_private_key(plain, password=None)
            assert isinstance(private, ec.EllipticCurvePrivateKey)
            return Authority(row.certificate, private)
        made = _make(now_us)
        sealed = key.close(
            made.key.private_bytes(
                serialization.Encoding.DER, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            ),
            f"the key of the authority {NAME}",
        )
        try:
            async with database.transaction() as session:
                session.add(
                    AuthorityRow(
                        name=NAME, certificate=made.certificate, data_key=key.id, sealed=sealed, created_us=now_us
                    )
                )
        except IntegrityError:
            continue  # another replica was faster: its authority counts
        log.info("authority.made", name=NAME)
        return made
    raise AssertionError("an authority that exists was not found")


async def record(session: AsyncSession, rental: str, issued: Issued, now_us: int) -> None:
    """Write down what was issued, in the transaction that gives it away."""
    session.add(
        CertificateRow(
            serial=issued.serial,
            rental=rental,
            public_key_sha256=issued.public_key_sha256,
            pem=issued.pem,
            issued_us=now_us,
            expires_us=issued.expires_us,
        )
    )


async def standing(session: AsyncSession, rental: str, csr_pem: str, now_us: int) -> str | None:
    """A certificate for the same key that has half its life or more before it: the answer to a request that is repeated
    because its answer was lost. Raises BadCsr."""
    _, public = checked_csr(csr_pem)
    half_us = round(LIFE.total_seconds() * 1e6) // 2
    query = select(col(CertificateRow.pem)).where(
        col(CertificateRow.rental) == rental,
        col(CertificateRow.public_key_sha256) == _key_hash(public),
        col(CertificateRow.revoked_us).is_(None),
        col(CertificateRow.expires_us) > now_us + half_us,
    )
    found: str | None = await session.scalar(query.order_by(col(CertificateRow.expires_us).desc()).limit(1))
    return found


async def has_certificate(session: AsyncSession, rental: str) -> bool:
    """Whether one was ever given to the rental."""
    query = select(col(CertificateRow.serial)).where(col(CertificateRow.rental) == rental).limit(1)
    return await session.scalar(query) is not None


async def speaking(session: AsyncSession, shown: Collection[tuple[str, str]], now_us: int) -> set[tuple[str, str]]:
    """Those of `shown` (serial number, rental) where the certificate is the rental's, and neither revoked nor expired."""
    serials = {_stored(serial) for serial, _ in shown}
    if not serials:
        return set()
    statement = select(CertificateRow).where(
        col(CertificateRow.serial).in_(serials),
        col(CertificateRow.revoked_us).is_(None),
        col(CertificateRow.expires_us) > now_us,
    )
    good = {(row.serial, row.rental) for row in await session.scalars(statement)}
    return {(serial, rental) for serial, rental in shown if (_stored(serial), rental) in good}


def _stored(serial: str) -> str:
    return serial.lower().lstrip("0")


async def revoke(session: AsyncSession, rental: str, reason: str, now_us: int) -> None:
    """End every certificate of a rental, from the next request on."""
    await session.execute(
        update(CertificateRow)
        .where(col(CertificateRow.rental) == rental, col(CertificateRow.revoked_us).is_(None))
        .values(revoked_us=now_us, revoked_reason=reason[:300])
        .execution_options(synchronize_session=False)
    )


def _make(now_us: int) -> Authority:
    key = ec.generate_private_key(ec.SECP256R1())
    now = datetime.fromtimestamp(now_us / 1e6, UTC).replace(microsecond=0)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "broker workers")])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - SKEW)
        .not_valid_after(now + AUTHORITY_LIFE)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    return Authority(certificate.public_bytes(serialization.Encoding.PEM).decode(), key)


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _key_hash(public: ec.EllipticCurvePublicKey) -> str:
    encoded = public.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(encoded).hexdigest()
