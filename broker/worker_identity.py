"""What a worker is given to be known by: a certificate for the key that it made, once at hello and again at half life."""

from __future__ import annotations

from dataclasses import dataclass

import structlog
from sqlalchemy.ext.asyncio import AsyncSession

from broker.authority import Authority, has_certificate, record, standing
from broker.database import Database
from broker.worker_sessions import Binding, Refused, locked_worker

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Identity:
    """What a session's tokens are bound to, and the certificate, where that is it."""

    bound: Binding
    certificate: str | None = None


async def first_identity(
    session: AsyncSession, authority: Authority, rental: str, asked: Identity, csr: str | None, now_us: int
) -> Identity:
    """The certificate of a worker that says hello; the same again for the same key, because answers get lost. One that
    sends no request for a certificate is known by what it `asked` for instead.

    Raises BadCsr, and Refused 422 for another key than that of the first hello, or for none where there was one: who repeats
    what was overheard has not the key.
    """
    if not csr:
        if await has_certificate(session, rental):
            message = f"Rental {rental} has a certificate; a bootstrap token is used once, and buys nothing less."
            raise Refused(422, "bootstrap_used", message)
        return asked
    pem = await standing(session, rental, csr, now_us)
    if pem is None:
        if await has_certificate(session, rental):
            message = f"Rental {rental} has a certificate for another key; a bootstrap token is used once."
            raise Refused(422, "bootstrap_used", message)
        issued = authority.issue(csr, rental, now_us)
        await record(session, rental, issued, now_us)
        pem = issued.pem
        log.info("worker.certificate", rental=rental, serial=issued.serial, expires_us=issued.expires_us)
    return Identity("certificate", pem)


async def renewed_certificate(session: AsyncSession, authority: Authority, rental: str, csr: str, now_us: int) -> str:
    """Another certificate for a worker that has one, for a key of its choice. Raises BadCsr."""
    pem = await standing(session, rental, csr, now_us)
    if pem is not None:
        return pem
    issued = authority.issue(csr, rental, now_us)
    await record(session, rental, issued, now_us)
    log.info("worker.certificate_renewed", rental=rental, serial=issued.serial, expires_us=issued.expires_us)
    return issued.pem


async def tell_of_misuse(database: Database, rental: str, peer: str | None) -> None:
    """Somebody else used a bootstrap token that was used: said loudly, and kept where placements are shown."""
    log.error("worker.bootstrap_misused", rental=rental, peer=peer)
    async with database.transaction() as session:
        worker = await locked_worker(session, rental)
        if worker is not None:
            worker.error = f"somebody else ({peer}) tried to use its bootstrap token, and was refused"
            session.add(worker)
