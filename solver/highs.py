"""HiGHS through PuLP, told the truth in both directions.

PuLP 3.3.2's own bridge ignores misspelt options, raises KeyError when a node limit is reached, calls a stop by time "Optimal" and
leaves initial values in place when there is no solution. This one sets options itself and refuses unknown ones, copies
values only from a feasible solution, and reads gap and bound from HiGHS. No clock: a run stops on gap or on its node count, so
that the same program gives the same answer bit for bit.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import highspy
import pulp

FEASIBLE = 2


@dataclass(frozen=True, slots=True)
class Answer:
    """What HiGHS found. `infeasible` is proven; `none` means stopped without a solution. `bound` is the proven lower bound."""

    state: Literal["optimal", "gap", "infeasible", "none"]
    objective: float
    bound: float


class Honest(pulp.HiGHS):  # type: ignore[misc]
    """PuLP's in-process HiGHS with options that are checked and results that are read from HiGHS itself."""

    def __init__(self, options: Mapping[str, bool | int | float | str], is_started: bool) -> None:
        super().__init__(msg=False)
        self.own_options = dict(options)
        self.is_started = is_started

    def callSolver(self, lp: Any) -> None:
        model = lp.solverModel
        for key, value in self.own_options.items():
            if model.setOptionValue(key, value) != highspy.HighsStatus.kOk:
                raise ValueError(f"HiGHS knows no option {key} = {value!r}")
        if self.is_started:
            start = highspy.HighsSolution()
            start.col_value = [variable.varValue for variable in sorted(lp.variables(), key=lambda each: each.index)]
            model.setSolution(start)
        model.run()

    def findSolutionValues(self, lp: Any) -> tuple[int, int]:
        model = lp.solverModel
        status = model.getModelStatus()
        if model.getInfo().primal_solution_status == FEASIBLE:
            values = list(model.getSolution().col_value)
            for variable in lp.variables():
                variable.varValue = values[variable.index]
            if status == highspy.HighsModelStatus.kOptimal:
                return pulp.LpStatusOptimal, pulp.LpSolutionOptimal
            return pulp.LpStatusNotSolved, pulp.LpSolutionIntegerFeasible
        if status in (highspy.HighsModelStatus.kInfeasible, highspy.HighsModelStatus.kUnboundedOrInfeasible):
            return pulp.LpStatusInfeasible, pulp.LpSolutionInfeasible
        return pulp.LpStatusNotSolved, pulp.LpSolutionNoSolutionFound


def run(program: Any, *, relative_gap: float, nodes: int, is_started: bool = False) -> Answer:
    """Solve a PuLP minimisation. Single thread, fixed seed, stopped by `relative_gap` or after `nodes` branch nodes.

    With `is_started`, the values that the variables have now (a solution of the same rows) are where it begins.
    """
    options: dict[str, bool | int | float | str] = {
        "threads": 1,
        "parallel": "off",
        "random_seed": 7,
        "mip_rel_gap": relative_gap,
        "mip_max_nodes": nodes,
    }
    program.solve(Honest(options, is_started))
    info = program.solverModel.getInfo()
    if program.sol_status == pulp.LpSolutionInfeasible:
        return Answer("infeasible", math.inf, math.inf)
    if program.sol_status == pulp.LpSolutionNoSolutionFound:
        return Answer("none", math.inf, -math.inf)
    objective = float(info.objective_function_value)
    if not any(variable.cat == pulp.LpInteger for variable in program.variables()):
        return Answer("optimal", objective, objective)
    bound = min(float(info.mip_dual_bound), objective)
    is_proven = objective - bound <= 1e-6 * max(1.0, abs(objective))
    return Answer("optimal" if is_proven else "gap", objective, bound)
