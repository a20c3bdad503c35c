"""Instants: integer microseconds UTC in tables and logs, aware datetimes in offers and rentals. Exact both ways."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


def micros(moment: datetime) -> int:
    """Microseconds since 1970 UTC. Raises ValueError for a naive datetime: its instant is a guess.

    >>> micros(datetime(1970, 1, 1, 0, 0, 1, 5, tzinfo=UTC))
    1000005
    """
    if moment.tzinfo is None:
        raise ValueError(f"time {moment.isoformat()} has no time zone; give an aware UTC datetime")
    return (moment - _EPOCH) // _MICROSECOND


def moment(us: int) -> datetime:
    """The inverse of `micros`."""
    return _EPOCH + timedelta(microseconds=us)


def maybe_micros(moment: datetime | None) -> int | None:
    """`micros` of a time that may not have come yet."""
    return None if moment is None else micros(moment)


def maybe_moment(us: int | None) -> datetime | None:
    """`moment` of a time that may not have come yet."""
    return None if us is None else moment(us)
