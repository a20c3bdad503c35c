"""One map from what went wrong to HTTP: complete, in OpenAI's envelope, and silent about our insides."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from aiohttp import web

from broker.api.errors import STATUS, defect, problem_of, response_of
from broker.api.problems import Problem, bad_request, conflict, unavailable
from jobs.errors import BatchNotFound, IdempotencyMismatch, JobsError, ObjectCorrupt
from ledger.errors import HoldExceeded, LedgerError
from markets.errors import MarketsError, RateLimited
from solver.errors import SolverError, UnknownCountry


def kinds(base: type[Exception]) -> Iterator[type[Exception]]:
    for each in base.__subclasses__():
        yield each
        yield from kinds(each)


@pytest.mark.parametrize("base", [JobsError, LedgerError, MarketsError, SolverError])
def test_every_error_of_a_room_has_a_status_of_its_own(base: type[Exception]) -> None:
    missing = [each.__name__ for each in kinds(base) if each not in STATUS and each.__module__.endswith(".errors")]
    assert not missing, f"these errors would be answered as their base class: {missing}"


def test_no_error_of_ours_is_answered_with_409() -> None:
    """The stock clients retry 409; a conflict would be sent three times."""
    assert 409 not in STATUS.values()
    assert conflict("x", "y").status == 422
    assert response_of(conflict("x", "y")).headers["x-should-retry"] == "false"


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (BatchNotFound("no batch 'b'", param="batch_id"), 404, "batch_not_found"),
        (IdempotencyMismatch(), 422, "idempotency_mismatch"),
        (HoldExceeded("no"), 403, "hold_exceeded"),  # not 402 or 429: the clients map these badly
        (UnknownCountry("'XX' is neither"), 400, "unknown_country"),
        (RateLimited("slow", retry_after_s=7.2), 503, "rate_limited"),
        (web.HTTPNotFound(), 404, "not_found"),
        (web.HTTPMethodNotAllowed("PUT", ["GET", "POST"]), 405, "method_not_allowed"),
    ],
)
def test_a_typed_error_keeps_its_code(error: Exception, status: int, code: str) -> None:
    problem = problem_of(error)
    assert problem is not None
    assert (problem.status, problem.code) == (status, code)


def test_retry_after_comes_from_the_error() -> None:
    problem = problem_of(RateLimited("slow", retry_after_s=7.2))
    assert problem is not None
    assert problem.headers["Retry-After"] == "7"


def test_the_allow_header_of_405_survives() -> None:
    problem = problem_of(web.HTTPMethodNotAllowed("PUT", ["GET", "POST"]))
    assert problem is not None
    assert response_of(problem).headers["Allow"] == "GET,POST"


def test_a_server_error_does_not_tell_what_it_found() -> None:
    problem = problem_of(ObjectCorrupt("object secret/key differs"))
    assert problem is not None
    assert problem.status == 500
    assert "secret" not in problem.message


def test_an_unknown_error_is_a_defect_that_names_only_the_request() -> None:
    assert problem_of(KeyError("password")) is None
    answer = response_of(defect("req_1"))
    assert answer.status == 500
    assert b"req_1" in (answer.body or b"")  # type: ignore[operator]


def test_what_may_pass_by_itself_invites_a_retry_and_nothing_else_does() -> None:
    assert "x-should-retry" not in response_of(unavailable("busy", "later")).headers
    assert response_of(bad_request("x", "y")).headers["x-should-retry"] == "false"
    assert "x-should-retry" not in response_of(Problem(425, "early", "later")).headers


async def test_a_defect_is_told_to_the_log_without_secrets_and_to_the_caller_not_at_all(
    server: Any, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    async def broken(*_args: object, **_names: object) -> None:
        raise RuntimeError("secret inside")

    monkeypatch.setattr("broker.api.models.listed_offers", broken)
    answer = await server.call("GET", "/v1/models")
    assert answer.status == 500
    assert b"secret" not in answer.raw
    assert answer.code == "internal_error"
    assert answer.headers["x-request-id"] in answer.json["error"]["message"]
    out, err = capfd.readouterr()
    assert "secret inside" in out + err, "the log has what the caller is not told"
    assert repr(server.services.secret) not in out + err, (
        "a traceback with local variables would show the signing secret"
    )


async def test_every_answer_says_which_request_it_answers(server: Any) -> None:
    for path in ("/healthz", "/v1/models", "/nowhere", "/v1/batches/batch_none"):
        assert (await server.call("GET", path)).headers["x-request-id"].startswith("req_")
    named = await server.call("GET", "/healthz", headers={"x-request-id": "mine-1"})
    assert named.headers["x-request-id"] == "mine-1"
    forged = await server.call("GET", "/healthz", headers={"x-request-id": "a b"})
    assert forged.headers["x-request-id"].startswith("req_")
