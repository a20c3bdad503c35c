"""Which requests give the same answer when asked again, and what makes two of them the same. Pure."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Mapping
from typing import Any

import msgspec

from jobs.types import Repeatable

DIGEST_BYTES = 16
_CANONICAL = msgspec.json.Encoder(order="sorted")


def is_repeatable(body: Mapping[str, Any], url: str) -> bool:
    """Temperature stated as 0, one answer, no stream. Embeddings are computed, not drawn: they always repeat.

    >>> is_repeatable({"temperature": 0.0}, "/v1/completions"), is_repeatable({}, "/v1/completions")
    (True, False)
    >>> is_repeatable({"temperature": 0, "n": 2}, "/v1/completions"), is_repeatable({}, "/v1/embeddings")
    (False, True)
    """
    if url == "/v1/embeddings":
        return True
    temperature = body.get("temperature")
    is_zero = type(temperature) in (int, float) and temperature == 0
    return is_zero and all(body.get(name) in (None, 1) for name in ("n", "best_of")) and not body.get("stream")


def digest(body: Mapping[str, Any], url: str) -> bytes:
    """Equal for equal requests: blake2b over endpoint and body, keys sorted, `model` left out.

    The caller adds the model's revision. Key order and white space do not matter; every value does, and 1 is not 1.0.

    >>> digest({"model": "a", "seed": 1, "prompt": "p"}, "u") == digest({"prompt": "p", "seed": 1, "model": "b"}, "u")
    True
    >>> digest({"seed": 1}, "u") == digest({"seed": 2}, "u")
    False
    """
    without_model = {key: value for key, value in body.items() if key != "model"}
    canonical = url.encode() + b"\0" + _CANONICAL.encode(without_model)
    return hashlib.blake2b(canonical, digest_size=DIGEST_BYTES).digest()


class Repeats:
    """Collects digests in the order of the file."""

    def __init__(self) -> None:
        self._idx = array("L")
        self._digests = bytearray()

    def add(self, idx: int, of_request: bytes) -> None:
        self._idx.append(idx)
        self._digests += of_request

    def found(self) -> Repeatable:
        return Repeatable(idx=self._idx, digests=bytes(self._digests))
