"""Sealed objects: AES-256-GCM in segments, so that an object of any size is sealed as a stream, and a piece of it can be opened
alone.

The construction is STREAM (Hoang, Reyhanitabar, Rogaway, Vizár: Online Authenticated-Encryption and its Nonce-Reuse
Misuse-Resistance, CRYPTO 2015), as in Tink's streaming AEAD and in age, with one difference: each segment has a key of its own,
derived from the object's. So whoever is to read some segments is given the keys of these and of no other.

    object   = magic (8 bytes) ‖ salt (32 random bytes) ‖ segment 0 ‖ segment 1 ‖ …
    segment  = AES-256-GCM of 64 KiB of plaintext (the last: 1 byte to 64 KiB, of an empty object 0), then its tag (16 bytes)
    K_object = HKDF-SHA256(key, salt, "broker seal v1 object" ‖ 0 ‖ context)
    K_number = HKDF-Expand(K_object, "broker seal v1 segment" ‖ 0 ‖ number (8 bytes)), 32 bytes
    nonce    = number (11 bytes) ‖ 1 if it is the last, else 0;  associated data = "broker seal v1" ‖ 0 ‖ context

`context` says what the object is and whose (broker/sealed_store.py). A segment that was changed, moved, taken from another
object, or is missing at the end does not open: SealBroken, and nothing of it is handed out. Whether an object is sealed at
all is never read from the object.
"""

from __future__ import annotations

import hashlib
import hmac
import importlib.util
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Any

FORMAT = 1
SEGMENT = 64 * 1024
TAG = 16
SALT = 32
KEY = 32
_MAGIC = b"brkseal\x01"
HEADER = len(_MAGIC) + SALT
_BOX = SEGMENT + TAG


class SealBroken(Exception):
    """What was to be opened is not what was sealed: changed, moved, cut short, or of another object or key."""


def is_available() -> bool:
    """Whether this machine can open and seal: an engine's image may be without `cryptography`."""
    return importlib.util.find_spec("cryptography") is not None


@cache
def _aead() -> Any:
    # imported here: the agent works without it, and is then given what others opened for it
    from cryptography.exceptions import InvalidTag  # noqa: PLC0415
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM  # noqa: PLC0415

    return AESGCM, InvalidTag


def hkdf(key: bytes, salt: bytes, about: bytes) -> bytes:
    """HKDF-SHA256 (RFC 5869) with 32 bytes of output.

    >>> hkdf(bytes.fromhex("0b" * 22), bytes(range(13)), bytes(range(0xf0, 0xfa))).hex()[:32]  # its test case 1
    '3cb25f25faacd57a90434f64d0362f2a'
    """
    return expand(hmac.digest(salt, key, hashlib.sha256), about)


def expand(key: bytes, about: bytes) -> bytes:
    """HKDF-Expand of one block: 32 bytes."""
    return hmac.digest(key, about + b"\x01", hashlib.sha256)


def object_key(key: bytes, header: bytes, context: str) -> bytes:
    """What the keys of this object's segments come from. Raises SealBroken when `header` is none of ours."""
    if len(header) != HEADER or not header.startswith(_MAGIC):
        raise SealBroken(f"{context}: it does not begin as sealed objects do")
    return hkdf(key, header[len(_MAGIC) :], b"broker seal v1 object\x00" + context.encode())


def segment_key(of_object: bytes, number: int) -> bytes:
    """The key of one segment."""
    return expand(of_object, b"broker seal v1 segment\x00" + number.to_bytes(8, "big"))


def sealed_size(size: int) -> int:
    """Bytes of an object that seals `size` bytes.

    >>> sealed_size(0), sealed_size(65536), sealed_size(65537)
    (56, 65592, 65609)
    """
    return HEADER + size + TAG * max(1, -(-size // SEGMENT))


def plain_size(size: int) -> int:
    """How many bytes a sealed object of `size` bytes holds. Raises SealBroken when no object has this size."""
    boxes = size - HEADER
    number, rest = divmod(boxes, _BOX)
    plain = boxes - TAG * (number + (rest > 0))
    if plain < 0 or sealed_size(plain) != size:
        raise SealBroken(f"no sealed object has {size} bytes: it was cut short, or something was added")
    return plain


def looks_sealed(content: bytes) -> bool:
    """Whether this has the form of a sealed object; what it holds, and under which key, only opening it tells."""
    try:
        plain_size(len(content))
    except SealBroken:
        return False
    return content.startswith(_MAGIC)


@dataclass(frozen=True, slots=True)
class Span:
    """Where plaintext [start, stop) lies in a sealed object: whole segments `first` to `last`, its bytes [at, until), of which
    the first `skip` of plaintext and what follows after `length` more are neighbours'. `is_end`: `last` is the object's last."""

    first: int
    last: int
    is_end: bool
    at: int
    until: int
    skip: int
    length: int


def span(start: int, stop: int, size: int) -> Span:
    """The span of a range that is not empty, of an object with `size` bytes of plaintext.

    >>> span(65535, 65537, 70000)
    Span(first=0, last=1, is_end=True, at=40, until=70072, skip=65535, length=2)
    """
    first, last, end = start // SEGMENT, (stop - 1) // SEGMENT, max(0, size - 1) // SEGMENT
    at = HEADER + first * _BOX
    until = sealed_size(size) if last == end else HEADER + (last + 1) * _BOX
    return Span(first, last, last == end, at, until, start - first * SEGMENT, stop - start)


@dataclass(slots=True)
class Sealer:
    """Seals one object as its bytes come. `header` goes first; then what `add` and, once, `end` return."""

    key: bytes = field(repr=False)
    context: str
    header: bytes = field(default_factory=lambda: _MAGIC + os.urandom(SALT))
    _of_object: bytes = field(init=False, repr=False)
    _waiting: bytearray = field(init=False, repr=False, default_factory=bytearray)
    _number: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        self._of_object = object_key(self.key, self.header, self.context)

    def add(self, plain: bytes) -> bytes:
        """The segments that are full, and followed by something."""
        self._waiting += plain
        boxes, at = [], 0
        with memoryview(self._waiting) as waiting:
            while len(waiting) - at > SEGMENT:
                boxes.append(self._box(waiting[at : at + SEGMENT], is_last=False))
                at += SEGMENT
        del self._waiting[:at]
        return b"".join(boxes)

    def end(self) -> bytes:
        """The last segment."""
        return self._box(self._waiting, is_last=True)

    def _box(self, plain: bytearray | memoryview, *, is_last: bool) -> bytes:
        aesgcm, _ = _aead()
        number = self._number
        self._number += 1
        sealed: bytes = aesgcm(segment_key(self._of_object, number)).encrypt(
            _nonce(number, is_last), plain, _bound(self.context)
        )
        return sealed


@dataclass(slots=True)
class Opener:
    """Opens the segments `first` to `last` as their bytes come; `is_end`: the last of them is the object's.

    `key_of` gives the key of a segment. Nothing is handed out but what is authentic."""

    key_of: Callable[[int], bytes] = field(repr=False)
    context: str
    first: int
    last: int
    is_end: bool
    _waiting: bytearray = field(init=False, repr=False, default_factory=bytearray)
    _next: int = field(init=False)

    def __post_init__(self) -> None:
        self._next = self.first

    def add(self, sealed: bytes) -> bytes:
        """What the segments hold that are whole by now, but for the last. Raises SealBroken."""
        self._waiting += sealed
        opened, at = [], 0
        with memoryview(self._waiting) as waiting:
            while self._next < self.last and len(waiting) - at >= _BOX:
                opened.append(self._opened(waiting[at : at + _BOX]))
                at += _BOX
        del self._waiting[:at]
        return b"".join(opened)

    def end(self) -> bytes:
        """What the last segment holds. Raises SealBroken, also when bytes are missing or there are too many."""
        if self._next != self.last:
            raise SealBroken(f"{self.context}: it ends before its segment {self.last}")
        return self._opened(self._waiting)

    def _opened(self, sealed: bytearray | memoryview) -> bytes:
        aesgcm, invalid = _aead()
        number, is_last = self._next, self.is_end and self._next == self.last
        if not TAG <= len(sealed) <= _BOX or (not is_last and len(sealed) != _BOX):
            raise SealBroken(f"{self.context}: segment {number} has {len(sealed)} bytes")
        try:
            plain: bytes = aesgcm(self.key_of(number)).decrypt(_nonce(number, is_last), sealed, _bound(self.context))
        except invalid as error:
            raise SealBroken(
                f"{self.context}: segment {number} does not open: changed, moved, cut short, or under another key"
            ) from error
        self._next += 1
        return plain


def seal(key: bytes, context: str, plain: bytes) -> bytes:
    """The sealed object of `plain`; each time another one."""
    sealer = Sealer(key, context)
    return b"".join((sealer.header, sealer.add(plain), sealer.end()))


def opened(key: bytes, context: str, sealed: bytes) -> bytes:
    """What a whole sealed object holds. Raises SealBroken."""
    of_object = object_key(key, sealed[:HEADER], context)
    last = max(0, plain_size(len(sealed)) - 1) // SEGMENT
    opener = Opener(lambda number: segment_key(of_object, number), context, 0, last, True)
    return opener.add(sealed[HEADER:]) + opener.end()


def _nonce(number: int, is_last: bool) -> bytes:
    return number.to_bytes(11, "big") + (b"\x01" if is_last else b"\x00")


def _bound(context: str) -> bytes:
    return b"broker seal v1\x00" + context.encode()
