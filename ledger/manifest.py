"""The manifest of an export: every file with its sha256, so that what finance keeps can be shown to be what was exported.

`SHA256SUMS` says the same in the form that `sha256sum -c` reads: nobody needs our software to check.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

MANIFEST = "manifest.json"
SUMS = "SHA256SUMS"
SIGNATURE = "manifest.sig"  # of this manifest, where the broker signed it (ledger/sealed_export.py)
_CHUNK = 1 << 20


def write_manifest(folder: Path, about: Mapping[str, Any]) -> dict[str, Any]:
    """List all files of `folder` with size and sha256 in `manifest.json` and `SHA256SUMS`; the manifest.

    Written last: a folder without it is an export that did not finish.
    """
    names = sorted(
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_file() and path.name not in (MANIFEST, SUMS, SIGNATURE)
    )
    files = [
        {"name": name, "bytes": (folder / name).stat().st_size, "sha256": sha256_of(folder / name)} for name in names
    ]
    document = {**about, "files": files}
    (folder / MANIFEST).write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    sums = [(each["sha256"], each["name"]) for each in files] + [(sha256_of(folder / MANIFEST), MANIFEST)]
    (folder / SUMS).write_text("".join(f"{digest}  {name}\n" for digest, name in sums), encoding="utf-8")
    return document


def check_manifest(folder: Path) -> list[str]:
    """What is wrong with an export: files missing, changed, or never listed. Empty: all is as it was written."""
    try:
        document = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        listed = {str(each["name"]): str(each["sha256"]) for each in document["files"]}
    except FileNotFoundError:
        return [f"{folder / MANIFEST} is missing: the export did not finish, or this is no export"]
    except (ValueError, KeyError, TypeError) as broken:
        return [f"{folder / MANIFEST} cannot be read: {broken!r}"]
    found = [f"{name} is listed and missing" for name in listed if not (folder / name).is_file()]
    found += [
        f"{name} was changed: sha256 differs from the manifest's"
        for name, digest in listed.items()
        if (folder / name).is_file() and sha256_of(folder / name) != digest
    ]
    there = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    return found + [
        f"{name} is there and not listed" for name in sorted(there - set(listed) - {MANIFEST, SUMS, SIGNATURE})
    ]


def sha256_of(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
