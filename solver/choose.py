"""Which variant serves each work that has alternatives, decided together with where everything runs.

The problem holds every variant of a work as a twin (`variants`), of which one is served; the program has a binary for each, so
that a variant is taken because of what all queued work costs with it: a warm machine of another model, or capacity that others
need more, count as much as its own price.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from solver import explain, greedy
from solver.durations import PPM
from solver.eligibility import Verdict, survey
from solver.problem import Draft, Problem, state
from solver.types import Chosen, Plan, Snapshot, VariantCost, Work
from solver.variants import Twins, variants_of
from solver.view import View


@dataclass(frozen=True, slots=True)
class Undecided:
    """A snapshot with all its twins, judged: the problem in which one of each group is served."""

    snapshot: Snapshot
    twins: Twins
    view: View
    surveys: Mapping[str, tuple[Verdict, ...]]
    problem: Problem

    @staticmethod
    def of(snapshot: Snapshot, doubled: Twins, view: View) -> Undecided:
        """`view` is that of the twins' snapshot."""
        surveys = {work.id: survey(work, view) for work in doubled.snapshot.works}
        problem = replace(state(view, surveys), groups=doubled.groups)
        return Undecided(snapshot, doubled, view, surveys, problem)

    def by_program(self) -> tuple[dict[str, int], bool]:
        """(the number of each work's variant, whether that is proven to be the best choice)."""
        # Imported here: PuLP and HiGHS are for the process that solves.
        from solver import program  # noqa: PLC0415

        solution = program.solve(self.problem) if self.problem.works else None
        if solution is None:
            return self.by_greed(), False
        served = {work_id for (_, work_id), share in solution.shares.items() if share > 0 and work_id in solution.taken}
        return self._numbers(served), solution.stopped_by == "optimal"

    def by_greed(self) -> dict[str, int]:
        """The number of each work's variant, work after work."""
        return self._numbers(set(greedy.place(self.problem).served_all()))

    def _numbers(self, served: set[str]) -> dict[str, int]:
        """The variant that is served; where none is, the first that some offer may serve."""
        possible = {work.id for work in self.problem.works}
        found: dict[str, tuple[bool, bool, int]] = {}
        for twin, (base, number) in self.twins.of.items():
            rank = (twin not in served, twin not in possible, number)
            found[base] = min(rank, found.get(base, rank))
        return {base: number for base, (*_, number) in found.items() if number}

    def missing(self, draft: Draft) -> dict[str, int]:
        """Millionths of each twin that stay unserved when its work is served as in this draft of the decided queue."""
        served, groups = draft.served_all(), self.twins.groups
        left = {work.id: PPM - served.get(groups.get(work.id, work.id), 0) for work in self.problem.works}
        return {twin: ppm for twin, ppm in left.items() if ppm}

    def told(self, plan: Plan, numbers: Mapping[str, int]) -> tuple[Chosen, ...]:
        """What was chosen for each work, and what each of its variants would cost alone."""
        names = {base: dict[int, str]() for base, _ in self.twins.of.values()}
        for twin, (base, number) in self.twins.of.items():
            names[base][number] = twin
        main: dict[str, tuple[int, str]] = {}
        for each in plan.assignments:
            main[each.work_id] = max(main.get(each.work_id, (0, "")), (each.share_ppm, each.offer_key))
        return tuple(
            self._chosen(work, numbers.get(work.id, 0), names[work.id], main.get(work.id, (0, None))[1])
            for work in self.snapshot.works
            if work.alternatives
        )

    def _chosen(self, work: Work, number: int, names: Mapping[int, str], offer_key: str | None) -> Chosen:
        costs = tuple(
            self._cost(names[each], *variants_of(work)[each], offer_key if each == number else None)
            for each in range(len(names))
        )
        taken = costs[number]
        return Chosen(
            work_id=work.id,
            model=taken.model,
            precision=taken.precision,
            costs=costs,
            sentence=sentence(costs, number, is_placed=offer_key is not None),
        )

    def _cost(self, twin: str, model: str, precision: str, offer_key: str | None) -> VariantCost:
        """At the offer where it was placed, else at the cheapest."""
        verdicts = self.surveys[twin]
        priced = [
            (cost, each.offer.key)
            for each in verdicts
            if each.is_eligible and (cost := explain.alone_cost(each, self.view.snapshot)) is not None
        ]
        here = [each for each in priced if each[1] == offer_key] or priced
        if here:
            nano, key = min(here)
            return VariantCost(model=model, precision=precision, offer_key=key, nano=nano)
        return VariantCost(model=model, precision=precision, found=explain.blocked(verdicts)[1])


def sentence(costs: tuple[VariantCost, ...], number: int, *, is_placed: bool) -> str:
    """Why this variant, as a person reads it."""
    taken, others = costs[number], [each for index, each in enumerate(costs) if index != number]
    if not is_placed or taken.nano is None:
        return f"{_name(taken)} is what the reasons are of; {_also(others)}"
    here = f"{_name(taken)} on {taken.offer_key}"
    possible = [(each.nano, each) for each in others if each.nano is not None]
    if not possible:
        return f"{here}: no other variant has a place: {others[0].found}" if others else here
    nano, next_best = min(possible, key=lambda each: each[0])
    instead = f"instead of {_name(next_best)} on {next_best.offer_key}"
    if taken.nano <= nano:
        alone = f"alone {explain.usd(taken.nano)}, not {explain.usd(nano)}"
        return f"{here} {instead}: {explain.usd(nano - taken.nano)} less ({alone})"
    return (
        f"{here} {instead}, which alone would cost {explain.usd(taken.nano - nano)} less: all queued work together costs less "
        "this way, or the capacity there is taken"
    )


def _also(others: list[VariantCost]) -> str:
    return "; ".join(f"{_name(each)}: {each.found or 'could run, but has no room'}" for each in others)


def _name(each: VariantCost) -> str:
    return f"{each.model} ({each.precision})"
