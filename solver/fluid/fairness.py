"""Within a priority projects take turns: none waits with all that it has because another's many are due before it.

The program and the first placement know deadlines and cost alone; what found no place then takes one from a project of which
several works more are served, as `problem.turns_of` has it for small queues. What gives way is placed anew where room is left.
"""

from __future__ import annotations

from collections import defaultdict

from solver.fluid.restore import PLACES, Part, Restoration
from solver.fluid.yard import CRUMB, Loads

# Parts that found no place and are looked at, those of the projects with least first.
MOST = 400
# What gave way is tried this often to be put back, each time by so much less.
TRIES, LESS = 12, 0.85

# (project, priority)
Group = tuple[str, int]


def share_fairly(restoration: Restoration, nowhere: list[Part]) -> list[Part]:
    """Give parts without a place the place of others. Returned is what is to be placed again: what gave way, what still waits."""
    sharing = _Sharing(restoration)
    order = sorted(nowhere, key=lambda each: (*sharing.rank(each[0]), each[0]))
    out: list[Part] = []
    for k, part in order[:MOST]:
        rest = sharing.serve(k, part, out)
        if rest > CRUMB:
            out.append((k, rest))
    return [*out, *order[MOST:]]


class _Sharing:
    def __init__(self, restoration: Restoration) -> None:
        self._restoration, self._yard = restoration, restoration.yard
        self._served: dict[Group, float] = defaultdict(float)
        for berth in self._yard.berths.values():
            for parts in berth.loads.values():
                for k, part in parts.items():
                    self._served[self._group(k)] += part * self._many(k)

    def rank(self, k: int) -> tuple[int, float, int]:
        classes = self._restoration.pricing.classes
        return -int(classes.priority[k]), self._served[self._group(k)], int(classes.bucket[k])

    def serve(self, k: int, part: float, out: list[Part]) -> float:
        """Place the part, in pieces, where others give way, which are added to `out`; what is left of it."""
        own, many = self._group(k), self._many(k)
        for offer in self._restoration.lean(k)[0][:PLACES]:
            if part <= CRUMB:
                break
            giving = self._giving(offer, own)
            if not giving:
                continue
            ahead = max(self._served[self._group(each)] for each in giving) - self._served[own]
            piece = min(part, max(1.0, ahead / 2) / many)
            mark = len(self._yard.log)
            self._yard.put(offer, self._yard.weigh(offer, self._without(offer, giving)))
            self._restoration.reopen(offer)
            trial = self._restoration.fit(offer, k, piece)
            if trial is None:
                self._yard.undo(mark)
                continue
            self._yard.put(offer, trial[0])
            part -= trial[1]
            self._served[own] += trial[1] * many
            for each, share in giving.items():
                gone = self._back(offer, each, share)
                self._served[self._group(each)] -= gone * self._many(each)
                if gone > CRUMB:
                    out.append((each, gone))
        self._yard.log.clear()
        return part

    def _back(self, offer: int, k: int, part: float) -> float:
        """Put as much of what gave way back beside the newcomer as is found to fit; what is left of it."""
        piece = part
        for _ in range(TRIES):
            trial = self._restoration.fit(offer, k, min(piece, part))
            self._restoration.reopen(offer)
            if trial is None:
                piece *= LESS
                continue
            self._yard.put(offer, trial[0])
            part -= trial[1]
            if part <= CRUMB:
                break
        return part

    def _giving(self, offer: int, own: Group) -> dict[int, float]:
        """Parts at an offer of projects that have more than one work more served, at the same priority."""
        return {
            k: part
            for parts in self._yard.berth(offer).loads.values()
            for k, part in parts.items()
            if (group := self._group(k))[1] == own[1] and self._served[group] > self._served[own] + 1
        }

    def _without(self, offer: int, giving: dict[int, float]) -> Loads:
        loads = self._yard.berth(offer).loads
        left = {pool: {k: part for k, part in parts.items() if k not in giving} for pool, parts in loads.items()}
        return {pool: parts for pool, parts in left.items() if parts}

    def _group(self, k: int) -> Group:
        pricing = self._restoration.pricing
        return pricing.figures.pools[int(pricing.classes.pool[k])].project, int(pricing.classes.priority[k])

    def _many(self, k: int) -> int:
        return len(self._restoration.pricing.classes.members[k])
