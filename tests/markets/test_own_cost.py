"""An own machine's hour: what it cost, spread over its life, and what it draws; and the settings that say so."""

from __future__ import annotations

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from broker.market_settings import OwnHost
from markets.own_cost import OwnCost

COST = {
    "capex_usd": "240000",
    "life_years": "4",
    "power_w": "10200",
    "usd_per_kwh": "0.12",
    "pue": "1.3",
    "opex_usd_month": "900",
}
HOST = {"name": "a", "address": "127.0.0.1", "host_key": "ssh-ed25519 AAAA", "country": "DE"}


def test_the_parts_of_an_hour_sum_to_its_price() -> None:
    host = OwnHost(**HOST, cost=COST)
    assert {name: round(amount, 3) for name, amount in host.components.items()} == {
        "capex": Decimal("6.845"),
        "power": Decimal("1.591"),
        "opex": Decimal("1.232"),
    }
    assert host.price == sum(host.components.values())


def test_slots_share_the_machine_and_idle_hours_are_paid_by_the_used_ones() -> None:
    whole, half = OwnHost(**HOST, cost=COST), OwnHost(**HOST, cost=COST, slots=2)
    idle = OwnHost(**HOST, cost=COST | {"used_percent": "50"})
    assert abs(half.price * 2 - whole.price) < Decimal("1e-8")
    assert round(idle.components["capex"] / whole.components["capex"], 6) == 2
    assert idle.components["power"] == whole.components["power"]


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({}, "either usd_per_hour or cost"),
        ({"usd_per_hour": "1", "cost": COST}, "either usd_per_hour or cost"),
        ({"cost": COST | {"capex_usd": "0", "power_w": "0", "opex_usd_month": "0"}}, "would be free"),
        ({"cost": COST | {"life_years": "0"}}, "life_years"),
        ({"cost": COST | {"pue": "0.9"}}, "pue"),
    ],
)
def test_a_host_without_one_believable_price_is_refused(fields: dict[str, object], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        OwnHost(**HOST, **fields)


positive = st.decimals(min_value="0.01", max_value="1000000", places=2)


@given(positive, st.integers(1, 20), positive, st.integers(1, 64))
def test_any_bought_machine_costs_something(capex: Decimal, years: int, power: Decimal, slots: int) -> None:
    cost = OwnCost(capex, Decimal(years), power, Decimal("0.2"))
    assert sum(cost.components(slots=slots).values()) >= 0
