"""The smallest changes that would give an unplaced work a place, each verified by solving the work again with the change.

The work is solved alone, on what the rest of the plan leaves free. The solver only suggests: it never relaxes a rule itself.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import msgspec

from ledger.money import from_nano
from solver import greedy
from solver.durations import PPM, SECOND_US
from solver.eligibility import Verdict, is_for_rent, stop_reserve, survey_one
from solver.problem import Draft, Problem, bills, state
from solver.residency import Policy, PolicyRule, evaluate
from solver.types import Budget, OfferView, Quota, Relaxation, Snapshot, Work
from solver.view import View

Limit = Literal["quota", "budget", "price_ceiling", "deadline"]

MINUTE_US = 60 * SECOND_US
# A deadline is looked for up to this far beyond now.
FARTHEST_US = 400 * 24 * 3600 * SECOND_US


@dataclass(frozen=True, slots=True)
class Outcome:
    """What becomes of one work alone: millionths served, what they cost, and the offer that serves most of it."""

    served_ppm: int
    cost_nano: int
    offer_key: str

    @property
    def is_whole(self) -> bool:
        return self.served_ppm == PPM


def alone(snapshot: Snapshot, work: Work) -> Outcome:
    """Solve a snapshot that holds only this work."""
    in_use = {rental.offer_key for rental in snapshot.running}
    known = {
        each.accelerator for each in snapshot.throughput if (each.model, each.precision) == (work.model, work.precision)
    }
    offers = tuple(
        each
        for each in snapshot.offers
        if each.key in in_use
        or (each.capacity != 0 and each.accelerator in known and each.is_open_to(work.project) and is_for_rent(each))
    )
    view = View(msgspec.structs.replace(snapshot, works=(work,), offers=offers))
    # the words of a refusal are most of what a look at all offers costs, and nobody reads them here
    allowed = (offer for offer in offers if view.allows(work, offer))
    problem = state(view, {work.id: tuple(survey_one(work, offer, view) for offer in allowed)})
    draft = greedy.place(problem)
    site_bills = bills(problem, draft)
    if not site_bills:
        return Outcome(0, 0, "")
    most = max(site_bills, key=lambda index: draft.shares[index][work.id])
    cost = sum(each.total for each in site_bills.values())
    return Outcome(draft.served(work.id), cost, problem.sites[most].offer_key)


def left_for(work: Work, view: View, problem: Problem, draft: Draft) -> Snapshot:
    """The snapshot without what the plan uses for other works: capacity, quotas, budgets and running rentals."""
    used = _Used({}, {}, {}, set())
    for index, each in bills(problem, draft).items():
        if all(work_id == work.id or not share for work_id, share in draft.shares[index].items()):
            continue
        site, counts = problem.sites[index], draft.counts[index]
        for instances, count, cost in zip(site.classes, counts, each.class_cost, strict=True):
            if instances.is_new:
                used.capacity[site.offer_key] = used.capacity.get(site.offer_key, 0) + count
                used.quota[site.quota] = used.quota.get(site.quota, 0) + count * site.units
                used.budget[site.pool.project] = used.budget.get(site.pool.project, 0) + cost
            used.rentals.update(instances.rentals[:count])
    snapshot = view.snapshot
    return msgspec.structs.replace(
        snapshot,
        offers=tuple(_less_capacity(offer, used.capacity.get(offer.key, 0)) for offer in snapshot.offers),
        quotas=tuple(
            Quota(market=each.market, remaining=each.remaining - used.quota.get(each.market, 0))
            for each in snapshot.quotas
        ),
        budgets=tuple(
            Budget(project=each.project, remaining_nano=each.remaining_nano - used.budget.get(each.project, 0))
            for each in snapshot.budgets
        ),
        running=tuple(rental for rental in snapshot.running if rental.rental_id not in used.rentals),
    )


@dataclass(frozen=True, slots=True)
class _Used:
    capacity: dict[str, int]
    quota: dict[str, int]
    budget: dict[str, int]
    rentals: set[str]


def _less_capacity(offer: OfferView, used: int) -> OfferView:
    if not used:
        return offer
    return msgspec.structs.replace(offer, capacity=(1 if offer.capacity is None else offer.capacity) - used)


def relaxations(work: Work, snapshot: Snapshot, verdicts: tuple[Verdict, ...]) -> tuple[Relaxation, ...]:
    """What would help: a later deadline, more money, data farther away, one more country. Empty when none of them alone does."""
    if alone(snapshot, work).is_whole:
        return ()
    found = (
        _later(work, snapshot, verdicts),
        _dearer(work, snapshot),
        _farther(work, snapshot, verdicts),
        _slower(work, snapshot, verdicts),
        one_more_country(work, snapshot, verdicts),
    )
    return tuple(each for each in found if each)


def _later(work: Work, snapshot: Snapshot, verdicts: tuple[Verdict, ...]) -> Relaxation | None:
    """The earliest deadline by which the work can be done, found by halving to a minute or to 1 % of the time."""
    if not any(verdict.is_eligible or {each.rule for each in verdict.broken} == {"deadline"} for verdict in verdicts):
        return None
    now, current = snapshot.now_us, max(work.deadline_us, snapshot.now_us)

    def by(deadline_us: int) -> Outcome:
        return alone(snapshot, msgspec.structs.replace(work, deadline_us=deadline_us))

    early, late = current, now + max(2 * (current - now), MINUTE_US)
    while not by(late).is_whole:
        early, late = late, now + 2 * (late - now)
        if late - now > FARTHEST_US:
            return None
    while late - early > max(MINUTE_US, (late - now) // 100):
        middle = (early + late) // 2
        early, late = (early, middle) if by(middle).is_whole else (middle, late)
    late = now + -(-(late - now) // MINUTE_US) * MINUTE_US
    outcome = by(late)
    if not outcome.is_whole:
        return None
    minutes = -(-(late - work.deadline_us) // MINUTE_US)
    message = (
        f"with a deadline {minutes} minutes later it would run on {outcome.offer_key} for {_usd(outcome.cost_nano)}"
    )
    return Relaxation(
        field="deadline_us",
        current=str(work.deadline_us),
        needed=str(late),
        offer_key=outcome.offer_key,
        cost_nano=outcome.cost_nano,
        message=message,
    )


def _dearer(work: Work, snapshot: Snapshot) -> Relaxation | None:
    """The limit that the cheapest way needs."""
    if work.max_nano is None:
        return None
    free = alone(snapshot, msgspec.structs.replace(work, max_nano=None))
    offer = next((each for each in snapshot.offers if each.key == free.offer_key), None)
    reserve = stop_reserve(snapshot, offer.price_nano_hour or 0, offer.granularity_s) if offer else 0
    needed = work.progress.spent_nano + free.cost_nano + reserve
    outcome = alone(snapshot, msgspec.structs.replace(work, max_nano=needed))
    if not free.is_whole or not outcome.is_whole or needed <= work.max_nano:
        return None
    return Relaxation(
        field="max_nano",
        current=str(work.max_nano),
        needed=str(needed),
        offer_key=outcome.offer_key,
        cost_nano=outcome.cost_nano,
        message=f"with {_usd(needed)} instead of {_usd(work.max_nano)} it would run on {outcome.offer_key}",
    )


def _farther(work: Work, snapshot: Snapshot, verdicts: tuple[Verdict, ...]) -> Relaxation | None:
    """The least round trip to the data that would do; nothing cures one that is unknown."""
    far = {each.offer.rtt_ms for each in verdicts if {broken.rule for broken in each.broken} == {"latency"}}
    for rtt_ms in sorted(each for each in far if each is not None):
        outcome = alone(snapshot, msgspec.structs.replace(work, max_rtt_ms=rtt_ms))
        if outcome.is_whole:
            return Relaxation(
                field="max_rtt_ms",
                current=str(work.max_rtt_ms),
                needed=str(rtt_ms),
                offer_key=outcome.offer_key,
                cost_nano=outcome.cost_nano,
                message=f"if its data might be {rtt_ms} ms away and back, not {work.max_rtt_ms}, it would run on "
                f"{outcome.offer_key} for {_usd(outcome.cost_nano)}",
            )
    return None


def _slower(work: Work, snapshot: Snapshot, verdicts: tuple[Verdict, ...]) -> Relaxation | None:
    """The least time for a request, to 1 %, that would do: where only that forbids it, or slows it down too much."""
    if work.max_p95_ms is None:
        return None

    def within(p95_ms: int) -> Outcome:
        return alone(snapshot, msgspec.structs.replace(work, max_p95_ms=p95_ms))

    view, low, high = View(snapshot), work.max_p95_ms, 0
    for each in verdicts:
        full = view.full_rate(work, each.offer)
        if full is not None and full.sequences >= 1:
            high = max(high, view.p95_ms(work, each.offer, math.floor(full.sequences)) or 0)
    if high <= low or not within(high).is_whole:
        return None
    while high - low > max(1, low // 100):
        middle = (low + high) // 2
        low, high = (low, middle) if within(middle).is_whole else (middle, high)
    outcome = within(high)
    return Relaxation(
        field="max_p95_ms",
        current=str(work.max_p95_ms),
        needed=str(high),
        offer_key=outcome.offer_key,
        cost_nano=outcome.cost_nano,
        message=f"if 95 of 100 requests might take {high} ms, not {work.max_p95_ms}, it would run on {outcome.offer_key} for "
        f"{_usd(outcome.cost_nano)}",
    )


def one_more_country(work: Work, snapshot: Snapshot, verdicts: tuple[Verdict, ...]) -> Relaxation | None:
    """The one country that, added to those allowed, gives the cheapest place. Every other rule of the policy stays."""
    policy = snapshot.policies[work.policy_hash]
    allowed = next((rule for rule in policy.rules if rule.field == "country" and rule.effect == "allow"), None)
    if allowed is None:
        return None
    best: tuple[int, str, Outcome] | None = None
    for country in sorted(_countries(verdicts, snapshot, policy, allowed)):
        wider = _with_country(policy, allowed, country)
        trial = msgspec.structs.replace(snapshot, policies={**snapshot.policies, work.policy_hash: wider})
        outcome = alone(trial, work)
        if outcome.is_whole and (best is None or outcome.cost_nano < best[0]):
            best = (outcome.cost_nano, country, outcome)
    if best is None:
        return None
    cost, country, outcome = best
    return Relaxation(
        field="residency.country",
        current=",".join(allowed.values),
        needed=",".join((*allowed.values, country)),
        offer_key=outcome.offer_key,
        cost_nano=cost,
        message=f"if {country} were allowed too, it would run on {outcome.offer_key} for {_usd(cost)}; compliance decides",
    )


def _countries(verdicts: tuple[Verdict, ...], snapshot: Snapshot, policy: Policy, allowed: PolicyRule) -> Iterator[str]:
    """Countries of offers that residency alone keeps out, and that allowing the country would let in."""
    seen: set[str] = set()
    for verdict in verdicts:
        facts = snapshot.facts[verdict.offer.facts_hash]
        if {each.rule for each in verdict.broken} != {"residency"} or facts.country is None or facts.country in seen:
            continue
        if evaluate(_with_country(policy, allowed, facts.country), facts, snapshot.now_us).outcome == "allow":
            seen.add(facts.country)
            yield facts.country


def _with_country(policy: Policy, allowed: PolicyRule, country: str) -> Policy:
    wider = msgspec.structs.replace(allowed, values=(*allowed.values, country))
    return msgspec.structs.replace(policy, rules=tuple(wider if rule is allowed else rule for rule in policy.rules))


def lifted(work: Work, snapshot: Snapshot) -> dict[Limit, tuple[Snapshot, Work]]:
    """The same question with one limit taken away, by the word for what a work waits on."""
    late = msgspec.structs.replace(work, deadline_us=snapshot.now_us + FARTHEST_US)
    return {
        "quota": (msgspec.structs.replace(snapshot, quotas=()), work),
        "budget": (msgspec.structs.replace(snapshot, budgets=(), refusals=()), work),
        "price_ceiling": (snapshot, msgspec.structs.replace(work, max_nano=None)),
        "deadline": (snapshot, late),
    }


def _usd(nano: int) -> str:
    return f"${from_nano(nano):.4f}" if nano >= 1_000_000 else f"${from_nano(nano):f}"
