"""The sweep: what the market lists against what we know, decided purely; the broker's reconcile loop carries it out.

Only from a complete list may absence be concluded. What is missing, or strange, must be so in two complete lists in a row: a
list that is wrong once must not end a fleet. Machines of others are never touched.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from markets.market import Rental
from markets.rentals import OVER


class Known(Protocol):
    """What the sweep needs of a rental's row (`markets.tables.RentalRow` has it)."""

    id: str
    state: str
    created_us: int
    started_us: int | None


@dataclass(frozen=True, slots=True)
class SweepSettings:
    """`owner` is our mark. `grace_s`: how long a create may take to show up, and an unknown machine is left alone.

    `max_releases` bounds how many *strange* machines one sweep releases; more than that is an alarm for a person.
    """

    owner: str
    grace_s: float = 120
    max_releases: int = 5

    @property
    def grace_us(self) -> int:
        return int(self.grace_s * 1_000_000)


@dataclass(frozen=True, slots=True)
class Memory:
    """What the previous complete list left unexplained: tags missing in it, strange ones with our first sight of them."""

    missing: frozenset[str] = frozenset()
    strange_since_us: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Adopt:
    """An intent whose machine exists: record what the market says (`rentals.confirm`)."""

    rental: Rental


@dataclass(frozen=True, slots=True)
class Seen:
    """Known and there: its meter goes on up to `rental.seen_at` (`rentals.confirm`)."""

    rental: Rental


@dataclass(frozen=True, slots=True)
class MarkEnded:
    """The market confirms an end that we have not recorded (`rentals.ended`)."""

    rental: Rental


@dataclass(frozen=True, slots=True)
class Verify:
    """Missing from two complete lists: ask the market for the tag.

    RentalNotFound: record `otherwise` (`rentals.failed` for an intent that never became a machine, `rentals.lost` for
    one that ran). A rental: record what it says. Any other error: nothing, the next sweep asks again.
    """

    tag: str
    otherwise: Literal["failed", "lost"]


@dataclass(frozen=True, slots=True)
class Release:
    """It costs money and nobody wants it: `market.release(tag)`.

    `why`: `asked` (we said so), `turned_up` (its row is over), `unknown` (our mark, and no row at all).
    """

    tag: str
    why: Literal["asked", "turned_up", "unknown"]


@dataclass(frozen=True, slots=True)
class Alarm:
    """More strange machines than one sweep may release: a person should look before the rest goes."""

    strange: int
    released_now: int


Action = Adopt | Seen | MarkEnded | Verify | Release | Alarm


@dataclass(frozen=True, slots=True)
class Sweep:
    """What to do, and what to remember until the next list of the same market."""

    actions: tuple[Action, ...]
    memory: Memory


def sweep(
    known: Sequence[Known],
    listed: Sequence[Rental] | None,
    memory: Memory,
    *,
    now_us: int,
    settings: SweepSettings,
    is_complete: bool = True,
) -> Sweep:
    """Compare. `known` are the rows of `rentals.known_rentals` for this list: open ones, and any whose tag is listed.

    `known` must have been read *after* the list was asked for: an intent is older than its machine, so a machine
    without a row is then really unknown. `listed` None (an error): nothing is concluded, and two lists in a row start
    anew. `is_complete` False (PartialList): so it is with what is missing or strange, but what is known and listed is a
    fact: one host that is away must stop neither the meters nor the ends of the others.
    """
    if listed is None:
        return Sweep((), Memory())
    rows = {row.id: row for row in known}
    tags = {rental.tag for rental in listed}
    actions: list[Action] = []
    for rental in listed:
        if rental.tag in rows:
            actions.extend(_of_known(rows[rental.tag], rental))
    if not is_complete:
        return Sweep(tuple(actions), Memory())
    actions += [MarkEnded(rental) for rental in listed if _ended_unknown(rental, rows, settings)]
    verify, missing = _missing(known, tags, memory, now_us, settings)
    strangers, strange_since_us = _strangers(listed, rows, memory, now_us, settings)
    return Sweep((*actions, *verify, *strangers), Memory(missing, strange_since_us))


def _ended_unknown(rental: Rental, rows: Mapping[str, Known], settings: SweepSettings) -> bool:
    """A machine of ours without a row that is over and cost money. EC2 confirms an end a minute after it was asked for, and
    the dead man's switch ends machines without us: the release alone would not tell."""
    is_ours = rental.facts.get("owner") == settings.owner and rental.tag not in rows
    return is_ours and rental.started_at is not None and rental.ended_at is not None and rental.currency == "USD"


def _of_known(row: Known, rental: Rental) -> Iterable[Action]:
    if rental.state == "ended":
        if row.state != "ended":
            yield MarkEnded(rental)
        return
    if row.state == "ended":
        return  # a list may lag behind the confirmed end; if it goes on saying so, `_strangers` takes care of it
    yield Adopt(rental) if row.state in ("intended", "creating") else Seen(rental)
    if row.state in OVER:
        yield Release(rental.tag, "turned_up")
    elif row.state == "releasing":
        yield Release(rental.tag, "asked")


def _missing(
    known: Sequence[Known], tags: set[str], memory: Memory, now_us: int, settings: SweepSettings
) -> tuple[list[Action], frozenset[str]]:
    # an intent waits for its turn, and for weights: the market has not been asked yet, or the Placer will ask again
    absent = {row.id: row for row in known if row.id not in tags and row.state not in (*OVER, "intended")}
    actions: list[Action] = []
    for tag, row in absent.items():
        young = now_us - row.created_us < settings.grace_us
        if tag in memory.missing and not young:
            actions.append(Verify(tag, _otherwise(row)))
    return actions, frozenset(absent)


def _otherwise(row: Known) -> Literal["failed", "lost"]:
    """`releasing` may have been asked before anything was created: a row without a start never became a machine."""
    return "failed" if row.started_us is None else "lost"


def _strangers(
    listed: Sequence[Rental], rows: Mapping[str, Known], memory: Memory, now_us: int, settings: SweepSettings
) -> tuple[list[Action], dict[str, int]]:
    """Live machines with our mark that have no row, or whose row has ended."""
    strange = [
        rental
        for rental in listed
        if rental.state != "ended"
        and rental.facts.get("owner") == settings.owner
        and (rental.tag not in rows or rows[rental.tag].state == "ended")
    ]
    before = memory.strange_since_us
    since_us = {rental.tag: before.get(rental.tag, now_us) for rental in strange}
    due = [tag for tag, first_us in since_us.items() if tag in before and now_us - first_us >= settings.grace_us]
    due.sort(key=lambda tag: (since_us[tag], tag))
    released = due[: settings.max_releases]
    actions: list[Action] = [Release(tag, "turned_up" if tag in rows else "unknown") for tag in released]
    if len(due) > len(released):
        actions.append(Alarm(strange=len(due), released_now=len(released)))
    return actions, since_us
