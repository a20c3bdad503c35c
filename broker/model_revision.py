"""Which model, exactly, answers: what must be equal before one answer may stand for another. Pure."""

from __future__ import annotations

import hashlib
import re
from dataclasses import fields

import msgspec

from workers.profile import ModelProfile

# What changes speed, place or access, and no answer. A field that is new counts until somebody has thought about it.
_NO_MATTER = frozenset(
    {
        "parallel", "shm_mib", "cache", "user", "image_tag_may_move", "api_key", "launches", "endpoints", "tokens_per_s",
        "load_s", "request_timeout_s",
        "health_path", "metrics_path", "metrics",
    }
)  # fmt: skip
_COMMIT = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")


def revision_of(profile: ModelProfile) -> str | None:
    """A digest of everything in a profile that can change an answer; None when the weights are not pinned.

    Pinned are weights with a sha256, or weights that the engine fetches at a commit. A branch name moves, and so does
    whatever stands behind a URL or a command, unless the settings name a `revision` for it: then that is the
    operator's word.
    """
    if not _is_pinned(profile):
        return None
    facts = {each.name: getattr(profile, each.name) for each in fields(profile) if each.name not in _NO_MATTER}
    return hashlib.sha256(msgspec.json.encode(facts, order="sorted")).hexdigest()


def _is_pinned(profile: ModelProfile) -> bool:
    if profile.weights_sha256 is not None:
        return True
    if profile.engine in ("url", "command"):
        return profile.revision is not None
    return profile.revision is not None and _COMMIT.fullmatch(profile.revision) is not None
