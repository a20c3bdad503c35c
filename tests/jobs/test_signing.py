"""Signed permissions: one method, one key, for a while; anything else is refused."""

from __future__ import annotations

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.errors import BadToken
from jobs.signing import sign, verify

SECRET = b"s" * 32
TOKEN = sign(SECRET, "PUT", "acme/batch/parts/1", 1_000, {"size": 12})


def test_a_token_permits_what_was_signed() -> None:
    permission = verify(SECRET, TOKEN, "PUT", 999)
    assert (permission.method, permission.key, permission.extra) == ("PUT", "acme/batch/parts/1", {"size": 12})


def test_a_token_ends_at_its_time() -> None:
    with pytest.raises(BadToken, match="expired"):
        verify(SECRET, TOKEN, "PUT", 1_000)


def test_a_token_for_writing_does_not_read() -> None:
    with pytest.raises(BadToken, match="permits PUT, not GET"):
        verify(SECRET, TOKEN, "GET", 0)


def test_another_secret_s_token_is_not_ours() -> None:
    with pytest.raises(BadToken, match="signature"):
        verify(b"t" * 32, TOKEN, "PUT", 0)


def test_a_changed_key_breaks_the_signature() -> None:
    payload, signature = TOKEN.split(".")
    plain = base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4))
    forged = base64.urlsafe_b64encode(plain.replace(b"acme", b"evil")).decode().rstrip("=")
    with pytest.raises(BadToken, match="signature"):
        verify(SECRET, f"{forged}.{signature}", "PUT", 0)


@given(text=st.text(max_size=80))
def test_no_text_passes_or_crashes(text: str) -> None:
    """Whatever comes in a URL is refused as a bad token."""
    with pytest.raises(BadToken):
        verify(SECRET, text, "PUT", 0)


@given(at=st.integers(0, len(TOKEN) - 1), by=st.characters(min_codepoint=33, max_codepoint=126))
def test_every_changed_character_is_noticed_or_means_the_same(at: int, by: str) -> None:
    """A token with one other character is refused, unless base64's spare bits decode to the very same bytes."""
    changed = TOKEN[:at] + by + TOKEN[at + 1 :]
    try:
        permission = verify(SECRET, changed, "PUT", 0)
    except BadToken:
        return
    assert permission == verify(SECRET, TOKEN, "PUT", 0)
