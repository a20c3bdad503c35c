"""Units: what amounts are of. National currencies (ISO 4217), virtual currencies, and quantities that are no money.

The ledger keeps nano-units of all of them; `minor_digits` is how documents round them (an invoice in JPY has no sen).
"""

from __future__ import annotations

from functools import cache
from typing import Literal

import msgspec
import pycountry

from ledger.errors import UnknownUnit

UnitKind = Literal["fiat", "virtual", "quantity"]

# ISO 4217 where it is not 2. pycountry has the codes, not the digits.
_MINOR = {
    **dict.fromkeys(("BIF", "CLP", "DJF", "GNF", "ISK", "JPY", "KMF", "KRW", "PYG", "RWF", "UGX", "VND", "VUV"), 0),
    **dict.fromkeys(("XAF", "XOF", "XPF"), 0),
    **dict.fromkeys(("BHD", "IQD", "JOD", "KWD", "LYD", "OMR", "TND"), 3),
}
# What depin markets are paid in, by the digits of the smallest amount that their chains know; at most 9 are kept.
_VIRTUAL = {"AKT": 6, "USDC": 6, "USDT": 6, "CREDIT": 9, "IO": 8, "NOS": 6, "FIL": 9, "TAO": 9, "RENDER": 8, "GLM": 9}
# A million tokens: a thousandth of a nano-unit is one token, so that a month of a large house fits into 64 bits.
MTOKEN = "MTOKEN"
NANO_PER_TOKEN = 1_000
_QUANTITIES = {MTOKEN: 3, "GPUH": 3}


class Unit(msgspec.Struct, frozen=True):
    """A unit by its `code`."""

    code: str
    kind: UnitKind
    minor_digits: int


@cache
def unit(code: str) -> Unit:
    """The unit of that code. Raises UnknownUnit.

    >>> unit("JPY").minor_digits, unit("AKT").kind, unit("MTOKEN").kind
    (0, 'virtual', 'quantity')
    """
    if code in _VIRTUAL:
        return Unit(code, "virtual", _VIRTUAL[code])
    if code in _QUANTITIES:
        return Unit(code, "quantity", _QUANTITIES[code])
    if pycountry.currencies.get(alpha_3=code) is not None:
        return Unit(code, "fiat", _MINOR.get(code, 2))
    raise UnknownUnit(
        f"unit {code!r} is none that the books know: an ISO 4217 currency, {', '.join([*_VIRTUAL, *_QUANTITIES])} is meant"
    )
