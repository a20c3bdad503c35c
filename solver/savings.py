"""What would make a placed work cheaper, in words a person can act on; each found by solving it again with the change.

The work is solved alone on what the plan leaves free beside its own place, once as it is and once changed; the difference is the
saving. These are suggestions: the solver never relaxes a rule itself, and compliance decides about countries and policies.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from solver.beside import ANYWHERE, alone_nano, beside, near
from solver.eligibility import Verdict, survey
from solver.explain import usd
from solver.relax import alone, one_more_country
from solver.types import HOUR_US, Plan, Snapshot, Work
from solver.variants import as_run
from solver.view import View

# More time is asked for in these steps; the first that saves is told.
MORE_HOURS = (2, 6, 24)
# Less than this part of the cost is not worth a word.
WORTH = 0.01


class Saving(msgspec.Struct, frozen=True, kw_only=True):
    """One change and what it would save of the work's cost, verified by solving it so. `field` is what changes: deadline_us,
    residency.country, residency (the policy as a whole), or capacity (one more instance of an offer that is sold out)."""

    field: str
    needed: str
    offer_key: str
    saves_nano: int
    message: str


def savings(snapshot: Snapshot, plan: Plan, work_id: str) -> tuple[Saving, ...]:
    """The changes that save most, each by itself, largest first. Empty for a work that the plan does not wholly place.

    Raises KeyError when the snapshot has no such work.
    """
    snapshot = as_run(snapshot, plan)
    work = {each.id: each for each in snapshot.works}[work_id]
    rest = near(beside(snapshot, plan, {work.id}), work)
    base = alone(rest, work)
    if not base.is_whole:
        return ()
    least = max(1, round(base.cost_nano * WORTH))
    found = [each for each in _changes(rest, work, base.cost_nano) if each.saves_nano >= least]
    return tuple(sorted(found, key=lambda each: (-each.saves_nano, each.field)))


def _changes(rest: Snapshot, work: Work, cost_nano: int) -> Iterator[Saving]:
    verdicts = survey(work, View(msgspec.structs.replace(rest, works=(work,))))
    yield from _more_time(rest, work, cost_nano)
    yield from _more_stock(rest, work, verdicts, cost_nano)
    yield from _farther(rest, work, verdicts, cost_nano)
    wider = one_more_country(work, rest, verdicts)
    if wider is not None:
        saves = cost_nano - wider.cost_nano
        country = wider.needed.rpartition(",")[2]
        message = f"allowing {country} would save {usd(saves)}: {wider.offer_key}; compliance decides"
        yield Saving(
            field=wider.field, needed=wider.needed, offer_key=wider.offer_key, saves_nano=saves, message=message
        )
    anywhere = msgspec.structs.replace(rest, policies={**rest.policies, work.policy_hash: ANYWHERE})
    free = alone(anywhere, work)
    if free.is_whole:
        saves = cost_nano - free.cost_nano
        message = f"its policy costs {usd(saves)}: without any it would run on {free.offer_key}; compliance decides"
        yield Saving(field="residency", needed="", offer_key=free.offer_key, saves_nano=saves, message=message)


def _more_time(rest: Snapshot, work: Work, cost_nano: int) -> Iterator[Saving]:
    for hours in MORE_HOURS:
        later = msgspec.structs.replace(work, deadline_us=work.deadline_us + hours * HOUR_US)
        outcome = alone(rest, later)
        saves = cost_nano - outcome.cost_nano
        if outcome.is_whole and saves >= max(1, cost_nano * WORTH):
            message = f"{hours} h more slack would save {usd(saves)}: {outcome.offer_key}"
            yield Saving(
                field="deadline_us",
                needed=str(later.deadline_us),
                offer_key=outcome.offer_key,
                saves_nano=saves,
                message=message,
            )
            return


def _more_stock(rest: Snapshot, work: Work, verdicts: tuple[Verdict, ...], cost_nano: int) -> Iterator[Saving]:
    """Of the cheapest offer that only being sold out keeps out, one instance."""
    gone = [each for each in verdicts if {broken.rule for broken in each.broken} == {"sold_out"} and each.task]
    cheapest = min(gone, key=lambda each: (alone_nano(each, rest), each.offer.key), default=None)
    if cheapest is None:
        return
    key = cheapest.offer.key
    offers = tuple(msgspec.structs.replace(each, capacity=1) if each.key == key else each for each in rest.offers)
    outcome = alone(msgspec.structs.replace(rest, offers=offers), work)
    saves = cost_nano - outcome.cost_nano
    if outcome.is_whole:
        message = f"one instance of {key}, which is sold out or taken by other work, would save {usd(saves)}"
        yield Saving(field="capacity", needed=key, offer_key=key, saves_nano=saves, message=message)


def _farther(rest: Snapshot, work: Work, verdicts: tuple[Verdict, ...], cost_nano: int) -> Iterator[Saving]:
    """The round trip to the data of the cheapest offer that only its latency keeps out."""
    far = [each for each in verdicts if {broken.rule for broken in each.broken} == {"latency"} and each.task]
    known = [each for each in far if each.offer.rtt_ms is not None]
    cheapest = min(known, key=lambda each: (alone_nano(each, rest), each.offer.key), default=None)
    if cheapest is None:
        return
    rtt_ms, key = cheapest.offer.rtt_ms, cheapest.offer.key
    outcome = alone(rest, msgspec.structs.replace(work, max_rtt_ms=rtt_ms))
    if outcome.is_whole:
        saves = cost_nano - outcome.cost_nano
        message = f"data {rtt_ms} ms away and back, not {work.max_rtt_ms}, would save {usd(saves)}: {outcome.offer_key}"
        yield Saving(field="max_rtt_ms", needed=str(rtt_ms), offer_key=key, saves_nano=saves, message=message)
