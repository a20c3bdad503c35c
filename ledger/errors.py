"""Why the ledger refused. Nothing is written when one of these is raised."""

from typing import ClassVar


class LedgerError(Exception):
    """The ledger refused this event."""

    code: ClassVar[str] = "ledger_error"

    def __init__(self, message: str | None = None) -> None:
        super().__init__(message or (self.__doc__ or "").strip().splitlines()[0])


class KeyReused(LedgerError):
    """This event key was already posted with other content; a correction needs a key of its own."""

    code = "key_reused"


class Unbalanced(LedgerError):
    """Debits and credits of the event differ in a unit."""

    code = "unbalanced"


class UnknownAccount(LedgerError):
    """The event names an account that the chart of accounts does not have."""

    code = "unknown_account"


class HoldExceeded(LedgerError):
    """The project's budget does not cover this hold."""

    code = "hold_exceeded"


class HoldResolved(LedgerError):
    """The hold was already resolved; a hold is resolved exactly once."""

    code = "hold_resolved"


class HoldUnknown(LedgerError):
    """No hold with this id was ever opened."""

    code = "hold_unknown"


class MalformedEvent(LedgerError):
    """A field of the event cannot be booked: the message names the field, its value and what it must be."""

    code = "malformed_event"


class UnknownUnit(LedgerError):
    """The event names a unit that is no currency and no quantity of the books."""

    code = "unknown_unit"


class PeriodClosed(LedgerError):
    """The month is closed; what belongs to it is booked in the first open month, as a correction."""

    code = "period_closed"


class LimitExceeded(HoldExceeded):
    """A node of the budget tree does not cover this hold."""

    code = "limit_exceeded"


class LotsExhausted(LedgerError):
    """More of a unit would be spent than the lots hold."""

    code = "lots_exhausted"


class NoRate(LedgerError):
    """No rate between two units is known for that time."""

    code = "no_rate"


class MalformedRate(LedgerError):
    """A rate cannot be recorded: the message names what is wrong with it."""

    code = "malformed_rate"


class RateReused(LedgerError):
    """The same source said otherwise of the same time before; rates are never changed."""

    code = "rate_reused"
