"""Look-ups over one snapshot, made once a solve: what belongs together, what residency decides, how long work takes."""

from __future__ import annotations

import itertools
import math
from collections import ChainMap, Counter
from collections.abc import Iterator, Mapping, Sequence

from solver.durations import busy_both, slow_down_ppm
from solver.errors import BadSnapshot
from solver.latency import most_at_once, paced, seconds
from solver.residency import Evaluator, ModelFacts, of_job
from solver.residency.types import Decision, Facts
from solver.schedule import Pool
from solver.types import VERSION, OfferView, Refusal, Running, Snapshot, Throughput, Work

DAY_US = 86_400_000_000


class View:
    """A snapshot with its references resolved. Raises BadSnapshot when the snapshot contradicts itself."""

    def __init__(self, snapshot: Snapshot) -> None:
        problems = list(contradictions(snapshot))
        if problems:
            raise BadSnapshot("; ".join(problems[:5]))
        self.snapshot = snapshot
        self.offers = {offer.key: offer for offer in snapshot.offers}
        self.quotas = {quota.market: quota.remaining for quota in snapshot.quotas}
        self.budgets = {budget.project: budget.remaining_nano for budget in snapshot.budgets}
        self._refused: dict[str, dict[str, str]] = {}
        self._too_dear: dict[str, tuple[int, str]] = {}
        for refusal in snapshot.refusals:
            self._refuse(refusal)
        self.running: dict[tuple[str, Pool], list[Running]] = {}
        for rental in snapshot.running:
            pool = Pool(rental.project, rental.model, rental.precision)
            self.running.setdefault((rental.offer_key, pool), []).append(rental)
        self._dear: dict[tuple[int, str], dict[str, str]] = {}
        self._rates = {(each.model, each.precision, each.accelerator): each for each in snapshot.throughput}
        self._at_once: dict[tuple[str, str], int] = {}
        self._slow: dict[tuple[str, str], int] = {}
        self._evaluators: dict[str, Evaluator] = {}
        self._decisions: dict[tuple[str, str, ModelFacts | None, int | None], Decision] = {}
        self._busy: dict[tuple[str, str, int], tuple[int, int]] = {}

    def rate(self, work: Work, offer: OfferView) -> Throughput | None:
        """Throughput of the work's model on the offer's accelerator, with as many requests at once as its `max_p95_ms` allows
        (one at least); None when nobody knows it."""
        full = self.full_rate(work, offer)
        if full is None or work.max_p95_ms is None:
            return full
        return paced(full, self.at_once(work, offer) or 1)

    def full_rate(self, work: Work, offer: OfferView) -> Throughput | None:
        """The same with as many requests at once as the engine takes."""
        return self._rates.get((work.model, work.precision, offer.accelerator))

    def at_once(self, work: Work, offer: OfferView) -> int | None:
        """How many requests of the work at once keep its `max_p95_ms` there; 0: not even one, or nobody knows. None where there
        is no such limit."""
        full = self.full_rate(work, offer)
        if full is None or work.max_p95_ms is None:
            return None if work.max_p95_ms is None else 0
        key = (work.id, offer.accelerator)
        if key not in self._at_once:
            self._at_once[key] = most_at_once(work, full)
        return self._at_once[key]

    def p95_ms(self, work: Work, offer: OfferView, at_once: int) -> int | None:
        """p95 of a request with so many at once, rounded up; None where nobody knows."""
        full = self.full_rate(work, offer)
        return None if full is None or full.sequences < 1 else math.ceil(seconds(work, full, at_once) * 1000 - 1e-6)

    def busy(self, work: Work, offer: OfferView) -> tuple[int, int] | None:
        """Expected and cautious microseconds of the whole work on one instance of the offer, or None (see `rate`)."""
        rate = self.rate(work, offer)
        if rate is None:
            return None
        slow = self._slow_down(offer, work.model)
        key = (work.id, offer.accelerator, slow)
        if key not in self._busy:
            self._busy[key] = busy_both(work, rate, slow)
        return self._busy[key]

    def _slow_down(self, offer: OfferView, model: str) -> int:
        key = (offer.key, model)
        if key not in self._slow:
            self._slow[key] = slow_down_ppm(offer, model)
        return self._slow[key]

    def decision(self, work: Work, offer: OfferView) -> Decision:
        """What residency says, evaluated once per (policy, facts), and per model and deadline where the policy asks for them."""
        evaluator = self._evaluator(work)
        model, until_us = self._of_work(work, evaluator)
        key = (work.policy_hash, offer.facts_hash, model, until_us)
        if key not in self._decisions:
            self._decisions[key] = evaluator.decide(self._facts(offer, model, until_us), self.snapshot.now_us)
        return self._decisions[key]

    def allows(self, work: Work, offer: OfferView) -> bool:
        """Whether `decision` allows it, without its words: these are most of what it costs to ask for whole tables."""
        evaluator = self._evaluator(work)
        return not evaluator.codes(self._facts(offer, *self._of_work(work, evaluator)), self.snapshot.now_us)

    def standing(self, work: Work) -> str:
        """What residency decides by besides the place, as a name: the work's policy and, where that asks for them, its model's
        facts and the day of its deadline. Of works of one name the one with the latest deadline is decided hardest."""
        evaluator = self._evaluator(work)
        if not evaluator.asks_model and not evaluator.asks_until:
            return work.policy_hash
        model, until_us = self._of_work(work, evaluator)
        day = None if until_us is None else until_us // DAY_US
        return f"{work.policy_hash} {model} {day}"

    def _evaluator(self, work: Work) -> Evaluator:
        evaluator = self._evaluators.get(work.policy_hash)
        if evaluator is None:
            evaluator = self._evaluators[work.policy_hash] = Evaluator(self.snapshot.policies[work.policy_hash])
        return evaluator

    def _of_work(self, work: Work, evaluator: Evaluator) -> tuple[ModelFacts | None, int | None]:
        """What the policy asks of the work's model, and until when what is held must be good; None where it does not ask."""
        return (
            self.snapshot.models.get(work.id) if evaluator.asks_model else None,
            work.deadline_us if evaluator.asks_until else None,
        )

    def _facts(self, offer: OfferView, model: ModelFacts | None, until_us: int | None) -> Facts:
        facts = self.snapshot.facts[offer.facts_hash]
        return facts if model is None and until_us is None else of_job(facts, model, until_us)

    def due_us(self, work: Work) -> int:
        """Microseconds from now until the work's deadline."""
        return work.deadline_us - self.snapshot.now_us

    def _refuse(self, refusal: Refusal) -> None:
        self._refused.setdefault(refusal.work_id, {})[refusal.offer_key] = refusal.found
        if refusal.from_nano_hour is not None:
            before = self._too_dear.get(refusal.work_id)
            if before is None or refusal.from_nano_hour < before[0]:
                self._too_dear[refusal.work_id] = refusal.from_nano_hour, refusal.found

    def refusal(self, work: Work, offer: OfferView) -> str | None:
        """What was found when a hold for the work on the offer was refused a moment ago, or an hour as dear or less dear."""
        found = self._refused.get(work.id, {}).get(offer.key)
        dear = self._too_dear.get(work.id)
        if found is None and dear is not None and (offer.price_nano_hour or 0) >= dear[0]:
            return dear[1]
        return found

    def refused(self, work: Work) -> Mapping[str, str]:
        """What was found by the offers where `refusal` holds."""
        if work.id not in self._too_dear:
            return self._refused.get(work.id, {})
        dear, found = self._too_dear[work.id]
        if (dear, found) not in self._dear:
            self._dear[dear, found] = {
                key: found for key, offer in self.offers.items() if (offer.price_nano_hour or 0) >= dear
            }
        return ChainMap(self._refused[work.id], self._dear[dear, found])

    def refusal_key(self, work: Work) -> tuple[object, ...]:
        """Works of equal keys have been refused at the same offers; empty where none was."""
        own = self._refused.get(work.id)
        return () if own is None else (self._too_dear.get(work.id, (-1,))[0], *sorted(own))

    def is_covered(self, work: Work, offer: OfferView) -> bool:
        """Whether a hold pays for the work at something that runs of this offer: a machine's whole time, or its tokens there."""
        running = self.running.get((offer.key, pool_of(work)), ())
        return any(each.covered is None or work.id in each.covered for each in running)

    def quota_left(self, offer: OfferView) -> int | None:
        """More instances of this offer that its quota alone grants us, None without a limit."""
        left = self.quotas.get(offer.quota_group)
        return None if left is None else max(0, left) // offer.quota_units


def pool_of(work: Work) -> Pool:
    return Pool(work.project, work.model, work.precision)


def contradictions(snapshot: Snapshot) -> Iterator[str]:
    """Everything in the snapshot that cannot be so, in words."""
    if snapshot.version != VERSION:
        yield f"snapshot version {snapshot.version} is not {VERSION}; make the snapshot with this release"
    yield from _order("work", [work.id for work in snapshot.works])
    yield from _order("offer", [offer.key for offer in snapshot.offers])
    yield from _order("running rental", [rental.rental_id for rental in snapshot.running])
    yield from _once("quota", [quota.market for quota in snapshot.quotas])
    yield from _once("budget", [budget.project for budget in snapshot.budgets])
    yield from _once(
        "throughput", [f"{each.model}/{each.precision}/{each.accelerator}" for each in snapshot.throughput]
    )
    yield from _references(snapshot)
    yield from _variants(snapshot)
    yield from _amounts(snapshot)


def _order(kind: str, ids: Sequence[str]) -> Iterator[str]:
    for before, after in itertools.pairwise(ids):
        if before >= after:
            yield f"{kind} {after!r} follows {before!r}: sort by id, each once"


def _once(kind: str, ids: Sequence[str]) -> Iterator[str]:
    for each in sorted(each for each, times in Counter(ids).items() if times > 1):
        yield f"{kind} {each!r} is given twice"


def _references(snapshot: Snapshot) -> Iterator[str]:
    offers = {offer.key for offer in snapshot.offers}
    for work in snapshot.works:
        if work.policy_hash not in snapshot.policies:
            yield f"work {work.id!r} has policy {work.policy_hash!r}, which the snapshot does not hold"
    for offer in snapshot.offers:
        if offer.facts_hash not in snapshot.facts:
            yield f"offer {offer.key!r} has facts {offer.facts_hash!r}, which the snapshot does not hold"
    for rental in snapshot.running:
        if rental.offer_key not in offers:
            yield (
                f"rental {rental.rental_id!r} runs on offer {rental.offer_key!r}, which is not listed; "
                "list it with capacity 0 while it runs"
            )


def _variants(snapshot: Snapshot) -> Iterator[str]:
    for work in snapshot.works:
        named = Counter([(work.model, work.precision), *((each.model, each.precision) for each in work.alternatives)])
        for model, precision in sorted(each for each, times in named.items() if times > 1):
            yield f"work {work.id!r}: {model!r} ({precision}) is given twice; its alternatives are others than its own"


def _amounts(snapshot: Snapshot) -> Iterator[str]:
    if snapshot.now_us < 0:
        yield f"now_us {snapshot.now_us} is before 1970"
    yield from _amounts_of_works(snapshot)
    yield from _amounts_of_offers(snapshot)
    yield from _amounts_of_rates(snapshot)
    for rental in snapshot.running:
        if rental.ready_in_s < 0 or rental.price_nano_hour < 0:
            yield f"rental {rental.rental_id!r} has a negative start-up time or price"


def _amounts_of_works(snapshot: Snapshot) -> Iterator[str]:
    for work in snapshot.works:
        if work.max_nano is not None and work.max_nano < 0:
            yield f"work {work.id!r} has max_nano {work.max_nano}; leave it out where there is no limit"
        tokens = (work.input_tokens, work.output_tokens_p50, work.output_tokens_p90)
        if min(work.lines, *tokens, work.input_bytes, work.output_bytes) < 0:
            yield f"work {work.id!r} has a negative number of lines, tokens or bytes"
        if work.max_rtt_ms is not None and work.max_rtt_ms < 0:
            yield f"work {work.id!r} has max_rtt_ms {work.max_rtt_ms}; leave it out where there is no limit"
        if work.max_p95_ms is not None and work.max_p95_ms < 1:
            yield f"work {work.id!r} has max_p95_ms {work.max_p95_ms}; leave it out where there is no limit"


def _amounts_of_rates(snapshot: Snapshot) -> Iterator[str]:
    for rate in snapshot.throughput:
        if not (rate.input_per_s > 0 and rate.output_per_s > 0):
            yield f"throughput of {rate.model!r} on {rate.accelerator!r} is not positive; leave it out when it is unknown"
        if not (rate.sequences >= 0 and 0 <= rate.fixed <= 1 and rate.slower > 0):
            yield (
                f"throughput of {rate.model!r} on {rate.accelerator!r}: sequences {rate.sequences}, fixed {rate.fixed} or "
                f"slower {rate.slower} cannot be so"
            )


def _amounts_of_offers(snapshot: Snapshot) -> Iterator[str]:
    for offer in snapshot.offers:
        if min(offer.price_nano_hour or 0, *(offer.per_million_nano or (0,))) < 0:
            yield f"offer {offer.key!r} has a negative price_nano_hour or per_million_nano; leave it out when it is unknown"
        start_ups = [part for each in (offer.timings, *offer.start_up.values()) for part in (each.boot_s, each.load_s)]
        if min(*start_ups, offer.minimum_s, offer.granularity_s - 1) < 0 or (offer.hazard or 0.0) < 0:
            yield f"offer {offer.key!r} has a negative time or hazard, or a billing increment below 1 s"
        if min(offer.lost_nano, offer.ingress_nano_gb, offer.egress_nano_gb, offer.rtt_ms or 0) < 0:
            yield f"offer {offer.key!r} has a negative lost_nano, ingress_nano_gb, egress_nano_gb or rtt_ms"
        if offer.quota_units < 1:
            yield f"offer {offer.key!r} counts {offer.quota_units} units against its quota; 1 is the least"
