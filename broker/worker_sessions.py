"""Who a worker is: the single-use bootstrap token, the session tokens after it, and when each stops being good.

A rental's machine gets a bootstrap token in its start-up files. Its first call binds the token to the `pubkey` that the
agent process made; the same process may repeat the call (a lost answer must not strand a machine), another may not.
Session tokens are signed, not stored: they name the rental, the session counter of its `Worker` row, an end, and what they
are bound to (worker_binding.py). Raising the counter cuts every token off at once; so does the end of the rental.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from collections.abc import Collection
from typing import Literal

import msgspec
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from broker.tables import Worker
from markets.tables import RentalRow

_PURPOSE = b"broker worker session v1\x00"
# What must come with a token: nothing, a proof by the worker's key, or its client certificate.
Binding = Literal["", "proof", "certificate"]
LIVE_RENTAL = ("intended", "creating", "running", "releasing")


class Refused(Exception):
    """A worker may not go on. `status` and `code` are what the wire answers; the message says why."""

    def __init__(self, status: Literal[401, 403, 422, 425], code: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code


class Session(msgspec.Struct, frozen=True, kw_only=True):
    """What a session token says. `number` is `Worker.session` when it was issued."""

    rental: str
    number: int
    issued_us: int
    expires_us: int
    bound: Binding = ""


def bootstrap_hash(text: str) -> str:
    """What is stored of a bootstrap token."""
    return hashlib.sha256(text.encode()).hexdigest()


def issue(secret: bytes, session: Session) -> str:
    """The token text of a session: `wrk_<claims>.<hmac-sha256>`, both base64url."""
    claims = msgspec.json.encode(session)
    return f"wrk_{_encode(claims)}.{_encode(_mac(secret, claims))}"


def read(secret: bytes, text: str, now_us: int) -> Session | None:
    """The session of a token that we signed and that has not ended, else None."""
    claims_text, dot, mac_text = text.removeprefix("wrk_").partition(".")
    if not text.startswith("wrk_") or not dot:
        return None
    try:
        claims, mac = _decode(claims_text), _decode(mac_text)
    except (binascii.Error, ValueError):
        return None
    # base64 reads several texts as the same bytes: one token has one text
    is_as_written = (_encode(claims), _encode(mac)) == (claims_text, mac_text)
    if not is_as_written or not hmac.compare_digest(mac, _mac(secret, claims)):
        return None
    session = msgspec.json.decode(claims, type=Session)
    return session if now_us < session.expires_us else None


def renewed(session: Session, now_us: int, ttl_s: int) -> Session | None:
    """The successor of a session that is past half its life, else None.

    >>> old = Session(rental="r", number=1, issued_us=0, expires_us=600_000_000)
    >>> renewed(old, 299_999_999, 600) is None, renewed(old, 300_000_000, 600).expires_us
    (True, 900000000)
    """
    if now_us - session.issued_us < (session.expires_us - session.issued_us) // 2:
        return None
    return fresh(session.rental, session.number, now_us, ttl_s, session.bound)


def fresh(rental: str, number: int, now_us: int, ttl_s: int, bound: Binding = "") -> Session:
    """A session that begins now."""
    return Session(rental=rental, number=number, issued_us=now_us, expires_us=now_us + ttl_s * 1_000_000, bound=bound)


class Standing(msgspec.Struct, frozen=True):
    """What the database knows of who a session token speaks for: of its worker, and of its rental."""

    session: int
    worker_state: str
    pubkey: str | None
    rental_state: str | None


async def standings(session: AsyncSession, rentals: Collection[str]) -> dict[str, Standing]:
    """By rental; one that has no worker is not in it."""
    statement = (
        select(col(Worker.rental), col(Worker.session), col(Worker.state), col(Worker.pubkey), col(RentalRow.state))
        .outerjoin(RentalRow, col(RentalRow.id) == col(Worker.rental))
        .where(col(Worker.rental).in_(rentals))
    )
    return {row[0]: Standing(*row[1:]) for row in await session.execute(statement)}


def require_live(claims: Session | None, standing: Standing | None) -> None:
    """Raises Refused 401 when the token, the session or the rental has ended. What the token is bound to is asked elsewhere."""
    if claims is None:
        raise Refused(401, "invalid_session", "The session token is malformed, not ours, or has expired; stop.")
    if standing is None or standing.session != claims.number or standing.worker_state == "gone":
        raise Refused(401, "session_ended", f"The session of rental {claims.rental} was ended; stop.")
    if standing.rental_state not in LIVE_RENTAL:
        raise Refused(401, "rental_ended", f"Rental {claims.rental} has ended; stop.")


async def locked_worker(session: AsyncSession, rental: str) -> Worker | None:
    """The worker row, locked until the transaction ends."""
    return (await session.scalars(select(Worker).where(col(Worker.rental) == rental).with_for_update())).one_or_none()


async def bind_bootstrap(session: AsyncSession, rental: str, text: str, pubkey: str, now_us: int) -> Worker:
    """The worker that this bootstrap token belongs to, bound to `pubkey` from now on.

    Raises Refused: 401 (no such token, or it has expired unused), 401 (the worker is over), 422 (another process used it).
    The rental being confirmed is the caller's next question; asking it first would tell strangers which rentals exist.
    """
    worker = await locked_worker(session, rental)
    known = worker.bootstrap_sha256 if worker else "0" * 64
    if not hmac.compare_digest(known, bootstrap_hash(text)) or worker is None:
        raise Refused(401, "invalid_bootstrap", f"The bootstrap token is not the one of rental {rental}; stop.")
    if worker.state in ("gone", "failed"):
        raise Refused(401, "worker_over", f"The worker of rental {rental} is {worker.state}; stop.")
    if worker.pubkey is not None and not hmac.compare_digest(worker.pubkey.encode(), pubkey.encode()):
        raise Refused(
            422, "bootstrap_used", f"Another process already holds rental {rental}; a bootstrap token is used once."
        )
    if worker.pubkey is None and worker.bootstrap_expires_us <= now_us:
        raise Refused(
            401, "bootstrap_expired", f"The bootstrap token of rental {rental} expired before it was used; stop."
        )
    return worker


async def check_bootstrap(session: AsyncSession, rental: str, text: str, now_us: int) -> None:
    """Whether this bootstrap token is the rental's and nobody has used it yet; it stays as it is.

    Raises Refused 401 for another token, one that has expired, one that is used, and when the worker is over.
    """
    worker = await session.get(Worker, rental)
    known = worker.bootstrap_sha256 if worker else "0" * 64
    if not hmac.compare_digest(known, bootstrap_hash(text)) or worker is None:
        raise Refused(401, "invalid_bootstrap", f"The bootstrap token is not the one of rental {rental}; stop.")
    if worker.pubkey is not None or worker.state != "awaited" or worker.bootstrap_expires_us <= now_us:
        raise Refused(401, "bootstrap_used", f"The bootstrap token of rental {rental} is used or has expired; stop.")


def _mac(secret: bytes, claims: bytes) -> bytes:
    return hmac.new(secret, _PURPOSE + claims, hashlib.sha256).digest()


def _encode(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def _decode(text: str) -> bytes:
    return base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
