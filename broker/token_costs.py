"""What was bought of token endpoints: the tokens of committed answers at the price that the rental was placed with."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from decimal import ROUND_CEILING, Decimal

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from jobs.batches import remaining
from jobs.metered import TokensUsed, metered
from ledger.accrual import Meter
from ledger.book import lock
from ledger.money import most_of_tokens, to_nano
from ledger.token_meter import TokenRate, Used, accrue_tokens, cost_of_tokens
from markets.offer import TokenPrice
from markets.offer_record import offer_from_record
from markets.tables import RentalRow
from solver.types import Work


def rate_of(price: TokenPrice) -> TokenRate:
    """Cached input costs as much as fresh where it has no price of its own."""
    cached = price.input if price.cached is None else price.cached
    return TokenRate(to_nano(price.input), to_nano(cached), to_nano(price.output))


def rate_of_rental(row: RentalRow) -> TokenRate:
    """By the offer as it was when the rental was placed. Raises ValueError for a machine."""
    price = offer_from_record(row.facts).per_million
    if price is None:
        raise ValueError(f"rental {row.id} at {row.offer_key} has no price of tokens")
    return rate_of(price)


async def accrue_used(
    session: AsyncSession,
    row: RentalRow,
    meter: Meter,
    *,
    until_us: int,
    final: bool,
    actor: str,
    recorded_at_us: int,
) -> int:
    """Book what the rental's committed answers cost and is not booked yet; nano-USD of those that do not count."""
    await lock(session)  # counted behind it: of two that count, the later one books the difference
    by_batch = (await metered(session, [row.id])).get(row.id, {})
    if not by_batch:
        return 0  # also of an executor that nobody knew of: it never had a session, so it bought nothing
    rate = rate_of_rental(row)
    whole, counted = TokensUsed(), TokensUsed()
    for each in by_batch.values():
        whole, counted = whole + each.whole, counted + each.counted
    await accrue_tokens(
        session, meter, rate, _used(whole), until_us=until_us, final=final, actor=actor, recorded_at_us=recorded_at_us
    )
    return cost_of_tokens(rate, _used(whole)) - cost_of_tokens(rate, _used(counted))


# A token is at least so many bytes of a request line: most are four and more, of Chinese one is a character of three.
LEAST_BYTES_PER_TOKEN = 3


def most_input(input_bytes: int) -> int:
    """As many tokens as request lines of so many bytes can be: tools, schemas and other languages are in them."""
    return -(-input_bytes // LEAST_BYTES_PER_TOKEN)


def most_nano(price: TokenPrice, input_tokens: int, output_tokens: int, buffer: Decimal, input_most: int = 0) -> int:
    """What so many tokens cost at most: nothing of it from a cache, and prompts are estimated before they are counted."""
    rate = rate_of(price)
    return most_of_tokens(
        input_tokens,
        output_tokens,
        rate.input_nano,
        rate.output_nano,
        buffer_ppm=buffer_ppm(buffer),
        most_input=input_most,
    )


def buffer_ppm(buffer: Decimal) -> int:
    """`control.hold_buffer` in millionths, as the snapshot has it.

    >>> buffer_ppm(Decimal("1.25"))
    1250000
    """
    return int((buffer * 1_000_000).to_integral_value(ROUND_CEILING))


def most_of_work(price: TokenPrice, work: Work, buffer: Decimal) -> int:
    """The worst case of what remains of a work: each answer as long as it may be."""
    output = max(work.output_tokens_p50, work.output_tokens_p90)
    return most_nano(price, work.input_tokens, output, buffer, work.input_tokens_most)


async def most_left(session: AsyncSession, row: RentalRow, batch_ids: Sequence[str], buffer: Decimal) -> int:
    """The worst case of the lines that these batches have not answered yet, where the rental buys."""
    price = offer_from_record(row.facts).per_million
    if price is None:
        raise ValueError(f"rental {row.id} at {row.offer_key} has no price of tokens")
    total = 0
    for batch in batch_ids:
        left = await remaining(session, batch)
        total += most_nano(price, left.input_tokens, left.output_tokens, buffer, most_input(left.input_bytes))
    return total


async def bought_nano(session: AsyncSession, rental_ids: Sequence[str]) -> Mapping[str, Mapping[str, int]]:
    """Of those that buy tokens, what each batch's answers did cost, by rental and batch."""
    query = select(RentalRow).where(col(RentalRow.id).in_(rental_ids), col(RentalRow.pricing) == "token")
    rows = {row.id: row for row in await session.scalars(query)}
    if not rows:
        return {}
    found = await metered(session, sorted(rows))
    return {
        rental: {
            batch: cost_of_tokens(rate_of_rental(rows[rental]), _used(each.whole)) for batch, each in by_batch.items()
        }
        for rental, by_batch in found.items()
    }


async def tokens_of(session: AsyncSession, rental_ids: Collection[str]) -> Mapping[str, Used]:
    """What each rental's answers took of each class, in all."""
    found = await metered(session, sorted(rental_ids)) if rental_ids else {}
    return {rental: _used(sum((each.whole for each in of.values()), TokensUsed())) for rental, of in found.items()}


def _used(tokens: TokensUsed) -> Used:
    return Used(prompt=tokens.prompt, cached=tokens.cached, completion=tokens.completion)
