"""Why each work runs where it runs, or why it waits and on what.

Everything here is computed from the same verdicts that decided, so that an explanation cannot disagree with the decision.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Literal, get_args

from ledger.money import div_half_even, from_nano
from solver.durations import PPM
from solver.eligibility import ELIGIBLE, Verdict, funnel, new_instances, survey, whole_cost
from solver.latency import slow_down
from solver.problem import Draft, Problem, unserved
from solver.relax import alone, left_for, lifted, relaxations
from solver.types import Assignment, Choice, Relaxation, Snapshot, Unplaced, Work
from solver.view import View

Waiting = Literal["capacity", "quota", "budget", "price_ceiling", "deadline", "latency", "residency", "model"]
Verdicts = Mapping[str, tuple[Verdict, ...]]

# What time or money cures first, what needs a person last.
_CURABLE_FIRST: tuple[Waiting, ...] = get_args(Waiting)
_WAITING: dict[str, Waiting] = {
    "account": "capacity",
    "excluded": "capacity",
    "token_priced": "capacity",
    "price_unknown": "capacity",
    "sold_out": "capacity",
    "quota": "quota",
    "model": "model",
    "unfit": "model",
    "residency": "residency",
    "latency": "latency",
    "deadline": "deadline",
    "price_ceiling": "price_ceiling",
    "budget": "budget",
}
# An offer that breaks one of these may never be of use: waiting for it cures nothing, so others are looked at first.
_UNUSABLE = frozenset({"account", "unfit", "excluded", "token_priced", "price_unknown"})


def unplaced(view: View, surveys: Verdicts, problem: Problem, draft: Draft) -> tuple[Unplaced, ...]:
    """Every work that is not wholly served, with what it waits on, the reasons, and verified relaxations."""
    missing = {work.id: PPM for work in view.snapshot.works if not any(each.is_eligible for each in surveys[work.id])}
    missing |= unserved(problem, draft)
    return tuple(
        _unplaced(view, work, surveys[work.id], problem, draft) for work in view.snapshot.works if work.id in missing
    )


def _unplaced(view: View, work: Work, verdicts: tuple[Verdict, ...], problem: Problem, draft: Draft) -> Unplaced:
    rest = left_for(work, view, problem, draft)
    if any(verdict.is_eligible for verdict in verdicts):
        waiting_on, reason = _limited(work, view.snapshot, rest)
    else:
        waiting_on, reason = blocked(verdicts)
    counted = tuple(f"{step.rule} ({step.count}): {step.example}" for step in funnel(verdicts) if step.rule != ELIGIBLE)
    served = draft.served(work.id)
    share = (f"{Decimal(served).scaleb(-4)} % of it has a place",) if served else ()
    return Unplaced(
        work_id=work.id,
        waiting_on=waiting_on,
        reasons=(reason, *share, *counted),
        relaxations=relaxations(work, rest, verdicts),
    )


def waiting(work: Work, rest: Snapshot, *, is_relaxed: bool) -> tuple[Waiting, str, tuple[Relaxation, ...]]:
    """What one work waits on, given what the plan leaves free on some offers, and verified relaxations if asked for."""
    view = View(rest)
    verdicts = survey(work, view)
    if any(verdict.is_eligible for verdict in verdicts):
        word, reason = _limited(work, rest, rest)
        if word == "capacity":
            reason = "eligible offers have too little capacity left for it beside what the plan puts there"
    else:
        word, reason = blocked(verdicts)
    return word, reason, relaxations(work, rest, verdicts) if is_relaxed else ()


def blocked(verdicts: tuple[Verdict, ...]) -> tuple[Waiting, str]:
    """No offer is eligible: the fewest, most easily cured rules that stand between the work and any offer."""
    if not verdicts:
        return "capacity", "no offer is listed at all"
    verdicts = tuple(each for each in verdicts if each.broken[0].rule != "account")
    if not verdicts:
        return "capacity", "no offer of an account that the project may use is listed"
    ranked = [
        (
            any(each.rule in _UNUSABLE for each in verdict.broken),
            len(words),
            max(words, key=_CURABLE_FIRST.index),
            index,
        )
        for index, verdict in enumerate(verdicts)
        if (words := {_WAITING[each.rule] for each in verdict.broken})
    ]
    *_, waiting_on, index = min(ranked, key=lambda each: (each[0], each[1], _CURABLE_FIRST.index(each[2]), each[3]))
    verdict = verdicts[index]
    rule = next(each for each in verdict.broken if _WAITING[each.rule] == waiting_on)
    return waiting_on, f"no offer is eligible; nearest is {verdict.offer.key}: {rule.rule}: {rule.found}"


def _limited(work: Work, snapshot: Snapshot, rest: Snapshot) -> tuple[Waiting, str]:
    """Offers are eligible, but not for all of the work: whichever single limit, taken away, lets the whole work in."""
    competes = alone(snapshot, work).is_whole
    if competes and alone(rest, work).is_whole:
        return (
            "capacity",
            "it was left out so that the queue as a whole is served better, though it would fit; the next plan tries again",
        )
    for word, (freer, changed) in lifted(work, rest if competes else snapshot).items():
        if alone(freer, changed).is_whole:
            who = "what other work leaves" if competes else "the work alone"
            return word, f"{word} is what stops it: without that limit {who} would be enough"
    if competes:
        return "capacity", "eligible offers have capacity for it, but work before it in the queue takes it"
    return "capacity", "eligible offers together have too little capacity for it"


def choices(view: View, surveys: Verdicts, assignments: Sequence[Assignment]) -> tuple[Choice, ...]:
    """One choice for each work that has a place, in the order of the works."""
    placed: dict[str, list[Assignment]] = {}
    for each in assignments:
        placed.setdefault(each.work_id, []).append(each)
    return tuple(
        _choice(view, work, surveys[work.id], placed[work.id]) for work in view.snapshot.works if work.id in placed
    )


def _choice(view: View, work: Work, verdicts: tuple[Verdict, ...], placed: list[Assignment]) -> Choice:
    snapshot = view.snapshot
    main = max(placed, key=lambda each: (each.share_ppm, each.offer_key))
    tokens = max(1, work.input_tokens + work.output_tokens_p50)
    paid = div_half_even(
        sum(each.cost_nano for each in placed) * PPM * PPM, tokens * sum(each.share_ppm for each in placed)
    )
    prices = {
        each.offer.key: div_half_even(cost * PPM, tokens)
        for each in verdicts
        if (cost := alone_cost(each, snapshot)) is not None
    }
    here = prices[main.offer_key]
    others = sorted((prices[each.offer.key], each.offer.key) for each in verdicts if each.is_eligible)
    others = [(price, key) for price, key in others if key != main.offer_key]
    excluded = sorted(
        (prices[each.offer.key], each.offer.key, each)
        for each in verdicts
        if not each.is_eligible and each.broken[0].rule != "account" and prices.get(each.offer.key, here) < here
    )
    return Choice(
        work_id=work.id,
        offer_key=main.offer_key,
        usd_nano_per_million=paid,
        next_best_key=others[0][1] if others else None,
        next_best_nano_per_million=others[0][0] if others else None,
        cheaper_excluded=tuple((key, each.broken[0].rule) for _, key, each in excluded),
        sentence=_sentence(main.offer_key, paid, here, others, [each for _, _, each in excluded], len(placed))
        + held_back(view, work, main),
    )


def alone_cost(verdict: Verdict, snapshot: Snapshot) -> int | None:
    """Nano-USD of the whole work alone on this offer, None when price or throughput is not known."""
    if verdict.task is None:
        return None
    classes = verdict.classes or (new_instances(verdict.offer, verdict.task.work.model, snapshot),)
    priced = [each for each in classes if each.price_nano_hour or verdict.offer.is_priced]
    return min((whole_cost(verdict.task, each) for each in priced), default=None)


def _sentence(
    key: str, paid: int, here: int, others: list[tuple[int, str]], excluded: list[Verdict], places: int
) -> str:
    """The reason that a person reads."""
    words = [f"{key} at {usd(paid)} per million tokens"]
    if places > 1:
        words[0] += f", together with {places - 1} more"
    if not others:
        words.append("the only eligible offer")
    elif others[0][0] >= here:
        words.append(
            f"the cheapest of {len(others) + 1} eligible offers; next is {others[0][1]} at {usd(others[0][0])}"
        )
    else:
        words.append(
            f"{others[0][1]} would cost {usd(others[0][0])} by itself, "
            "but all queued work together costs less this way, or its capacity is taken"
        )
    text = ": ".join(words)
    if excluded:
        noun = "offer was" if len(excluded) == 1 else "offers were"
        first = excluded[0]
        text += f". {len(excluded)} cheaper {noun} excluded: {first.offer.key} ({first.broken[0].rule}: {first.broken[0].found})"
        text += "." if len(excluded) == 1 else f" and {len(excluded) - 1} more."
        return text
    return text + "."


def held_back(view: View, work: Work, placed: Assignment) -> str:
    """What a p95 that is to be kept does to the place, as a sentence that follows; empty without one."""
    offer = view.offers[placed.offer_key]
    full = view.full_rate(work, offer)
    if placed.concurrency is None or full is None:
        return ""
    at_most = math.floor(full.sequences)
    here = f" {placed.concurrency} of at most {at_most} requests at once, so that 95 of 100 take at most {work.max_p95_ms} ms"
    expected = "" if placed.p95_ms is None else f" (expected: {placed.p95_ms} ms)"
    slower = slow_down(work, full, placed.concurrency)
    costs = f", which takes {slower:.2f} times the machine's time" if slower >= 1.005 else ""
    return f"{here}{expected}{costs}."


def usd(nano: int) -> str:
    """Nano-USD as people read it: cents where there are dollars, more digits where there are not."""
    digits = 2 if nano >= 1_000_000_000 else 4 if nano >= 10_000_000 else 9
    return f"${from_nano(nano):.{digits}f}"
