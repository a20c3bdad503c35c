"""What can be wrong with the files and numbers that a backtest is given."""

from solver.errors import SolverError


class BadTrace(SolverError):
    """A file is no availability trace of a known format, or traces do not go together."""

    code = "bad_trace"


class BadPrices(SolverError):
    """A file is no price list of a known format, or lists no price of what the traces record."""

    code = "bad_prices"
