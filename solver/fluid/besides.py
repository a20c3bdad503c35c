"""What is paid besides time, over arrays (`data_costs`): for a class's data at each offer, and once for each start.

No bound has it: what is left out of a bound that is paid on top makes it lower, never wrong.
"""

from __future__ import annotations

import numpy as np

from solver.data_costs import GB
from solver.fluid.classes import Classes
from solver.fluid.figures import NANO_USD, Figures, Floats, Ints


class Besides:
    """USD besides time. `is_any`: whether any offer asks for such."""

    def __init__(self, figures: Figures, classes: Classes) -> None:
        offers, works = figures.offers, figures.works
        self._offer = figures.resources.offer
        self._ingress = np.array([each.ingress_nano_gb / NANO_USD / GB for each in offers])
        self._egress = np.array([each.egress_nano_gb / NANO_USD / GB for each in offers])
        self._lost = np.array([each.lost_nano / NANO_USD for each in offers])
        self._in = [float(sum(works[each].input_bytes for each in those)) for those in classes.members]
        self._out = [float(sum(works[each].output_bytes for each in those)) for those in classes.members]
        fetched = figures.view.snapshot.fetched_bytes
        self._fetched = [float(fetched.get(kind.model, 0)) for kind in figures.kinds]
        self.is_any = bool(self._ingress.any() or self._egress.any() or self._lost.any())

    def moving(self, k: int, at: Ints) -> Floats:
        """For the data of the whole class at these resources."""
        offer = self._offer[at]
        found: Floats = self._in[k] * self._ingress[offer] + self._out[k] * self._egress[offer]
        return found

    def moving_at(self, k: int, offer: int) -> float:
        return self._in[k] * float(self._ingress[offer]) + self._out[k] * float(self._egress[offer])

    def once(self, kind: int) -> Floats:
        """For one start of a kind's model, by offer."""
        found: Floats = self._lost + self._fetched[kind] * self._ingress
        return found

    def once_at(self, kind: int, offer: int) -> float:
        return float(self._lost[offer]) + self._fetched[kind] * float(self._ingress[offer])

    def of_starts(self, kind: int, at: Ints, hours: Floats, time: Floats) -> Floats:
        """As `once` at these resources (running ones have begun), for so many hours of work where each start has so much time:
        a part of a start is a part of it, as with start-up's share in `prices`."""
        is_new = at < len(self._lost)
        once = np.where(is_new, self.once(kind)[self._offer[at]], 0.0)
        starts: Floats = once * hours / np.maximum(time, 1e-9)
        return starts
