"""What `candidates` is while residency is not asked there: every batch, and nothing is forbidden."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable

from jobs.tables import Batch


class Unasked:
    """In the place of worker_pool.Candidates."""

    forbidden: tuple[Batch, ...] = ()

    def __init__(self, batches: Iterable[str]) -> None:
        self._batches = tuple(batches)

    async def __aiter__(self) -> AsyncIterator[str]:
        for each in self._batches:
            yield each
