"""The pools that a plan lacks: what one instance more of an offer would save the whole queue, found by planning it so."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import msgspec

from solver.explain import usd
from solver.policy_estimate import Orders, worth
from solver.types import HOUR_US, Plan, Snapshot
from solver.variants import as_run
from solver.view import View

# So many pools are asked about: each is a plan of the whole queue.
ASKED = 3


class Scarce(msgspec.Struct, frozen=True, kw_only=True):
    """A pool of which one instance more would make the plan cheaper by `saves_nano`, or serve more of the queue (`served_ppm`
    millionths of works more). `until_us` is until when the plan uses what there is; None where there is none."""

    offer_key: str
    saves_nano: int
    served_ppm: int
    until_us: int | None
    message: str


def candidates(snapshot: Snapshot, plan: Plan) -> tuple[str, ...]:
    """The offers that are likeliest to be missed: taken to the last, or sold out and cheaper than what works got."""
    missed: Counter[str] = Counter()
    for choice in plan.choices:
        missed.update(key for key, rule in choice.cheaper_excluded if rule == "sold_out")
    started: Counter[str] = Counter()
    for start in plan.starts:
        started[start.offer_key] += start.count
    works: Counter[str] = Counter(each.offer_key for each in plan.assignments)
    for offer in snapshot.offers:
        if started[offer.key] and offer.capacity is not None and started[offer.key] >= offer.capacity:
            missed[offer.key] += works[offer.key]
    return tuple(key for key, _ in sorted(missed.items(), key=lambda each: (-each[1], each[0]))[:ASKED])


def with_one_more(snapshot: Snapshot, key: str) -> Snapshot:
    """The snapshot where the offer has an instance more to rent."""
    offers = tuple(
        msgspec.structs.replace(each, capacity=max(0, 1 if each.capacity is None else each.capacity) + 1)
        if each.key == key
        else each
        for each in snapshot.offers
    )
    return msgspec.structs.replace(snapshot, offers=offers)


def scarce(plan: Plan, others: dict[str, Plan]) -> tuple[Scarce, ...]:
    """What each instance more came to, by the plans that were made with it; largest first, without those that change nothing."""
    found = [each for key, other in others.items() for each in _compared(plan, key, other)]
    return tuple(sorted(found, key=lambda each: (-each.served_ppm, -each.saves_nano, each.offer_key)))


def estimated(snapshot: Snapshot, plan: Plan) -> tuple[Scarce, ...]:
    """The same without planning again: an instance more, for as long as the plan uses what there is, at what such an hour is
    worth to the work there that would lose least without it. An upper bound: with more of it, the next hour is worth less."""
    run = as_run(snapshot, plan)
    view, found = View(run), list[Scarce]()
    for key, nano in worth(view, plan, Orders(view)).items():
        spans = [(each.from_us, each.until_us) for each in plan.starts if each.offer_key == key]
        until_us = max(until for _, until in spans)
        saves = nano * max(0, until_us - min(begin for begin, _ in spans)) // HOUR_US
        if saves > plan.cost_nano // 1000:
            message = (
                f"one {key} more would save up to {usd(saves)} (estimated: an hour there is worth {usd(nano)} more)"
            )
            found.append(Scarce(offer_key=key, saves_nano=saves, served_ppm=0, until_us=until_us, message=message))
    return tuple(sorted(found, key=lambda each: (-each.saves_nano, each.offer_key))[:ASKED])


def _compared(plan: Plan, key: str, other: Plan) -> Iterator[Scarce]:
    saves = plan.cost_nano - other.cost_nano
    more = sum(each.share_ppm for each in other.assignments) - sum(each.share_ppm for each in plan.assignments)
    if more < 0 or (more == 0 and saves <= max(0, plan.cost_nano // 1000)):
        return
    until = max((each.until_us for each in plan.starts if each.offer_key == key), default=None)
    gain = f"would save {usd(saves)}" if more == 0 else f"would give {more / 1e6:.2f} waiting batches a place"
    yield Scarce(offer_key=key, saves_nano=saves, served_ppm=more, until_us=until, message=f"one {key} more {gain}")
