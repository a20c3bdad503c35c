"""One offer's instances, one after another: which of its pools' loads fit before their deadlines, and on which instances.

A *block* is what one pool has at the offer: a queue, earliest deadline first, on instances that begin when they are free and end
together. Blocks are placed one by one. Times and loads are of one unit, hours in the search and whole microseconds in the end:
the arithmetic is the same, so what the search found fits in the end as well, but for its margin.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

# Two numbers of one unit; ints stay ints.
Time = float


class Item(NamedTuple):
    """A load of a block: `due`, the cautious load that must fit until then, and what is expected of it."""

    due: Time
    load: Time
    expected: Time
    key: int


@dataclass(frozen=True, slots=True)
class Block:
    """What a pool asks of an offer. `warm` says of each of its running rentals when it is ready, soonest first."""

    pool: int
    start_up: Time
    items: tuple[Item, ...]
    warm: tuple[Time, ...] = ()


@dataclass(frozen=True, slots=True)
class Placed:
    """A block in its place: `begins` of new instances, how many warm ones, until when (cautious), and how much of each item."""

    pool: int
    begins: tuple[Time, ...]
    warm: int
    until: Time
    accepted: tuple[Time, ...]
    items: tuple[Item, ...]


class Packing(NamedTuple):
    """Blocks by pool, whether all of every load was accepted, and how many different new instances it takes."""

    placed: dict[int, Placed]
    is_whole: bool
    instances: int


def pack(capacity: int, blocks: Sequence[Block], *, is_later: bool) -> Packing:
    """Place the blocks of an offer; `is_later`: on instances that others have left, too.

    Two orders are tried, by the end of the block that begins as late as it may (on one instance no order is better), and by first
    deadline; the better one counts.
    """
    if len(blocks) == 1:
        return _in_order(capacity, blocks, is_later)
    by_end = sorted(blocks, key=lambda block: (_latest_end(block), block.pool))
    found = _in_order(capacity, by_end, is_later)
    if found.is_whole:
        return found
    by_due = sorted(blocks, key=lambda block: (block.items[0].due, block.pool))
    if by_due == by_end:
        return found
    other = _in_order(capacity, by_due, is_later)
    return other if other.is_whole or _total(other) > _total(found) else found


def _total(found: Packing) -> Time:
    return sum(sum(placed.accepted) for placed in found.placed.values())


def _latest_end(block: Block) -> Time:
    """When a block ends that one instance does as late as its deadlines allow."""
    load: Time = 0
    latest = block.items[0].due
    for item in block.items:
        load += item.load
        latest = min(latest, item.due - load)
    return latest + load


def _in_order(capacity: int, blocks: Sequence[Block], is_later: bool) -> Packing:
    free: list[Time] = [0] * capacity
    found: dict[int, Placed] = {}
    is_whole = True
    for block in blocks:
        placed, used = _place(block, free)
        found[block.pool] = placed
        is_whole = is_whole and all(
            accepted >= item.load for accepted, item in zip(placed.accepted, block.items, strict=True)
        )
        if is_later:
            for number in used:
                free[number] = placed.until
            free.sort()
        else:
            del free[used.start : used.stop]
    return Packing(found, is_whole, capacity - sum(1 for each in free if each <= 0))


def _place(block: Block, free: list[Time]) -> tuple[Placed, range]:
    """The fewest instances that do it all in time, warm ones first, new ones that are free as late as that allows."""
    stair = _stair(block.items)
    loads = tuple(item.load for item in block.items)
    for warm in range(1, len(block.warm) + 1):
        ready = block.warm[:warm]
        if _fits(ready, stair):
            return Placed(block.pool, (), warm, finish(ready, stair[-1][1]), loads, block.items), range(0)
    room = stair[-1][0] - block.start_up
    least = 1 if block.warm or room <= 0 else max(1, int(stair[-1][1] / room))  # fewer cannot do it
    if least == 1 and not block.warm:
        latest = min(due - load for due, load in stair) - block.start_up
        if begin := bisect_right(free, latest):
            started = free[begin - 1]
            until = started + block.start_up + stair[-1][1]
            return Placed(block.pool, (started,), 0, until, loads, block.items), range(begin - 1, begin)
        least = 2
    for many in range(least, len(free) + 1):
        if not _fits(_ready(block, free, 0, many), stair):
            continue
        begin, beyond = 0, len(free) - many + 1  # the last that fits: later ones leave less time
        while beyond - begin > 1:
            middle = (begin + beyond) // 2
            if _fits(_ready(block, free, middle, many), stair):
                begin = middle
            else:
                beyond = middle
        ready = _ready(block, free, begin, many)
        until = max(finish(ready, stair[-1][1]), free[begin + many - 1] + block.start_up)
        begins = tuple(free[begin : begin + many])
        return Placed(block.pool, begins, len(block.warm), until, loads, block.items), range(begin, begin + many)
    return _part(block, free)


def _part(block: Block, free: list[Time]) -> tuple[Placed, range]:
    """All instances, and of each item in turn what fits before it is due."""
    usable = [begin for begin in free if begin + block.start_up < block.items[-1].due]
    many = len(usable)
    ready = _ready(block, free, 0, many)
    total: Time = 0
    accepted = []
    for item in block.items:
        part = max(0, min(item.load, offered(ready, item.due) - total)) if ready else 0
        accepted.append(part)
        total += part
    if total <= 0:
        return Placed(block.pool, (), 0, 0, tuple(accepted), block.items), range(0)
    until = max([finish(ready, total), *(begin + block.start_up for begin in usable)])
    return Placed(block.pool, tuple(usable), len(block.warm), until, tuple(accepted), block.items), range(many)


def _ready(block: Block, free: list[Time], begin: int, many: int) -> tuple[Time, ...]:
    new = tuple(each + block.start_up for each in free[begin : begin + many])
    return tuple(sorted((*block.warm, *new))) if block.warm else new


def _stair(items: Sequence[Item]) -> list[tuple[Time, Time]]:
    """(due, load due by then), one for each deadline."""
    stair: list[tuple[Time, Time]] = []
    load: Time = 0
    for item in items:
        load += item.load
        if stair and stair[-1][0] == item.due:
            stair[-1] = (item.due, load)
        else:
            stair.append((item.due, load))
    return stair


def offered(ready: Sequence[Time], due: Time) -> Time:
    """Instance time before `due`."""
    total: Time = 0
    for each in ready:
        if each < due:
            total += due - each
    return total


def _fits(ready: Sequence[Time], stair: Sequence[tuple[Time, Time]]) -> bool:
    for due, load in reversed(stair):
        left = load
        for each in ready:
            if each < due:
                left -= due - each
                if left <= 0:
                    break
        else:
            return False
    return True


def finish(ready: Sequence[Time], load: Time) -> Time:
    """When instances that are ready in this order have done the load together; integers are rounded up."""
    total = load
    for number, each in enumerate(ready):
        total += each
        level = -(-total // (number + 1)) if isinstance(total, int) else total / (number + 1)
        if number + 1 == len(ready) or level <= ready[number + 1]:
            return level
    return 0
