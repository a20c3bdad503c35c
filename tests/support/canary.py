"""Looks for secrets where none may be: `secrets_leaked` is what chaos runs count, and must be empty.

A secret is found as it is and in the forms in which programs write text: base64, hex, percent-encoded, JSON-escaped.
"""

from __future__ import annotations

import base64
import json
import urllib.parse
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Leak:
    """The secret's name (not the secret), the form in which it stood, and where."""

    secret: str
    form: str
    where: str


def secrets_leaked(
    secrets: Mapping[str, str],
    places: Iterable[Path],
    *,
    homes: Collection[str] = (),
    texts: Mapping[str, bytes] | None = None,
) -> list[Leak]:
    """Every place in which a secret stands: files, those below folders, and `texts` by name (answers, command output).

    `homes` are names of files or folders where secrets live by design (`kek`, `objects` …): they are not looked into.
    """
    found = [leak for name, content in (texts or {}).items() for leak in leaks_in(secrets, name, content)]
    for file in sorted({file for place in places for file in _files(place)}):
        if not set(file.parts) & set(homes):
            found += leaks_in(secrets, str(file), file.read_bytes())
    return found


def leaks_in(secrets: Mapping[str, str], where: str, content: bytes) -> list[Leak]:
    """The leaks of one text."""
    return [
        Leak(name, form, where)
        for name, secret in secrets.items()
        for form, text in forms(secret).items()
        if text in content
    ]


def forms(secret: str) -> dict[str, bytes]:
    """How a secret may be written. Base64 depends on what stands before it, so the part that does not is looked for.

    >>> b"c2VjcmV0" in forms("secret")["base64"]
    True
    """
    raw = secret.encode()
    written = {
        "plain": raw,
        "base64": base64.b64encode(raw[: len(raw) // 3 * 3]),
        "base64, one later": base64.b64encode(b"\0" + raw)[4 : (len(raw) - 2) // 3 * 4],
        "base64, two later": base64.b64encode(b"\0\0" + raw)[4 : (len(raw) - 1) // 3 * 4],
        "hex": raw.hex().encode(),
        "percent": urllib.parse.quote(secret, safe="").encode(),
        "json": json.dumps(secret)[1:-1].encode(),
    }
    return {name: text for name, text in written.items() if len(text) >= 8}


def _files(place: Path) -> Iterable[Path]:
    return [place] if place.is_file() else (file for file in place.rglob("*") if file.is_file())
