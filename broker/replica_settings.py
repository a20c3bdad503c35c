"""Brokers that share a database must be set alike in what they decide by: which sections differ is seen by their digests."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping

from broker.settings import Settings

# Not `data`, `http.port` and the like: those are each broker's own.
ALIKE = ("markets", "jobs", "objects", "control", "webhooks", "sandbox", "own", "models", "sources", "providers")


def digests(settings: Settings) -> dict[str, str]:
    """A digest of each section that must be alike. Secrets are masked before, so that none can be guessed from it."""
    told = settings.model_dump(mode="json", include={*ALIKE})
    found = {name: _digest(told[name]) for name in ALIKE}
    return found | {"http.public_url": _digest(settings.http.public_url)}


def differing(mine: Mapping[str, str], theirs: Mapping[str, str]) -> list[str]:
    """The sections in which two brokers are set differently.

    >>> differing({"jobs": "a", "control": "b"}, {"jobs": "a", "control": "c"})
    ['control']
    """
    return sorted(name for name in mine.keys() | theirs.keys() if mine.get(name) != theirs.get(name))


def _digest(section: object) -> str:
    return hashlib.sha256(json.dumps(section, sort_keys=True).encode()).hexdigest()[:16]
