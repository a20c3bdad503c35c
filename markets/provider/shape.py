"""A provider's JSON, read with the place at hand: whatever is not as its documents say is named by where it stands.

Numbers are Decimal from the text on: `0.1` of a price never becomes a float.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal, InvalidOperation
from typing import Any, TypeVar

import structlog

from markets.errors import ShapeDrift

T = TypeVar("T")
R = TypeVar("R")
_SHOWN_CHARS = 40
# Digits before or after the point. Nothing that is sold has more, and an integer made of `1e99999999` takes for ever.
_MOST_DIGITS = 18
_log = structlog.get_logger("markets.provider")


@dataclass(frozen=True, slots=True)
class Shape:
    """A JSON value and where it stands: `lambda GET /api/v1/instance-types: data.gpu_1x_a10.instance_type`.

    `headers` are those of the answer, on the whole of it alone.

    Every reader raises ShapeDrift naming the place, what was wanted and what is there.
    """

    value: Any
    where: str
    headers: Mapping[str, str] = field(default_factory=dict, repr=False, compare=False)

    def __getitem__(self, name: str) -> Shape:
        """The member `name`, which must be there; it may be null."""
        found = self._object().get(name, _ABSENT)
        if found is _ABSENT:
            there = ", ".join(sorted(map(str, self._object()))[:8]) or "nothing"
            raise ShapeDrift(f"{self.where} has no member {name!r}; there is {there}")
        return Shape(found, f"{self.where}.{name}")

    def get(self, name: str) -> Shape | None:
        """The member `name`, or None when it is absent or null."""
        found = self._object().get(name)
        return None if found is None else Shape(found, f"{self.where}.{name}")

    def each(self) -> list[Shape]:
        """The elements of an array."""
        if not isinstance(self.value, list):
            raise self._not("an array")
        return [Shape(element, f"{self.where}[{index}]") for index, element in enumerate(self.value)]

    def each_or_one(self) -> list[Shape]:
        """The elements of an array; a lone object is an array of one (Vast's own example shows one)."""
        return [self] if isinstance(self.value, dict) else self.each()

    def entries(self) -> list[tuple[str, Shape]]:
        """The members of an object that is a dictionary: name, value."""
        return [(name, Shape(value, f"{self.where}.{name}")) for name, value in self._object().items()]

    def text(self) -> str:
        """A string, not empty."""
        if not isinstance(self.value, str) or not self.value:
            raise self._not("a text")
        return self.value

    def number(self) -> Decimal:
        """A finite number of sane size, also one written as a text (Verda's prices, Scaleway's are both)."""
        if isinstance(self.value, bool) or not isinstance(self.value, (int, Decimal, str)):
            raise self._not("a number")
        try:
            number = Decimal(self.value)
        except InvalidOperation:
            raise self._not("a number") from None
        if not number.is_finite():
            raise self._not("a finite number")
        if abs(number.adjusted()) > _MOST_DIGITS:
            if number:
                raise self._not(f"a number between 1e-{_MOST_DIGITS} and 1e{_MOST_DIGITS}")
            return Decimal(0)  # however many zeros
        return number

    def whole(self) -> int:
        """An integer, also written `8.0` or `"8"`."""
        number = self.number()
        if number != number.to_integral_value():
            raise self._not("a whole number")
        return int(number)

    def flag(self) -> bool:
        if not isinstance(self.value, bool):
            raise self._not("true or false")
        return self.value

    def _object(self) -> Mapping[str, Any]:
        if not isinstance(self.value, dict):
            raise self._not("an object")
        return self.value

    def _not(self, wanted: str) -> ShapeDrift:
        shown = repr(self.value) if not isinstance(self.value, Decimal) else str(self.value)
        if len(shown) > _SHOWN_CHARS:
            shown = shown[:_SHOWN_CHARS] + "…"
        return ShapeDrift(f"{self.where} is {shown}, not {wanted}")


_ABSENT = object()


def read(body: bytes, where: str, headers: Mapping[str, str] | None = None) -> Shape:
    """The answer's JSON. ShapeDrift when it is none, or has NaN or Infinity in it."""

    def refuse(word: str) -> Any:
        raise ValueError(f"{word} is not JSON")

    try:
        return Shape(json.loads(body, parse_float=Decimal, parse_constant=refuse), where, headers or {})
    except (ValueError, RecursionError) as error:
        raise ShapeDrift(f"{where} is not JSON ({error}); it begins {body[:_SHOWN_CHARS]!r}") from error


def rows(given: Iterable[R], of: Callable[[R], Iterable[T]]) -> list[T]:
    """What `of` makes of each row. One row of another shape is left out and told; raises ShapeDrift when none is left.

    One odd machine among thousands must not hide a whole market; an answer in which nothing is as it was must not look
    like a market that has sold everything.
    """
    found: list[T] = []
    drifted: list[ShapeDrift] = []
    read_rows = 0
    for row in given:
        try:
            found += of(row)
            read_rows += 1
        except ShapeDrift as drift:
            drifted.append(drift)
    if drifted and not read_rows:
        raise ShapeDrift(f"{drifted[0]} (and so all {len(drifted)} rows)")
    if drifted:
        _log.warning("provider.rows_drifted", rows=len(drifted), of=read_rows + len(drifted), first=str(drifted[0]))
    return found
