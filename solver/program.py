"""The integer program: all queued works together, over all sites.

Shares of works are continuous, instances are integers; there is no time index, because work is divisible and released now,
so that "the load due by each deadline fits" (the stair condition) is all that earliest-deadline-first needs. An instance
belongs to one site, hence to one pool. Costs are the expected ones (p50), deadlines use the cautious durations (p90).

    minimise  Σ price·(start-up·z + busy·x) + what minimum and increment of billing add + moving data·x + once·z
    served    Σ_sites x + u = 1                                    for each work; u = 0 unless not all can be served
              Σ_sites x + u = y, Σ_twins y = 1                     where several models or precisions may serve a work
    stair     Σ_{due ≤ d} cautious·x ≤ Σ_classes (d − ready)⁺·z    for each site and deadline d
    link      x ≤ Σ_classes z                                      where the stair alone would let a share run on a sliver
    capacity  Σ_pools z_new ≤ capacity                             for each offer; likewise Σ units · z_new ≤ quota for each quota
    money     per work and per project

Its cost never exceeds the exact cost of the draft made from it, so its dual bound is a bound on plans. Where the money rows would
be too lenient for that exactness, the caller names the work or project in `tight`, and its row estimates start-ups too.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pulp

from solver import highs
from solver.durations import PPM, SECOND_US
from solver.problem import Problem, turns_of
from solver.schedule import Instances, Site, Task, ceil_div
from solver.solution import MARGIN_PPM, Solution
from solver.types import Work

HOUR_US = 3600 * SECOND_US
MARGIN = MARGIN_PPM / PPM
# Below this many columns the program is solved to the end; above, to one percent. Both also stop on nodes, never on a clock.
EXACT_COLUMNS = 400
EXACT_GAP, EXACT_NODES = 1e-6, 2_000
LARGE_GAP, LARGE_NODES = 1e-2, 200
# Terms of a row that are this small beside the others do harm: presolve called a plan of twice the least cost optimal for
# one such coefficient. Leaving them out only relaxes the program, by less than the stair's margin.
NEGLIGIBLE = 1e-7
# A smaller part of a work than this is not worth an instance: the work waits whole.
CRUMB = 0.01
# The solver's own tolerances, taken off a bound before it leaves as integer money.
BOUND_SLACK = 1e-5


def solve(
    problem: Problem,
    *,
    tight: frozenset[tuple[str, str]] = frozenset(),
    unserved_ppm: Mapping[str, int] | None = None,
) -> Solution | None:
    """The cheapest way to serve all works or, when not all can be, as much as priority allows: higher levels first, whole.

    With `unserved_ppm` the parts that stay unserved are given and only the bound is meant to be used: then no margin is kept
    and no work is all-or-nothing. None when HiGHS stopped without a solution.
    """
    model = _Model(problem, tight, is_bound=unserved_ppm is not None)
    answer = model.minimise_cost(unserved_ppm or {})
    if answer.state == "infeasible" and unserved_ppm is None:
        left = model.minimise_unserved()
        answer = model.minimise_cost(left, is_started=True) if left is not None else answer
    return model.solution(answer) if answer.state in ("optimal", "gap") else None


class _Model:
    """The PuLP model of one problem. Money is scaled so that the queue costs about 1,000, however small it is."""

    def __init__(self, problem: Problem, tight: frozenset[tuple[str, str]], is_bound: bool) -> None:
        self.problem = problem
        self.is_bound = is_bound
        self.margin = 0.0 if is_bound else MARGIN
        self.tight = tight
        self.unit = _unit(problem)
        self.lp = pulp.LpProblem("plan", pulp.LpMinimize)
        self.x: dict[tuple[int, str], Any] = {}
        self.z: dict[tuple[int, int], Any] = {}
        self.top: dict[int, Any] = {}
        self.u: dict[str, Any] = {}
        self.y: dict[str, Any] = {}
        self.groups = problem.twins()
        self._columns()
        self._served_rows()
        for index, site in enumerate(problem.sites):
            self._stair_rows(index, site)
            self._link_rows(index, site)
            self._billing_rows(index, site)
        self._capacity_rows()
        self._quota_rows()
        self._work_money_rows()
        self._project_money_rows()

    def _columns(self) -> None:
        for work in self.problem.works:
            is_whole = self.problem.is_all_or_nothing(work) and not self.is_bound
            category = pulp.LpInteger if is_whole else pulp.LpContinuous
            self.u[work.id] = self.lp.add_variable(f"u{len(self.u)}", 0, 0, category)
        for those in self.groups.values():
            for work in those:
                self.y[work.id] = self.lp.add_variable(f"y{len(self.y)}", 0, 1, pulp.LpInteger)
        for index, site in enumerate(self.problem.sites):
            for number, task in enumerate(site.tasks):
                self.x[index, task.work.id] = self.lp.add_variable(f"x{index}_{number}", 0, 1)
            for number, each in enumerate(site.classes):
                most = _most_useful(site, each) if each.is_new else len(each.rentals)
                self.z[index, number] = self.lp.add_variable(f"z{index}_{number}", 0, most, pulp.LpInteger)

    def _row(self, name: str, terms: Mapping[Any, float], sense: int, rhs: float) -> None:
        if terms:
            self.lp.addConstraint(pulp.LpConstraint(pulp.LpAffineExpression(terms), sense, name, rhs))

    def _served_rows(self) -> None:
        terms: dict[str, dict[Any, float]] = {work.id: {self.u[work.id]: 1.0} for work in self.problem.works}
        for (_, work_id), share in self.x.items():
            terms[work_id][share] = 1.0
        for number, work in enumerate(self.problem.works):
            if work.id in self.y:
                self._row(f"served{number}", {**terms[work.id], self.y[work.id]: -1.0}, pulp.LpConstraintEQ, 0.0)
            else:
                self._row(f"served{number}", terms[work.id], pulp.LpConstraintEQ, 1.0)
        for number, those in enumerate(self.groups.values()):
            self._row(f"twins{number}", {self.y[work.id]: 1.0 for work in those}, pulp.LpConstraintEQ, 1.0)

    def _stair_rows(self, index: int, site: Site) -> None:
        for number, due_us in enumerate(sorted({task.due_us for task in site.tasks})):
            due = [task for task in site.tasks if task.due_us <= due_us]
            offered = {
                self.z[index, kind]: (due_us - each.ready_us) * (1 - self.margin)
                for kind, each in enumerate(site.classes)
                if due_us > each.ready_us
            }
            if sum(task.cautious_us for task in due) <= min(offered.values()):
                continue  # any one instance does it all in time: the links say so, in better numbers
            parts = {self.x[index, task.work.id]: task.cautious_us / due_us for task in due}
            terms = {share: part for share, part in parts.items() if part > NEGLIGIBLE}
            terms |= {count: -time / due_us for count, time in offered.items()}
            self._row(f"stair{index}_{number}", terms, pulp.LpConstraintLE, 0.0)

    def _link_rows(self, index: int, site: Site) -> None:
        for number, task in enumerate(site.tasks):
            in_time = [kind for kind, each in enumerate(site.classes) if task.due_us > each.ready_us]
            if any(task.cautious_us < task.due_us - site.classes[kind].ready_us for kind in in_time):
                terms = {self.z[index, kind]: -1.0 for kind in in_time}
                self._row(
                    f"link{index}_{number}", {self.x[index, task.work.id]: 1.0, **terms}, pulp.LpConstraintLE, 0.0
                )

    def _billing_rows(self, index: int, site: Site) -> None:
        """`top`: what is paid beyond start-up and busy time, because of the least that is billed or the billing increment."""
        kind = site.new_class
        if kind is None:
            return
        new = site.classes[kind]
        beyond = new.billed_s(1) * SECOND_US - new.ready_us
        if beyond <= SECOND_US and new.granularity_s <= 60:
            return
        top = self.top[index] = self.lp.add_variable(f"top{index}", 0)
        price = self._price(new)
        expected = {self.x[index, task.work.id]: -self._cheapest(site) * task.expected_us for task in site.tasks}
        terms = {top: -1.0, self.z[index, kind]: price * beyond, **expected}
        self._row(f"minimum{index}", terms, pulp.LpConstraintLE, 0.0)
        longest_us = new.ready_us + sum(task.expected_us for task in site.tasks)
        is_longer = longest_us > new.billed_s(1) * SECOND_US  # else the first increment, which `minimum` has, is all
        if new.granularity_s > 60 and len(site.classes) == 1 and is_longer:
            self._increment_rows(index, site, new)

    def _increment_rows(self, index: int, site: Site, new: Instances) -> None:
        """All instances of the site are new and end together, so what is billed is a whole number of increments."""
        increment_us = new.granularity_s * SECOND_US
        count, price = self.z[index, site.classes.index(new)], self._price(new)
        increments = self.lp.add_variable(f"n{index}", 0, None, pulp.LpInteger)
        busy = {self.x[index, task.work.id]: task.expected_us / increment_us for task in site.tasks}
        busy = {share: part for share, part in busy.items() if part > NEGLIGIBLE}
        filled = {increments: -1.0, count: new.ready_us / increment_us, **busy}
        self._row(f"filled{index}", filled, pulp.LpConstraintLE, 0.0)
        paid = {variable: -price * increment_us * part for variable, part in filled.items()}
        self._row(f"paid{index}", {self.top[index]: -1.0, **paid}, pulp.LpConstraintLE, 0.0)

    def _capacity_rows(self) -> None:
        """No offer rents out more instances than it has, all pools together."""
        rows: dict[str, dict[Any, float]] = {}
        for index, site in enumerate(self.problem.sites):
            if site.new_class is not None:
                rows.setdefault(site.offer_key, {})[self.z[index, site.new_class]] = 1.0
        for number, (offer_key, terms) in enumerate(rows.items()):
            self._row(f"capacity{number}", terms, pulp.LpConstraintLE, self.problem.capacity[offer_key])

    def _quota_rows(self) -> None:
        rows: dict[str, dict[Any, float]] = {}
        for index, site in enumerate(self.problem.sites):
            if site.new_class is not None and site.quota in self.problem.quota:
                rows.setdefault(site.quota, {})[self.z[index, site.new_class]] = float(site.units)
        for number, (name, terms) in enumerate(rows.items()):
            self._row(f"quota{number}", terms, pulp.LpConstraintLE, self.problem.quota[name])

    def _work_money_rows(self) -> None:
        """A work's own busy time; when tight also the start-ups of as many instances as it needs, alone."""
        for number, (work_id, nano) in enumerate(self.problem.limits.items()):
            terms: dict[Any, float] = {}
            for index, site in enumerate(self.problem.sites):
                task = next((each for each in site.tasks if each.work.id == work_id), None)
                if task is None:
                    continue
                cost = self._cheapest(site) * task.expected_us + task.data_nano / self.unit
                if ("work", work_id) in self.tight:
                    cost = max(self._most_alone(task, each) for each in site.classes if each.ready_us < task.due_us)
                terms[self.x[index, work_id]] = cost
            self._money_row(f"limit{number}", terms, ("work", work_id), nano)

    def _project_money_rows(self) -> None:
        """What new instances of the project cost; when tight, as if they did all the work of their site."""
        for number, (project, nano) in enumerate(self.problem.budgets.items()):
            terms: dict[Any, float] = {}
            for index, site in enumerate(self.problem.sites):
                kind = site.new_class
                if site.pool.project != project or kind is None:
                    continue
                new = site.classes[kind]
                is_tight = ("project", project) in self.tight
                overhead = self._most_overhead(new) if is_tight else self._price(new) * new.ready_us + self._once(new)
                terms[self.z[index, kind]] = overhead
                if is_tight or len(site.classes) == 1:
                    terms |= {self.x[index, task.work.id]: self._price(new) * task.expected_us for task in site.tasks}
            self._money_row(f"budget{number}", terms, ("project", project), nano)

    def _money_row(self, name: str, terms: Mapping[Any, float], key: tuple[str, str], nano: int) -> None:
        # What serves as much as money allows ends exactly at the limit, and rounding shares then goes over it.
        spendable = nano / self.unit * (0.99 if key in self.tight else 1.0)
        if spendable <= 0:
            self._row(name, terms, pulp.LpConstraintLE, 0.0)
            return
        parts = {variable: cost / spendable for variable, cost in terms.items() if cost > NEGLIGIBLE * spendable}
        if sum(part * (variable.upBound or 1) for variable, part in parts.items()) > 1:
            self._row(name, parts, pulp.LpConstraintLE, 1.0)

    def _price(self, instances: Instances) -> float:
        """Scaled money per instance-microsecond."""
        return instances.price_nano_hour / HOUR_US / self.unit

    def _once(self, instances: Instances) -> float:
        """Scaled money for each instance besides its time."""
        return instances.once_nano / self.unit

    def _cheapest(self, site: Site) -> float:
        # New and running instances of an offer may differ in price after it moved: which of them does the work is not in the
        # plan, and the lower price keeps the bound valid.
        return min(map(self._price, site.classes))

    def _most_overhead(self, instances: Instances) -> float:
        """At most what one instance costs beyond its busy time: start-up or minimum, and one increment of rounding."""
        seconds = max(ceil_div(instances.ready_us, SECOND_US), instances.minimum_s) + instances.granularity_s + 1
        return self._price(instances) * seconds * SECOND_US + self._once(instances)

    def _most_alone(self, task: Task, instances: Instances) -> float:
        """What the whole task costs on such instances alone, rounding and minimum included."""
        needed = max(1.0, task.cautious_us / (task.due_us - instances.ready_us))
        return (
            self._price(instances) * task.expected_us
            + task.data_nano / self.unit
            + needed * self._most_overhead(instances)
        )

    def minimise_cost(self, unserved_ppm: Mapping[str, int], is_started: bool = False) -> highs.Answer:
        """Least cost with at most these parts unserved; `is_started` when the variables hold a solution of that."""
        for work_id, part in self.u.items():
            part.upBound = unserved_ppm.get(work_id, 0) / PPM
        terms: dict[Any, float] = dict.fromkeys(self.top.values(), 1.0)
        for index, site in enumerate(self.problem.sites):
            rate = self._cheapest(site)
            terms |= {
                self.x[index, task.work.id]: rate * task.expected_us + task.data_nano / self.unit for task in site.tasks
            }
            terms |= {
                self.z[index, kind]: self._price(each) * each.ready_us + self._once(each)
                for kind, each in enumerate(site.classes)
            }
        self.lp.setObjective(pulp.LpAffineExpression(terms))
        return self._run(is_started)

    def _run(self, is_started: bool) -> highs.Answer:
        if len(self.x) + len(self.z) <= EXACT_COLUMNS:
            return highs.run(self.lp, relative_gap=EXACT_GAP, nodes=EXACT_NODES, is_started=is_started)
        return highs.run(self.lp, relative_gap=LARGE_GAP, nodes=LARGE_NODES, is_started=is_started)

    def minimise_unserved(self) -> dict[str, int] | None:
        """Millionths that must stay unserved, decided level by level from the highest priority down; None without an answer.

        No penalty in money is weighed against cost: a large one would poison the relative gap (a plan 8.5 % too dear was seen).
        Within a level a project's first work weighs twice what its many-th does, so that no project is left out because another
        has more waiting; then earlier deadlines weigh slightly more, so that ties are broken the same way each time.
        """
        twins = {work.id: those for those in self.groups.values() for work in those}
        firsts = [work for work in self.problem.works if twins.get(work.id, [work])[0] is work]
        turns = turns_of(firsts)
        decided: dict[str, int] = {}
        for part in self.u.values():
            part.upBound = 1
        for level in sorted({work.priority for work in firsts}, reverse=True):
            queue = sorted((work for work in firsts if work.priority == level), key=_due_first)
            weights = {
                self.u[twin.id]: 1 + 1 / (1 + turns[work.id]) + 0.1 * (len(queue) - rank) / len(queue)
                for rank, work in enumerate(queue)
                for twin in twins.get(work.id, [work])
            }
            self.lp.setObjective(pulp.LpAffineExpression(weights))
            if self._run(is_started=bool(decided)).state not in ("optimal", "gap"):
                return None
            for work in queue:
                those = twins.get(work.id, [work])
                left = _up_to_ppm(sum(self.u[twin.id].varValue for twin in those))
                for twin in those:  # whichever of them is taken in the end
                    decided[twin.id] = left
                    self.u[twin.id].upBound = left / PPM
        return decided

    def solution(self, answer: highs.Answer) -> Solution:
        # no cost is negative; HiGHS may stop at a plan that costs nothing before it has any bound
        least = max(0.0, answer.bound)
        bound = (least - BOUND_SLACK * max(1.0, least)) * self.unit
        return Solution(
            stopped_by="optimal" if answer.state == "optimal" else "gap",
            bound_nano=max(0, int(bound)),
            counts={key: variable.varValue for key, variable in self.z.items()},
            shares={key: variable.varValue for key, variable in self.x.items()},
            unserved={key: variable.varValue for key, variable in self.u.items()},
            taken={key for key, variable in self.y.items() if variable.varValue > 0.5},
        )


def _unit(problem: Problem) -> float:
    """Nano-USD in one unit of the objective: the sum of what each work costs alone on one instance, where that is least, is
    1,000.

    What costs nothing, since it is paid for anyway, says nothing of the scale. What is billed at least is in it: a batch of ten
    milliseconds on a machine by the hour costs an hour.
    """
    cheapest: dict[str, int] = {}
    for site in problem.sites:
        for task in site.tasks:
            costs = [each.cost(each.ready_us + task.expected_us) for each in site.classes]
            cost = min((each for each in costs if each > 0), default=0)
            if not cost:
                continue
            cheapest[task.work.id] = min(cost, cheapest.get(task.work.id, cost))
    return max(1e-3, sum(cheapest.values()) / 1000)


def _most_useful(site: Site, new: Instances) -> int:
    """As many new instances as finish all tasks of the site in time by themselves: more are never needed."""
    load, most = 0, 1
    for task in site.tasks:
        load += task.cautious_us
        if task.due_us > new.ready_us:
            time_each = int((task.due_us - new.ready_us) * (1 - MARGIN))
            most = max(most, ceil_div(load, max(1, time_each)))
    return most


def _due_first(work: Work) -> tuple[int, str]:
    return (work.deadline_us, work.id)


def _up_to_ppm(part: float) -> int:
    """An unserved part in millionths, with a little room for the solver's tolerance; a crumb that would be served is not."""
    if part < 1e-6:
        return 0
    return PPM if part > 1 - CRUMB else int(part * PPM) + 10
