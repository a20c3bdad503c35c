"""The independent checker: does this plan keep every hard rule of this snapshot, and is its money right to the last nano-dollar?

It shares no code with the solver: only the contract (`types`) and the residency evaluator, which there is one of. It is
meant to be read beside the contract, top to bottom; how long things take (`check_times`) is its own, too.
A plan that any violation is found in is not carried out.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction

from msgspec import structs

from solver import check_times as times
from solver.residency import evaluate, of_job
from solver.types import Assignment, OfferView, Plan, Running, Snapshot, Start, Work, sha256

GB = 10**9

Place = tuple[str, str, str, str, int]  # offer key, project, model, precision and turn: what one instance serves


@dataclass(frozen=True, slots=True)
class Violation:
    """A broken rule. `rule` is a stable name; `work_id`, `offer_key` and `rental_id` say where."""

    rule: str
    message: str
    work_id: str | None = None
    offer_key: str | None = None
    rental_id: str | None = None


def check(snapshot: Snapshot, plan: Plan) -> list[Violation]:
    """Everything that is wrong with the plan; empty means that it may be carried out."""
    found = [*_references(snapshot, plan), *_variants(snapshot, plan)]
    if found:
        return found  # what follows looks things up
    book = _Book(snapshot, plan)
    for rule in (
        _identity,
        _rentals,
        _starts,
        _later,
        _limits_of_offers,
        _shares,
        _places,
        _times_and_costs,
        _money_limits,
        _totals,
        _funnels,
        _choices,
    ):
        found.extend(rule(book))
    return found


class _Book:
    """The plan by place, and the snapshot by id."""

    def __init__(self, snapshot: Snapshot, plan: Plan) -> None:
        self.snapshot = snapshot
        self.plan = plan
        self.works = {work.id: work for work in snapshot.works}
        self.models = dict(snapshot.models)
        self._take_variants()
        self.offers = {offer.key: offer for offer in snapshot.offers}
        self.speeds = {(each.model, each.precision, each.accelerator): each for each in snapshot.throughput}
        self.starts: dict[Place, list[Start]] = defaultdict(list)
        for start in plan.starts:
            self.starts[_place(start)].append(start)
        self.kept: dict[Place, list[Running]] = defaultdict(list)
        for rental in snapshot.running:
            if rental.rental_id in plan.keeps:
                self.kept[_place(rental)].append(rental)
        self.queues: dict[Place, list[Assignment]] = defaultdict(list)
        for each in sorted(plan.assignments, key=lambda each: each.order):
            work = self.works[each.work_id]
            self.queues[each.offer_key, work.project, work.model, work.precision, each.turn].append(each)

    def _take_variants(self) -> None:
        """From here on a work is served by the variant that the plan names for it; `_variants` has looked whether it may be."""
        for chosen in self.plan.variants:
            work = self.works[chosen.work_id]
            name = (chosen.model, chosen.precision)
            self.works[work.id] = structs.replace(work, model=chosen.model, precision=chosen.precision)
            if name == (work.model, work.precision):
                continue
            # what is known of the work's own model is not known of another
            self.models.pop(work.id, None)
            facts = next((each.facts for each in work.alternatives if (each.model, each.precision) == name), None)
            if facts is not None:
                self.models[work.id] = facts

    def instances(self, place: Place) -> list[tuple[int, int]]:
        """(microseconds until ready, how many) of everything that serves this place."""
        groups = [(rental.ready_in_s * times.SECOND, 1) for rental in self.kept.get(place, [])]
        for start in self.starts.get(place, []):
            if start.count > 0:  # `_starts` reports the others
                groups.append((self.ready(start), start.count))
        return sorted(groups)

    def ready(self, start: Start) -> int:
        """Microseconds from now until a start gives its first token."""
        return start.from_us - self.snapshot.now_us + times.start_up(self.offers[start.offer_key], start.model)

    def occupied(self, place: Place) -> int:
        """Microseconds from now until the place is surely free again: its work with long outputs, and its start-up."""
        load = sum((self.cautious(each) or Fraction(0) for each in self.queues.get(place, [])), Fraction(0))
        groups = self.instances(place)
        return max(times.ends(groups, load) if groups else 0, *(self.ready(start) for start in self.starts[place]))

    def busy(self, each: Assignment, tokens_out: int, *, is_cautious: bool = False) -> Fraction | None:
        """Instance-microseconds of an assignment, interruptions included; None when nobody knows how fast it is. `is_cautious`:
        at the speed that deadlines count on, where that is less than the expected one."""
        work, offer = self.works[each.work_id], self.offers[each.offer_key]
        speed = self.speeds.get((work.model, work.precision, offer.accelerator))
        if speed is None:
            return None
        out_per_s = speed.output_per_s * times.paced(speed, each.concurrency)
        whole = times.whole_busy(
            work.input_tokens, tokens_out, speed.input_per_s, out_per_s, times.slow_down(offer, work.model)
        )
        if is_cautious and 0 < speed.cautious < 1:
            whole = math.ceil(whole / speed.cautious)
        return Fraction(each.share_ppm * whole, times.WHOLE)

    def moving(self, each: Assignment) -> int:
        """Nano-USD for the data of an assignment: the whole work's gigabytes, then its part, both rounded up."""
        work, offer = self.works[each.work_id], self.offers[each.offer_key]
        nano = work.input_bytes * offer.ingress_nano_gb + work.output_bytes * offer.egress_nano_gb
        return math.ceil(Fraction(each.share_ppm * math.ceil(Fraction(nano, GB)), times.WHOLE))

    def expected(self, each: Assignment) -> Fraction | None:
        return self.busy(each, self.works[each.work_id].output_tokens_p50)

    def cautious(self, each: Assignment) -> Fraction | None:
        work = self.works[each.work_id]
        return self.busy(each, max(work.output_tokens_p50, work.output_tokens_p90), is_cautious=True)


def _place(each: Start | Running) -> Place:
    turn = each.turn if isinstance(each, Start) else 0  # running rentals serve the first
    return (each.offer_key, each.project, each.model, each.precision, turn)


def _references(snapshot: Snapshot, plan: Plan) -> Iterator[Violation]:
    """Everything that the plan names exists, and is named once."""
    works, offers = {work.id for work in snapshot.works}, {offer.key for offer in snapshot.offers}
    rentals = {rental.rental_id for rental in snapshot.running}
    keys = [start.offer_key for start in plan.starts] + [choice.offer_key for choice in plan.choices]
    for key in sorted({*keys, *(each.offer_key for each in plan.assignments)} - offers):
        yield Violation("unknown_offer", f"offer {key} is not in the snapshot", offer_key=key)
    named = [each.work_id for each in plan.assignments] + [choice.work_id for choice in plan.choices]
    for work_id in sorted({*named, *(each.work_id for each in plan.unplaced), *plan.funnels} - works):
        yield Violation("unknown_work", f"work {work_id} is not in the snapshot", work_id=work_id)
    for rental_id in (*plan.keeps, *plan.drains):
        if rental_id not in rentals:
            yield Violation("unknown_rental", f"rental {rental_id} is not running", rental_id=rental_id)
    for (place, from_us), often in Counter((_place(start), start.from_us) for start in plan.starts).items():
        if often > 1:
            yield Violation("duplicate_start", f"{place} is started {often} times at {from_us}", offer_key=place[0])
    for (work_id, key), often in Counter((each.work_id, each.offer_key) for each in plan.assignments).items():
        if often > 1:
            yield Violation("duplicate_assignment", f"{work_id} is assigned to {key} {often} times", work_id, key)


def _variants(snapshot: Snapshot, plan: Plan) -> Iterator[Violation]:
    """Each work that has alternatives is served by one variant, which is its own or one of these; others have no choice."""
    chosen = Counter(each.work_id for each in plan.variants)
    works = {work.id: work for work in snapshot.works}
    for work in snapshot.works:
        if chosen[work.id] != (1 if work.alternatives else 0):
            message = (
                f"{chosen[work.id]} variants are chosen for {work.id}, which has {len(work.alternatives)} alternatives"
            )
            yield Violation("variant", message, work.id)
    for each in plan.variants:
        work_of = works.get(each.work_id)
        if work_of is None:
            yield Violation("unknown_work", f"work {each.work_id} is not in the snapshot", work_id=each.work_id)
            continue
        allowed = [(work_of.model, work_of.precision), *((one.model, one.precision) for one in work_of.alternatives)]
        if (each.model, each.precision) not in allowed:
            message = f"{each.work_id} may not be served by {each.model} ({each.precision})"
            yield Violation("variant", message, each.work_id)


def _identity(book: _Book) -> Iterator[Violation]:
    actual = sha256(book.snapshot)
    if book.plan.snapshot_sha256 != actual:
        yield Violation("snapshot", f"the plan is for snapshot {book.plan.snapshot_sha256}, not {actual}")
    if book.plan.version != book.snapshot.version:
        yield Violation("version", f"plan version {book.plan.version}, snapshot version {book.snapshot.version}")


def _rentals(book: _Book) -> Iterator[Violation]:
    """Every running rental is either kept or drained, and a kept one has work of its own pool."""
    named = Counter((*book.plan.keeps, *book.plan.drains))
    for rental in book.snapshot.running:
        if named[rental.rental_id] != 1:
            message = f"rental {rental.rental_id} is kept or drained {named[rental.rental_id]} times, not once"
            yield Violation("rental_partition", message, rental_id=rental.rental_id)
    for place, kept in book.kept.items():
        if not book.queues.get(place):
            for rental in kept:
                message = f"rental {rental.rental_id} is kept without work of its pool"
                yield Violation("idle_rental", message, offer_key=place[0], rental_id=rental.rental_id)


def _starts(book: _Book) -> Iterator[Violation]:
    """Only offers that may be rented are, and only for a pool that has work there."""
    for place, starts in book.starts.items():
        offer, key = book.offers[place[0]], place[0]
        for start in starts:
            if start.count < 1:
                yield Violation("count", f"{start.count} instances are started on {key}", offer_key=key)
        if offer.excluded is not None:
            yield Violation("excluded", f"{key} is excluded: {offer.excluded}", offer_key=key)
        if offer.pricing == "token" and offer.per_million_nano is None:
            yield Violation("token_priced", f"{key} sells tokens, and nothing is bought of it", offer_key=key)
        elif offer.price_nano_hour is None or offer.price_nano_hour < 0 or not (offer.price_nano_hour or offer.sunk):
            yield Violation("price_unknown", f"{key} has price {offer.price_nano_hour}", offer_key=key)
        yield from _tokens(book, place)
        if not book.queues.get(place):
            yield Violation("idle_start", f"nothing is assigned to what is started on {place}", offer_key=key)


def _tokens(book: _Book, place: Place) -> Iterator[Violation]:
    """Where tokens are bought, an hour's price must be what the hour's tokens cost: else the plan's cost is not their price."""
    offer = book.offers[place[0]]
    speed = book.speeds.get((place[2], place[3], offer.accelerator))
    if offer.pricing != "token" or offer.per_million_nano is None or speed is None:
        return
    hour = offer.price_nano_hour or 0
    for per_s, nano in zip((speed.input_per_s, speed.output_per_s), offer.per_million_nano, strict=True):
        if not math.isclose(per_s * 3600 * nano / 1_000_000, hour, rel_tol=1e-6, abs_tol=1.0):
            message = f"{offer.key} costs {hour} nano-USD an hour, its tokens {per_s * 3600 * nano / 1_000_000:.0f}"
            yield Violation("token_rate", message, offer_key=offer.key)


def _later(book: _Book) -> Iterator[Violation]:
    """What waits is something that is started, begins when it says, and has nothing of its pool running there."""
    for each in book.plan.later:
        place = (each.offer_key, each.project, each.model, each.precision, 0)
        begins = {start.from_us for start in book.starts.get(place, [])}
        if begins != {each.begin_us} or each.begin_us <= book.snapshot.now_us or book.kept.get(place):
            message = f"{place} is to begin at {each.begin_us}, its starts at {sorted(begins)}"
            yield Violation("later", message, offer_key=each.offer_key)


def _limits_of_offers(book: _Book) -> Iterator[Violation]:
    """At no moment more instances of an offer than it has, nor more units of a quota than it has: one may follow another."""
    by_offer: dict[str, list[tuple[int, int]]] = defaultdict(list)
    by_quota: dict[str, list[tuple[int, int]]] = defaultdict(list)
    for place, starts in book.starts.items():
        until = book.occupied(place)
        for start in starts:
            ends = [(start.from_us - book.snapshot.now_us, start.count), (until, -start.count)]
            by_offer[start.offer_key].extend(ends)
            offer = book.offers[start.offer_key]
            by_quota[offer.quota or offer.market].extend((at, count * offer.quota_units) for at, count in ends)
    for key, changes in by_offer.items():
        capacity, count = book.offers[key].capacity, _most_at_once(changes)
        most = 1 if capacity is None else max(0, capacity)
        if count > most:
            yield Violation("capacity", f"{count} instances of {key} are started, it has {most}", offer_key=key)
    for quota in book.snapshot.quotas:
        count = _most_at_once(by_quota[quota.market])
        if count > max(0, quota.remaining):
            message = f"{count} units of the quota {quota.market} are started, {quota.remaining} are granted"
            yield Violation("quota", message)


def _most_at_once(changes: list[tuple[int, int]]) -> int:
    """The highest level of (moment, change) pairs; what ends at a moment makes room for what begins at it."""
    level = most = 0
    for _, change in sorted(changes):
        level += change
        most = max(most, level)
    return most


def _shares(book: _Book) -> Iterator[Violation]:
    """The parts of each work are positive and sum to the whole, or the work is listed as unplaced."""
    sums: Counter[str] = Counter()
    for each in book.plan.assignments:
        sums[each.work_id] += each.share_ppm
        if not 0 < each.share_ppm <= times.WHOLE:
            yield Violation("share", f"a share of {each.share_ppm} millionths", each.work_id, each.offer_key)
    listed = Counter(each.work_id for each in book.plan.unplaced)
    for work_id in book.works:
        if sums[work_id] > times.WHOLE:
            yield Violation("share_sum", f"{sums[work_id]} millionths of {work_id} are assigned", work_id)
        elif sums[work_id] < times.WHOLE and listed[work_id] != 1:
            message = f"{sums[work_id]} millionths of {work_id} are assigned; as unplaced it is listed {listed[work_id]} times"
            yield Violation("share_sum", message, work_id)
        elif sums[work_id] == times.WHOLE and listed[work_id]:
            yield Violation("unplaced", f"{work_id} is listed as unplaced and wholly assigned", work_id)
    for each_unplaced in book.plan.unplaced:
        if not each_unplaced.reasons:
            yield Violation("unplaced", f"{each_unplaced.work_id} waits without a reason", each_unplaced.work_id)


def _begun_for(work: Work, offer: OfferView) -> Iterator[Violation]:
    if not offer.is_open_to(work.project):
        yield Violation("account", f"it is not rented for project {work.project}", work.id, offer.key)
    if why := offer.held_back.get(work.project):
        yield Violation("excluded", f"it is held back for project {work.project}: {why}", work.id, offer.key)


def _places(book: _Book) -> Iterator[Violation]:
    """Work runs only where residency allows it, at a known speed, on instances of its own pool."""
    for place, queue in book.queues.items():
        offer = book.offers[place[0]]
        facts = book.snapshot.facts[offer.facts_hash]
        if not book.instances(place):
            message = f"{len(queue)} works are assigned to {place}, where no instance is started or kept"
            yield Violation("instances", message, queue[0].work_id, offer.key)
        for each in queue:
            work = book.works[each.work_id]
            of_work = of_job(facts, book.models.get(work.id), work.deadline_us)
            decision = evaluate(book.snapshot.policies[work.policy_hash], of_work, book.snapshot.now_us)
            if decision.outcome != "allow":
                yield Violation("residency", f"{decision.reasons[0]}", each.work_id, offer.key)
            if work.max_rtt_ms is not None and not (offer.rtt_ms is not None and offer.rtt_ms <= work.max_rtt_ms):
                message = f"to its data and back takes {offer.rtt_ms} ms, it allows {work.max_rtt_ms}"
                yield Violation("latency", message, each.work_id, offer.key)
            yield from _answered_soon(book, each)
            if place in book.starts:
                yield from _begun_for(work, offer)
            if unfit := offer.unfit.get(each_model := work.model):
                yield Violation("unfit", f"{each_model} cannot be served there: {unfit}", each.work_id, offer.key)
            if book.expected(each) is None:
                yield Violation("model", f"nobody knows how fast it is on {offer.accelerator}", each.work_id, offer.key)
        if [each.order for each in queue] != list(range(len(queue))):
            yield Violation("order", f"the queue at {place} is not numbered from 0 on", offer_key=offer.key)


def _answered_soon(book: _Book, each: Assignment) -> Iterator[Violation]:
    """A work whose requests have a p95 to keep is given so few at once that they do; others are given no such number."""
    work = book.works[each.work_id]
    speed = book.speeds.get((work.model, work.precision, book.offers[each.offer_key].accelerator))
    if work.max_p95_ms is None:
        if each.concurrency is not None:
            message = f"it is held to {each.concurrency} requests at once, and has no max_p95_ms"
            yield Violation("concurrency", message, each.work_id, each.offer_key)
    elif speed is not None:
        at_once = each.concurrency or 0
        known = 1 <= at_once <= speed.sequences
        if not known or times.p95_s(work, speed, at_once) * 1000 > work.max_p95_ms * (1 + 1e-9):
            message = f"with {at_once} requests at once p95 is not known to be within {work.max_p95_ms} ms"
            yield Violation("latency", message, each.work_id, each.offer_key)


def _times_and_costs(book: _Book) -> Iterator[Violation]:
    """At every place: in time even when outputs are long, and each end and each cost is what the expected ones give."""
    for place, queue in book.queues.items():
        groups = book.instances(place)
        loads = [(each, book.expected(each), book.cautious(each)) for each in queue]
        if not groups or any(expected is None for _, expected, _ in loads):
            continue  # reported by `_places`
        yield from _in_time(book, groups, loads)
        yield from _costs(book, place, groups, loads)


_Loads = list[tuple[Assignment, Fraction | None, Fraction | None]]


def _in_time(book: _Book, groups: list[tuple[int, int]], loads: _Loads) -> Iterator[Violation]:
    now, expected_so_far, cautious_so_far = book.snapshot.now_us, Fraction(0), Fraction(0)
    for each, expected, cautious in loads:
        expected_so_far += expected or 0
        cautious_so_far += cautious or 0
        left = book.works[each.work_id].deadline_us - now
        offered = sum(count * max(0, left - ready) for ready, count in groups)
        if cautious_so_far > offered:
            message = (
                f"{each.work_id} may be late: {cautious_so_far} µs of work are due, {offered} µs are offered until then"
            )
            yield Violation("deadline", message, each.work_id, each.offer_key)
        end = now + times.ends(groups, expected_so_far)
        if each.end_us != end:
            yield Violation("end", f"end {each.end_us} is not {end}", each.work_id, each.offer_key)


def _costs(book: _Book, place: Place, groups: list[tuple[int, int]], loads: _Loads) -> Iterator[Violation]:
    load = sum((expected or Fraction(0) for _, expected, _ in loads), Fraction(0))
    end, key = times.ends(groups, load), place[0]
    total = sum(
        times.hourly(each.price_nano_hour, max(times.seconds(end), each.ready_in_s))
        for each in book.kept.get(place, [])
    )
    now = book.snapshot.now_us
    for start in book.starts.get(place, []):
        until = now + max(end, book.ready(start))
        cost = _start_cost(book.offers[key], start.count, until - start.from_us)
        cost += start.count * _once(book.offers[key], book.snapshot.fetched_bytes.get(start.model, 0))
        total += cost
        if start.cost_nano != cost:
            yield Violation(
                "start_cost", f"starting {place} costs {cost}, not {start.cost_nano} nano-USD", offer_key=key
            )
        if start.from_us < now or start.until_us != until:
            yield Violation(
                "start_times", f"{place} is not needed from {start.from_us} until {start.until_us}", offer_key=key
            )
    moving = {each.work_id: book.moving(each) for each, _, _ in loads}
    if sum(each.cost_nano for each, _, _ in loads) != total + sum(moving.values()):
        yield Violation(
            "assignment_cost", f"the works at {place} do not bear its cost of {total} nano-USD", offer_key=key
        )
    for each, expected, _ in loads:
        if abs(each.cost_nano - moving[each.work_id] - total * (expected or 0) / load) >= 1:
            message = f"{each.cost_nano} nano-USD is not this work's part of {total}"
            yield Violation("assignment_cost", message, each.work_id, key)


def _start_cost(offer: OfferView, count: int, rented: int) -> int:
    """Billed until the work ends or the machine is ready, whichever is later, and the minimum, in whole increments."""
    seconds = max(times.seconds(rented), offer.minimum_s)
    billed = -(-seconds // offer.granularity_s) * offer.granularity_s
    return count * times.hourly(offer.price_nano_hour or 0, billed)


def _once(offer: OfferView, fetched: int) -> int:
    """What a start costs beyond its time: what of the deposit is not returned, and what it downloads."""
    return offer.lost_nano + math.ceil(Fraction(fetched * offer.ingress_nano_gb, GB))


def _money_limits(book: _Book) -> Iterator[Violation]:
    by_work: Counter[str] = Counter()
    by_project: Counter[str] = Counter()
    for each in book.plan.assignments:
        by_work[each.work_id] += each.cost_nano
    for start in book.plan.starts:
        by_project[start.project] += start.cost_nano
    for work in book.snapshot.works:
        if (
            work.max_nano is not None
            and by_work[work.id]
            and by_work[work.id] + work.progress.spent_nano > work.max_nano
        ):
            message = f"{work.progress.spent_nano} spent and {by_work[work.id]} planned exceed {work.max_nano} nano-USD"
            yield Violation("work_limit", message, work.id)
    for budget in book.snapshot.budgets:
        if by_project[budget.project] > max(0, budget.remaining_nano):
            message = (
                f"project {budget.project} would commit {by_project[budget.project]}, it has {budget.remaining_nano}"
            )
            yield Violation("project_budget", message)


def _totals(book: _Book) -> Iterator[Violation]:
    total = sum(each.cost_nano for each in book.plan.assignments)
    if book.plan.cost_nano != total:
        yield Violation("plan_cost", f"the plan costs {total}, not {book.plan.cost_nano} nano-USD")
    if not 0 <= book.plan.bound_nano <= book.plan.cost_nano:
        yield Violation("bound", f"a bound of {book.plan.bound_nano} for a cost of {book.plan.cost_nano} nano-USD")


def _funnels(book: _Book) -> Iterator[Violation]:
    """Each work has a funnel; its counts sum to the number of offers, and what it calls eligible covers what is used. A plan that
    was not asked for words may have none at all."""
    if not book.snapshot.words and not book.plan.funnels:
        return
    used: dict[str, set[str]] = defaultdict(set)
    for each in book.plan.assignments:
        used[each.work_id].add(each.offer_key)
    for work_id in book.works:
        steps = book.plan.funnels.get(work_id)
        if not steps or steps[-1].rule != "eligible":
            yield Violation("funnel", f"{work_id} has no funnel that ends in eligible", work_id)
            continue
        counted = sum(step.count for step in steps)
        if counted != len(book.offers) or min(step.count for step in steps) < 0:
            yield Violation("funnel", f"the funnel of {work_id} counts {counted} of {len(book.offers)} offers", work_id)
        if steps[-1].count < len(used[work_id]):
            message = f"{work_id} uses {len(used[work_id])} offers and {steps[-1].count} are called eligible"
            yield Violation("funnel", message, work_id)


def _choices(book: _Book) -> Iterator[Violation]:
    """Each work that has a place is explained once, by an offer that it uses; of a plan without words, none is."""
    if not book.snapshot.words and not book.plan.choices:
        return
    used = {(each.work_id, each.offer_key) for each in book.plan.assignments}
    explained = Counter(choice.work_id for choice in book.plan.choices)
    for work_id in {work_id for work_id, _ in used}:
        if explained[work_id] != 1:
            yield Violation("choice", f"{work_id} is explained {explained[work_id]} times", work_id)
    for choice in book.plan.choices:
        if (choice.work_id, choice.offer_key) not in used:
            yield Violation(
                "choice", f"{choice.work_id} does not run on {choice.offer_key}", choice.work_id, choice.offer_key
            )
