"""Everything that a market can answer instead of doing what was asked.

The docstring of each class is its default message. `Market` (market.py) says which method raises which.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from markets.market import Rental


class MarketsError(Exception):
    """A market could not do what was asked."""

    code: ClassVar[str] = "market_error"

    def __init__(self, message: str | None = None) -> None:
        super().__init__(message or (self.__doc__ or "").strip().splitlines()[0])


class NoCapacity(MarketsError):
    """The market has none of this offer left right now; nothing was created."""

    code = "no_capacity"


class QuotaExceeded(MarketsError):
    """The account's quota at this market is used up; nothing was created."""

    code = "quota_exceeded"


class PriceMoved(MarketsError):
    """The offer now costs more than the price that was planned with; nothing was created."""

    code = "price_moved"


class RentalNotFound(MarketsError):
    """The market knows no rental with this tag."""

    code = "rental_not_found"


class NotAuthorized(MarketsError):
    """The market refused our credentials."""

    code = "not_authorized"


class AccountChanged(NotAuthorized):
    """The login is of another account than the one that our machines run in; nothing was asked."""

    code = "account_changed"


class RateLimited(MarketsError):
    """The market asked us to slow down."""

    code = "rate_limited"

    def __init__(self, message: str | None = None, *, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class Ambiguous(MarketsError):
    """The call may or may not have created something: look for the tag before anything else."""

    code = "ambiguous"


class StillReleasing(MarketsError):
    """The market has not yet confirmed that the rental is gone; it may still be billed."""

    code = "still_releasing"


class PartialList(MarketsError):
    """The market's list of rentals is incomplete; nothing may be concluded from what is missing in it.

    `found` is what could be listed: those rentals are facts, and their meters go on.
    """

    code = "partial_list"

    def __init__(self, message: str | None = None, *, found: Sequence[Rental] = ()) -> None:
        super().__init__(message)
        self.found = tuple(found)


class Unavailable(MarketsError):
    """The market did not answer, or answered with a server error; nothing is known."""

    code = "unavailable"


class Unsupported(MarketsError):
    """This market cannot do that."""

    code = "unsupported"


class BadCard(MarketsError):
    """A price card is not as it must be; none of its prices is used."""

    code = "bad_card"


class NoCredentials(NotAuthorized):
    """There are no credentials for this market; nothing was asked."""

    code = "no_credentials"


class ShapeDrift(Unavailable):
    """The market answered in another shape than its documents say; nothing of the answer is used."""

    code = "shape_drift"


class BadOffer(MarketsError):
    """A value that a market sent cannot be made into an offer."""

    code = "bad_offer"


class RentalUnknown(MarketsError):
    """Our own database has no rental with this id."""

    code = "rental_unknown"


class IllegalTransition(MarketsError):
    """A rental cannot go from its state to the state that was asked for."""

    code = "illegal_transition"
