"""The only map from what went wrong to HTTP (contract C9): status, OpenAI error envelope, and whether to retry.

Rooms raise typed errors that know nothing of HTTP. Each class of theirs has a row here (a test walks all subclasses).
A status of 5xx never carries the room's message: it may hold paths or keys; it is logged with the request id instead.
"""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from types import MappingProxyType

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from broker.api.problems import Problem
from broker.api.shapes import ApiError, ErrorEnvelope
from broker.compliance import lifecycle as compliance
from broker.database import UNAVAILABLE
from broker.envelope import Unopenable
from broker.keyring import KekUnavailable
from jobs import errors as jobs
from ledger import errors as ledger
from markets import errors as markets
from solver import errors as solver
from solver.backtest.errors import BadPrices, BadTrace

STATUS: Mapping[type[Exception], int] = MappingProxyType(
    {
        jobs.FileNotFound: 404,
        jobs.BadCursor: 400,
        jobs.FileGone: 404,  # not 410: the stock clients have a typed NotFoundError and nothing for 410
        jobs.FileTooLarge: 413,
        jobs.UploadTooLate: 422,
        jobs.UploadNotFound: 404,
        jobs.BadUpload: 400,
        jobs.BatchNotFound: 404,
        jobs.BadBatch: 400,
        jobs.BadTransition: 422,
        jobs.NothingToRetry: 422,
        jobs.InputGone: 422,  # not 404: the batch is there
        jobs.IdempotencyMismatch: 422,
        jobs.LeaseUnknown: 404,
        jobs.LeaseLost: 422,
        jobs.BadToken: 403,
        jobs.ObjectExists: 412,
        jobs.ObjectMissing: 500,  # a row of ours names an object that is not there
        jobs.ObjectCorrupt: 500,
        jobs.KeyDestroyed: 404,  # as a deleted file
        jobs.ObjectTampered: 500,
        jobs.StoreFailed: 503,
        jobs.KeyUnreadable: 503,  # an operator gives the key back; the log says which
        jobs.StoreUnfit: 500,
        jobs.CountsDisagree: 500,
        jobs.JobsError: 500,
        ledger.HoldExceeded: 403,  # not 402 or 429, which the stock clients map badly or retry
        ledger.HoldResolved: 422,
        ledger.HoldUnknown: 404,
        ledger.KeyReused: 500,
        ledger.Unbalanced: 500,
        ledger.UnknownAccount: 500,
        ledger.MalformedEvent: 500,
        ledger.LimitExceeded: 403,
        ledger.UnknownUnit: 422,
        ledger.PeriodClosed: 422,
        ledger.LotsExhausted: 422,
        ledger.NoRate: 422,
        ledger.MalformedRate: 400,
        ledger.RateReused: 422,
        ledger.LedgerError: 500,
        markets.NoCapacity: 503,
        markets.QuotaExceeded: 503,
        markets.PriceMoved: 503,
        markets.RentalNotFound: 404,
        markets.NotAuthorized: 500,  # our credentials at a provider, not the caller's
        markets.NoCredentials: 500,
        markets.AccountChanged: 500,
        markets.ShapeDrift: 503,
        markets.BadCard: 422,
        markets.RateLimited: 503,
        markets.Ambiguous: 503,
        markets.StillReleasing: 503,
        markets.PartialList: 503,
        markets.Unavailable: 503,
        markets.Unsupported: 500,  # a question that this adapter says it cannot answer: ours to not ask
        markets.RentalUnknown: 404,
        markets.IllegalTransition: 422,
        markets.BadOffer: 500,
        markets.MarketsError: 500,
        solver.UnknownCountry: 400,
        solver.UnknownClass: 400,
        solver.BadSnapshot: 500,
        solver.Unsolved: 500,
        BadTrace: 400,
        BadPrices: 400,
        solver.SolverError: 500,
        compliance.ProposalNotFound: 404,
        compliance.ProposalRefused: 422,
        compliance.VerdictRefused: 403,
        compliance.ComplianceError: 500,
        # "database is locked", connection refused: asking again is right, what may be asked twice is done once
        **dict.fromkeys(UNAVAILABLE, 503),
        Unopenable: 500,  # a key-encryption key of ours that is not here: the log says which
        KekUnavailable: 503,
    }
)

PARAM: Mapping[type[Exception], str] = MappingProxyType({solver.UnknownCountry: "x_broker.residency"})

TYPES: Mapping[int, str] = MappingProxyType(
    {
        401: "authentication_error",
        403: "permission_error",
        404: "not_found_error",
        429: "rate_limit_error",
    }
)

RETRYABLE = frozenset({425, 429, 503})


def envelope(status: int, code: str, message: str, param: str | None = None) -> ErrorEnvelope:
    """OpenAI's error body. `type` follows from the status alone."""
    kind = TYPES.get(status) or ("server_error" if status >= 500 else "invalid_request_error")
    return ErrorEnvelope(error=ApiError(message=message, type=kind, param=param, code=code))


def problem_of(error: Exception) -> Problem | None:
    """The answer to an error that we know, or None: then it is a defect."""
    if isinstance(error, Problem):
        return error
    if isinstance(error, web.HTTPException):
        return _of_http(error)
    if isinstance(error, HttpProcessingError | web.RequestPayloadError):
        return Problem(400, "invalid_http", f"The request body could not be read: {str(error)[:200]}")
    row = next((cls for cls in type(error).__mro__ if cls in STATUS), None)
    if row is None:
        return None
    return _of_room(error, STATUS[row], PARAM.get(row))


def _of_room(error: Exception, status: int, param: str | None) -> Problem:
    code = str(getattr(error, "code", "server_error"))
    if isinstance(error, UNAVAILABLE):
        return Problem(
            status, "database_busy", "The database did not answer in time; ask again.", headers={"Retry-After": "1"}
        )
    if isinstance(error, jobs.StoreFailed):
        # its message holds the store's own words, which are the operator's business
        return Problem(
            status, code, "The object store did not answer as it should; ask again.", headers={"Retry-After": "2"}
        )
    param = getattr(error, "param", None) or param
    if status == 500:
        return Problem(
            status, code, "The broker met an inconsistency while answering; it was logged under the request id."
        )
    headers: dict[str, str] = {}
    if status == 503:
        wait = getattr(error, "retry_after_s", None)
        headers["Retry-After"] = str(max(1, int(wait))) if wait else "5"
    if status in (412, 422):
        headers["x-should-retry"] = "false"
    return Problem(status, code, str(error), param=param, headers=headers)


def _of_http(error: web.HTTPException) -> Problem:
    """aiohttp's own refusals (no such route, method not allowed, body too large) in our envelope."""
    status = error.status
    allow = {"Allow": error.headers["Allow"]} if "Allow" in error.headers else {}
    known = {
        404: ("not_found", "No such path."),
        405: ("method_not_allowed", f"This path takes {allow.get('Allow', 'other methods')}."),
        413: ("request_too_large", "The request body is larger than this route takes."),
    }
    code, message = known.get(status, ("bad_request" if status < 500 else "server_error", HTTPStatus(status).phrase))
    return Problem(status, code, message, headers=allow)


def defect(request_id: str) -> Problem:
    """What a caller is told of an error that nobody expected: nothing but where to look."""
    return Problem(
        500, "internal_error", f"The broker failed to answer; the failure was logged as request {request_id}."
    )


def response_of(problem: Problem) -> web.Response:
    """The HTTP answer of a problem. Only what can pass by itself invites a retry."""
    headers = dict(problem.headers)
    if problem.status < 500 and problem.status not in RETRYABLE:
        headers.setdefault("x-should-retry", "false")
    body = envelope(problem.status, problem.code, problem.message, problem.param)
    return web.Response(
        status=problem.status, body=body.model_dump_json().encode(), content_type="application/json", headers=headers
    )
