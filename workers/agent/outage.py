"""At a server that is not ours: is it the line that fails there, or the server? Pure: counts in, verdicts out.

An engine of ours that lives and fails a line fails it for a reason of the line's. A token endpoint has outages, whole ones and
partial ones, in which any line fails: 200 of 200 were given up within 26 s of one. So a line is blamed only by what others got
meanwhile: since it was first asked (or last blamed), at least twice as many lines must have been answered as there are lines
that failed and have no answer yet.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

from workers.agent.lines import Line

_ANSWERED_PER_FAILING = 2


@dataclass(slots=True)
class Outage:
    """`answered` counts lines with an answer. A line that failed is remembered until it gets its end."""

    answered: int = 0
    _since: dict[Line, int] = field(default_factory=dict)
    _blamed: set[Line] = field(default_factory=set)

    def ended(self, line: Line, *, is_answered: bool) -> None:
        """The line got its end: an answer, or it was given up."""
        self.answered += is_answered
        self._since.pop(line, None)
        self._blamed.discard(line)

    def is_to_blame(self, line: Line, asked_at: int, left: Collection[Line]) -> bool:
        """Whether a failure counts against the line. `asked_at` is what `answered` was when it was asked, `left` are all lines
        that have no end yet. Of the last ones nobody's answers can tell any more (`are_last`): they are blamed again."""
        since = self._since.setdefault(line, asked_at)
        failing = sum(each in self._since for each in left)
        if self.answered - since < _ANSWERED_PER_FAILING * failing and not self.are_last(left):
            return False
        self._since[line] = self.answered
        self._blamed.add(line)
        return True

    def are_last(self, left: Collection[Line]) -> bool:
        """Whether all that is left has failed, and a third of it or more was to blame for that before."""
        blamed = sum(each in self._blamed for each in left)
        return all(each in self._since for each in left) and 3 * blamed >= len(left) > 0
