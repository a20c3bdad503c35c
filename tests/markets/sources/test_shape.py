"""Numbers in a provider's JSON: what is no size of anything sold is refused where it stands, before anyone counts with it."""

from __future__ import annotations

from decimal import Decimal

import pytest

from markets.errors import ShapeDrift
from markets.provider.shape import read


@pytest.mark.parametrize("text", ["1e99999999", '"1e99999999"', "-1e99999999", "1e-99999999", "12345678901234567890"])
def test_an_exponent_of_eight_digits_hung_the_event_loop(text: str) -> None:
    shape = read(f'{{"gpus": {text}}}'.encode(), "somewhere GET /offers")["gpus"]
    for reader in (shape.number, shape.whole):
        with pytest.raises(ShapeDrift, match=r"GET /offers\.gpus is .* not a number between 1e-18 and 1e18"):
            reader()


@pytest.mark.parametrize(
    ("text", "number"),
    [("0e99999999", 0), ("0.00000000000000000000000", 0), ("8.0", 8), ("123456789012345678", 123456789012345678)],
)
def test_zeros_and_long_identities_are_read(text: str, number: int) -> None:
    shape = read(f'{{"gpus": {text}}}'.encode(), "somewhere")["gpus"]
    assert (shape.number(), shape.whole()) == (Decimal(number), number)
