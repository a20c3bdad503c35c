"""One offer's instances, one after another: which of its pools' loads fit before their deadlines, and on which instances.

A *block* is what one pool has at the offer: a queue, earliest deadline first, on instances that begin when they are free and end
together. Blocks are placed one by one. Times and loads are of one unit, hours in the search and whole microseconds in the end:
the arithmetic is the same, so what the search found fits in the end as well, but for its margin.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from typing import NamedTuple

# Two numbers of one unit; ints stay ints.
Time = float
# Before all times: no instance is free then.
NEVER = -1


class Item(NamedTuple):
    """A load of a block: `due`, the cautious load that must fit until then, and what is expected of it."""

    due: Time
    load: Time
    expected: Time
    key: int


@dataclass(slots=True, eq=False)
class Block:
    """What a pool asks of an offer, as `block_of` makes it; nobody changes it. A block is placed some ten times in a search, so
    what placing asks of it is kept. (Frozen, it took twice as long to make; as a tuple, to read.)

    `warm` says of each of its running rentals when it is ready, soonest first. `steps` are (due, load due by then) of the
    deadlines that earlier ones do not imply, latest first; `latest` is when one new instance that does it all must begin, `NEVER`
    where that is not asked; `least` a number of new instances below which nothing fits. The orders in which blocks are placed are
    `by_end` of a block that begins as late as one instance may, and `by_due`, its first deadline.
    """

    pool: int
    start_up: Time
    items: tuple[Item, ...]
    warm: tuple[Time, ...]
    steps: tuple[tuple[Time, Time], ...]
    loads: tuple[Time, ...]
    total: Time
    expected: Time
    latest: Time
    least: int
    by_end: tuple[Time, int]
    by_due: tuple[Time, int]


def block_of(pool: int, start_up: Time, items: tuple[Item, ...], warm: tuple[Time, ...] = ()) -> Block:
    """A block of these items, one at least, earliest deadline first."""
    loads = tuple([item.load for item in items])
    total: Time = 0
    latest_begin = items[0].due - items[0].load
    steps: list[tuple[Time, Time]] = []
    for item in items:
        due = item.due
        total += item.load
        latest_begin = min(latest_begin, due - total)
        # where a step fits an instance is at work, and does the time until the next one at least
        if not steps or total - steps[-1][1] > due - steps[-1][0]:
            if steps and steps[-1][0] == due:
                steps.pop()
            steps.append((due, total))
    room = items[-1].due - start_up
    least = 1 if warm or room <= 0 else max(1, int(total / room))
    return Block(
        pool=pool,
        start_up=start_up,
        items=items,
        warm=warm,
        steps=tuple(reversed(steps)),
        loads=loads,
        total=total,
        expected=sum([item.expected for item in items]),
        latest=NEVER if warm or least > 1 else latest_begin - start_up,
        least=least,
        by_end=(latest_begin + total, pool),
        by_due=(items[0].due, pool),
    )


class Placed(NamedTuple):
    """A block in its place: `begins` of new instances, how many warm ones, until when (cautious), and how much of each item."""

    pool: int
    begins: tuple[Time, ...]
    warm: int
    until: Time
    accepted: tuple[Time, ...]
    items: tuple[Item, ...]
    is_whole: bool = True


@dataclass(slots=True)
class Packing:
    """Blocks by pool, whether all of every load was accepted, and how many different new instances it takes.

    `order` has the blocks as they were placed and `free` when instances were free after each: a packing of the same blocks and
    one more goes on from where they differ. `lines` are the orders that `pack_with` tried, with what is placed of them.
    """

    placed: dict[int, Placed]
    is_whole: bool
    instances: int
    order: tuple[Block, ...] = ()
    free: tuple[tuple[Time, ...], ...] = ()
    lines: list[Line] = field(default_factory=list)


BY_END, BY_DUE = attrgetter("by_end"), attrgetter("by_due")
# A block's number of the instances that are free (from, to), when they end, and how many warm ones it takes.
Seat = tuple[int, int, Time, int]


@dataclass(slots=True)
class Line:
    """Blocks of an offer in one order, placed from the first on as far as `reach` was asked, each whole.

    `free` is when instances are free before the first and after each that is placed. All tries at one offer share it, until
    something is put there: each begins where its block stands.
    """

    is_later: bool
    keys: list[tuple[Time, int]]
    order: list[Block]
    pools: list[int]
    placed: list[Placed]
    free: list[tuple[Time, ...]]
    is_stuck: bool = False

    @staticmethod
    def of(capacity: int, packing: Packing, by: Callable[[Block], tuple[Time, int]], *, is_later: bool) -> Line:
        order = sorted(packing.order, key=by)
        line = Line(is_later, [by(each) for each in order], order, [each.pool for each in order], [], [(0,) * capacity])
        for block, was, free in zip(order, packing.order, packing.free, strict=False):
            if block is not was or not packing.placed[block.pool].is_whole:
                break
            line.placed.append(packing.placed[block.pool])
            line.free.append(free)
        return line

    def reach(self, many: int) -> bool:
        """Place the first so many; False where one of them cannot be done whole."""
        while len(self.placed) < many:
            block, free = self.order[len(self.placed)], list(self.free[-1])
            seat = None if self.is_stuck else _seat(block, free)
            if seat is None:
                self.is_stuck = True
                return False
            begins = tuple(free[seat[0] : seat[1]])
            self.placed.append(Placed(block.pool, begins, seat[3], seat[2], block.loads, block.items))
            _take(free, seat[0], seat[1], seat[2], self.is_later)
            self.free.append(tuple(free))
        return True

    def with_block(self, at: int, block: Block) -> Packing | None:
        """All blocks with this one in `at`'s place of the order, instead of the one of its pool if there is one; None where
        another than it cannot be done whole.

        Two of three tries end in None: what a packing consists of is made when all blocks have a seat.
        """
        pools = self.pools
        had = pools.index(block.pool) if block.pool in pools else len(pools)
        same = min(at, had)
        if not self.reach(same):
            return None
        tail = [*self.order[same:at], block, *self.order[at:]]
        if had < len(pools):
            tail.pop(had - same + (had >= at))
        is_later = self.is_later
        free, states = list(self.free[same]), self.free[1 : same + 1]
        part: Placed | None = None
        seats: list[tuple[Block, tuple[Time, ...], int, Time]] = []
        for each in tail:
            if beyond := bisect_right(free, each.latest):  # as `_seat`, which six of ten blocks need not be asked
                begin = free.pop(beyond - 1)
                until = begin + each.start_up + each.total
                if is_later:
                    insort(free, until)
                seats.append((each, (begin,), 0, until))
                states.append(tuple(free))
                continue
            seat = _seat(each, free)
            if seat is None:
                if each is not block:
                    return None
                part, used = _part(each, free)
                seat = (used.start, used.stop, part.until, part.warm)
            start, stop, until, warm = seat
            seats.append((each, tuple(free[start:stop]), warm, until))
            _take(free, start, stop, until, is_later)
            states.append(tuple(free))
        found = dict(zip(pools[:same], self.placed, strict=False))
        for each, begins, warm, until in seats:
            found[each.pool] = Placed(each.pool, begins, warm, until, each.loads, each.items)
        if part is not None:
            found[block.pool] = part
        is_whole = part is None or part.is_whole
        instances = len(self.free[0]) - bisect_right(free, 0)
        return Packing(found, is_whole, instances, (*self.order[:same], *tail), tuple(states))


def pack(capacity: int, blocks: Sequence[Block], *, is_later: bool, before: Packing | None = None) -> Packing:
    """Place the blocks of an offer; `is_later`: on instances that others have left, too. `before`: a packing of most of them.

    Two orders are tried, by the end of the block that begins as late as it may (on one instance no order is better), and by first
    deadline; the better one counts.
    """
    if len(blocks) == 1:
        return _in_order(capacity, blocks, is_later)
    by_end = sorted(blocks, key=BY_END)
    found = _in_order(capacity, by_end, is_later, before)
    if found.is_whole:
        return found
    by_due = sorted(blocks, key=BY_DUE)
    if by_due == by_end:
        return found
    other = _in_order(capacity, by_due, is_later, before)
    return other if other.is_whole or _total(other) > _total(found) else found


def pack_with(capacity: int, before: Packing, block: Block, *, is_later: bool) -> Packing | None:
    """As `pack`, of the blocks of a packing and this one, instead of its pool's if it has one. Only it may be accepted in part;
    None where another one would be."""
    if not before.order:
        return _in_order(capacity, [block], is_later)
    lines = before.lines
    if not lines:
        lines.append(Line.of(capacity, before, BY_END, is_later=is_later))
    at = bisect_left(lines[0].keys, block.by_end)
    found = lines[0].with_block(at, block)
    if found is not None and found.is_whole:
        return found
    if len(lines) == 1:
        lines.append(Line.of(capacity, before, BY_DUE, is_later=is_later))
    at_due = bisect_left(lines[1].keys, block.by_due)
    if at_due == at and lines[1].pools == lines[0].pools:
        return found
    other = lines[1].with_block(at_due, block)
    if other is None or found is None or other.is_whole:
        return other or found
    return other if _total(other) > _total(found) else found


def _total(found: Packing) -> Time:
    return sum(sum(placed.accepted) for placed in found.placed.values())


def _in_order(capacity: int, blocks: Sequence[Block], is_later: bool, before: Packing | None = None) -> Packing:
    """Place blocks in this order, each as far as it fits."""
    found: dict[int, Placed] = {}
    states: list[tuple[Time, ...]] = []
    same = 0
    if before is not None:
        for block, was in zip(blocks, before.order, strict=False):
            if block is not was:
                break
            found[block.pool] = before.placed[block.pool]
            same += 1
        states.extend(before.free[:same])
    free: list[Time] = list(states[-1]) if states else [0] * capacity
    is_whole = all(placed.is_whole for placed in found.values())
    for block in blocks[same:]:
        seat = _seat(block, free)
        if seat is None:
            placed, used = _part(block, free)
            begin, beyond = used.start, used.stop
        else:
            begin, beyond, until, warm = seat
            placed = Placed(block.pool, tuple(free[begin:beyond]), warm, until, block.loads, block.items)
        found[block.pool] = placed
        is_whole = is_whole and placed.is_whole
        _take(free, begin, beyond, placed.until, is_later)
        states.append(tuple(free))
    return Packing(found, is_whole, capacity - bisect_right(free, 0), tuple(blocks), tuple(states))


def _take(free: list[Time], begin: int, beyond: int, until: Time, is_later: bool) -> None:
    """Instances are free again when what they begin now ends, or, without later starts, not at all."""
    del free[begin:beyond]
    if not is_later:
        return
    if beyond - begin == 1:
        insort(free, until)
    elif beyond > begin:
        at = bisect_right(free, until)
        free[at:at] = [until] * (beyond - begin)


def _seat(block: Block, free: list[Time]) -> Seat | None:
    """The fewest instances that do it all in time, warm ones first, new ones that are free as late as that allows; None if all
    of them cannot."""
    least, steps = block.least, block.steps
    if block.warm:
        for warm in range(1, len(block.warm) + 1):
            ready = block.warm[:warm]
            if _fits(ready, steps):
                return 0, 0, finish(ready, block.total), warm
    elif least == 1:
        if begin := bisect_right(free, block.latest):
            return begin - 1, begin, free[begin - 1] + block.start_up + block.total, 0
        least = 2
    many = _fewest(block, free, least)
    if many is None:
        return None
    start_up = block.start_up
    new = [each + start_up for each in free]
    begin, beyond = 0, len(free) - many + 1  # the last that fits: later ones leave less time
    while beyond - begin > 1:
        middle = (begin + beyond) // 2
        those = new[middle : middle + many]
        if _fits(sorted((*block.warm, *those)) if block.warm else those, steps):
            begin = middle
        else:
            beyond = middle
    those = new[begin : begin + many]
    until = finish(sorted((*block.warm, *those)) if block.warm else those, block.total)
    return begin, begin + many, max(until, those[-1]), len(block.warm)


def _fewest(block: Block, free: list[Time], least: int) -> int | None:
    """The fewest of the instances that are free first which do the block in time; None if all of them cannot."""
    if block.warm:
        for many in range(least, len(free) + 1):
            if _fits(_ready(block, free, 0, many), block.steps):
                return many
        return None
    if least > len(free):
        return None
    fewest, start_up = least, block.start_up
    for due, load in block.steps:
        latest, left, many = due - start_up, load, 0
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
    return fewest


def _part(block: Block, free: list[Time]) -> tuple[Placed, range]:
    """All instances, and of each item in turn what fits before it is due."""
    usable = [begin for begin in free if begin + block.start_up < block.items[-1].due]
    many = len(usable)
    ready = _ready(block, free, 0, many)
    total: Time = 0
    due: Time = NEVER
    until_due: Time = 0
    accepted: list[Time] = []
    for item, load in zip(block.items, block.loads, strict=True):
        if item.due != due:
            due, until_due = item.due, offered(ready, item.due)
        part = max(0, min(load, until_due - total))
        accepted.append(part)
        total += part
    if total <= 0:
        return Placed(block.pool, (), 0, 0, tuple(accepted), block.items, block.total <= 0), range(0)
    until = max([finish(ready, total), *(begin + block.start_up for begin in usable)])
    is_whole = all(part >= load for part, load in zip(accepted, block.loads, strict=True))
    begins = tuple(usable)
    return Placed(block.pool, begins, len(block.warm), until, tuple(accepted), block.items, is_whole), range(many)


def _ready(block: Block, free: list[Time], begin: int, many: int) -> tuple[Time, ...]:
    start_up = block.start_up
    new = [each + start_up for each in free[begin : begin + many]]
    return tuple(sorted((*block.warm, *new))) if block.warm else tuple(new)


def offered(ready: Sequence[Time], due: Time) -> Time:
    """Instance time before `due`."""
    total: Time = 0
    for each in ready:
        if each < due:
            total += due - each
    return total


def _fits(ready: Sequence[Time], steps: Sequence[tuple[Time, Time]]) -> bool:
    for due, load in steps:
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
    many = len(ready)
    total = sum(ready, load)
    level = -(-total // many) if isinstance(total, int) else total / many
    if level > ready[-1]:  # most: each has a part of it
        return level
    total = load
    for number, each in enumerate(ready):
        total += each
        level = -(-total // (number + 1)) if isinstance(total, int) else total / (number + 1)
        if number + 1 == len(ready) or level <= ready[number + 1]:
            return level
    return 0
