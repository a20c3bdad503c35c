"""Columns of a FOCUS dataset: texts, decimals at scale 18 and instants, by value or by number. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

SCALE = 18
NANO_TO_SCALE: int = 10 ** (SCALE - 9)
UNIT: int = 10**SCALE


@dataclass(frozen=True, slots=True)
class Coded:
    """Texts by number: cell `n` is `values[codes[n]]`; None is null."""

    values: Sequence[str | None]
    codes: Sequence[int]

    def __len__(self) -> int:
        return len(self.codes)

    def cells(self) -> list[str | None]:
        values = self.values
        return [values[code] for code in self.codes]


@dataclass(frozen=True, slots=True)
class Texts:
    """One text a row; None is null."""

    values: Sequence[str | None]

    def __len__(self) -> int:
        return len(self.values)

    def cells(self) -> list[str | None]:
        return list(self.values)


@dataclass(frozen=True, slots=True)
class Decimals:
    """Integers of 1e-18; None is null."""

    values: Sequence[int | None]

    def __len__(self) -> int:
        return len(self.values)

    def cells(self) -> list[str | None]:
        return [None if value is None else decimal_text(value) for value in self.values]


@dataclass(frozen=True, slots=True)
class CodedDecimals:
    """Integers of 1e-18 by number, as `Coded` has texts."""

    distinct: Sequence[int | None]
    codes: Sequence[int]

    def __len__(self) -> int:
        return len(self.codes)

    @property
    def values(self) -> list[int | None]:
        return list(map(self.distinct.__getitem__, self.codes))

    def cells(self) -> list[str | None]:
        texts = [None if value is None else decimal_text(value) for value in self.distinct]
        return list(map(texts.__getitem__, self.codes))


@dataclass(frozen=True, slots=True)
class Instants:
    """Whole seconds since 1970, UTC."""

    values: Sequence[int]

    def __len__(self) -> int:
        return len(self.values)

    def cells(self) -> list[str | None]:
        known: dict[int, str] = {}
        return [known.get(value) or known.setdefault(value, instant_text(value)) for value in self.values]


FocusColumn = Coded | Texts | Decimals | CodedDecimals | Instants


def decimal_text(value: int) -> str:
    """A plain decimal with at least one place: a column of integers would be read as integers by the official validator.

    >>> decimal_text(1_500_000_000_000_000_000), decimal_text(-1), decimal_text(0)
    ('1.5', '-0.000000000000000001', '0.0')
    """
    sign, value = ("-", -value) if value < 0 else ("", value)
    whole, rest = divmod(value, UNIT)
    return f"{sign}{whole}.{f'{rest:018}'.rstrip('0') or '0'}"


def instant_text(seconds: int) -> str:
    """
    >>> instant_text(1_795_305_600)
    '2026-11-22T00:00:00Z'
    """
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
