"""What budgets refused to hold a moment ago: there it is not tried again at once, so that the next best is. In memory: a broker
that begins to lead learns it anew from one refusal each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

SECOND_US = 1_000_000
# So long after the first refusal, and twice as long after each further one.
FIRST_S, LONGEST_S = 60, 960
# After so long without another refusal it begins anew.
FORGOTTEN_S = 3600


@dataclass(frozen=True, slots=True)
class Left:
    """What limits leave a batch, in nano-USD, and in nano-USD an hour; None is no limit. Once it grows, the hold is tried again
    at once."""

    project: int | None
    batch: int | None
    hour: int | None = None

    def is_more_than(self, before: Left) -> bool:
        """Whether any of the two grew, or is gone.

        >>> Left(2, None).is_more_than(Left(1, None)), Left(1, None).is_more_than(Left(1, 5))
        (True, True)
        >>> Left(1, 5).is_more_than(Left(2, 5))
        False
        """
        pairs = ((self.project, before.project), (self.batch, before.batch))
        return any(then is not None and (now is None or now > then) for now, then in pairs)

    def covers_hour(self, before: Left, nano_hour: int) -> bool:
        """Whether what may run an hour grew, or is not limited any more, and now covers so much.

        >>> Left(9, 9, 5).covers_hour(Left(1, 1, 4), 5), Left(9, 9, 5).covers_hour(Left(1, 1, 5), 5)
        (True, False)
        """
        return before.hour is not None and (self.hour is None or (self.hour > before.hour and self.hour >= nano_hour))


@dataclass(frozen=True, slots=True)
class Found:
    """What a snapshot says of a refusal in force. `from_nano_hour`: nothing that costs so much an hour is tried either."""

    why: str
    from_nano_hour: int | None


@dataclass(frozen=True, slots=True)
class _Refused:
    why: str
    until_us: int
    times: int
    left: Left | None
    from_nano_hour: int | None


@dataclass(slots=True)
class Refusals:
    """By (batch, offer key). The plan and the accrual note them; the snapshot has those in force."""

    _found: dict[tuple[str, str], _Refused] = field(default_factory=dict)

    def note(self, batch: str, offer_key: str, why: str, now_us: int, *, from_nano_hour: int | None = None) -> None:
        """A hold was refused; `from_nano_hour`: by a limit of dollars an hour, which everything as dear as this passes, too.
        What is noted again while it is in force counts once."""
        before = self._found.get((batch, offer_key))
        if before is not None and now_us < before.until_us:
            return
        goes_on = before is not None and now_us < before.until_us + FORGOTTEN_S * SECOND_US
        times = before.times + 1 if before is not None and goes_on else 1
        wait_s = min(LONGEST_S, FIRST_S * 2 ** (times - 1))
        self._found[batch, offer_key] = _Refused(why, now_us + wait_s * SECOND_US, times, None, from_nano_hour)

    def in_force(self, left: Mapping[str, Left], now_us: int) -> dict[tuple[str, str], Found]:
        """What is not tried now and why, of the batches that wait (`left`: what limits leave each)."""
        for key in [key for key, each in self._found.items() if now_us > each.until_us + FORGOTTEN_S * SECOND_US]:
            del self._found[key]
        found = {}
        for (batch, offer_key), each in sorted(self._found.items()):
            now = left.get(batch)
            if now is None or now_us >= each.until_us:
                continue
            if each.left is None:
                # what was left when it was refused: of the first look after it
                self._found[batch, offer_key] = replace(each, left=now)
            elif _is_over(each, each.left, now):
                del self._found[batch, offer_key]
                continue
            told = f"{each.why}; not tried there before {_clock(each.until_us)}"
            found[batch, offer_key] = Found(told, each.from_nano_hour)
        return found

    def hourly(self, now_us: int) -> frozenset[str]:
        """The batches that a limit of dollars an hour refused something, which is not tried again yet."""
        return frozenset(
            batch
            for (batch, _), each in self._found.items()
            if each.from_nano_hour is not None and now_us < each.until_us
        )

    def held(self, batch: str, offer_key: str) -> None:
        """A hold was made for it there: what was said before counts no more."""
        self._found.pop((batch, offer_key), None)


def _is_over(refused: _Refused, before: Left, now: Left) -> bool:
    """Whether what refused it is no more: of dollars an hour that is when a machine ends, whatever money there is."""
    if refused.from_nano_hour is None:
        return now.is_more_than(before)
    return now.covers_hour(before, refused.from_nano_hour)


def _clock(at_us: int) -> str:
    return datetime.fromtimestamp(at_us // SECOND_US, UTC).strftime("%H:%M:%S UTC")
