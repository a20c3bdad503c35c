"""What a number of instances does with the work it is given: exact times and exact money, in integers.

A *site* is one offer serving one pool (project, model, precision). Its instances, rented anew or running already, share one
queue, earliest deadline first, and stop together when it is empty. Work is divisible, so the queue is finished at the level to
which the load fills the instances' time: Σ max(0, T − ready_i) = load.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from ledger.money import cost_of_seconds
from solver.durations import PPM, SECOND_US
from solver.types import Work


class Pool(NamedTuple):
    """What an instance serves: one model in one precision for one project, and never two projects."""

    project: str
    model: str
    precision: str


@dataclass(frozen=True, slots=True)
class Instances:
    """Equal instances of a site: to be rented (`rentals` empty) or running. `ready_us` from now until the first token.

    `limit` is how many there can be of running ones; new ones are limited by capacity and quota, elsewhere. `from_us` from now is
    when new ones are rented: `ready_us` counts from now, too. `once_nano` is paid for each new one besides its time.
    """

    ready_us: int
    price_nano_hour: int
    minimum_s: int
    granularity_s: int
    rentals: tuple[str, ...] = ()
    from_us: int = 0
    once_nano: int = 0

    @property
    def is_new(self) -> bool:
        return not self.rentals

    def billed_s(self, end_us: int) -> int:
        """Seconds billed of one instance when the site's work ends at `end_us` from now.

        It is paid at least until it is ready. What a running rental had to be billed at least is spent already.
        """
        seconds = max(ceil_div(max(end_us, self.ready_us) - self.from_us, SECOND_US), self.minimum_s)
        return ceil_div(seconds, self.granularity_s) * self.granularity_s

    def cost(self, end_us: int) -> int:
        """Nano-USD of one instance until the site's work ends."""
        return cost_of_seconds(self.price_nano_hour, self.billed_s(end_us)) + self.once_nano


@dataclass(frozen=True, slots=True)
class Task:
    """A work as a site sees it: when it is due (from now), how long one instance of this site needs for the whole, and what
    moving the data of the whole costs."""

    work: Work
    due_us: int
    expected_us: int
    cautious_us: int
    data_nano: int = 0

    def moving_nano(self, share_ppm: int) -> int:
        """Nano-USD for moving the data of a part."""
        return ceil_div(self.data_nano * share_ppm, PPM)

    @property
    def turn(self) -> tuple[int, int, str]:
        """Sorting key of the queue: earliest deadline first, then priority, then id."""
        return (self.due_us, -self.work.priority, self.work.id)


@dataclass(frozen=True, slots=True)
class Site:
    """One offer serving one pool: its classes of instances and the tasks that may run there, in queue order.

    `quota` is the name of the quota that new instances count against, `units` each. A pool that comes back to an offer is another
    site there, of another `turn`.
    """

    offer_key: str
    quota: str
    pool: Pool
    classes: tuple[Instances, ...]
    tasks: tuple[Task, ...]
    units: int = 1
    turn: int = 0

    @property
    def new_class(self) -> int | None:
        """Index of the class that can be rented anew, None when only running rentals may be used."""
        return next((index for index, each in enumerate(self.classes) if each.is_new), None)


@dataclass(frozen=True, slots=True)
class Bill:
    """What a site costs and when it ends: per class the cost of all its instances, per work the allotted cost and end, and what
    moving all data costs, which is in `allotted`."""

    end_us: int
    class_cost: tuple[int, ...]
    allotted: dict[str, int]
    ends_us: dict[str, int]
    moving_nano: int = 0

    @property
    def total(self) -> int:
        return sum(self.class_cost) + self.moving_nano


def ceil_div(numerator: int, denominator: int) -> int:
    """Integer division rounded up."""
    return -(-numerator // denominator)


def finish_us(groups: Sequence[tuple[int, int]], load_us: int) -> int:
    """The earliest T with Σ count·max(0, T − ready) ≥ load over (ready, count), rounded up to a microsecond; 0 for no load.

    >>> finish_us([(0, 1), (10, 1)], 30)
    20
    """
    if load_us <= 0:
        return 0
    total, machines = load_us, 0
    ordered = sorted((ready, count) for ready, count in groups if count)
    for index, (ready, count) in enumerate(ordered):
        total += ready * count
        machines += count
        level = ceil_div(total, machines)
        if index + 1 == len(ordered) or level <= ordered[index + 1][0]:
            return level
    raise ValueError(f"a load of {load_us} µs on no instance never ends")


def served_until(site: Site, counts: Sequence[int], due_us: int) -> int:
    """Instance-microseconds that the instances offer before `due_us`."""
    pairs = zip(site.classes, counts, strict=True)
    return sum(count * max(0, due_us - each.ready_us) for each, count in pairs)


def _usable_ppm_us(site: Site, counts: Sequence[int], due_us: int, margin_ppm: int) -> int:
    return served_until(site, counts, due_us) * (PPM - margin_ppm)


def room_ppm(site: Site, counts: Sequence[int], shares: Mapping[str, int], task: Task, margin_ppm: int = 0) -> int:
    """How many more millionths of `task` fit without making it, or a task due later, late (cautious durations).

    `margin_ppm` of the instances' time is left free. Negative when something is late already.
    """
    load = 0
    room: int | None = None
    for index, each in enumerate(site.tasks):
        load += shares.get(each.work.id, 0) * each.cautious_us
        following = site.tasks[index + 1] if index + 1 < len(site.tasks) else None
        if each.due_us < task.due_us or (following and following.due_us == each.due_us):
            continue
        slack = _usable_ppm_us(site, counts, each.due_us, margin_ppm) - load
        room = slack if room is None else min(room, slack)
    return (room or 0) // task.cautious_us


def is_on_time(site: Site, counts: Sequence[int], shares: Mapping[str, int], margin_ppm: int = 0) -> bool:
    """The stair condition: for every deadline, the load due by then fits into what the instances offer until then."""
    load = 0
    for task in site.tasks:
        share = shares.get(task.work.id, 0)
        load += share * task.cautious_us
        if share and load > _usable_ppm_us(site, counts, task.due_us, margin_ppm):
            return False
    return True


def bill(site: Site, counts: Sequence[int], shares: Mapping[str, int]) -> Bill:
    """Exact cost and ends of a site with load. The instances' cost is allotted to works by their expected time; each bears
    what its own data costs."""
    groups = [(each.ready_us, count) for each, count in zip(site.classes, counts, strict=True)]
    load = 0
    parts: dict[str, int] = {}
    ends: dict[str, int] = {}
    moving: dict[str, int] = {}
    for task in site.tasks:
        if share := shares.get(task.work.id, 0):
            parts[task.work.id] = share * task.expected_us
            load += parts[task.work.id]
            moving[task.work.id] = task.moving_nano(share)
            ends[task.work.id] = finish_us(groups, ceil_div(load, PPM))
    end = max(ends.values(), default=0)
    costs = tuple(count * each.cost(end) for each, count in zip(site.classes, counts, strict=True))
    allotted = {work_id: nano + moving[work_id] for work_id, nano in allot(sum(costs), parts).items()}
    return Bill(end_us=end, class_cost=costs, allotted=allotted, ends_us=ends, moving_nano=sum(moving.values()))


def allot(total: int, parts: Mapping[str, int]) -> dict[str, int]:
    """`total` split in proportion to `parts`, exact in sum: largest remainders get the last units, ties by order.

    >>> allot(10, {"a": 1, "b": 1, "c": 1})
    {'a': 4, 'b': 3, 'c': 3}
    """
    whole = sum(parts.values())
    if not whole:
        return {}
    shares = {key: total * part // whole for key, part in parts.items()}
    left = total - sum(shares.values())
    for key in sorted(parts, key=lambda each: -(total * parts[each] % whole))[:left]:
        shares[key] += 1
    return shares
