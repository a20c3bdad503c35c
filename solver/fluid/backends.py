"""Two ways to solve a `Program`: HiGHS handed the arrays themselves, and PuLP, which models and converts it.

PuLP is the way for queues of up to about a thousand classes and for any solver that it knows; building costs it twelve times
as much, which only shows at scale. Both give the same objective; a test holds them to it.
"""

from __future__ import annotations

from typing import Any

import highspy
import numpy as np
import pulp

from solver import highs
from solver.errors import Unsolved
from solver.fluid.figures import Floats
from solver.fluid.master import Answer, Program, scarcity_of
from solver.fluid.prices import Pricing

# Up to this many classes PuLP is the way.
PULP_CLASSES = 1_000


def solve(
    pricing: Pricing, program: Program, edges: Floats, before: Answer | None = None, backend: str | None = None
) -> Answer:
    """The optimum. `before` is the answer to a program with fewer columns or other prices, to start from.

    Raises Unsolved when the back-end says anything but optimal.
    """
    backend = backend or ("pulp" if program.classes <= PULP_CLASSES else "highs")
    if backend == "pulp":
        return _by_pulp(pricing, program, edges)
    return _by_highs(pricing, program, edges, before)


def _by_highs(pricing: Pricing, program: Program, edges: Floats, before: Answer | None) -> Answer:
    model: Any = highspy.Highs()  # type: ignore[no-untyped-call]
    for key, value in _OPTIONS.items():
        if model.setOptionValue(key, value) != highspy.HighsStatus.kOk:
            raise ValueError(f"HiGHS knows no option {key} = {value!r}")
    model.passModel(_lp(program))
    resources = len(pricing.figures.resources)
    if before is not None and isinstance(before.basis, _Basis):
        model.setBasis(before.basis.carried_to(program, resources))
    model.run()
    if model.getModelStatus() != highspy.HighsModelStatus.kOptimal:
        raise Unsolved(f"HiGHS: {model.modelStatusToString(model.getModelStatus())}")
    solution = model.getSolution()
    values = np.maximum(0.0, np.array(solution.col_value))
    many = len(program.columns.k)
    prices = np.array(solution.row_dual)[program.classes :]
    return Answer(
        x=values[:many],
        u=values[many : many + program.classes],
        scarcity=scarcity_of(pricing, program, prices, edges),
        objective=float(model.getInfo().objective_function_value),
        basis=_Basis.of(model.getBasis(), program, resources),
    )


_OPTIONS: dict[str, bool | int | float | str] = {
    "output_flag": False,
    "threads": 1,
    "parallel": "off",
    "random_seed": 7,
    "solver": "simplex",
}


def _lp(program: Program) -> Any:
    lp = highspy.HighsLp()
    lp.num_col_, lp.num_row_ = len(program.cost), len(program.row_upper)
    lp.col_cost_ = program.cost
    lp.col_lower_ = np.zeros(len(program.cost))
    lp.col_upper_ = np.full(len(program.cost), np.inf)
    lp.row_lower_, lp.row_upper_ = program.row_lower, program.row_upper
    lp.a_matrix_.format_ = highspy.MatrixFormat.kColwise
    lp.a_matrix_.start_ = program.starts.astype(np.int32)
    lp.a_matrix_.index_ = program.index.astype(np.int32)
    lp.a_matrix_.value_ = program.value
    return lp


class _Basis:
    """Which columns and rows were basic, by what they stand for, so that it fits a program with other columns."""

    def __init__(
        self,
        columns: dict[int, Any],
        spare: list[Any],
        carries: dict[tuple[str, int, int], Any],
        rows: dict[tuple[str, int, int], Any],
        served: list[Any],
    ) -> None:
        self.columns, self.spare, self.carries, self.rows, self.served = columns, spare, carries, rows, served

    @staticmethod
    def of(basis: Any, program: Program, resources: int) -> _Basis:
        columns, rows = list(basis.col_status), list(basis.row_status)
        many = len(program.columns.k)
        codes = program.columns.code(resources).tolist()
        return _Basis(
            dict(zip(codes, columns[:many], strict=True)),
            columns[many : many + program.classes],
            dict(zip(program.carries, columns[many + program.classes :], strict=True)),
            dict(zip(program.rows, rows[program.classes :], strict=True)),
            rows[: program.classes],
        )

    def carried_to(self, program: Program, resources: int) -> Any:
        """New columns are at zero, new rows are slack: as far as it goes still a basis."""
        lower, basic = highspy.HighsBasisStatus.kLower, highspy.HighsBasisStatus.kBasic
        basis = highspy.HighsBasis()
        codes = program.columns.code(resources).tolist()
        basis.col_status = [self.columns.get(code, lower) for code in codes] + self.spare
        basis.col_status += [self.carries.get(row, lower) for row in program.carries]
        basis.row_status = self.served + [self.rows.get(row, basic) for row in program.rows]
        basis.valid = True
        return basis


def _by_pulp(pricing: Pricing, program: Program, edges: Floats) -> Answer:
    lp = pulp.LpProblem("classes", pulp.LpMinimize)
    variables = [lp.add_variable(f"c{number}", 0) for number in range(len(program.cost))]
    terms: list[dict[Any, float]] = [{} for _ in program.row_upper]
    starts, index, value = program.starts.tolist(), program.index.tolist(), program.value.tolist()
    for number, variable in enumerate(variables):
        for place in range(starts[number], starts[number + 1]):
            terms[index[place]][variable] = value[place]
    for number, each in enumerate(terms):
        sense = pulp.LpConstraintEQ if number < program.classes else pulp.LpConstraintLE
        lp.addConstraint(
            pulp.LpConstraint(pulp.LpAffineExpression(each), sense, f"r{number}", float(program.row_upper[number]))
        )
    lp.setObjective(pulp.LpAffineExpression(dict(zip(variables, program.cost.tolist(), strict=True))))
    answer = highs.run(lp, relative_gap=0.0, nodes=1)
    if answer.state != "optimal":
        raise Unsolved(f"HiGHS through PuLP: {answer.state}")
    values: Floats = np.maximum(0.0, np.array([variable.varValue for variable in variables]))
    prices = np.array(lp.solverModel.getSolution().row_dual)[program.classes :]
    many = len(program.columns.k)
    unserved = values[many : many + program.classes]
    return Answer(values[:many], unserved, scarcity_of(pricing, program, prices, edges), answer.objective)
