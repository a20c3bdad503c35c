"""The backup's table of contents, and the one place that knows how it looks on disk (`manifest.json`, version 1).

DIR/manifest.json         what this is, and every other file with its size, mode and sha256
DIR/database.sqlite       or database.dump (pg_dump's custom format)
DIR/data/…                the data folder's own files: settings, secrets, owner, certificate authorities
DIR/objects/…             the object store, where that is a folder
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import msgspec

from broker.backup.errors import BackupError

FILE = "manifest.json"
VERSION = 1
DATABASES = {"sqlite": "database.sqlite", "postgresql": "database.dump"}
CHUNK = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Kept:
    """One file: `path` is relative to the backup, `mode` its permissions (0o600 …)."""

    path: str
    bytes: int
    sha256: str
    mode: int


@dataclass(frozen=True, slots=True)
class Manifest:
    """`revision` is the schema's migration. `objects`: whether they are in here, or lie in a bucket of their own."""

    made_us: int
    broker: str
    owner: str
    dialect: Literal["sqlite", "postgresql"]
    revision: str
    objects: bool
    files: tuple[Kept, ...]
    version: int = VERSION

    @property
    def database(self) -> str:
        return DATABASES[self.dialect]


def write(folder: Path, manifest: Manifest) -> None:
    (folder / FILE).write_bytes(msgspec.json.format(msgspec.json.encode(asdict(manifest)), indent=1))


def read(folder: Path) -> Manifest:
    """Raises BackupError when `folder` holds no backup that this version can read."""
    file = folder / FILE
    try:
        manifest = msgspec.json.decode(file.read_bytes(), type=Manifest)
    except FileNotFoundError as missing:
        raise BackupError(
            f"{file} is missing: {folder} is no backup, or one that did not end; name a folder that `broker backup` made"
        ) from missing
    except msgspec.DecodeError as wrong:
        raise BackupError(f"{file}: {wrong}; take another backup") from wrong
    if manifest.version != VERSION:
        raise BackupError(f"{file}: version {manifest.version}; this broker reads version {VERSION}")
    return manifest


def copy(source: Path, target: Path, name: str) -> Kept:
    """Copy one file with its permissions, hashing what is copied; `name` is its path in the backup."""
    target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    mode = source.stat().st_mode & 0o777
    digest, size = hashlib.sha256(), 0
    with (
        source.open("rb") as reading,
        os.fdopen(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as out,
    ):
        while chunk := reading.read(CHUNK):
            digest.update(chunk)
            out.write(chunk)
            size += len(chunk)
    target.chmod(mode)
    return Kept(name, size, digest.hexdigest(), mode)


def measured(file: Path, name: str) -> Kept:
    """What is there already, as a row of the manifest."""
    with file.open("rb") as reading:
        digest = hashlib.file_digest(reading, "sha256")
    return Kept(name, file.stat().st_size, digest.hexdigest(), file.stat().st_mode & 0o777)


def damaged(folder: Path, manifest: Manifest) -> Iterator[str]:
    """Every file that is not as it was written, and how."""
    for kept in manifest.files:
        file = folder / kept.path
        if not file.is_file():
            yield f"{file} is missing"
        elif (found := measured(file, kept.path)).sha256 != kept.sha256:
            yield f"{file} has {found.bytes} bytes with sha256 {found.sha256}; written were {kept.bytes} with {kept.sha256}"


def require_empty(folder: Path, what: str) -> bool:
    """Make `folder` for its owner alone; whether it was not there. Raises BackupError when something is in it."""
    is_new = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    if any(folder.iterdir()):
        raise BackupError(f"{what} {folder} is not empty; name a folder that is empty or does not exist")
    return is_new
