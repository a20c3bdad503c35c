"""One poll of an adapter at a loopback server that answers as its provider does."""

from __future__ import annotations

from typing import Any

import stamina

from markets.offer import Offer
from tests.markets.sources.cases import Case
from tests.markets.sources.loopback import Answer, Loopback


async def poll(case: Case, answers: dict[str, Answer] | None = None, *, anonymous: bool = False) -> list[Offer]:
    """One poll of the case's adapter, with some of its answers replaced."""
    async with Loopback({**case.answers, **(answers or {})}) as api:
        source = case.open(api.url, anonymous=anonymous)
        with stamina.set_testing(True, attempts=1):
            try:
                return await source.offers()
            finally:
                await source.close()


def one(offers: list[Offer], **wanted: Any) -> Offer:
    """The only offer whose key has these parts."""
    found = [each for each in offers if all(getattr(each.key, name) == value for name, value in wanted.items())]
    assert len(found) == 1, [str(each.key) for each in found or offers]
    return found[0]
