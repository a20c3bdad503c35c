"""The key that signs the books' checkpoints and exports. It lies beside the database, never in it: who can change rows must
not be able to sign them."""

from __future__ import annotations

from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from broker.secret_files import kept
from broker.settings import Settings
from ledger.sealed_export import Signer

KEY = "ledger.key"


class BadLedgerKey(ValueError):
    """The key that signs the books cannot be used."""


def ledger_signer(settings: Settings) -> Signer:
    """The signer of this broker; its key is made the first time, unless the settings name one. Raises BadLedgerKey."""
    file = settings.ledger.key_file
    pem = _read(file) if file is not None else kept(settings.data / KEY, _fresh)
    try:
        key = load_pem_private_key(pem, None)
    except (ValueError, TypeError) as problem:
        raise BadLedgerKey(f"{file or settings.data / KEY} is not a private key in PEM without a password") from problem
    if not isinstance(key, Ed25519PrivateKey):
        raise BadLedgerKey(f"{file or settings.data / KEY} is not an Ed25519 key")
    return Signer(settings.ledger.name, key)


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as problem:
        raise BadLedgerKey(f"ledger.key_file {file} cannot be read: {problem.strerror}") from problem


def _fresh() -> bytes:
    return Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
