"""One offer's instances, one after another: which of its pools' loads fit before their deadlines, and on which instances.

A *block* is what one pool has at the offer: a queue, earliest deadline first, on instances that begin when they are free and end
together. Blocks are placed one by one. Times and loads are of one unit, hours in the search and whole microseconds in the end:
the arithmetic is the same, so what the search found fits in the end as well, but for its margin.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
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
    """What a pool asks of an offer. `warm` says of each of its running rentals when it is ready, soonest first.

    Of the items follow `stair`, the (due, load due by then) of each deadline, `loads`, `expected` of all, and when one instance
    must be ready at the latest and then ends: a block is placed some ten times in a search, so they are kept.
    """

    pool: int
    start_up: Time
    items: tuple[Item, ...]
    warm: tuple[Time, ...] = ()
    stair: tuple[tuple[Time, Time], ...] = field(init=False, compare=False)
    loads: tuple[Time, ...] = field(init=False, compare=False)
    expected: Time = field(init=False, compare=False)
    latest_end: Time = field(init=False, compare=False)
    latest_begin: Time = field(init=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "stair", tuple(_stair(self.items)))
        object.__setattr__(self, "loads", tuple(item.load for item in self.items))
        object.__setattr__(self, "expected", sum(item.expected for item in self.items))
        latest_begin = min(due - load for due, load in self.stair) if self.stair else 0
        object.__setattr__(self, "latest_begin", latest_begin)
        object.__setattr__(self, "latest_end", latest_begin + (self.stair[-1][1] if self.stair else 0))


@dataclass(frozen=True, slots=True)
class Placed:
    """A block in its place: `begins` of new instances, how many warm ones, until when (cautious), and how much of each item."""

    pool: int
    begins: tuple[Time, ...]
    warm: int
    until: Time
    accepted: tuple[Time, ...]
    items: tuple[Item, ...]
    is_whole: bool = True


class Packing(NamedTuple):
    """Blocks by pool, whether all of every load was accepted, and how many different new instances it takes.

    `order` has the blocks as they were placed and `free` when instances were free after each: a packing of the same blocks and
    one more goes on from where they differ.
    """

    placed: dict[int, Placed]
    is_whole: bool
    instances: int
    order: tuple[Block, ...] = ()
    free: tuple[tuple[Time, ...], ...] = ()


def pack(capacity: int, blocks: Sequence[Block], *, is_later: bool, before: Packing | None = None) -> Packing:
    """Place the blocks of an offer; `is_later`: on instances that others have left, too. `before`: a packing of most of them.

    Two orders are tried, by the end of the block that begins as late as it may (on one instance no order is better), and by first
    deadline; the better one counts.
    """
    if len(blocks) == 1:
        return _in_order(capacity, blocks, is_later)
    by_end = sorted(blocks, key=_by_end)
    found = _in_order(capacity, by_end, is_later, before)
    if found.is_whole:
        return found
    by_due = sorted(blocks, key=_by_due)
    if by_due == by_end:
        return found
    other = _in_order(capacity, by_due, is_later, before)
    return other if other.is_whole or _total(other) > _total(found) else found


def pack_with(
    capacity: int, blocks: Sequence[Block], pool: int, *, is_later: bool, before: Packing | None = None
) -> Packing | None:
    """As `pack`, where only the block of `pool` may be accepted in part; None where another one would be."""
    best: Packing | None = None
    orders: list[list[Block]] = [sorted(blocks, key=_by_end)]
    if len(blocks) > 1 and (by_due := sorted(blocks, key=_by_due)) != orders[0]:
        orders.append(by_due)
    for order in orders:
        found = _in_order(capacity, order, is_later, before, pool)
        if found.is_whole:
            return found
        if len(found.placed) == len(order) and (best is None or _total(found) > _total(best)):
            best = found
    return best


def _by_end(block: Block) -> tuple[Time, int]:
    return block.latest_end, block.pool


def _by_due(block: Block) -> tuple[Time, int]:
    return block.items[0].due, block.pool


def _total(found: Packing) -> Time:
    return sum(sum(placed.accepted) for placed in found.placed.values())


def _in_order(
    capacity: int, blocks: Sequence[Block], is_later: bool, before: Packing | None = None, only: int | None = None
) -> Packing:
    """Place blocks in this order. Where another pool's than `only` is not accepted whole, it ends there."""
    found: dict[int, Placed] = {}
    states: list[tuple[Time, ...]] = []
    same = 0
    if before is not None:
        for block, was in zip(blocks, before.order, strict=False):
            if block is not was or (only is not None and not before.placed[block.pool].is_whole):
                break
            found[block.pool] = before.placed[block.pool]
            same += 1
        states.extend(before.free[:same])
    free: list[Time] = list(states[-1]) if states else [0] * capacity
    is_whole = all(placed.is_whole for placed in found.values())
    for block in blocks[same:]:
        whole = _place(block, free)
        if whole is None and only is not None and block.pool != only:
            is_whole = False
            break
        placed, used = whole or _part(block, free)
        found[block.pool] = placed
        is_whole = is_whole and placed.is_whole
        if is_later:
            for number in used:
                free[number] = placed.until
            if len(free) > 1:
                free.sort()
        else:
            del free[used.start : used.stop]
        states.append(tuple(free))
    return Packing(found, is_whole, capacity - bisect_right(free, 0), tuple(blocks), tuple(states))


def _place(block: Block, free: list[Time]) -> tuple[Placed, range] | None:
    """The fewest instances that do it all in time, warm ones first, new ones that are free as late as that allows; None if all
    of them cannot."""
    stair, loads = block.stair, block.loads
    for warm in range(1, len(block.warm) + 1):
        ready = block.warm[:warm]
        if _fits(ready, stair):
            return Placed(block.pool, (), warm, finish(ready, stair[-1][1]), loads, block.items), range(0)
    room = stair[-1][0] - block.start_up
    least = 1 if block.warm or room <= 0 else max(1, int(stair[-1][1] / room))  # fewer cannot do it
    if least == 1 and not block.warm:
        if begin := bisect_right(free, block.latest_begin - block.start_up):
            started = free[begin - 1]
            until = started + block.start_up + stair[-1][1]
            return Placed(block.pool, (started,), 0, until, loads, block.items), range(begin - 1, begin)
        least = 2
    many = _fewest(block, free, least)
    if many is None:
        return None
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


def _fewest(block: Block, free: list[Time], least: int) -> int | None:
    """The fewest of the instances that are free first which do the block in time; None if all of them cannot."""
    if block.warm:
        for many in range(least, len(free) + 1):
            if _fits(_ready(block, free, 0, many), block.stair):
                return many
        return None
    fewest = least
    for due, load in reversed(block.stair):
        latest, left, many = due - block.start_up, load, 0
        for begin in free:
            if begin >= latest:
                return None
            left -= latest - begin
            many += 1
            if left <= 0:
                break
        else:
            return None
        fewest = max(fewest, many)
    return fewest if fewest <= len(free) else None


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
        return Placed(block.pool, (), 0, 0, tuple(accepted), block.items, block.stair[-1][1] <= 0), range(0)
    until = max([finish(ready, total), *(begin + block.start_up for begin in usable)])
    is_whole = all(part >= load for part, load in zip(accepted, block.loads, strict=True))
    begins = tuple(usable)
    return Placed(block.pool, begins, len(block.warm), until, tuple(accepted), block.items, is_whole), range(many)


def _ready(block: Block, free: list[Time], begin: int, many: int) -> tuple[Time, ...]:
    start_up = block.start_up
    new = [each + start_up for each in free[begin : begin + many]]
    return tuple(sorted((*block.warm, *new))) if block.warm else tuple(new)


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
