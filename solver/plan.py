"""`solve(snapshot) -> Plan`: the whole way from what is queued to what to rent. Pure and deterministic; no clock.

The program decides, the draft is exact, the plan is the draft in the words of contract C4. A queue that cannot be served is
not an error: what has no place is listed with what it waits on.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import msgspec

from solver import explain, greedy, restore
from solver.choose import Undecided
from solver.durations import PPM
from solver.eligibility import Verdict, funnel, survey
from solver.fluid.effort import Effort
from solver.later import postponed
from solver.problem import Draft, Problem, bills, overspent, state, unserved
from solver.schedule import Bill, Site
from solver.size import is_small
from solver.spread import spread
from solver.types import Assignment, Plan, Snapshot, Start, sha256
from solver.variants import decided, has_variants, twins
from solver.view import View

if TYPE_CHECKING:
    from solver.fluid.choose import Choice

Stage = Literal["program", "greedy"]


@dataclass(frozen=True, slots=True)
class _Found:
    draft: Draft
    stage: Literal["program", "greedy", "empty"]
    stopped_by: Literal["optimal", "gap", "none"]
    bound_nano: int


def solve(snapshot: Snapshot, *, stage: Stage = "program", effort: Effort = "normal") -> Plan:
    """The plan for a snapshot. `stage="greedy"` skips the program: the fallback when that was stopped by the clock outside.

    `effort` says how much is done for a large queue (small ones are solved to their gap): `fast` is the greedy stage, `certify`
    looks longer for a cheaper plan and for the proof of it.

    Raises BadSnapshot when the snapshot contradicts itself; nothing else.
    """
    view = View(snapshot)
    if effort == "fast":
        stage = "greedy"
    if has_variants(snapshot):
        return _of_variants(view, stage, effort)
    is_program = stage == "program"
    plan = _solve_small(view, stage) if is_small(view) else solve_large(view, is_program=is_program, effort=effort)
    return postponed(view, plan)


def _of_variants(view: View, stage: Stage, effort: Effort) -> Plan:
    """The plan where works have alternatives: which variant serves each is decided with all the rest, in one program, and the
    queue is then planned as decided. The bound is of the program that was free to choose."""
    snapshot = view.snapshot
    doubled = twins(snapshot)
    both = View(doubled.snapshot)
    if not is_small(both):
        return _large_of_variants(snapshot, stage, effort)
    open_choice = Undecided.of(snapshot, doubled, both)
    is_program = stage == "program"
    numbers, is_proven = open_choice.by_program() if is_program else (open_choice.by_greed(), True)
    plan = _as_decided(snapshot, numbers, stage, open_choice)
    if is_program and not (is_proven and not plan.unplaced):
        # rounding, limits of money and a gap are of the draft: the simpler choices may have turned out better
        others = [each for each in (open_choice.by_greed(), {}) if each != numbers]
        plans = [plan, *(_as_decided(snapshot, each, stage, open_choice) for each in others)]
        plan = min(plans, key=lambda each: _rank_of(snapshot, each))
    return plan


def _as_decided(snapshot: Snapshot, numbers: Mapping[str, int], stage: Stage, whole: Undecided) -> Plan:
    run = View(decided(snapshot, numbers))
    plan = postponed(run, _solve_small(run, stage, whole))
    told = whole.told(plan, numbers)
    return msgspec.structs.replace(plan, snapshot_sha256=sha256(snapshot), variants=told)


def _rank_of(snapshot: Snapshot, plan: Plan) -> tuple[int, ...]:
    """Less unserved at the highest priority first (to 0.01 %), then cost."""
    served: Counter[str] = Counter()
    for each in plan.assignments:
        served[each.work_id] += each.share_ppm
    missing: Counter[int] = Counter()
    for work in snapshot.works:
        missing[work.priority] += PPM - served[work.id]
    return (*(missing[level] // 100 for level in sorted(missing, reverse=True)), plan.cost_nano)


def _large_of_variants(snapshot: Snapshot, stage: Stage, effort: Effort) -> Plan:
    """The same for a queue that is planned by classes."""
    # Imported here: small queues do without these tables.
    from solver.fluid.choose import choose  # noqa: PLC0415

    is_program = stage == "program"
    choice = choose(snapshot, is_program=is_program, effort=effort)
    plan = _large_as_decided(snapshot, choice, is_program, effort)
    if choice.numbers and choice.is_few:  # whole machines of few works are dearer than their shares say
        plans = plan, _large_as_decided(snapshot, choice.own(), is_program, effort)
        plan = min(plans, key=lambda each: _rank_of(snapshot, each))
    return plan


def _large_as_decided(snapshot: Snapshot, choice: Choice, is_program: bool, effort: Effort) -> Plan:
    run = View(decided(snapshot, choice.numbers))
    plan = postponed(run, solve_large(run, is_program=is_program, effort=effort))
    bound, class_bound = choice.bounds_nano(plan)
    return msgspec.structs.replace(
        plan,
        snapshot_sha256=sha256(snapshot),
        variants=choice.told(snapshot, plan),
        bound_nano=min(plan.cost_nano, bound),
        class_bound_nano=class_bound,
    )


def _solve_small(view: View, stage: Stage, whole: Undecided | None = None) -> Plan:
    """`whole` is the problem that was free to choose between variants, of which this queue is what was decided."""
    snapshot = view.snapshot
    surveys = {work.id: survey(work, view) for work in snapshot.works}
    problem = state(view, surveys)
    if not problem.works:
        found = _Found(Draft(), "empty", "none", 0)
    elif stage == "greedy":
        found = _by_greed(problem, whole)
    else:
        found = _by_program(problem, _domains(snapshot), whole) or _by_greed(problem, whole)
    return _plan(view, surveys, problem, found)


def solve_large(view: View, *, is_program: bool, effort: Effort = "normal") -> Plan:
    """The plan of a queue that is too large for a column per work and offer."""
    # Imported here: HiGHS is for the process that solves, and small queues do without these tables.
    from solver.fluid import queue as fluid  # noqa: PLC0415

    planned = fluid.plan_queue(view, is_program=is_program, effort=effort)
    if is_program and not view.snapshot.later_starts:
        planned = planned.apart(view, _domains(view.snapshot))
    site_bills = bills(planned.problem, planned.draft)
    parts = _parts(view, planned.problem, planned.draft, site_bills)
    cost_nano = sum(each.total for each in site_bills.values())
    is_empty = not parts.assignments
    is_told = view.snapshot.words
    # choices first: funnels go on from their tables
    choices = planned.reasons.choices(parts.assignments) if is_told else ()
    return Plan(
        snapshot_sha256=sha256(view.snapshot),
        stage="empty" if is_empty else "program" if planned.is_program else "greedy",
        stopped_by="gap" if planned.is_program and not is_empty else "none",
        starts=parts.starts,
        keeps=parts.keeps,
        drains=parts.drains,
        assignments=parts.assignments,
        unplaced=planned.unplaced(view),
        cost_nano=cost_nano,
        bound_nano=planned.bound_nano,
        class_bound_nano=planned.class_bound_nano,
        funnels=planned.reasons.funnels() if is_told else {},
        choices=choices,
    )


def _by_greed(problem: Problem, whole: Undecided | None) -> _Found:
    draft = greedy.place(problem)
    return _Found(draft, "greedy", "none", greedy.cheapest_possible(whole.problem if whole else problem, draft))


def _domains(snapshot: Snapshot) -> dict[str, str]:
    """By offer whose machines may be taken away, what fails together with it; where that is not known, the whole market."""
    return {each.key: each.domain or each.market for each in snapshot.offers if each.pricing in ("spot", "bid")}


def _by_program(problem: Problem, domains: Mapping[str, str], whole: Undecided | None) -> _Found | None:
    """Solve and make exact. Where money rows proved too lenient, solve once more with these tightened."""
    # Imported here: PuLP and HiGHS are for the process that solves. The broker's own stage, greed, does without them.
    from solver import program  # noqa: PLC0415

    solution = program.solve(problem)
    if solution is None:
        return None
    draft = restore.restore(problem, solution)
    if over := overspent(problem, draft):
        solution = program.solve(problem, tight=over) or solution
        draft = restore.restore(problem, solution)
        _leave_out(problem, draft)
    if is_short := bool(unserved(problem, draft)):
        greedy.complete(problem, draft)  # also with the margin that the program keeps
    stage: Literal["program", "greedy"] = "program"
    if is_short or solution.stopped_by == "gap":
        simple = greedy.place(problem)
        if _rank(problem, simple) < _rank(problem, draft):
            draft, stage = simple, "greedy"
    spread(problem, draft, domains)
    bound = solution.bound_nano
    if whole is not None or is_short or stage == "greedy":
        # Bound what is really served, under the rules themselves: without tight rows, margin and parts that rounding lost.
        wider = whole.problem if whole else problem
        missing = whole.missing(draft) if whole else unserved(problem, draft)
        relaxed = program.solve(wider, unserved_ppm=missing)
        bound = relaxed.bound_nano if relaxed else greedy.cheapest_possible(wider, draft)
    return _Found(draft, stage, solution.stopped_by, bound)


def _rank(problem: Problem, draft: Draft) -> tuple[int, ...]:
    """What makes one draft better than another: less unserved at the highest priority first (to 0.01 %), then cost."""
    missing = unserved(problem, draft)
    levels = sorted({work.priority for work in problem.works}, reverse=True)
    by_level = [
        sum(missing.get(work.id, 0) for work in problem.works if work.priority == level) // 100 for level in levels
    ]
    return (*by_level, sum(each.total for each in bills(problem, draft).values()))


def _leave_out(problem: Problem, draft: Draft) -> None:
    """While something still costs too much, the last work that it concerns loses its place: work does not run on money that is
    not there."""
    while over := overspent(problem, draft):
        costly = [
            work
            for work in problem.works
            if draft.served(work.id) and (("work", work.id) in over or ("project", work.project) in over)
        ]
        last = max(costly, key=lambda work: (-work.priority, work.deadline_us, work.id))
        for shares in draft.shares.values():
            shares.pop(last.id, None)
        restore.finish(problem, draft)


def _plan(view: View, surveys: Mapping[str, tuple[Verdict, ...]], problem: Problem, found: _Found) -> Plan:
    site_bills = bills(problem, found.draft)
    parts = _parts(view, problem, found.draft, site_bills)
    cost_nano = sum(each.total for each in site_bills.values())
    return Plan(
        snapshot_sha256=sha256(view.snapshot),
        stage=found.stage,
        stopped_by=found.stopped_by,
        starts=parts.starts,
        keeps=parts.keeps,
        drains=parts.drains,
        assignments=parts.assignments,
        unplaced=explain.unplaced(view, surveys, problem, found.draft),
        cost_nano=cost_nano,
        # The program keeps a ten-thousandth of the time free, its draft need not: a plan may cost that much less than the bound.
        bound_nano=min(cost_nano, found.bound_nano),
        funnels={work_id: funnel(verdicts) for work_id, verdicts in surveys.items()},
        choices=explain.choices(view, surveys, parts.assignments),
    )


@dataclass(frozen=True, slots=True)
class _Parts:
    starts: tuple[Start, ...]
    keeps: tuple[str, ...]
    drains: tuple[str, ...]
    assignments: tuple[Assignment, ...]


def _parts(view: View, problem: Problem, draft: Draft, site_bills: Mapping[int, Bill]) -> _Parts:
    """A draft in the words of the contract."""
    snapshot = view.snapshot
    starts: list[Start] = []
    keeps: list[str] = []
    assignments: list[Assignment] = []
    for index, each in site_bills.items():
        site, counts = problem.sites[index], draft.counts[index]
        starts.extend(_starts(site, counts, each, snapshot.now_us))
        for instances, count in zip(site.classes, counts, strict=True):
            keeps.extend(instances.rentals[:count])
        assignments.extend(_assignments(view, site, draft.shares[index], each))
    kept = set(keeps)
    return _Parts(
        starts=tuple(starts),
        keeps=tuple(sorted(keeps)),
        drains=tuple(rental.rental_id for rental in snapshot.running if rental.rental_id not in kept),
        assignments=tuple(sorted(assignments, key=lambda each: (each.work_id, each.offer_key))),
    )


def _starts(site: Site, counts: list[int], site_bill: Bill, now_us: int) -> Iterator[Start]:
    for new, count, cost_nano in zip(site.classes, counts, site_bill.class_cost, strict=True):
        if new.is_new and count:
            yield Start(
                offer_key=site.offer_key,
                project=site.pool.project,
                model=site.pool.model,
                precision=site.pool.precision,
                count=count,
                from_us=now_us + new.from_us,
                until_us=now_us + max(site_bill.end_us, new.ready_us),
                cost_nano=cost_nano,
                turn=site.turn,
            )


def _assignments(view: View, site: Site, shares: dict[str, int], site_bill: Bill) -> list[Assignment]:
    queue = [task.work for task in site.tasks if shares.get(task.work.id)]
    offer, now_us = view.offers[site.offer_key], view.snapshot.now_us
    found = []
    for order, work in enumerate(queue):
        at_once = view.at_once(work, offer)
        found.append(
            Assignment(
                work_id=work.id,
                offer_key=site.offer_key,
                share_ppm=shares[work.id],
                order=order,
                cost_nano=site_bill.allotted[work.id],
                end_us=now_us + site_bill.ends_us[work.id],
                concurrency=at_once,
                p95_ms=None if at_once is None else view.p95_ms(work, offer, at_once),
                turn=site.turn,
            )
        )
    return found


def decode(line: bytes) -> Snapshot:
    """A snapshot from its JSON. Raises msgspec.ValidationError or msgspec.DecodeError with the path of what is wrong."""
    return msgspec.json.decode(line, type=Snapshot)
