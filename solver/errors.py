"""What can be wrong with a snapshot. An infeasible queue is not an error: it is a plan with `unplaced` work."""

from typing import ClassVar


class SolverError(Exception):
    """The planner could not work on this snapshot."""

    code: ClassVar[str] = "solver_error"

    def __init__(self, message: str | None = None) -> None:
        super().__init__(message or (self.__doc__ or "").strip().splitlines()[0])


class BadSnapshot(SolverError):
    """The snapshot contradicts itself: an id twice, a policy or fact that is referred to and absent, a negative amount."""

    code = "bad_snapshot"


class Unsolved(SolverError):
    """HiGHS gave no optimal solution of a linear program that always has one."""

    code = "unsolved"


class UnknownCountry(SolverError):
    """A residency list names something that is neither an ISO 3166 alpha-2 code nor a known group."""

    code = "unknown_country"


class UnknownClass(SolverError):
    """A data class is none of the ordered ones."""

    code = "unknown_data_class"
