"""Key-encryption keys (KEKs): where they come from, and which of them is used for what is wrapped from now on.

Each has a name, its version, that is written beside what it wrapped. A key stays in the settings until nothing is wrapped
by it any more (`broker credentials rotate` says so); the current one wraps what is new.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from broker.envelope import KEY_BYTES, Unopenable, close, fingerprint, new_key, open_box
from broker.secret_files import kept
from broker.settings import KekSettings, VaultSettings

OWN_KEK = "kek"


class BadKek(Exception):
    """A key-encryption key of the settings cannot be used; the message says which, why, and how to mend it."""


class KekUnavailable(OSError):
    """AWS KMS does not answer, or refuses us: nothing is known of the key. It may pass."""

    code = "kek_unavailable"


class Kek(Protocol):
    """Wraps and unwraps data keys. Both may be network calls: never inside a transaction."""

    async def wrap(self, data_key: bytes, context: str) -> bytes: ...

    async def unwrap(self, wrapped: bytes, context: str) -> bytes:
        """Raises Unopenable."""


@dataclass(frozen=True)
class LocalKek:
    """A key of ours, from a file or the environment."""

    key: bytes = field(repr=False)

    async def wrap(self, data_key: bytes, context: str) -> bytes:
        return close(self.key, data_key, context)

    async def unwrap(self, wrapped: bytes, context: str) -> bytes:
        return open_box(self.key, wrapped, context)


@dataclass(frozen=True)
class AwsKmsKek:
    """A key that never leaves AWS KMS: it encrypts data keys (32 bytes; KMS takes up to 4096) bound to their context.

    Tested against moto's KMS; unverified against the live service.
    """

    key_id: str
    client: Any = field(repr=False)

    async def wrap(self, data_key: bytes, context: str) -> bytes:
        return await self._asked("encrypt", "CiphertextBlob", {"Plaintext": data_key}, context)

    async def unwrap(self, wrapped: bytes, context: str) -> bytes:
        return await self._asked("decrypt", "Plaintext", {"CiphertextBlob": wrapped}, context)

    async def _asked(self, action: str, wanted: str, given: Mapping[str, bytes], context: str) -> bytes:
        """Raises KekUnavailable, and Unopenable for what this key has not wrapped, or not for this context."""
        from botocore.exceptions import BotoCoreError, ClientError  # noqa: PLC0415 - an extra: here is a client of it

        call = getattr(self.client, action)
        try:
            answer = await asyncio.to_thread(call, KeyId=self.key_id, EncryptionContext={"broker": context}, **given)
        except ClientError as refused:
            code = refused.response["Error"]["Code"]
            if code in ("InvalidCiphertextException", "IncorrectKeyException"):
                raise Unopenable(f"AWS KMS does not open what is stored for {context}: {code}") from refused
            raise KekUnavailable(f"AWS KMS refuses {action} with {self.key_id}: {code}") from refused
        except BotoCoreError as silent:
            raise KekUnavailable(f"AWS KMS cannot be asked to {action} with {self.key_id}: {silent}") from silent
        return bytes(answer[wanted])


@dataclass(frozen=True)
class Keyring:
    """All keys by name; `current` wraps what is new."""

    current: str
    keys: Mapping[str, Kek]

    def named(self, name: str) -> Kek:
        """Raises Unopenable for a key that is not here (any more)."""
        if name not in self.keys:
            have = ", ".join(sorted(self.keys))
            raise Unopenable(
                f"it was wrapped by the key {name!r}, which is not here (here are {have}): name it in vault.keys again, "
                "or copy the file DATA/kek of the broker that wrapped it"
            )
        return self.keys[name]


def open_keyring(settings: VaultSettings, data: Path, *, may_make: bool = True) -> Keyring:
    """The keys that the settings name, and the data folder's own, which is made when the settings name none.

    `may_make` False: the database has data keys already, so that a new key could open none of them. Raises BadKek.
    """
    keys: dict[str, Kek] = {name: _kek(name, each, settings.aws_region) for name, each in settings.keys.items()}
    current = settings.current
    own = data / OWN_KEK
    if not own.exists() and not keys and not may_make:
        raise BadKek(
            f"the database holds secrets, and neither {own} nor vault.keys has the key that they lie under: copy the file "
            "from the broker that made it, or name the key in vault.keys"
        )
    if own.exists() or not keys:
        key = kept(own, new_key)
        name = f"own-{fingerprint(key)}"
        keys[name] = LocalKek(_sized(OWN_KEK, key))
        current = current or (name if len(keys) == 1 else None)
    if current is None and len(settings.keys) == 1:
        current = next(iter(settings.keys))
    if current not in keys:
        have = ", ".join(sorted(keys))
        raise BadKek(f"vault.current = {current!r} names none of the keys that are here ({have}); name one of them")
    return Keyring(current, keys)


def _kek(name: str, settings: KekSettings, region: str | None) -> Kek:
    sources = [each for each in (settings.file, settings.value, settings.aws_kms) if each is not None]
    if len(sources) != 1:
        raise BadKek(f"vault.keys.{name} must have exactly one of file, value and aws_kms; it has {len(sources)}")
    if settings.aws_kms is not None:
        return _kms(name, settings.aws_kms, settings.aws_region, region)
    if settings.value is not None:
        return LocalKek(_decoded(f"vault.keys.{name}.value", settings.value.get_secret_value()))
    assert settings.file is not None
    return LocalKek(_decoded(f"vault.keys.{name}.file", _read(name, settings.file)))


def _kms(name: str, key_id: str, own: str | None, common: str | None) -> AwsKmsKek:
    """Nobody is asked yet. The region is the key's `own`, that of its ARN, that of all (`common`), or the environment's."""
    try:
        import boto3  # noqa: PLC0415 - an extra
        from botocore.exceptions import BotoCoreError  # noqa: PLC0415
    except ModuleNotFoundError as missing:
        raise BadKek(f"vault.keys.{name}.aws_kms needs boto3: pip install 'compute-broker[aws]'") from missing
    parts = key_id.split(":")
    stated = parts[3] if parts[0] == "arn" and len(parts) > 3 else None
    try:
        return AwsKmsKek(key_id, boto3.client("kms", region_name=own or stated or common))
    except (BotoCoreError, ValueError) as refused:  # no region, one that is no name, or a profile that is not there
        mend = f"set vault.keys.{name}.aws_region, or AWS_REGION"
        raise BadKek(f"vault.keys.{name}.aws_kms = {key_id!r} cannot be asked: {refused} {mend}") from refused


def _read(name: str, file: Path) -> str:
    try:
        mode, text = stat.S_IMODE(file.stat().st_mode), file.read_text(encoding="ascii")
    except (OSError, UnicodeDecodeError) as error:
        raise BadKek(f"vault.keys.{name}.file = {str(file)!r} cannot be read: {error}") from error
    if mode & 0o077:
        raise BadKek(f"vault.keys.{name}.file = {str(file)!r} is open to others (mode {mode:04o}): chmod 600 {file}")
    return text


def _decoded(where: str, text: str) -> bytes:
    """32 bytes in base64. The message never holds the text."""
    try:
        key = base64.b64decode(text.strip(), validate=True)
    except (binascii.Error, ValueError):
        raise BadKek(f"{where} is not base64; make one with `openssl rand -base64 32`") from None
    return _sized(where, key)


def _sized(where: str, key: bytes) -> bytes:
    if len(key) != KEY_BYTES:
        raise BadKek(f"{where} has {len(key)} bytes, and a key has 32: make one with `openssl rand -base64 32`")
    return key
