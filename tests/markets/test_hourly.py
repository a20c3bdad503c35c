"""Money: any unit of any market as USD per whole instance-hour, or a reason why it is unknown; never 0, never a guess."""

from __future__ import annotations

from datetime import date
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from markets.hourly import FxRate, Part, hourly

EUR = {"EUR": FxRate("EUR", Decimal("1.0832"), date(2026, 11, 1), "ECB")}
BTC = {"BTC": FxRate("BTC", Decimal("90000"), date(2026, 11, 1), "exchange")}


@pytest.mark.parametrize(
    ("part", "how", "price"),
    [
        (Part("gpu", "2.49", of="gpu"), {"gpus": 8}, "19.92"),  # per GPU
        (Part("instance", 24720, scale="cents"), {"gpus": 8}, "247.20"),  # lambda, hot aisle: cents per hour
        (Part("gpu", "4000", per="block", scale="micro", block_s=6), {"currency": "uact"}, "2.40"),  # akash
        (Part("gpu", "0.000555", per="second"), {}, "1.998"),  # koyeb
        (Part("gpu", "3.5", per="minute", scale="cents"), {}, "2.10"),  # together
        (Part("server", "0.0004", per="day"), {"currency": "BTC", "fx": BTC}, "1.50"),  # clore: coins per day
        (Part("booking", "48", per="booking", booking_h=24), {"currency": "USDC"}, "2"),  # io.net
        (Part("vm", "0.7875"), {"currency": "EUR", "fx": EUR}, "0.85302"),  # scaleway
        (Part("gpu", "1.70"), {}, "1.70"),  # verda: strings
    ],
)
def test_every_unit_becomes_dollars_per_instance_hour(part: Part, how: dict[str, Any], price: str) -> None:
    found = hourly([part], **({"currency": "USD"} | how))
    assert found.problem is None and found.price == Decimal(price)
    assert found.currency == "USD"


def test_all_that_is_paid_is_in_the_price_and_named() -> None:
    """Vast: `dph_base` without the disk under-quotes by a fifth."""
    found = hourly([Part("gpu", "0.40"), Part("disk", "7.3", per="month", optional=True)], currency="USD")
    assert found.price == Decimal("0.41") == sum(found.components.values())
    assert list(found.components) == ["gpu", "disk"]
    assert found.raw["disk"] == "7.3 per month and instance"


@pytest.mark.parametrize(
    ("part", "currency"),
    [
        (Part("gpu", "0.0"), "USD"),  # azure and vast list 0 for what they do not know
        (Part("gpu", ""), "USD"),
        (Part("gpu", None), "USD"),
        (Part("gpu", "-1"), "USD"),
        (Part("gpu", "NaN"), "USD"),
        (Part("gpu", float("inf")), "USD"),
        (Part("gpu", "on request"), "USD"),
        (Part("gpu", "1.0"), None),  # a number without a currency is no price
        (Part("gpu", "1.0"), ""),
        (Part("gpu", "1.0"), "EUR"),  # nobody gave a rate: not one to one
        (Part("gpu", "1.0", per="booking"), "USD"),  # for how long?
        (Part("gpu", "1.0", per="block"), "USD"),
        (Part("disk", "0", optional=True), "USD"),
    ],
)
def test_what_cannot_be_believed_is_unknown_and_never_free(part: Part, currency: str | None) -> None:
    found = hourly([part], currency=currency)
    assert found.price is None and found.problem


def test_a_rate_is_kept_with_its_date_and_source() -> None:
    found = hourly([Part("vm", "0.7875")], currency="EUR", fx=EUR)
    assert found.raw["fx"] == "1 EUR = 1.0832 USD on 2026-11-01 (ECB)"


amounts = st.one_of(
    st.none(), st.text(max_size=6), st.integers(), st.floats(), st.decimals(allow_nan=True, allow_infinity=True)
)
units = st.sampled_from(["second", "minute", "hour", "day", "month", "block", "booking"])


@given(
    amounts, units, st.sampled_from(["instance", "gpu"]), st.integers(-1, 16), st.sampled_from(["USD", "EUR", "", None])
)
def test_no_input_makes_a_price_that_is_not_a_positive_number(
    amount: Any, per: Any, of: Any, gpus: int, currency: str | None
) -> None:
    found = hourly([Part("gpu", amount, per=per, of=of, block_s=6)], currency=currency, gpus=gpus, fx=EUR)
    if found.problem is None:
        assert found.price is not None and found.price.is_finite() and found.price > 0
        assert found.price == sum(found.components.values())
    else:
        assert found.price is None
