"""What a batch's lines cost by the value of a tag: each rental's share of the batch, divided by the tokens of its lines.

A projection, like the cost of the batch itself: the rows always sum to it, to the nano-dollar. What a machine cost that
served no line of the batch is divided by the tokens of all its lines, or by their number while there are none.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from sqlalchemy.ext.asyncio import AsyncSession

from broker.costs import BatchCost, batch_costs
from jobs import ranges, tag_rows
from jobs.tables import Batch
from jobs.types import LineUsage, Ranges
from jobs.usage import part_usage
from ledger.allot import allot

UNTAGGED = "-"


@dataclass
class ValueCost:
    """The lines with one value of a tag: how many there are, what became of them, what they used, nano-USD."""

    value: str
    lines: int = 0
    completed: int = 0
    failed: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    nano: int = 0

    def count(self, usage: LineUsage) -> None:
        self.completed += usage.status == "completed"
        self.failed += usage.status == "failed"
        self.input_tokens += usage.prompt_tokens
        self.output_tokens += usage.completion_tokens


class LineValues:
    """Which value of a tag each line has; `rest` is the value of lines that have none of their own."""

    def __init__(self, by_value: Mapping[str, Ranges], total: int, rest: str = UNTAGGED) -> None:
        spans = sorted((start, stop, value) for value, lines in by_value.items() for start, stop in lines)
        self._starts = [start for start, _, _ in spans]
        self._spans = spans
        self._rest = rest
        self.lines: dict[str, int] = {value: ranges.count(lines) for value, lines in by_value.items()}
        if without := total - sum(self.lines.values()):
            self.lines[rest] = self.lines.get(rest, 0) + without

    def of(self, line: int) -> str:
        at = bisect_right(self._starts, line) - 1
        if at >= 0 and line < self._spans[at][1]:
            return self._spans[at][2]
        return self._rest


async def costs_by_tag(session: AsyncSession, batch: Batch, key: str) -> list[ValueCost]:
    """One entry a value, by value; lines without the tag have the batch's own value of it, or are in `-`. Empty before
    the batch has begun."""
    own = ((batch.wishes or {}).get("tags") or {}).get(key, UNTAGGED)
    values = LineValues(await tag_rows.values(session, batch.id, key), batch.total, own)
    found = {value: ValueCost(value, lines) for value, lines in values.lines.items()}
    weights: defaultdict[str, defaultdict[str, int]] = defaultdict(lambda: defaultdict(int))
    async for part in part_usage(session, batch_id=batch.id):
        if part.is_counted:
            for usage in part.lines:
                value = values.of(usage.idx)
                found[value].count(usage)
                # a line without tokens weighs one, as in the batch's own share
                weights[part.placement_id][value] += max(1, usage.prompt_tokens + usage.completion_tokens)
    cost = (await batch_costs(session, [batch.id]))[batch.id]
    for value, nano in divided(cost, weights, values.lines).items():
        found.setdefault(value, ValueCost(value)).nano += nano
    return sorted(found.values(), key=lambda each: each.value)


def divided(cost: BatchCost, weights: Mapping[str, Mapping[str, int]], lines: Mapping[str, int]) -> dict[str, int]:
    """Nano-USD by value, summing to the whole of `cost`. `weights` are tokens by rental and value. Pure.

    >>> divided(BatchCost(nano=10, by_rental={"r": (3, 10)}), {"r": {"a": 1, "b": 2}}, {"a": 1, "b": 2})
    {'a': 3, 'b': 7}
    >>> divided(BatchCost(nano=5, by_rental={"idle": (0, 5)}), {}, {"-": 4})
    {'-': 5}
    """
    everywhere: defaultdict[str, int] = defaultdict(int)
    for by_value in weights.values():
        _add(everywhere, by_value.items())
    shares: defaultdict[str, int] = defaultdict(int)
    for rental, (_, nano) in sorted(cost.by_rental.items()):
        by = dict(sorted((weights.get(rental) or everywhere or lines or {UNTAGGED: 1}).items()))
        _add(shares, zip(by, allot(nano, list(by.values())), strict=True))
    return dict(shares)


def _add(sums: defaultdict[str, int], more: Iterable[tuple[str, int]]) -> None:
    for value, count in more:
        sums[value] += count


def joined(parts: Iterable[Iterable[ValueCost]]) -> list[ValueCost]:
    """The rows of several batches as one, by value. Pure."""
    sums: dict[str, ValueCost] = {}
    for row in (row for part in parts for row in part):
        into = sums.setdefault(row.value, ValueCost(row.value))
        into.lines += row.lines
        into.completed += row.completed
        into.failed += row.failed
        into.input_tokens += row.input_tokens
        into.output_tokens += row.output_tokens
        into.nano += row.nano
    return sorted(sums.values(), key=lambda each: each.value)
