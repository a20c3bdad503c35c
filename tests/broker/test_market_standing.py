"""Where a market's prices come from, as `broker markets` says it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from broker.market_standing import Facts, standing
from markets.directory import DIRECTORY
from markets.tables import PollRow

NOW_US = 1_790_000_000_000_000
FACTS = Facts("groq", False, True, None, True, None, None, NOW_US)
ASKED = PollRow(market="groq", ok_us=NOW_US - 5_000_000)


@pytest.mark.parametrize(
    ("facts", "prices", "reason"),
    [
        (replace(FACTS, by_card=True), "card", "not asked yet"),
        (
            replace(FACTS, by_card=True, poll=ASKED),
            "card",
            None,
        ),  # it said `live` of a file that ships with the package
        (replace(FACTS, poll=ASKED), "live", None),
        (replace(FACTS, name="vast", why_not_asked="public"), "live", "public"),
        (replace(FACTS, name="nebius", has_adapter=False), "unsupported", DIRECTORY["nebius"].missing),
        (replace(FACTS, name="nebius", has_adapter=False, snapshot_us=1), "snapshot", DIRECTORY["nebius"].missing),
    ],
)
def test_prices_are_said_to_be_from_where_they_are(facts: Facts, prices: str, reason: str | None) -> None:
    told = standing(facts)
    assert (told.prices, told.reason) == (prices, reason)


@pytest.mark.parametrize("card_by", ["ada", None])
def test_a_card_is_as_old_as_its_prices_and_not_as_new_as_its_last_reading(card_by: str | None) -> None:
    """The card of 2026-09-06 was said to be nine seconds old."""
    poll = PollRow(market="groq", ok_us=NOW_US, card_by=card_by, card_until_us=NOW_US + 1)
    old_us = NOW_US - 83 * 86_400_000_000
    told = standing(replace(FACTS, by_card=card_by is None, poll=poll, card_us=old_us))
    assert (told.prices, told.as_of_us) == ("card", old_us)


@pytest.mark.parametrize("name", ["dc_gnu", "dc_roan", "dc_wildebeest", "oblivus", "primecompute"])
def test_a_name_that_an_aggregator_sells_under_is_no_machine_of_ours(name: str) -> None:
    told = standing(replace(FACTS, name=name, has_adapter=False, snapshot_us=1))
    assert told.market_class == "neocloud" and "prime-intellect" in (told.reason or "")
