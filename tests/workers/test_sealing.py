"""The sealed form of objects: what is sealed comes back, in any pieces and any range; what was tampered with never does."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF, HKDFExpand
from hypothesis import given, settings
from hypothesis import strategies as st

from workers.agent import sealing
from workers.agent.machine import machine_facts
from workers.agent.sealing import (
    HEADER,
    SEGMENT,
    TAG,
    Opener,
    SealBroken,
    Sealer,
    object_key,
    opened,
    seal,
    segment_key,
)

KEY = bytes(range(32))
CONTEXT = "acme/files/file-1"
BOX = SEGMENT + TAG
# around each edge of a segment
SIZES = st.one_of(
    st.integers(0, 40),
    st.integers(SEGMENT - 3, SEGMENT + 3),
    st.integers(2 * SEGMENT - 2, 3 * SEGMENT + 2),
)


def content(size: int) -> bytes:
    return hashlib.shake_128(b"content").digest(size)


def of_object(sealed: bytes) -> bytes:
    return object_key(KEY, sealed[:HEADER], CONTEXT)


@settings(max_examples=60, deadline=None)
@given(SIZES, st.lists(st.integers(1, 2 * SEGMENT), max_size=4))
def test_what_is_sealed_in_any_pieces_opens_as_it_was(size: int, cuts: list[int]) -> None:
    plain, sealer = content(size), Sealer(KEY, CONTEXT)
    pieces, at = [sealer.header], 0
    for cut in cuts:
        pieces.append(sealer.add(plain[at : at + cut]))
        at += cut
    sealed = b"".join((*pieces, sealer.add(plain[at:]), sealer.end()))
    assert len(sealed) == sealing.sealed_size(size)
    assert sealing.plain_size(len(sealed)) == size
    assert opened(KEY, CONTEXT, sealed) == plain


@settings(max_examples=80, deadline=None)
@given(st.data(), SIZES.filter(bool))
def test_a_range_opens_with_the_keys_of_its_own_segments_and_no_other(data: st.DataObject, size: int) -> None:
    start = data.draw(st.integers(0, size - 1))
    stop = data.draw(st.integers(start + 1, size))
    sealed = seal(KEY, CONTEXT, content(size))
    where = sealing.span(start, stop, size)
    keys = {n: segment_key(of_object(sealed), n) for n in range(where.first, where.last + 1)}
    opener = Opener(keys.__getitem__, CONTEXT, where.first, where.last, where.is_end)
    raw = sealed[where.at : where.until]
    cut = data.draw(st.integers(0, len(raw)))
    found = opener.add(raw[:cut]) + opener.add(raw[cut:]) + opener.end()
    assert found[where.skip : where.skip + where.length] == content(size)[start:stop]


def test_another_program_reads_it_from_the_description_alone() -> None:
    """The format, written down a second time with other building blocks."""
    plain = content(SEGMENT + 5)
    sealed = seal(KEY, CONTEXT, plain)
    assert sealed[:8] == b"brkseal\x01"
    about = b"broker seal v1 object\x00" + CONTEXT.encode()
    key = HKDF(hashes.SHA256(), 32, sealed[8:40], about).derive(KEY)
    found, boxes = b"", [sealed[40 : 40 + BOX], sealed[40 + BOX :]]
    for number, box in enumerate(boxes):
        info = b"broker seal v1 segment\x00" + number.to_bytes(8, "big")
        own = HKDFExpand(hashes.SHA256(), 32, info).derive(key)
        nonce = number.to_bytes(11, "big") + bytes([number == len(boxes) - 1])
        found += AESGCM(own).decrypt(nonce, box, b"broker seal v1\x00" + CONTEXT.encode())
    assert found == plain


@settings(max_examples=60, deadline=None)
@given(SIZES, st.data())
def test_a_changed_bit_anywhere_is_an_error_and_never_text(size: int, data: st.DataObject) -> None:
    sealed = bytearray(seal(KEY, CONTEXT, content(size)))
    bit = data.draw(st.integers(0, 8 * len(sealed) - 1))
    sealed[bit // 8] ^= 1 << bit % 8
    with pytest.raises(SealBroken):
        opened(KEY, CONTEXT, bytes(sealed))


@settings(max_examples=60, deadline=None)
@given(SIZES, st.data())
def test_an_object_cut_short_anywhere_is_an_error(size: int, data: st.DataObject) -> None:
    sealed = seal(KEY, CONTEXT, content(size))
    edge = max(HEADER, len(sealed) - BOX) // BOX * BOX + HEADER - BOX
    length = data.draw(st.integers(0, len(sealed) - 1) | st.just(max(0, edge)))
    if length < len(sealed):
        with pytest.raises(SealBroken):
            opened(KEY, CONTEXT, sealed[:length])


def test_a_whole_last_segment_that_is_missing_is_noticed() -> None:
    """The rest is of a size that objects have; that its last segment was not the last is in its nonce."""
    sealed = seal(KEY, CONTEXT, content(3 * SEGMENT))
    short = sealed[: HEADER + 2 * BOX]
    assert sealing.plain_size(len(short)) == 2 * SEGMENT
    with pytest.raises(SealBroken, match="segment 1 does not open"):
        opened(KEY, CONTEXT, short)


def test_swapped_repeated_and_foreign_segments_are_errors() -> None:
    one, other = seal(KEY, CONTEXT, content(3 * SEGMENT)), seal(KEY, CONTEXT, content(3 * SEGMENT))

    def box(sealed: bytes, number: int) -> bytes:
        return sealed[HEADER + number * BOX : HEADER + (number + 1) * BOX]

    head = one[:HEADER]
    for boxes in (
        (box(one, 1), box(one, 0), box(one, 2)),  # swapped
        (box(one, 0), box(one, 0), box(one, 2)),  # repeated
        (box(one, 0), box(other, 1), box(one, 2)),  # of another object of the same text, key and context
        (box(one, 0), box(one, 2)),  # one left out
        (box(one, 0), box(one, 1), box(one, 2), box(one, 2)),  # one added
    ):
        with pytest.raises(SealBroken):
            opened(KEY, CONTEXT, head + b"".join(boxes))


@pytest.mark.parametrize(
    ("key", "context"),
    [
        (bytes(range(1, 33)), CONTEXT),  # another batch's key
        (KEY, "acme/files/file-2"),  # the same key, another object's place
        (KEY, "other/files/file-1"),  # another tenant's
    ],
)
def test_an_object_opens_under_its_own_key_and_at_its_own_place_only(key: bytes, context: str) -> None:
    with pytest.raises(SealBroken):
        opened(key, context, seal(KEY, CONTEXT, b"text"))


def test_text_that_was_put_where_a_sealed_object_should_be_is_an_error() -> None:
    for plain in (b"", b"{}", b'{"custom_id": "a"}\n' * 100):
        with pytest.raises(SealBroken):
            opened(KEY, CONTEXT, plain)


def test_keys_stand_in_no_representation() -> None:
    sealer = Sealer(KEY, CONTEXT)
    opener = Opener(lambda _: KEY, CONTEXT, 0, 0, True)
    sealer.add(b"the text")
    for shown in (repr(sealer), repr(opener)):
        assert repr(KEY)[2:20] not in shown
        assert "the text" not in shown


async def test_a_machine_without_the_library_says_so_at_its_hello(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert (await machine_facts("rental_1", "ab" * 32, tmp_path))["seals"] == [1]
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    assert (await machine_facts("rental_1", "ab" * 32, tmp_path))["seals"] == []
