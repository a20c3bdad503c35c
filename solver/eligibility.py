"""Which offers may serve a work, and which rule removed the others: the count is a by-product of the decision.

An offer can serve through instances rented anew and through rentals of the work's own pool that run already. It is eligible when
either way is open. What only concerns renting anew (exclusion, price, capacity, quota, budget) does not stop a running rental;
residency always does.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ledger.money import cost_of_seconds, in_usd, most_of_tokens
from solver.data_costs import moving_nano, once_nano
from solver.durations import SECOND_US
from solver.schedule import Instances, Site, Task, bill, ceil_div
from solver.types import OfferView, Rule, Running, Snapshot, Work
from solver.view import View, pool_of

RULES = (
    "account",
    "excluded",
    "token_priced",
    "price_unknown",
    "sold_out",
    "quota",
    "unfit",
    "model",
    "residency",
    "latency",
    "deadline",
    "price_ceiling",
    "budget",
)
ELIGIBLE = "eligible"

Funnel = tuple[Rule, ...]


@dataclass(frozen=True, slots=True)
class Broken:
    """One rule that an offer breaks for a work, and what was found."""

    rule: str
    found: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the rules say of one offer for one work.

    `classes` are the instances that may serve it, empty when it is not eligible; `broken` is then what the better of its two ways
    breaks, in the order of the rules. `task` is None when nobody knows how long the work takes there.
    """

    offer: OfferView
    task: Task | None
    classes: tuple[Instances, ...]
    broken: tuple[Broken, ...]

    @property
    def is_eligible(self) -> bool:
        return bool(self.classes)


def eligible(work: Work, view: View) -> tuple[tuple[bool, ...], Funnel]:
    """A mask over the snapshot's offers and the funnel whose counts sum to their number."""
    verdicts = survey(work, view)
    return tuple(each.is_eligible for each in verdicts), funnel(verdicts)


def survey(work: Work, view: View) -> tuple[Verdict, ...]:
    """One verdict per offer of the snapshot, in its order."""
    return tuple(survey_one(work, offer, view) for offer in view.snapshot.offers)


def funnel(verdicts: tuple[Verdict, ...]) -> Funnel:
    """How many offers each rule removed, in the order of the rules; the last step is what is left."""
    removed: dict[str, list[Verdict]] = {rule: [] for rule in RULES}
    for verdict in verdicts:
        if not verdict.is_eligible:
            removed[verdict.broken[0].rule].append(verdict)
    steps = [Rule(rule=rule, count=len(those), example=_example(those[0])) for rule, those in removed.items() if those]
    left = [verdict.offer.key for verdict in verdicts if verdict.is_eligible]
    return (*steps, Rule(rule=ELIGIBLE, count=len(left), example=left[0] if left else None))


def _example(verdict: Verdict) -> str:
    found = verdict.broken[0]
    # whose account an offer is of is not for the reader
    return "of another account" if found.rule == "account" else f"{verdict.offer.key}: {found.found}"


def whole_cost(task: Task, instances: Instances) -> int:
    """Nano-USD of the whole task alone on as few such instances as finish it in time (one, when none can)."""
    time_each = task.due_us - instances.ready_us
    count = ceil_div(task.cautious_us, time_each) if time_each > 0 else 1
    site = Site("", "", pool_of(task.work), (instances,), (task,))
    return bill(site, (count,), {task.work.id: 1_000_000}).total


def stop_reserve(snapshot: Snapshot, price_nano_hour: int, granularity_s: int) -> int:
    """Nano-USD that one instance costs from the last look at it until it can be gone; 0 when the snapshot has no margin."""
    return cost_of_seconds(price_nano_hour, snapshot.stop_margin_s + granularity_s) if snapshot.stop_margin_s else 0


def survey_one(work: Work, offer: OfferView, view: View) -> Verdict:
    """The verdict of the rules for one work on one offer."""
    task = _task(work, offer, view)
    always = tuple(_always(work, offer, task, view))
    anew = new_instances(offer, work.model, view.snapshot)
    running = running_instances(view.running.get((offer.key, pool_of(work)), []))
    ways = [((each,), tuple(_money_and_time(work, task, each, offer, view))) for each in running]
    ways.append(
        ((anew,), (*_account(work, offer), *_renting(offer, view), *_money_and_time(work, task, anew, offer, view)))
    )
    open_ways = [classes for classes, broken in ways if not broken]
    if open_ways and not always:
        return Verdict(offer, task, tuple(each for classes in open_ways for each in classes), ())
    fewest = min((broken for _, broken in ways), key=len)
    broken = sorted((*always, *fewest), key=lambda each: RULES.index(each.rule))
    return Verdict(offer, task, (), tuple(broken))


def _task(work: Work, offer: OfferView, view: View) -> Task | None:
    busy = view.busy(work, offer)
    return Task(work, view.due_us(work), *busy, moving_nano(work, offer)) if busy else None


def new_instances(offer: OfferView, model: str, snapshot: Snapshot) -> Instances:
    """The class of instances that would be rented anew; a price that is not known stands as 0 and is never eligible."""
    return Instances(
        ready_us=offer.timings_of(model).total_s * SECOND_US,
        price_nano_hour=offer.price_nano_hour or 0,
        minimum_s=offer.minimum_s,
        granularity_s=offer.granularity_s,
        once_nano=once_nano(offer, model, snapshot.fetched_bytes),
    )


def running_instances(rentals: list[Running]) -> tuple[Instances, ...]:
    """Running rentals of one offer and pool in classes of equal readiness and price, warmest first."""
    classes: dict[tuple[int, int], list[str]] = {}
    for rental in rentals:
        classes.setdefault((rental.ready_in_s, rental.price_nano_hour), []).append(rental.rental_id)
    return tuple(
        Instances(ready_us=ready * SECOND_US, price_nano_hour=price, minimum_s=0, granularity_s=1, rentals=tuple(ids))
        for (ready, price), ids in sorted(classes.items())
    )


def is_rentable(offer: OfferView, view: View) -> bool:
    """Whether nothing stops renting this offer anew, whatever the work."""
    return not any(_renting(offer, view))


def is_for_rent(offer: OfferView) -> bool:
    """Whether the offer is one of instances with a price; what is sold out counts, what is excluded does not."""
    return not any(_not_for_rent(offer))


def _renting(offer: OfferView, view: View) -> Iterator[Broken]:
    """What stops renting this offer anew, whatever the work."""
    yield from _not_for_rent(offer)
    if offer.capacity is not None and offer.capacity <= 0:
        yield Broken("sold_out", "capacity 0")
    left = view.quota_left(offer)
    if left is not None and left <= 0:
        granted = view.quotas[offer.quota_group]
        needs = f": {granted} are left, one instance counts {offer.quota_units}" if offer.quota else ""
        yield Broken("quota", f"no more instances are granted under the quota {offer.quota_group}{needs}")


def _account(work: Work, offer: OfferView) -> Iterator[Broken]:
    if why := offer.held_back.get(work.project):
        yield Broken("excluded", why)
    if not offer.is_open_to(work.project):
        own = (
            "is rented only for the project whose account it is of"
            if offer.only_for
            else "the project has its own account"
        )
        yield Broken("account", own)


def _not_for_rent(offer: OfferView) -> Iterator[Broken]:
    if offer.excluded is not None:
        yield Broken("excluded", offer.excluded)
    if offer.pricing == "token" and not offer.is_bought:
        yield Broken("token_priced", "sells tokens, and nothing is bought of it here")
    elif not offer.is_priced:
        yield Broken("price_unknown", f"price {offer.price_nano_hour} is unknown, not free")


def _always(work: Work, offer: OfferView, task: Task | None, view: View) -> Iterator[Broken]:
    """What stops this work on this offer, rented anew or not."""
    if unfit := offer.unfit.get(work.model):
        yield Broken("unfit", unfit)
    if task is None:
        yield Broken("model", f"no throughput known for {work.model} ({work.precision}) on {offer.accelerator}")
    decision = view.decision(work, offer)
    if decision.outcome == "deny":
        against = next(each for each in decision.reasons if each.code not in ("allowed", "not_denied"))
        yield Broken("residency", f"{against.field} {against.found} is not {against.wanted} (rule {against.rule_id})")
    if work.max_rtt_ms is not None and (offer.rtt_ms is None or offer.rtt_ms > work.max_rtt_ms):
        took = "an unknown time" if offer.rtt_ms is None else f"{offer.rtt_ms} ms"
        yield Broken("latency", f"to the data and back takes {took}, at most {work.max_rtt_ms} ms are wanted")
    if task is not None and view.at_once(work, offer) == 0:
        p95_ms = view.p95_ms(work, offer, 1)
        took = "nobody knows how long" if p95_ms is None else f"{p95_ms} ms even one at a time"
        yield Broken("latency", f"95 of 100 requests take {took}, at most {work.max_p95_ms} ms are wanted")


def _money_and_time(
    work: Work, task: Task | None, instances: Instances, offer: OfferView, view: View
) -> Iterator[Broken]:
    """What stops this work on these instances: they are ready too late, or the work would cost too much there.

    A work that has begun is not abandoned because its rest is estimated a little over its limit: it gets what the money
    still buys.
    """
    due_us = view.due_us(work)
    if instances.ready_us >= due_us:
        ready_s, left_s = instances.ready_us // SECOND_US, max(0, due_us // SECOND_US)
        yield Broken("deadline", f"ready after {ready_s} s, and {left_s} s are left")
    if task is None or not (instances.price_nano_hour or offer.is_priced):
        return
    has_begun = work.progress.lines_done > 0
    least = instances.cost(0) + 1 if has_begun else whole_cost(task, instances)
    purpose = "starting alone" if has_begun else "the whole work"
    reserve = stop_reserve(view.snapshot, instances.price_nano_hour, instances.granularity_s)
    if offer.is_bought and offer.per_million_nano is not None:
        reserve = stop_reserve(
            view.snapshot, max(instances.price_nano_hour, offer.most_nano_hour), instances.granularity_s
        )
        reserve = min(reserve, max(0, most_nano(work, offer.per_million_nano, view.snapshot) - least))
    if work.max_nano is not None and least + reserve > work.max_nano - work.progress.spent_nano:
        yield Broken(
            "price_ceiling",
            f"{purpose} costs {in_usd(least)}{f' and {in_usd(reserve)} to be stopped in time' if reserve else ''}, "
            f"{in_usd(work.max_nano - work.progress.spent_nano)} are left",
        )
    is_covered = not instances.is_new and view.is_covered(work, offer)
    if not is_covered and (refused := view.refusal(work, offer)):
        yield Broken("budget", refused)
        return
    remaining = None if is_covered else view.budgets.get(work.project)
    if offer.per_million_nano is not None and remaining is not None:
        least = max(least, most_nano(work, offer.per_million_nano, view.snapshot))  # so much will be held
    if remaining is not None and least > remaining:
        yield Broken("budget", f"{purpose} costs {in_usd(least)}, project {work.project} has {in_usd(remaining)} left")


def most_nano(work: Work, per_million: tuple[int, int], snapshot: Snapshot) -> int:
    """What is held for the work's tokens: each answer as long as it may be."""
    output = max(work.output_tokens_p50, work.output_tokens_p90)
    return most_of_tokens(
        work.input_tokens,
        output,
        *per_million,
        buffer_ppm=snapshot.hold_buffer_ppm,
        most_input=work.input_tokens_most,
    )
