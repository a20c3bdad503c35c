"""What the books know of capacity bought ahead, as FOCUS' Contract Commitment wants it."""

from __future__ import annotations

from sqlalchemy.ext.asyncio import AsyncSession

from ledger.commitments import Commitment, commitments
from ledger.focus.datasets import Term
from ledger.focus.table import BROKER, Mode
from markets.offer import OfferKey


async def contract_terms(session: AsyncSession, mode: Mode, *, project: str | None = None) -> list[Term]:
    """Every commitment, in the order of the books. In chargeback the broker is who serves and bills, as in Cost and Usage."""
    return [term_of(each, mode) for each in await commitments(session, project=project)]


def term_of(bought: Commitment, mode: Mode) -> Term:
    """Where the purchase does not say how much machine time it buys, it is one machine for all of the term. Pure.

    >>> term = term_of(Commitment("rsv-1", "aws", "USD", 5, 0, 7_200_000_000), "chargeback")
    >>> term.seconds, term.provider
    (7200, 'broker')
    """
    return Term(
        id=bought.id,
        provider=BROKER if mode == "chargeback" else bought.market,
        sku=_sku(bought.offer_key),
        unit=bought.unit,
        nano=bought.nano,
        seconds=(bought.end_us - bought.start_us) // 1_000_000 if bought.seconds is None else bought.seconds,
        start_us=bought.start_us,
        end_us=bought.end_us,
        bought_us=bought.bought_us,
    )


def _sku(offer_key: str | None) -> str | None:
    if offer_key is None:
        return None
    try:
        return OfferKey.parse(offer_key).sku
    except ValueError:  # of something else than a machine, or written by a person
        return None
