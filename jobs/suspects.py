"""Which lines may have killed a worker: pure bookkeeping of attempts.

A line that was in flight when its worker died is charged one attempt. The next worker is told, runs such lines alone,
and fails a line with `max_attempts` attempts with code `worker_crash` instead of running it again.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from jobs import ranges


def merged(stored: Mapping[int, int], told: Mapping[int, int]) -> dict[int, int]:
    """What the worker says of engine crashes never lowers what is known: it started from our numbers."""
    return {line: max(stored.get(line, 0), told.get(line, 0)) for line in sorted({*stored, *told})}


def after_death(stored: Mapping[int, int], in_flight: Iterable[int]) -> dict[int, int]:
    """One more attempt for each line that was in flight when the worker vanished without goodbye.

    >>> after_death({3: 1}, [3, 5])
    {3: 2, 5: 1}
    """
    charged = dict(stored)
    for line in set(in_flight):
        charged[line] = charged.get(line, 0) + 1
    return dict(sorted(charged.items()))


def undone(suspects: Mapping[int, int], done: ranges.Pairs) -> dict[int, int]:
    """Answered lines are suspect no more."""
    return {line: attempts for line, attempts in suspects.items() if attempts and not is_in(line, done)}


def is_in(line: int, pairs: ranges.Pairs) -> bool:
    return any(start <= line < stop for start, stop in pairs)


def from_json(stored: Mapping[str, int]) -> dict[int, int]:
    return {int(line): attempts for line, attempts in stored.items()}


def to_json(suspects: Mapping[int, int]) -> dict[str, int]:
    return {str(line): attempts for line, attempts in suspects.items()}
