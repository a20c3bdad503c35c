"""What botocore raises, as our typed errors. Pure, but for the import of botocore's classes where they are needed."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectTimeoutError,
    EndpointConnectionError,
    NoCredentialsError,
    NoRegionError,
    PartialCredentialsError,
    ProxyConnectionError,
    TokenRetrievalError,
    UnauthorizedSSOTokenError,
)

from markets.errors import (
    Ambiguous,
    MarketsError,
    NoCapacity,
    NotAuthorized,
    PriceMoved,
    QuotaExceeded,
    RateLimited,
    Unavailable,
)

# Source: EC2 API reference, "Error codes for the Amazon EC2 API"; Fleet errors: "CreateFleet", Errors.
_CODES: Mapping[str, type[MarketsError]] = MappingProxyType(
    {
        "InsufficientInstanceCapacity": NoCapacity,
        "InsufficientCapacity": NoCapacity,
        "InsufficientHostCapacity": NoCapacity,
        "InsufficientFreeAddressesInSubnet": NoCapacity,
        "UnfulfillableCapacity": NoCapacity,
        "Unsupported": NoCapacity,  # this type is not offered in this zone (any more)
        "SpotMaxPriceTooLow": PriceMoved,  # the bound that we sent is below what spot costs now
        "VcpuLimitExceeded": QuotaExceeded,
        "InstanceLimitExceeded": QuotaExceeded,
        "MaxSpotInstanceCountExceeded": QuotaExceeded,
        "VolumeLimitExceeded": QuotaExceeded,
        "MaxIOPSLimitExceeded": QuotaExceeded,
        "UnauthorizedOperation": NotAuthorized,
        "AuthFailure": NotAuthorized,
        "AccessDenied": NotAuthorized,
        "AccessDeniedException": NotAuthorized,
        "ExpiredToken": NotAuthorized,
        "ExpiredTokenException": NotAuthorized,
        "RequestExpired": NotAuthorized,
        "InvalidAccessKeyId": NotAuthorized,
        "InvalidClientTokenId": NotAuthorized,
        "UnrecognizedClientException": NotAuthorized,
        "SignatureDoesNotMatch": NotAuthorized,
        "MissingAuthenticationToken": NotAuthorized,
        "OptInRequired": NotAuthorized,
        "Blocked": NotAuthorized,
        "PendingVerification": NotAuthorized,
        "RequestLimitExceeded": RateLimited,
        "Throttling": RateLimited,
        "ThrottlingException": RateLimited,
        "TooManyRequestsException": RateLimited,
        "EC2ThrottledException": RateLimited,
    }
)
# Another request under this ClientToken made something, or is making it.
MADE_BEFORE = frozenset({"IdempotentParameterMismatch", "IdempotentInstanceTerminated"})
_NOT_SENT = (EndpointConnectionError, ConnectTimeoutError, ProxyConnectionError)
_NO_CREDENTIALS = (NoCredentialsError, PartialCredentialsError, TokenRetrievalError, UnauthorizedSSOTokenError)


def code_of(error: Exception) -> str:
    """EC2's own word for it, or the exception's name."""
    if isinstance(error, ClientError):
        return str(error.response.get("Error", {}).get("Code", "unknown"))
    return type(error).__name__


def market_error(error: ClientError | BotoCoreError, what: str, *, may_create: bool) -> MarketsError:
    """The typed error. `what` says what was asked, and of which region.

    `may_create`: after a request that creates something, whatever leaves its outcome open is Ambiguous, else Unavailable.
    """
    open_outcome: type[MarketsError] = Ambiguous if may_create else Unavailable
    if isinstance(error, _NO_CREDENTIALS):
        return NotAuthorized(f"aws: {what}: {error}; set aws.access_key_id and aws.secret_access_key, or give a role")
    if isinstance(error, (*_NOT_SENT, NoRegionError)):
        return Unavailable(f"aws: {what}: {error}")
    if isinstance(error, ClientError):
        return _refusal(error, what, open_outcome)
    return open_outcome(f"aws: {what} ended without an answer: {error}")


def _refusal(error: ClientError, what: str, open_outcome: type[MarketsError]) -> MarketsError:
    code, message = code_of(error), f"aws: {what}: {error.response.get('Error', {}).get('Message', error)}"
    status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    if code in _CODES:
        return _CODES[code](f"{message} ({code})")
    if code in MADE_BEFORE:
        return Ambiguous(f"{message} ({code})")
    if status >= 500:
        return open_outcome(f"{message} ({code}, status {status})")
    return MarketsError(f"{message} ({code})")


def fleet_error(errors: list[Mapping[str, str]], what: str) -> MarketsError:
    """Why an instant fleet made nothing. Of several reasons, the one that a person can do something about is named first."""
    found = [_CODES.get(each.get("ErrorCode", ""), MarketsError) for each in errors]
    words = "; ".join(sorted({f"{each.get('ErrorMessage', '')} ({each.get('ErrorCode')})" for each in errors}))
    for kind in (NotAuthorized, QuotaExceeded, RateLimited, PriceMoved, NoCapacity):
        if kind in found:
            return kind(f"aws: {what}: {words}")
    return NoCapacity(f"aws: {what}: made nothing: {words or 'no reason given'}")
