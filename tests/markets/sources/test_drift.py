"""Whatever becomes of a value in an answer, it makes no offer that could be believed and is not true."""

from __future__ import annotations

import asyncio
import copy
import json
from collections.abc import Iterator
from typing import Any

import pytest
import stamina
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from markets.errors import MarketsError
from markets.offer import Offer, price_problem
from markets.offer_record import offer_from_record, record_from_offer
from tests.markets.sources.cases import Case
from tests.markets.sources.gathered import CASES
from tests.markets.sources.loopback import Loopback

# What providers have sent where a value was: nothing, 0 for "unknown", texts for numbers, other shapes altogether.
STRANGE = (
    None,
    0,
    -1,
    "",
    "0",
    "NaN",
    "-Infinity",
    1e308,
    10**40,
    True,
    [],
    {},
    ["x"],
    {"eq": 1},
    "\u0000",
    "a/b c%2F",
)


def spots(node: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where each value of a JSON document stands."""
    members = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for name, value in members:
        yield (*at, name)
        yield from spots(value, (*at, name))


def changed(content: Any, where: int, what: Any) -> Any:
    """The document with one value replaced, or taken away where `what` is the ellipsis."""
    places = list(spots(content))
    if isinstance(content, bytes) or not places:
        return content
    *parents, last = places[where % len(places)]
    made = copy.deepcopy(content)
    node = made
    for step in parents:
        node = node[step]
    if what is ...:
        del node[last]
    else:
        node[last] = what
    return made


def believed(offer: Offer) -> None:
    """What must hold of every offer, and of those that may be chosen."""
    assert offer_from_record(json.loads(json.dumps(record_from_offer(offer)))) == offer
    assert offer.country is None or offer.evidence
    assert offer.capacity is None or offer.capacity >= 0
    assert min(offer.egress_per_gb, offer.ingress_per_gb) >= 0
    if offer.quarantined is None:
        assert price_problem(offer) is None
        assert offer.currency == "USD"
        assert offer.accelerator.kind == "none" or offer.accelerator.count > 0
        if offer.components:
            assert sum(offer.components.values()) == offer.price


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_no_strange_value_makes_an_offer_that_is_not_true(case: Case) -> None:
    """One value of every answer is replaced or missing: the poll ends in a typed error or in offers that hold."""

    @settings(
        max_examples=10 if case.by_library else 30,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(where=st.integers(0, 10_000), what=st.sampled_from([..., *STRANGE]))
    def run(where: int, what: Any) -> None:
        asyncio.run(poll(case, where, what))

    with stamina.set_testing(True, attempts=1, cap=True):
        run()


async def poll(case: Case, where: int, what: Any) -> None:
    async with Loopback(case.answers, mangle=lambda content: changed(content, where, what)) as api:
        source = case.open(api.url)
        try:
            offers = await source.offers()
        except MarketsError:
            return
        finally:
            await source.close()
    for offer in offers:
        believed(offer)
    assert len(offers) == len({str(offer.key) for offer in offers})
