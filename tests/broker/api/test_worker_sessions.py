"""Session tokens: signed by us, for one rental, for a while."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from broker.worker_sessions import Session, fresh, issue, read, renewed
from jobs.signing import sign

SECRET = b"a secret of thirty-two bytes...."
times = st.integers(0, 2**53)


@given(st.text(), st.integers(0, 2**31), times, st.integers(1, 86_400))
def test_a_token_says_what_was_signed_until_it_ends(rental: str, number: int, now_us: int, ttl_s: int) -> None:
    session = fresh(rental, number, now_us, ttl_s)
    token = issue(SECRET, session)
    assert read(SECRET, token, now_us) == session
    assert read(SECRET, token, session.expires_us - 1) == session
    assert read(SECRET, token, session.expires_us) is None


@given(st.integers(0, 1000), st.sampled_from("ABab01-_.é"))
def test_a_token_with_any_character_changed_is_nobodys(position: int, character: str) -> None:
    token = issue(SECRET, fresh("rental_1", 1, 0, 600))
    position %= len(token) - 1  # the last character has bits that base64 does not use
    changed = token[:position] + character + token[position + 1 :]
    assert changed == token or read(SECRET, changed, 1) is None


@given(st.text())
def test_any_text_is_read_without_an_exception(text: str) -> None:
    assert read(SECRET, text, 0) is None
    assert read(SECRET, "wrk_" + text, 0) is None


def test_another_secret_or_another_purpose_signs_no_session() -> None:
    token = issue(b"another secret", fresh("rental_1", 1, 0, 600))
    assert read(SECRET, token, 1) is None
    permission = sign(SECRET, "GET", "key", 2**60)
    assert read(SECRET, f"wrk_{permission}", 1) is None


@given(times, st.integers(1, 86_400), st.integers(0, 2**40))
def test_a_session_is_renewed_in_its_second_half_only(issued_us: int, ttl_s: int, later_us: int) -> None:
    session = fresh("rental_1", 3, issued_us, ttl_s)
    successor = renewed(session, issued_us + later_us, ttl_s)
    half = ttl_s * 1_000_000 // 2
    if later_us < half:
        assert successor is None
    else:
        now_us = issued_us + later_us
        assert successor == Session(
            rental="rental_1", number=3, issued_us=now_us, expires_us=now_us + ttl_s * 1_000_000
        )
